//! The reader: from bytes to records, one at a time, each borrowed from the buffer.

use std::borrow::Cow;
use std::io::Read;

use super::commands::{self, Dialect, Sink};
use super::error::{RdbError, What};
use super::input::{Input, Numbers, Slice};
use super::length::{StringHead, length, string_head};
use super::opcode::*;
use super::scan::{expire_ms, module_name, skip_module_pieces};
use super::templates::{Fields, Templates, is_template};
use super::text::{self, Text};
use super::window::Window;

/// Keys, metadata and function libraries may be as long as Redis allows a string to be.
const LONGEST_TEXT: usize = 512 * 1024 * 1024;

/// How to read.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// A value of more bytes than this in the file is streamed as commands.
    pub big_value: usize,
    /// Hashes with a template are handed out as they stand, and so are the templates. Otherwise they become plain ones.
    pub keep_templates: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { big_value: 16 * 1024 * 1024, keep_templates: false }
    }
}

/// What the first nine bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Who wrote the file.
    pub flavour: Flavour,
    /// RDB version.
    pub version: u32,
}

/// One record.
#[derive(Debug)]
pub enum Item<'a> {
    /// Metadata: `redis-ver`, `repl-id`, `repl-offset` and others.
    Aux {
        /// Its name.
        name: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// The keys that follow are of this database.
    SelectDb(u32),
    /// How many keys the database holds, and how many of them expire.
    ResizeDb {
        /// All keys.
        keys: u64,
        /// Those with an expiry.
        expires: u64,
    },
    /// The source of a function library.
    Function(Vec<u8>),
    /// A function library in the format of a 7.0 release candidate, which no released server loads.
    FunctionPreGa {
        /// Its name.
        name: Vec<u8>,
    },
    /// Data that a module keeps beside the keys. It was skipped.
    ModuleAux {
        /// The module's name.
        module: String,
    },
    /// A key whose value is in memory.
    Entry(Entry<'a>),
    /// A key whose value is too large for that.
    Big(BigEntry<'a>),
    /// The fields that hashes refer to, with [`ReadOptions::keep_templates`].
    Template {
        /// What they refer to it by.
        id: u64,
        /// The names of the fields, in order.
        fields: Vec<Box<[u8]>>,
    },
}

/// A key and its value.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Its database.
    pub db: u32,
    /// The key.
    pub key: &'a [u8],
    /// Unix time in ms at which it expires.
    pub expire_at_ms: Option<u64>,
    /// Seconds since its last use, when the source evicts by that.
    pub idle: Option<u64>,
    /// Its LFU counter, when the source evicts by that.
    pub freq: Option<u8>,
    /// The value.
    pub value: RawValue<'a>,
}

/// A value exactly as it stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawValue<'a> {
    /// The type's number.
    pub type_id: u8,
    /// The value's bytes.
    pub body: &'a [u8],
    /// Whose number it is.
    pub flavour: Flavour,
}

impl<'a> RawValue<'a> {
    /// The string, when this is a plain one.
    pub fn text(&self) -> Option<Text<'a>> {
        (self.type_id == STRING).then(|| Text::read(&mut Slice::new(self.body)).ok()).flatten()
    }

    /// The string as bytes, when this is a plain one that expands as it claims.
    pub fn plain_string(&self) -> Option<Cow<'a, [u8]>> {
        match self.text()? {
            Text::Raw(bytes) => Some(Cow::Borrowed(bytes)),
            text => {
                let mut out = Vec::new();
                text.append_to(&mut out).ok()?;
                Some(Cow::Owned(out))
            }
        }
    }

    /// The name of the module's type, when this is a value of a module.
    pub fn module(&self) -> Option<String> {
        let id = super::opcode::is_module(self.type_id).then(|| length(&mut Slice::new(self.body)).ok());
        id.flatten().map(module_name)
    }

    /// Writes the value as commands for `key`, which must not exist, in chunks of about 64 KiB or 128 elements.
    pub fn commands(&self, key: &[u8], dialect: &Dialect, sink: &mut Sink<'_>) -> Result<(), What> {
        // A pending entry of a deleted stream entry can only be written with both in hand: one look ahead.
        let dangling = super::stream::dangling(self)?;
        let mut body = Slice::new(self.body);
        commands::write(&mut body, self.type_id, self.flavour, key, dialect, &dangling, sink)?;
        if body.rest().is_empty() { Ok(()) } else { Err(What::Corrupt("bytes follow the value")) }
    }
}

