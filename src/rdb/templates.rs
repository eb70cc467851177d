//! Hashes that share their fields' names (Redis 8.10: HIMPORT, `hash-min-template-entries`). A snapshot names each set of fields once, and the
//! hashes refer to it; a DUMP holds both.
//!
//! ```text
//! record 242   id   length(fields) field*                              before the first key
//! 29           0    string: listpack of fields   string: listpack of id and values
//! 30           string: listpack of id and values
//! 31           0    string: listpack of fields   value*
//! 32           id   value*
//! ```
//! Learned from files and DUMPs of 8.10.2. Who does not hand them on as they stand gets plain hashes.

use std::collections::HashMap;
use std::sync::Arc;

use super::error::What;
use super::input::{Input, Slice};
use super::length::length;
use super::listpack::{self, Element};
use super::opcode::*;
use super::reader::RawValue;
use super::scan::skip_value;
use super::text::{inside, read_string, skip_string};
use super::write::write_length;

/// Names of fields that are kept in memory: the source has all of them in memory too, beside the values.
const MOST: usize = 256 << 20;

/// The names of a hash's fields, in the order of its values.
pub(super) type Fields = Arc<[Box<[u8]>]>;

/// Takes a field and its value; the number of fields comes with each.
type Visit<'a> = dyn FnMut(usize, &[u8], &[u8]) -> Result<(), What> + 'a;

/// The sets of fields that a file has named so far.
#[derive(Default)]
pub(super) struct Templates {
    by_id: HashMap<u64, Fields>,
    bytes: usize,
}

impl Templates {
    /// Reads a record's content.
    pub(super) fn read(&mut self, input: &mut dyn Input) -> Result<(u64, Fields), What> {
        let id = length(input)?;
        let mut fields = Vec::new();
        for _ in 0..length(input)? {
            let mut field = Vec::new();
            read_string(input, &mut field)?;
            self.bytes += field.len() + size_of::<Box<[u8]>>();
            if self.bytes > MOST {
                return Err(What::NoBoundary("the hash templates of the snapshot take more than 256 MiB"));
            }
            fields.push(field.into_boxed_slice());
        }
        if fields.is_empty() {
            return Err(What::Corrupt("a hash template without fields"));
        }
        let fields: Fields = fields.into();
        self.by_id.insert(id, Arc::clone(&fields));
        Ok((id, fields))
    }

    fn get(&self, id: u64) -> Result<Fields, What> {
        self.by_id.get(&id).cloned().ok_or(What::Corrupt("a hash refers to a template that is not there"))
    }

    /// Consumes a value of any type.
    pub(super) fn skip<I: Input>(&self, input: &mut I, type_id: u8, flavour: Flavour) -> Result<(), What> {
        if !refers(type_id, flavour) || type_id == HASH_TEMPLATE_LISTPACK_REF {
            return skip_value(input, type_id, flavour);
        }
        for _ in 0..self.get(length(input)?)?.len() {
            skip_string(input)?;
        }
        Ok(())
    }

    /// Hands out the fields and values of such a hash.
    pub(super) fn each(&self, input: &mut dyn Input, type_id: u8, visit: &mut Visit<'_>) -> Result<(), What> {
        let fields = match type_id {
            HASH_TEMPLATE_ARRAY_REF => Some(self.get(length(input)?)?),
            HASH_TEMPLATE_LISTPACK_REF => None,
            _ => Some(inline(input)?),
        };
        let mut value = Vec::new();
        if let Some(fields) = fields.as_ref().filter(|_| is_array(type_id)) {
            for field in fields.iter() {
                value.clear();
                read_string(input, &mut value)?;
                visit(fields.len(), field, &value)?;
            }
            return Ok(());
        }
        inside(input, &mut |input| {
            listpack::begin(input)?;
            let id = listpack::number(input)?;
            let fields = match &fields {
                Some(fields) => Arc::clone(fields),
                None => self.get(u64::try_from(id).unwrap_or(u64::MAX))?,
            };
            for field in fields.iter() {
                let next = listpack::next(input)?;
                bytes(next.ok_or(What::Corrupt("a hash has fewer values than its template"))?, &mut value);
                visit(fields.len(), field, &value)?;
            }
            match listpack::next(input)? {
                None => Ok(()),
                Some(_) => Err(What::Corrupt("a hash has more values than its template")),
            }
        })
    }

