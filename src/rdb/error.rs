//! What can be wrong with an RDB file, and where.

use std::fmt;

use crate::error::{Error, Side};

/// What was found wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum What {
    /// Reading failed.
    #[error("cannot read on: {0}")]
    Io(std::io::Error),
    /// The bytes end inside something.
    #[error("the file ends too early")]
    Truncated,
    /// It does not begin as an RDB file does.
    #[error("this is not an RDB file (it begins with {0:?})")]
    Magic(String),
    /// The file is of a version that this reader does not know.
    #[error("RDB version {0} is not known")]
    Version(u32),
    /// A value of a type that this reader does not know.
    #[error("value type {0} is not known")]
    UnknownType(u8),
    /// A record that this reader does not know.
    #[error("record type {0} is not known")]
    UnknownOpcode(u8),
    /// The bytes contradict themselves.
    #[error("corrupt data: {0}")]
    Corrupt(&'static str),
    /// The value can only be carried as a whole, and is larger than allowed or of a kind without boundaries.
    #[error("{0}")]
    NoBoundary(&'static str),
    /// No command exists that would write this value.
    #[error("{0}")]
    NoCommand(String),
    /// The bytes read do not match the checksum in the file.
    #[error("the checksum does not match: the file says {stored:016x}, its bytes give {computed:016x}")]
    Checksum {
        /// As written in the file.
        stored: u64,
        /// As computed from what was read.
        computed: u64,
    },
    /// The receiver of the commands does not want more.
    #[error("stopped")]
    Stopped,
    /// Internal: the value being scanned is above the limit; it will be streamed.
    #[error("the value is larger than the limit")]
    TooBig,
}

/// What was found wrong, with the place in the file.
#[derive(Debug)]
pub struct RdbError {
    /// Offset in the file up to which bytes were understood.
    pub offset: u64,
    /// Type or opcode of the record that was being read.
    pub opcode: Option<u8>,
    /// The key, once it was read.
    pub key: Option<Vec<u8>>,
    /// What was found.
    pub what: What,
}

impl fmt::Display for RdbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (offset {}", self.what, self.offset)?;
        if let Some(opcode) = self.opcode {
            write!(f, ", record type {opcode}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ", key {}", printable(key))?;
        }
        f.write_str(")")
    }
}

impl std::error::Error for RdbError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.what {
            What::Io(cause) => Some(cause),
            _ => None,
        }
    }
}

impl From<super::Stopped> for RdbError {
    fn from(stopped: super::Stopped) -> Self {
        Self { offset: 0, opcode: None, key: None, what: stopped.into() }
    }
}

/// A key as a person can read it: quoted, escaped, cut when long.
pub(crate) fn printable(key: &[u8]) -> String {
    const SHOWN: usize = 128;
    let cut = &key[..key.len().min(SHOWN)];
    let more = if key.len() > SHOWN { "…" } else { "" };
    format!("\"{}\"{more}", cut.escape_ascii())
}

impl From<RdbError> for Error {
    fn from(mut error: RdbError) -> Self {
        if let What::Io(cause) = error.what {
            // Whoever supplies the bytes may know better what is wrong, on which side, and whether it passes.
            match cause.downcast::<Error>() {
                Ok(own) => return own,
                Err(cause) => error.what = What::Io(cause),
            }
        }
        let message = format!("the snapshot cannot be read: {error}");
        match &error.what {
            What::Io(_) | What::Truncated => Error::passing(Side::Source, message),
            What::UnknownType(_) | What::UnknownOpcode(_) | What::Version(_) => Error::new(Side::Source, message)
                .remedy("this server writes something newer than this Crossfade knows; upgrade Crossfade, or delete that key"),
            What::NoBoundary(_) | What::NoCommand(_) => Error::new(Side::Source, message)
                .remedy("delete or convert that key at the source, or use a destination of the same kind and version"),
            What::Checksum { .. } | What::Corrupt(_) => Error::passing(Side::Source, message),
            _ => Error::new(Side::Source, message),
        }
    }
}
