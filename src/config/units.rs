//! Durations, sizes and rates as people write them: `"12h"`, `"16MiB"`, `"50MB/s"`.
//!
//! Each has a pair of functions `parse_…` and `show_…` that are inverse to each other, and a module
//! for `#[serde(with = …)]`.

use std::time::Duration;

/// A duration: `"500ms"`, `"1h 30m"`, `"0"`. A bare number other than 0 is refused: it does not say its unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() || text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "'{text}' is no duration; write the unit too, as in \"500ms\", \"10s\" or \"12h\""
        ));
    }
    humantime::parse_duration(text)
        .map_err(|_| format!("'{text}' is no duration; write it as in \"500ms\", \"10s\" or \"12h\""))
}

/// A duration as [`parse_duration`] reads it.
pub fn show_duration(duration: Duration) -> String {
    if duration.is_zero() { "0".into() } else { humantime::format_duration(duration).to_string() }
}

const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("B", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
];

/// A number of bytes: `"64MiB"` (1024-based), `"50MB"` (1000-based), `"4096"`. Capital letters do not matter.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size; write it as in \"64MiB\", \"50MB\" or \"1GiB\"");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim().to_ascii_uppercase();
    let unit = if unit == "TIB" {
        1 << 40
    } else {
        UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit).ok_or_else(|| format!("'{text}' is more than 64 bits hold"));
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * unit as f64;
    // Above 2^53 a fraction of a unit says nothing any more.
    if bytes.is_finite() && bytes <= 9e15 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// A number of bytes as [`parse_size`] reads it, in the largest unit that keeps it exact.
pub fn show_size(bytes: u64) -> String {
    for (name, unit) in [
        ("GiB", 1u64 << 30),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("KiB", 1 << 10),
        ("kB", 1000),
    ] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    format!("{bytes}B")
}

/// A number of bytes for reading: rounded to three digits.
pub fn about(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 {
            return if unit == "B" || value >= 100.0 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A rate per second: `"50MB/s"`, `"1000/s"`, `"1000"`; none for `"off"`.
pub fn parse_rate(text: &str) -> Result<Option<u64>, String> {
    let trimmed = text.trim();
    if trimmed.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let amount = trimmed.strip_suffix("/s").unwrap_or(trimmed);
    match parse_size(amount) {
        Ok(0) => Err(format!("'{text}' would stop everything; write \"off\" for no limit")),
        Ok(rate) => Ok(Some(rate)),
        Err(_) => Err(format!("'{text}' is no rate; write it as in \"50MB/s\", \"20000/s\" or \"off\"")),
    }
}

/// A rate of things that are counted, as [`parse_rate`] reads it: `"20000/s"`.
pub fn show_count_rate(rate: Option<u64>) -> String {
    rate.map_or_else(|| "off".into(), |rate| format!("{rate}/s"))
}

/// A rate as [`parse_rate`] reads it.
pub fn show_rate(rate: Option<u64>) -> String {
    match rate {
        None => "off".into(),
        Some(rate) => {
            let size = show_size(rate);
            // "20000/s" may count keys as well as bytes.
            let plain = size.strip_suffix('B').filter(|number| number.bytes().all(|b| b.is_ascii_digit()));
            format!("{}/s", plain.unwrap_or(&size))
        }
    }
}

/// How much memory a server may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    /// So many bytes.
    Bytes(u64),
    /// A part of its `maxmemory`, or of the machine's memory where it has none; 1 to 100.
    Percent(u8),
}

/// A limit of memory: `"6GB"`, `"80%"`; none for `"off"`.
pub fn parse_memory_limit(text: &str) -> Result<Option<MemoryLimit>, String> {
    let wrong = || format!("'{text}' is no limit; write it as in \"6GB\", \"80%\" or \"off\"");
    let trimmed = text.trim();
    if trimmed.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let limit = match trimmed.strip_suffix('%') {
        Some(percent) => {
            percent.trim().parse().ok().filter(|part| (1..=100).contains(part)).map(MemoryLimit::Percent)
        }
        None => parse_size(trimmed).ok().filter(|bytes| *bytes > 0).map(MemoryLimit::Bytes),
    };
    limit.map(Some).ok_or_else(wrong)
}

/// A limit of memory as [`parse_memory_limit`] reads it.
pub fn show_memory_limit(limit: Option<MemoryLimit>) -> String {
    match limit {
        None => "off".into(),
        Some(MemoryLimit::Bytes(bytes)) => show_size(bytes),
        Some(MemoryLimit::Percent(percent)) => format!("{percent}%"),
    }
}

/// A limit of latency: `"20ms"`; none for `"off"`.
pub fn parse_latency_limit(text: &str) -> Result<Option<Duration>, String> {
    if text.trim().eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    match parse_duration(text)? {
        Duration::ZERO => Err(format!("'{text}' would stop everything; write \"off\" for no limit")),
        limit => Ok(Some(limit)),
    }
}

/// A limit of latency as [`parse_latency_limit`] reads it.
pub fn show_latency_limit(limit: Option<Duration>) -> String {
    limit.map_or_else(|| "off".into(), show_duration)
}

macro_rules! with {
    ($(#[$doc:meta])* $module:ident, $type:ty, $expected:literal, $parse:expr, $show:expr) => {
        $(#[$doc])*
        pub mod $module {
            use serde::de::{Error, Visitor};
            use serde::{Deserializer, Serializer};

            struct Text;

            impl Visitor<'_> for Text {
                type Value = $type;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str($expected)
                }

                fn visit_str<E: Error>(self, text: &str) -> Result<$type, E> {
                    #[allow(clippy::redundant_closure_call)]
                    $parse(text).map_err(E::custom)
                }

                fn visit_u64<E: Error>(self, number: u64) -> Result<$type, E> {
                    self.visit_str(&number.to_string())
                }

                fn visit_i64<E: Error>(self, number: i64) -> Result<$type, E> {
                    self.visit_str(&number.to_string())
                }

                fn visit_unit<E: Error>(self) -> Result<$type, E> {
                    self.visit_str("")
                }
            }

            /// Reads the text.
            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                deserializer.deserialize_any(Text)
            }

            /// Writes the text.
            pub fn serialize<S: Serializer>(value: &$type, serializer: S) -> Result<S::Ok, S::Error> {
                #[allow(clippy::redundant_closure_call)]
                serializer.serialize_str(&$show(*value))
            }
        }
    };
}