/// A key whose value is above [`ReadOptions::big_value`]. Its value is read by [`BigEntry::commands`]; when that is
/// not called, the reader skips it.
pub struct BigEntry<'a> {
    /// Its database.
    pub db: u32,
    /// The key.
    pub key: Vec<u8>,
    /// Unix time in ms at which it expires.
    pub expire_at_ms: Option<u64>,
    /// Seconds since its last use, when the source evicts by that.
    pub idle: Option<u64>,
    /// Its LFU counter, when the source evicts by that.
    pub freq: Option<u8>,
    /// The type's number.
    pub type_id: u8,
    pub(super) flavour: Flavour,
    pub(super) templates: &'a Templates,
    input: &'a mut dyn Input,
    unread: &'a mut Unread,
}

impl std::fmt::Debug for BigEntry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BigEntry")
            .field("db", &self.db)
            .field("key", &super::error::printable(&self.key))
            .field("type_id", &self.type_id)
            .finish_non_exhaustive()
    }
}

impl BigEntry<'_> {
    /// Whether it is a hash that shares the names of its fields, which servers before Redis 8.10 do not know.
    pub fn has_template(&self) -> bool {
        is_template(self.type_id, self.flavour)
    }

    /// Writes the value as commands, in chunks of about 64 KiB or 128 elements (strings: 512 KiB), while it is read.
    /// The key must not exist. Memory stays flat, except that one element is in memory as a whole.
    pub fn commands(self, dialect: &Dialect, sink: &mut Sink<'_>) -> Result<(), RdbError> {
        let (type_id, flavour, templates) = (self.type_id, self.flavour, self.templates);
        self.read_with(|input, key| match is_template(type_id, flavour) {
            true => commands::template(input, type_id, templates, key, sink),
            false => commands::write(input, type_id, flavour, key, dialect, &[], sink),
        })
    }

    /// Reads the value from its beginning to its end with `read`, which gets the key too.
    pub(super) fn read_with(
        self,
        read: impl FnOnce(&mut dyn Input, &[u8]) -> Result<(), What>,
    ) -> Result<(), RdbError> {
        *self.unread = Unread::Broken;
        match read(self.input, &self.key) {
            Ok(()) => {
                *self.unread = Unread::Nothing;
                Ok(())
            }
            Err(what) => {
                let offset = self.input.offset();
                Err(RdbError { offset, opcode: Some(self.type_id), key: Some(self.key), what })
            }
        }
    }
}

/// Reads an RDB file record by record from a blocking source.
pub struct Reader<R> {
    window: Window<R>,
    options: ReadOptions,
    header: Option<Header>,
    db: u32,
    unread: Unread,
    done: bool,
    templates: Templates,
    /// The hash that is handed out, without its template.
    plain: Vec<u8>,
    key: Vec<u8>,
    /// For errors: the record being read.
    opcode: Option<u8>,
    has_key: bool,
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("header", &self.header).field("db", &self.db).finish_non_exhaustive()
    }
}

/// What of a big value that was handed out is still to be read.
#[derive(Clone, Copy)]
enum Unread {
    Nothing,
    /// All of it: it has to be skipped.
    Value(u8),
    /// Reading it ended in the middle: nothing can follow.
    Broken,
}

/// A record before its borrowed parts are cut out of the buffer.
enum Found {
    Aux(Vec<u8>, Vec<u8>),
    SelectDb(u32),
    ResizeDb(u64, u64),
    Function(Vec<u8>),
    FunctionPreGa(Vec<u8>),
    ModuleAux(String),
    Template(u64, Fields),
    Key { type_id: u8, attributes: Attributes, key: Key, value: usize, big: bool },
    End,
}

