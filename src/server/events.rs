//! Which keyspace notifications a server sends (`notify-keyspace-events`): subscribers notice when another server sends fewer.

use std::collections::BTreeSet;

use super::Client;
use crate::error::Result;

/// The classes that `A` stands for (`notify.c`, `NOTIFY_ALL`).
const ALL: &str = "g$lshzxetd";

/// A server's setting, class by class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Events(BTreeSet<char>);

impl Events {
    /// What a server is set to; `None` where it keeps that to itself.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn ask(client: &mut Client) -> Result<Option<Self>> {
        Ok(client.setting("notify-keyspace-events").await?.map(|text| Self::parse(&text)))
    }

    /// From the words of the configuration, such as `KEA`.
    pub fn parse(text: &str) -> Self {
        let each =
            text.chars().flat_map(|class| if class == 'A' { ALL.chars().collect() } else { vec![class] });
        let classes: BTreeSet<char> = each.collect();
        // Without K and E nothing is sent, whatever the classes.
        if classes.contains(&'K') || classes.contains(&'E') { Self(classes) } else { Self::default() }
    }

    /// The classes that `other` does not send, if any.
    pub fn lacking_in(&self, other: &Self) -> Option<String> {
        let lacking: String = self.0.difference(&other.0).collect();
        (!lacking.is_empty()).then_some(lacking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_server_sends_and_another_does_not() {
        let lacking = |one: &str, other: &str| Events::parse(one).lacking_in(&Events::parse(other));
        assert_eq!(lacking("KEA", "AKE"), None);
        assert_eq!(lacking("", "KEA"), None);
        assert_eq!(lacking("g$", ""), None);
        assert_eq!(lacking("Kg$lshzxetd", "KA"), None);
        assert_eq!(lacking("KEx", "Kx").as_deref(), Some("E"));
        assert_eq!(lacking("KAm", "KA").as_deref(), Some("m"));
        assert_eq!(lacking("Ex", "").as_deref(), Some("Ex"));
    }
}
