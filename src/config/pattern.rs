//! Patterns of keys: globs as `KEYS` and `SCAN … MATCH` understand them, and regular expressions.

use serde::{Deserialize, Serialize};

/// One pattern, as it stands in the configuration: `user:*`, or `regex:^user:[0-9]+$`.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// Everything that begins so: `user:*` without another special character.
    Prefix(Vec<u8>),
    Glob(Vec<u8>),
    Regex(regex::bytes::Regex),
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let kind = match text.strip_prefix("regex:") {
            Some(expression) => {
                let built = regex::bytes::RegexBuilder::new(expression).unicode(false).build();
                // Its text draws the place over several lines; the last one says what is wrong.
                let what = |error: regex::Error| {
                    let text = error.to_string();
                    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
                };
                Kind::Regex(built.map_err(what)?)
            }
            None if text.is_empty() => return Err("it is empty".into()),
            None => match text.strip_suffix('*') {
                Some(start) if !start.contains(['*', '?', '[', '\\']) => Kind::Prefix(start.into()),
                _ => Kind::Glob(text.into()),
            },
        };
        Ok(Self { text: text.to_owned(), kind })
    }

    /// Whether a key is meant.
    pub fn matches(&self, key: &[u8]) -> bool {
        match &self.kind {
            Kind::Prefix(start) => key.starts_with(start),
            Kind::Glob(glob) => matches_glob(glob, key),
            Kind::Regex(regex) => regex.is_match(key),
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text)
            .map_err(|why| serde::de::Error::custom(format!("{text:?} is no pattern of keys: {why}")))
    }
}

/// `*`, `?`, `[a-z]`, `[^a-z]` and `\` before any of them, as `stringmatchlen` of util.c reads them. Where a `*` has been met, only the last
/// one is gone back to, so the time is bounded by the product of both lengths.
fn matches_glob(glob: &[u8], key: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match glob.get(at) {
            Some(b'*') => {
                star = Some((at + 1, from));
                at += 1;
                continue;
            }
            None if from == key.len() => return true,
            None => None,
            Some(_) => key.get(from).and_then(|&byte| one(&glob[at..], byte)),
        };
        match (step, &mut star) {
            (Some(length), _) => {
                at += length;
                from += 1;
            }
            (None, Some((behind, tried))) if *tried < key.len() => {
                *tried += 1;
                (at, from) = (*behind, *tried);
            }
            (None, _) => return false,
        }
    }
}

/// How long the pattern's first element is, if it matches the byte.
fn one(glob: &[u8], byte: u8) -> Option<usize> {
    match glob {
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', rest @ ..] => {
            let (not, set) = match rest {
                [b'^', set @ ..] => (true, set),
                set => (false, set),
            };
            let (mut at, mut found) = (0, false);
            loop {
                at += match &set[at..] {
                    [] | [b']', ..] => break,
                    [b'\\', escaped, ..] => {
                        found |= *escaped == byte;
                        2
                    }
                    [low, b'-', high, ..] => {
                        found |= (*low.min(high)..=*low.max(high)).contains(&byte);
                        3
                    }
                    [single, ..] => {
                        found |= *single == byte;
                        1
                    }
                };
            }
            // A set that is not closed ends with the pattern.
            let length = 1 + usize::from(not) + (at + 1).min(set.len());
            (found != not).then_some(length)
        }
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(pattern: &str, key: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(key.as_bytes())
    }

    #[test]
    fn globs_mean_what_keys_says() {
        for (pattern, yes, no) in [
            ("user:*", "user:", "use:1"),
            ("*", "", ""),
            ("*:cache", "a:b:cache", "a:cache:"),
            ("h?llo", "hello", "hllo"),
            ("h[ae]llo", "hallo", "hillo"),
            ("h[^e]llo", "hallo", "hello"),
            ("h[a-c]llo", "hbllo", "hdllo"),
            ("a\\*b", "a*b", "axb"),
            ("a*b*c", "a--b--b--c", "a--b--"),
            ("[\\]]x", "]x", "x"),
            ("a[bc", "ab", "ad"),
            ("exact", "exact", "exactly"),
            ("regex:^u[0-9]+$", "u17", "u"),
        ] {
            assert!(is(pattern, yes), "{pattern} {yes}");
            assert!(pattern == "*" || !is(pattern, no), "{pattern} {no}");
        }
        // Not exponential.
        assert!(!is(&"*a".repeat(30), &"a".repeat(29)));
        assert!(Pattern::parse("").is_err());
        assert_eq!(Pattern::parse("regex:(").unwrap_err(), "unclosed group");
    }
}