#[derive(Clone, Copy, Default)]
struct Attributes {
    expire_at_ms: Option<u64>,
    idle: Option<u64>,
    freq: Option<u8>,
}

/// Where a key stands.
enum Key {
    /// In the kept bytes, from, to.
    Kept(usize, usize),
    /// It was a number or compressed: decoded in `Reader::key`.
    Decoded,
}

impl<R: Read> Reader<R> {
    /// Reads from `from`, through a buffer of its own.
    pub fn new(from: R, options: ReadOptions) -> Self {
        Self {
            window: Window::new(from),
            options,
            header: None,
            db: 0,
            unread: Unread::Nothing,
            done: false,
            templates: Templates::default(),
            plain: Vec::new(),
            key: Vec::new(),
            opcode: None,
            has_key: false,
        }
    }

    /// What the file's head says; reads it when that has not happened yet.
    pub fn header(&mut self) -> Result<Header, RdbError> {
        match self.header {
            Some(header) => Ok(header),
            None => {
                let header = self.read_header().map_err(|what| self.fault(what))?;
                self.header = Some(header);
                Ok(header)
            }
        }
    }

    /// Bytes of the file that were understood so far.
    pub fn bytes_read(&self) -> u64 {
        self.window.offset()
    }

    /// The next record; `None` after the end, when the checksum has been found right.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>, RdbError> {
        let flavour = self.header()?.flavour;
        if self.done {
            return Ok(None);
        }
        let found = match self.find(flavour) {
            Ok(found) => found,
            Err(what) => return Err(self.fault(what)),
        };
        let db = self.db;
        Ok(Some(match found {
            Found::End => return Ok(None),
            Found::Aux(name, value) => Item::Aux { name, value },
            Found::SelectDb(db) => Item::SelectDb(db),
            Found::ResizeDb(keys, expires) => Item::ResizeDb { keys, expires },
            Found::Function(source) => Item::Function(source),
            Found::FunctionPreGa(name) => Item::FunctionPreGa { name },
            Found::ModuleAux(module) => Item::ModuleAux { module },
            Found::Template(id, fields) => Item::Template { id, fields: fields.to_vec() },
            Found::Key {
                type_id,
                attributes: Attributes { expire_at_ms, idle, freq },
                key,
                value,
                big: true,
            } => {
                let key = match key {
                    Key::Kept(from, to) => self.window.kept(from, to).to_vec(),
                    Key::Decoded => self.key.clone(),
                };
                self.window.release_from(value);
                self.unread = Unread::Value(type_id);
                let (input, unread, templates) = (&mut self.window, &mut self.unread, &self.templates);
                Item::Big(BigEntry {
                    db,
                    key,
                    expire_at_ms,
                    idle,
                    freq,
                    type_id,
                    flavour,
                    templates,
                    input,
                    unread,
                })
            }
            Found::Key {
                type_id,
                attributes: Attributes { expire_at_ms, idle, freq },
                key,
                value,
                big: false,
            } => {
                let body = self.window.kept(value, self.window.taken());
                let key = match key {
                    Key::Kept(from, to) => self.window.kept(from, to),
                    Key::Decoded => &self.key,
                };
                let plain = is_template(type_id, flavour) && !self.options.keep_templates;
                let value = match plain {
                    true => RawValue { type_id: HASH, body: &self.plain, flavour },
                    false => RawValue { type_id, body, flavour },
                };
                Item::Entry(Entry { db, key, expire_at_ms, idle, freq, value })
            }
        }))
    }

    fn fault(&self, what: What) -> RdbError {
        let key = self.has_key.then(|| self.key.clone());
        RdbError { offset: self.window.offset(), opcode: self.opcode, key, what }
    }

    fn read_header(&mut self) -> Result<Header, What> {
        let magic: [u8; 9] = self.window.array()?;
        let not_rdb = || What::Magic(magic.escape_ascii().to_string());
        let (flavour, digits) = match &magic {
            [b'R', b'E', b'D', b'I', b'S', digits @ ..] => (Flavour::Redis, &digits[..]),
            [b'V', b'A', b'L', b'K', b'E', b'Y', digits @ ..] => (Flavour::Valkey, &digits[..]),
            _ => return Err(not_rdb()),
        };
        let mut version = 0;
        for digit in digits {
            if !digit.is_ascii_digit() {
                return Err(not_rdb());
            }
            version = version * 10 + u32::from(digit - b'0');
        }
        // Before 5 there is no checksum; no server that old can be replicated from.
        // A version above the newest one known may still hold only what is known: each type and opcode is checked.
        // Redis files of 80 and more do not exist.
        let known = match flavour {
            Flavour::Redis => (5..80).contains(&version),
            Flavour::Valkey => (80..1000).contains(&version),
        };
        if known { Ok(Header { flavour, version }) } else { Err(What::Version(version)) }
    }

    fn find(&mut self, flavour: Flavour) -> Result<Found, What> {
        self.has_key = false;
        match std::mem::replace(&mut self.unread, Unread::Broken) {
            Unread::Nothing => {}
            Unread::Value(type_id) => {
                self.opcode = Some(type_id);
                self.templates.skip(&mut self.window, type_id, flavour)?;
            }
            Unread::Broken => return Err(What::Corrupt("reading went on after an error")),
        }
        let found = self.find_record(flavour)?;
        self.unread = Unread::Nothing;
        Ok(found)
    }

    fn find_record(&mut self, flavour: Flavour) -> Result<Found, What> {
        let mut attributes = Attributes::default();
        self.window.release();
        loop {
            let opcode = self.window.byte()?;
            self.opcode = Some(opcode);
            let input = &mut self.window;
            match opcode {
                OP_EXPIRE_MS => attributes.expire_at_ms = Some(expire_ms(input)?),
                OP_EXPIRE => attributes.expire_at_ms = Some(u64::from(input.u32_le()?) * 1000),
                OP_FREQ => attributes.freq = Some(input.byte()?),
                OP_IDLE => attributes.idle = Some(length(input)?),
                OP_EOF => {
                    self.check_sum()?;
                    self.done = true;
                    return Ok(Found::End);
                }
                OP_SELECT_DB => {
                    self.db = u32::try_from(length(input)?)
                        .map_err(|_| What::Corrupt("a database number is out of range"))?;
                    return Ok(Found::SelectDb(self.db));
                }
                OP_RESIZE_DB => return Ok(Found::ResizeDb(length(input)?, length(input)?)),
                OP_AUX => {
                    let (mut name, mut value) = (Vec::new(), Vec::new());
                    text::read_string(input, &mut name)?;
                    text::read_string(input, &mut value)?;
                    return Ok(Found::Aux(name, value));
                }
                OP_SLOT_INFO => {
                    for _ in 0..3 {
                        length(input)?;
                    }
                }
                OP_SLOT_IMPORT if flavour == Flavour::Valkey => {
                    // Name of the job, then ranges of slots. Cluster only.
                    text::skip_string(input)?;
                    for _ in 0..length(input)? {
                        length(input)?;
                        length(input)?;
                    }
                }
                OP_FUNCTION => {
                    let mut source = Vec::new();
                    text::read_string(input, &mut source)?;
                    return Ok(Found::Function(source));
                }
                OP_FUNCTION_PRE_GA => {
                    let mut name = Vec::new();
                    text::read_string(input, &mut name)?;
                    text::skip_string(input)?; // engine
                    if length(input)? != 0 {
                        text::skip_string(input)?; // description
                    }
                    text::skip_string(input)?; // source
                    return Ok(Found::FunctionPreGa(name));
                }
                OP_HASH_TEMPLATE if flavour == Flavour::Redis => {
                    let (id, fields) = self.templates.read(input)?;
                    if self.options.keep_templates {
                        return Ok(Found::Template(id, fields));
                    }
                }
                OP_MODULE_AUX => {
                    let module = module_name(length(input)?);
                    // "When" stands as a piece of its own: kind 2, then the number.
                    length(input)?;
                    length(input)?;
                    skip_module_pieces(input)?;
                    return Ok(Found::ModuleAux(module));
                }
                _ if minimum_version(opcode, flavour).is_some() => {
                    return self.find_value(opcode, flavour, attributes);
                }
                // From the top the numbers are records, from the bottom value types.
                200.. => return Err(What::UnknownOpcode(opcode)),
                _ => {
                    let key = self.find_key()?;
                    self.note_key(&key);
                    return Err(What::UnknownType(opcode));
                }
            }
        }
    }

    fn find_value(&mut self, type_id: u8, flavour: Flavour, attributes: Attributes) -> Result<Found, What> {
        let key = self.find_key()?;
        let value = self.window.taken();
        self.window.limit_from_here(self.options.big_value);
        let big = match self.templates.skip(&mut self.window, type_id, flavour) {
            // The limit is checked only when more has to be read; so that it does not depend on how the source cuts
            // its reads, check it here too.
            Ok(()) => self.window.taken() - value > self.options.big_value && type_id != MODULE_2,
            Err(What::TooBig) if type_id == MODULE_2 => {
                self.note_key(&key);
                return Err(What::NoBoundary(
                    "a module value above the limit (snapshot.big_value) cannot be split into commands",
                ));
            }
            Err(What::TooBig) => true,
            Err(what) => {
                self.note_key(&key);
                return Err(what);
            }
        };
        if !big && is_template(type_id, flavour) && !self.options.keep_templates {
            self.plain.clear();
            let body = self.window.kept(value, self.window.taken());
            if let Err(what) = self.templates.plain(type_id, body, &mut self.plain) {
                self.note_key(&key);
                return Err(what);
            }
        }
        Ok(Found::Key { type_id, attributes, key, value, big })
    }

    fn find_key(&mut self) -> Result<Key, What> {
        self.window.keep(LONGEST_TEXT);
        let before = self.window.taken();
        match string_head(&mut self.window)? {
            StringHead::Raw(n) => {
                let from = self.window.taken();
                self.window.skip(n)?;
                Ok(Key::Kept(from, self.window.taken()))
            }
            StringHead::Integer(n) => {
                self.key.clear();
                self.key.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
                Ok(Key::Decoded)
            }
            StringHead::Lzf { compressed, .. } => {
                self.window.skip(compressed)?;
                let stored = self.window.kept(before, self.window.taken());
                self.key.clear();
                Text::read(&mut Slice::new(stored))?.append_to(&mut self.key)?;
                Ok(Key::Decoded)
            }
        }
    }

    /// Remembers the key for the error message.
    fn note_key(&mut self, key: &Key) {
        if let Key::Kept(from, to) = key {
            self.key = self.window.kept(*from, *to).to_vec();
        }
        self.has_key = true;
    }

    fn check_sum(&mut self) -> Result<(), What> {
        let computed = self.window.sum();
        let stored = self.window.u64_le()?;
        // 0: the server was told not to compute it (rdbchecksum no, or a diskless transfer).
        if stored == 0 || stored == computed { Ok(()) } else { Err(What::Checksum { stored, computed }) }
    }
}

/// The db that the stream behind a snapshot has selected where it begins: the record `repl-stream-db` at the head of the file (since
/// Redis 4.0). A primary selects one anew behind every full synchronisation (`replicationSetupSlaveForFullResync`), but a
/// replica passes its primary's stream on as it is. `head`: the file, or as much of it as holds the first records.
pub fn stream_db(head: impl Read) -> u32 {
    let mut reader = Reader::new(head, ReadOptions::default());
    while let Ok(Some(Item::Aux { name, value })) = reader.next_item() {
        if name == b"repl-stream-db" {
            return std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        }
    }
    0
}