with!(
    /// For a [`Duration`].
    duration, std::time::Duration, "a duration such as \"500ms\" or \"12h\"", super::parse_duration, super::show_duration
);
with!(
    /// For a duration that may be missing (JSON `null`).
    duration_option, Option<std::time::Duration>, "a duration such as \"500ms\"",
    |text: &str| if text.is_empty() { Ok(None) } else { super::parse_duration(text).map(Some) },
    |value: Option<std::time::Duration>| value.map(super::show_duration).unwrap_or_default()
);
with!(
    /// For a number of bytes.
    size, u64, "a size such as \"64MiB\"", super::parse_size, super::show_size
);
with!(
    /// For a rate per second, none meaning no limit.
    rate, Option<u64>, "a rate such as \"50MB/s\" or \"off\"", super::parse_rate, super::show_rate
);
with!(
    /// For a rate of things that are counted.
    count_rate, Option<u64>, "a rate such as \"20000/s\" or \"off\"", super::parse_rate, super::show_count_rate
);

with!(
    /// For a limit of memory, none meaning no limit.
    memory_limit, Option<super::MemoryLimit>, "a limit such as \"6GB\", \"80%\" or \"off\"", super::parse_memory_limit, super::show_memory_limit
);
with!(
    /// For a limit of latency, none meaning no limit.
    latency_limit, Option<std::time::Duration>, "a duration such as \"20ms\", or \"off\"", super::parse_latency_limit, super::show_latency_limit
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("12h"), Ok(Duration::from_secs(43_200)));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "10", "ten seconds", "-1s", "1 fortnight"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("16MiB"), Ok(16 << 20));
        assert_eq!(parse_size("16 mib"), Ok(16 << 20));
        assert_eq!(parse_size("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_size("50MB"), Ok(50_000_000));
        assert_eq!(parse_size("1kB"), Ok(1000));
        assert_eq!(parse_size("4096"), Ok(4096));
        for wrong in ["", "MB", "12 parsecs", "1e3", "-1", "99999999999999999999", "20000000TB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(parse_rate("50MB/s"), Ok(Some(50_000_000)));
        assert_eq!(parse_rate("20000/s"), Ok(Some(20_000)));
        assert_eq!(parse_rate("off"), Ok(None));
        assert!(parse_rate("0").is_err());
        assert!(parse_rate("fast").is_err());
    }

    #[test]
    fn limits_on_a_server() {
        assert_eq!(parse_memory_limit("80%"), Ok(Some(MemoryLimit::Percent(80))));
        assert_eq!(parse_memory_limit("6GB"), Ok(Some(MemoryLimit::Bytes(6_000_000_000))));
        assert_eq!(parse_latency_limit("20ms"), Ok(Some(Duration::from_millis(20))));
        assert_eq!((parse_memory_limit("off"), parse_latency_limit("off")), (Ok(None), Ok(None)));
        for wrong in ["0%", "101%", "%", "0", "much", ""] {
            assert!(parse_memory_limit(wrong).is_err() && parse_latency_limit(wrong).is_err(), "{wrong}");
        }
        for text in ["off", "80%", "6GB"] {
            assert_eq!(show_memory_limit(parse_memory_limit(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes_for_reading() {
        assert_eq!(about(0), "0 B");
        assert_eq!(about(999), "999 B");
        assert_eq!(about(1536), "1.5 KiB");
        assert_eq!(about(1 << 30), "1.0 GiB");
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read(bytes: u64, ms in 0u64..1 << 50) {
            prop_assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
            if bytes > 0 {
                prop_assert_eq!(parse_rate(&show_rate(Some(bytes))), Ok(Some(bytes)));
            }
        }
    }
}