    /// Appends the body of a plain hash ([`HASH`]).
    pub(super) fn plain(&self, type_id: u8, body: &[u8], out: &mut Vec<u8>) -> Result<(), What> {
        let mut input = Slice::new(body);
        let mut nth = 0;
        self.each(&mut input, type_id, &mut |count, field, value| {
            if nth == 0 {
                write_length(out, count as u64);
            }
            nth += 1;
            for text in [field, value] {
                write_length(out, text.len() as u64);
                out.extend_from_slice(text);
            }
            Ok(())
        })?;
        if input.rest().is_empty() { Ok(()) } else { Err(What::Corrupt("bytes follow the value")) }
    }
}

/// Whether a value of this type is such a hash.
pub(super) fn is_template(type_id: u8, flavour: Flavour) -> bool {
    flavour == Flavour::Redis && (HASH_TEMPLATE_LISTPACK..=HASH_TEMPLATE_ARRAY_REF).contains(&type_id)
}

/// Whether it can be understood with the records of its file only.
fn refers(type_id: u8, flavour: Flavour) -> bool {
    is_template(type_id, flavour) && matches!(type_id, HASH_TEMPLATE_LISTPACK_REF | HASH_TEMPLATE_ARRAY_REF)
}

fn is_array(type_id: u8) -> bool {
    matches!(type_id, HASH_TEMPLATE_ARRAY | HASH_TEMPLATE_ARRAY_REF)
}

/// The fields that stand in front of the values of a DUMP.
pub(super) fn inline(input: &mut dyn Input) -> Result<Fields, What> {
    if length(input)? != 0 {
        return Err(What::Corrupt("a hash with its template begins in an unknown way"));
    }
    let mut fields: Vec<Box<[u8]>> = Vec::new();
    inside(input, &mut |input| {
        listpack::begin(input)?;
        while let Some(element) = listpack::next(input)? {
            let mut field = Vec::new();
            bytes(element, &mut field);
            fields.push(field.into_boxed_slice());
        }
        Ok(())
    })?;
    if fields.is_empty() { Err(What::Corrupt("a hash template without fields")) } else { Ok(fields.into()) }
}

fn bytes(element: Element<'_>, out: &mut Vec<u8>) {
    out.clear();
    match element {
        Element::Text(text) => out.extend_from_slice(text),
        Element::Integer(n) => out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes()),
    }
}

