//! From text to [`File`]: `${ENV}` inside of values, then types, with errors that name the line and
//! the nearest valid key. No error shows the text of a value that may be a secret.

use std::path::Path;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, File};

/// How a variable of the environment is looked up; tests give their own.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads the text of a file; `path` only names it in errors.
pub(super) fn read(text: &str, path: &Path, environment: Environment<'_>) -> Result<File, ConfigError> {
    let place = |span: Option<std::ops::Range<usize>>| match span {
        Some(span) => {
            let before = &text.as_bytes()[..span.start.min(text.len())];
            format!("{}:{}", path.display(), before.iter().filter(|b| **b == b'\n').count() + 1)
        }
        None => path.display().to_string(),
    };
    let mut document = DeTable::parse(text).map_err(|error| {
        ConfigError::new(format!("{}: {}", place(error.span()), first_line(error.message())))
    })?;
    expand_table(document.get_mut(), environment)
        .map_err(|(span, message)| ConfigError::new(format!("{}: {message}", place(Some(span)))))?;
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(toml::Deserializer::from(document), &mut track);
    File::deserialize(deserializer).map_err(|error| {
        let key = track.path().to_string();
        let at = place(error.span());
        match Unknown::parse(error.message()) {
            Some(unknown) => unknown.explain(&at, &key),
            None if holds_secret(&key) => {
                ConfigError::new(format!("{at}: '{key}' has the wrong type; text is expected"))
            }
            None => ConfigError::new(format!("{at}: '{key}': {}", first_line(error.message()))),
        }
    })
}

fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or(message)
}

fn holds_secret(key: &str) -> bool {
    ["password", "token", "url", "webhook"].iter().any(|name| key.ends_with(name))
}

/// Serde's own message about an unknown field, taken apart.
struct Unknown<'a> {
    key: &'a str,
    known: Vec<&'a str>,
}

impl<'a> Unknown<'a> {
    fn parse(message: &'a str) -> Option<Self> {
        let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
        let key = quoted.next()?;
        Some(Self { key, known: quoted.collect() })
    }

    /// `path` ends with the unknown key itself when serde has told the tracker about it.
    fn explain(&self, at: &str, path: &str) -> ConfigError {
        let table = match path.rsplit_once('.') {
            Some((table, last)) if last == self.key => format!("[{table}]"),
            None if path == self.key || path == "." => "the top level".into(),
            _ => format!("[{path}]"),
        };
        let nearest = self
            .known
            .iter()
            .map(|known| (strsim::normalized_damerau_levenshtein(self.key, known), *known))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(likeness, _)| *likeness >= 0.5);
        let remedy = match (nearest, elsewhere(self.key)) {
            (_, Some(table)) if !self.known.contains(&self.key) && nearest.is_none_or(|(l, _)| l < 0.8) => {
                format!("'{}' belongs into [{table}]", self.key)
            }
            (Some((_, nearest)), _) => format!("did you mean '{nearest}'?"),
            (None, _) => format!("known here: {}", self.known.join(", ")),
        };
        ConfigError::new(format!("{at}: unknown key '{}' in {table}", self.key)).remedy(remedy)
    }
}

/// The table in which the documented configuration has a key of this name.
fn elsewhere(key: &str) -> Option<String> {
    let mut table = String::new();
    for line in super::FULL.lines() {
        let line = line.trim_start_matches("# ").trim();
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = name.to_owned();
        } else if line.split_once(" = ").is_some_and(|(name, _)| name == key) && !table.is_empty() {
            return Some(table);
        }
    }
    None
}

type Placed = (std::ops::Range<usize>, String);

fn expand_table(table: &mut DeTable<'_>, environment: Environment<'_>) -> Result<(), Placed> {
    for (_, value) in table.iter_mut() {
        let span = value.span();
        expand_value(value.get_mut(), &span, environment)?;
    }
    Ok(())
}

fn expand_value(
    value: &mut DeValue<'_>,
    span: &std::ops::Range<usize>,
    environment: Environment<'_>,
) -> Result<(), Placed> {
    match value {
        DeValue::String(text) if text.contains("${") => {
            *text = expand(text, environment).map_err(|message| (span.clone(), message))?.into();
            Ok(())
        }
        DeValue::Table(table) => expand_table(table, environment),
        DeValue::Array(values) => values.iter_mut().try_for_each(|value| {
            let span = value.span();
            expand_value(value.get_mut(), &span, environment)
        }),
        _ => Ok(()),
    }
}

/// Puts variables in: `${NAME}`, `${NAME:-default}`; `$${` stands for a literal `${`.
pub(super) fn expand(text: &str, environment: Environment<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let before = &rest[..at];
        if let Some(literal) = before.strip_suffix('$') {
            out.push_str(literal);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(before);
        let end = rest[at..].find('}').ok_or("a '${' without its '}'")? + at;
        let (name, default) = match rest[at + 2..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&rest[at + 2..end], None),
        };
        match (environment(name), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!(
                    "the environment has no variable {name}; set it, or write ${{{name}:-default}}"
                ));
            }
        }
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}
