//! The answer to INFO.

use std::collections::HashMap;

/// The fields of one INFO answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    fields: HashMap<String, String>,
}

/// One line of `INFO keyspace`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyspace {
    /// The db's number.
    pub db: u32,
    /// Its keys, those included that are expired and not yet removed.
    pub keys: u64,
    /// How many of them carry an expiry.
    pub expires: u64,
    /// How many hashes have fields that carry one (`subexpiry` from Redis 7.4 on, `keys_with_volatile_items` from Valkey 9 on).
    pub field_expires: u64,
}

impl Info {
    /// Takes the fields out of the text; lines that are none are passed over.
    pub fn parse(text: &str) -> Self {
        let fields = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim_end().to_owned()))
            .collect();
        Self { fields }
    }

    /// A field's text.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// A field that is a whole number.
    pub fn u64(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// The dbs that hold keys, by number (`db0:keys=1,expires=0,avg_ttl=0`).
    pub fn keyspace(&self) -> Vec<Keyspace> {
        let mut dbs: Vec<_> = self.fields.iter().filter_map(|(name, value)| keyspace(name, value)).collect();
        dbs.sort_by_key(|space| space.db);
        dbs
    }
}

fn keyspace(name: &str, value: &str) -> Option<Keyspace> {
    let db = name.strip_prefix("db")?.parse().ok()?;
    let part = |wanted: &str| {
        value.split(',').find_map(|part| part.strip_prefix(wanted)?.strip_prefix('=')?.parse().ok())
    };
    let field_expires = part("subexpiry").or_else(|| part("keys_with_volatile_items")).unwrap_or(0);
    Some(Keyspace { db, keys: part("keys")?, expires: part("expires").unwrap_or(0), field_expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_sections_and_dbs() {
        let info = Info::parse(
            "# Server\r\nredis_version:7.0.15\r\nuptime_in_seconds:12\r\n\r\n# Keyspace\r\n\
             db11:keys=5,expires=1,avg_ttl=3\r\ndb0:keys=7,expires=0,avg_ttl=0,subexpiry=2\r\ndbx:keys=1\r\n",
        );
        assert_eq!(info.get("redis_version"), Some("7.0.15"));
        assert_eq!(info.u64("uptime_in_seconds"), Some(12));
        assert_eq!(info.u64("redis_version"), None);
        assert_eq!(
            info.keyspace(),
            [
                Keyspace { db: 0, keys: 7, expires: 0, field_expires: 2 },
                Keyspace { db: 11, keys: 5, expires: 1, field_expires: 0 }
            ]
        );
    }
}
