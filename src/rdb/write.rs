//! Writes an RDB file: records of its own, and entries of another file with their values as they stood there.

use super::Stopped;
use super::error::{RdbError, What};
use super::fields::{self, Shift};
use super::input::Input;
use super::opcode::*;
use super::reader::{BigEntry, Entry, Header};
use super::templates::is_template;

/// An RDB file that grows in memory, and is taken away piece by piece.
///
/// No checksum is written (eight zeros, as `rdbchecksum no` does): whoever needs one has it on the way.
#[derive(Debug)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// A file of that flavour and version.
    pub fn new(header: Header) -> Self {
        let magic = match header.flavour {
            Flavour::Redis => format!("REDIS{:04}", header.version),
            Flavour::Valkey => format!("VALKEY{:03}", header.version),
        };
        Self { out: magic.into_bytes() }
    }

    /// What was written since [`Self::clear`].
    pub fn bytes(&self) -> &[u8] {
        &self.out
    }

    /// Those bytes have been taken.
    pub fn clear(&mut self) {
        self.out.clear();
    }

    /// Metadata.
    pub fn aux(&mut self, name: &[u8], value: &[u8]) {
        self.out.push(OP_AUX);
        self.text(name);
        self.text(value);
    }

    /// What follows is of this database.
    pub fn select_db(&mut self, db: u32) {
        self.out.push(OP_SELECT_DB);
        self.length(u64::from(db));
    }

    /// How many keys will follow, and how many of them expire: the reader makes room for them at once.
    pub fn resize_db(&mut self, keys: u64, expires: u64) {
        self.out.push(OP_RESIZE_DB);
        self.length(keys);
        self.length(expires);
    }

    /// A function library.
    pub fn function(&mut self, source: &[u8]) {
        self.out.push(OP_FUNCTION);
        self.text(source);
    }

    /// Names of fields that hashes behind it refer to.
    pub fn template(&mut self, id: u64, fields: &[Box<[u8]>]) {
        self.out.push(OP_HASH_TEMPLATE);
        self.length(id);
        self.length(fields.len() as u64);
        for field in fields {
            self.text(field);
        }
    }

    /// A plain string without expiry.
    pub fn string(&mut self, key: &[u8], value: &[u8]) {
        self.out.push(STRING);
        self.text(key);
        self.text(value);
    }

    /// A key of another file, with another expiry (unix time in milliseconds), and others of a hash's fields.
    pub fn entry(&mut self, entry: &Entry<'_>, expire_at_ms: Option<u64>, fields: Shift) {
        self.head(expire_at_ms, entry.idle, entry.freq, entry.value.type_id, entry.key);
        match entry.value.with_field_expiries(fields) {
            Some(body) => self.out.extend_from_slice(&body),
            None => self.out.extend_from_slice(entry.value.body),
        }
    }

    /// All of such a key but its value, which [`BigEntry::copy`] gives.
    pub fn big_entry(&mut self, entry: &BigEntry<'_>, expire_at_ms: Option<u64>) {
        self.head(expire_at_ms, entry.idle, entry.freq, entry.type_id, &entry.key);
    }

    /// Bytes of a value, as [`BigEntry::copy`] gives them.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// The end of the file.
    pub fn end(&mut self) {
        self.out.push(OP_EOF);
        self.out.extend_from_slice(&[0; 8]);
    }

    fn head(
        &mut self,
        expire_at_ms: Option<u64>,
        idle: Option<u64>,
        freq: Option<u8>,
        type_id: u8,
        key: &[u8],
    ) {
        if let Some(at) = expire_at_ms {
            self.out.push(OP_EXPIRE_MS);
            self.out.extend_from_slice(&at.to_le_bytes());
        }
        if let Some(idle) = idle {
            self.out.push(OP_IDLE);
            self.length(idle);
        }
        if let Some(freq) = freq {
            self.out.extend_from_slice(&[OP_FREQ, freq]);
        }
        self.out.push(type_id);
        self.text(key);
    }

    fn text(&mut self, text: &[u8]) {
        self.length(text.len() as u64);
        self.out.extend_from_slice(text);
    }

    fn length(&mut self, n: u64) {
        write_length(&mut self.out, n);
    }
}

/// A length field.
pub(super) fn write_length(out: &mut Vec<u8>, n: u64) {
    match n {
        0..0x40 => out.push(n as u8),
        0x40..0x4000 => out.extend_from_slice(&[0x40 | (n >> 8) as u8, n as u8]),
        0x4000..0x1_0000_0000 => {
            out.push(0x80);
            out.extend_from_slice(&(n as u32).to_be_bytes());
        }
        _ => {
            out.push(0x81);
            out.extend_from_slice(&n.to_be_bytes());
        }
    }
}