impl RawValue<'_> {
    /// A DUMP of the plain hash that a DUMP with a template stands for; `None` for every other value.
    pub fn plain_payload(&self) -> Option<Vec<u8>> {
        let body = self.without_template()?;
        let plain = RawValue { type_id: HASH, body: &body, flavour: self.flavour };
        let mut payload = Vec::with_capacity(plain.dump_len());
        plain.dump_payload(&mut payload);
        Some(payload)
    }

    /// Its body.
    fn without_template(&self) -> Option<Vec<u8>> {
        if !is_template(self.type_id, self.flavour) || refers(self.type_id, self.flavour) {
            return None;
        }
        let mut plain = Vec::with_capacity(self.body.len());
        Templates::default().plain(self.type_id, self.body, &mut plain).ok()?;
        Some(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Item, ReadOptions, Reader};
    use super::*;

    /// As 8.10.2 writes two templates and three hashes: one of short values, one with a long value, one of numbers.
    fn file() -> Vec<u8> {
        let mut file =
            b"REDIS0015\xf2\x01\x02\x01x\xc0\x0c\xf2\x00\x03\x03age\x04name\x05email\xfe\x00".to_vec();
        file.extend_from_slice(b"\x1e\x02k1\x17\x17\0\0\0\x04\0\x00\x01\x1e\x01\x85alice\x06\x83a@b\x04\xff");
        file.extend_from_slice(b"\x20\x02k2\x00\xc0\x1f\x03bob\x40\x50");
        file.extend_from_slice(&[b'y'; 80]);
        file.extend_from_slice(
            b"\x1e\x02k3\x0d\x0d\0\0\0\x03\0\x01\x01\x01\x01\x02\x01\xff\xff\0\0\0\0\0\0\0\0",
        );
        file
    }

    fn lines(file: &[u8], options: ReadOptions) -> Vec<String> {
        let mut reader = Reader::new(file, options);
        let mut lines = Vec::new();
        let dialect = super::super::Dialect::default();
        while let Some(item) = reader.next_item().unwrap() {
            let mut line = String::new();
            let mut sink = |args: &[&[u8]]| {
                line += &args.iter().map(|arg| String::from_utf8_lossy(arg)).collect::<Vec<_>>().join(" ");
                Ok(())
            };
            match item {
                Item::Entry(entry) => entry.value.commands(entry.key, &dialect, &mut sink).unwrap(),
                Item::Big(entry) => entry.commands(&dialect, &mut sink).unwrap(),
                Item::Template { id, fields } => line = format!("template {id} of {}", fields.len()),
                _ => continue,
            }
            lines.push(line);
        }
        lines
    }

    #[test]
    fn they_become_plain_hashes() {
        let long = "y".repeat(80);
        let expected = [
            "HMSET k1 age 30 name alice email a@b".to_owned(),
            format!("HMSET k2 age 31 name bob email {long}"),
            "HMSET k3 x 1 12 2".to_owned(),
        ];
        for big_value in [1 << 20, 8] {
            assert_eq!(lines(&file(), ReadOptions { big_value, ..Default::default() }), expected);
        }
    }

    #[test]
    fn or_stay_as_they_are() {
        let file = file();
        for big_value in [1 << 20, 8] {
            let mut reader = Reader::new(&file[..], ReadOptions { big_value, keep_templates: true });
            let mut writer = super::super::Writer::new(reader.header().unwrap());
            while let Some(item) = reader.next_item().unwrap() {
                match item {
                    Item::Entry(entry) => writer.entry(&entry, None, |at| at),
                    Item::Big(entry) => {
                        writer.big_entry(&entry, None);
                        let mut value = Vec::new();
                        entry
                            .copy(|at| at, &mut |bytes| {
                                value.extend_from_slice(bytes);
                                Ok(())
                            })
                            .unwrap();
                        writer.raw(&value);
                    }
                    Item::Template { id, fields } => writer.template(id, &fields),
                    Item::SelectDb(db) => writer.select_db(db),
                    other => panic!("{other:?}"),
                }
            }
            writer.end();
            let number = file.windows(2).position(|pair| pair == b"\xc0\x0c").unwrap();
            let mut expected = file.clone();
            // 12, which was stored as a number.
            expected.splice(number..number + 2, *b"\x0212");
            assert_eq!(writer.bytes().escape_ascii().to_string(), expected.escape_ascii().to_string());
        }
    }

    #[test]
    fn dumps_hold_their_template() {
        let body =
            b"\x00\x0c\x0c\0\0\0\x02\0\x81x\x02\x0c\x01\xff\x0d\x0d\0\0\0\x03\0\x01\x01\x01\x01\x02\x01\xff";
        let value = |type_id, body| RawValue { type_id, body, flavour: Flavour::Redis };
        assert_eq!(value(29, body).without_template().unwrap(), b"\x02\x01x\x011\x0212\x012");
        let array = b"\x00\x0c\x0c\0\0\0\x02\0\x81x\x02\x0c\x01\xff\xc0\x07\x03abc";
        assert_eq!(value(31, array).without_template().unwrap(), b"\x02\x01x\x017\x0212\x03abc");
        assert_eq!(value(31, &array[..array.len() - 1]).without_template(), None);
        assert_eq!(value(4, b"\x01\x01a\x01b").without_template(), None);
        for (type_id, body) in [(29, &body[..]), (31, array)] {
            let mut input = Slice::new(body);
            skip_value(&mut input, type_id, Flavour::Redis).unwrap();
            assert!(input.rest().is_empty());
        }
    }

    #[test]
    fn a_template_that_is_not_there_is_an_error() {
        let file = b"REDIS0015\xfe\x00\x20\x02k2\x05\x01a";
        let mut reader = Reader::new(&file[..], ReadOptions::default());
        reader.next_item().unwrap();
        assert!(reader.next_item().unwrap_err().to_string().contains("template"));
    }
}
