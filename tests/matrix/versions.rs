//! Which server is older, and what each knows.

/// A server by family and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    valkey: bool,
    number: (u16, u16),
}

/// The versions from which on something is known.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    redis: Option<(u16, u16)>,
    valkey: Option<(u16, u16)>,
}

fn number(text: &str) -> Option<(u16, u16)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.trim_end_matches("rc").parse().ok()?))
}

impl Needs {
    pub fn parse(redis: &str, valkey: &str) -> Self {
        Self { redis: number(redis), valkey: number(valkey) }
    }
}

impl Version {
    /// From what INFO says.
    pub fn of(info: &str) -> Self {
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let of = |text: &str| {
            let mut parts = text.trim().split('.').map(|part| part.parse().unwrap_or(0));
            (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
        };
        if let Some(valkey) = field("valkey_version") {
            return Self { valkey: true, number: of(valkey) };
        }
        let number = of(field("redis_version").expect("a version"));
        // A release candidate of 4.0 calls itself 3.9.
        Self { valkey: false, number: if number == (3, 9) { (4, 0) } else { number } }
    }

    pub fn has(self, needs: Needs) -> bool {
        let needs = if self.valkey { needs.valkey } else { needs.redis };
        needs.is_some_and(|needs| self.number >= needs)
    }

    /// Whether it is at least this Redis, or as new.
    pub fn since(self, redis: &str, valkey: &str) -> bool {
        self.has(Needs::parse(redis, valkey))
    }
}