/// Takes bytes, as many as come.
pub type Pieces<'a> = dyn FnMut(&[u8]) -> Result<(), Stopped> + 'a;

impl BigEntry<'_> {
    /// Hands the value on as it stands in the file but for the expiries of a hash's fields, in pieces of at most 64 KiB, most of
    /// them far smaller.
    ///
    /// # Errors
    /// The file is corrupt or cannot be read on, or the receiver does not want more.
    pub fn copy(self, field_expiries: Shift, to: &mut Pieces<'_>) -> Result<(), RdbError> {
        let (type_id, flavour) = (self.type_id, self.flavour);
        let templates = self.templates;
        self.read_with(|input, _| match is_template(type_id, flavour) {
            true => templates.skip(&mut Tee { input, to }, type_id, flavour),
            false => fields::copy(input, type_id, flavour, field_expiries, to),
        })
    }
}

/// Whatever is consumed of `input` goes to `to` too.
pub(super) struct Tee<'a, 'b> {
    pub(super) input: &'a mut dyn Input,
    pub(super) to: &'a mut Pieces<'b>,
}

impl Input for Tee<'_, '_> {
    fn take(&mut self, n: usize) -> Result<&[u8], What> {
        let bytes = self.input.take(n)?;
        (self.to)(bytes)?;
        Ok(bytes)
    }

    fn offset(&self) -> u64 {
        self.input.offset()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Item, ReadOptions, Reader};
    use super::*;

    const HEADER: Header = Header { flavour: Flavour::Redis, version: 10 };

    /// What a reader makes of a file: each record as a line.
    fn records(file: &[u8], big_value: usize) -> Vec<String> {
        let mut reader = Reader::new(file, ReadOptions { big_value, ..Default::default() });
        let mut lines = vec![format!("{:?}", reader.header().unwrap())];
        while let Some(item) = reader.next_item().unwrap() {
            lines.push(match item {
                Item::Entry(entry) => format!("{entry:?}"),
                Item::Big(entry) => {
                    let (mut value, line) = (Vec::new(), format!("{entry:?} {:?}", entry.expire_at_ms));
                    entry
                        .copy(|at| at, &mut |bytes| {
                            value.extend_from_slice(bytes);
                            Ok(())
                        })
                        .unwrap();
                    format!("{line} {value:?}")
                }
                other => format!("{other:?}"),
            });
        }
        lines
    }

    fn example() -> Vec<u8> {
        let mut writer = Writer::new(HEADER);
        writer.aux(b"redis-ver", b"7.0.15");
        writer.function(b"#!lua name=x\n");
        for (db, length) in [(0, 0), (1, 63), (2, 64), (15, 16_383), (70, 16_384), (100_000, 70_000)] {
            writer.select_db(db);
            writer.resize_db(1, 0);
            writer.string(b"key", &vec![b'x'; length]);
        }
        writer.end();
        writer.bytes().to_vec()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let lines = records(&example(), 1 << 20);
        assert_eq!(lines.len(), 1 + 2 + 3 * 6);
        for (part, line) in [("version: 10", 0), ("7.0.15", 1), ("SelectDb(100000)", 18), ("keys: 1", 19)] {
            let expected = if line == 1 { format!("{:?}", b"7.0.15".to_vec()) } else { part.to_owned() };
            assert!(lines[line].contains(&expected), "{}", lines[line]);
        }
    }

    #[test]
    fn a_copied_file_differs_in_expiries_only() {
        let file = example();
        let mut reader = Reader::new(&file[..], ReadOptions { big_value: 1000, ..Default::default() });
        let mut writer = Writer::new(reader.header().unwrap());
        while let Some(item) = reader.next_item().unwrap() {
            match item {
                Item::Aux { name, value } => writer.aux(&name, &value),
                Item::Function(source) => writer.function(&source),
                Item::SelectDb(db) => writer.select_db(db),
                Item::ResizeDb { keys, expires } => writer.resize_db(keys, expires),
                Item::Entry(entry) => writer.entry(&entry, Some(77), |at| at),
                Item::Big(entry) => {
                    writer.big_entry(&entry, Some(77));
                    entry
                        .copy(|at| at, &mut |bytes| {
                            writer.out.extend_from_slice(bytes);
                            Ok(())
                        })
                        .unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        writer.end();
        for big_value in [1000, 1 << 20] {
            let expected: Vec<String> = records(&file, big_value)
                .iter()
                .map(|line| {
                    line.replace("expire_at_ms: None", "expire_at_ms: Some(77)")
                        .replace("} None", "} Some(77)")
                })
                .collect();
            assert_eq!(records(writer.bytes(), big_value), expected);
        }
    }
}
