//! The numbers of records and value types, by flavour of the file.

/// Who wrote a file: the ids from 22 on mean different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// Magic `REDIS`: Redis, Redict, and Valkey before 9.
    Redis,
    /// Magic `VALKEY`: Valkey from 9 on.
    Valkey,
}

/// Redis 8.10.
pub(crate) const OP_HASH_TEMPLATE: u8 = 242;
pub(crate) const OP_SLOT_IMPORT: u8 = 243;
pub(crate) const OP_SLOT_INFO: u8 = 244;
pub(crate) const OP_FUNCTION: u8 = 245;
pub(crate) const OP_FUNCTION_PRE_GA: u8 = 246;
pub(crate) const OP_MODULE_AUX: u8 = 247;
pub(crate) const OP_IDLE: u8 = 248;
pub(crate) const OP_FREQ: u8 = 249;
pub(crate) const OP_AUX: u8 = 250;
pub(crate) const OP_RESIZE_DB: u8 = 251;
pub(crate) const OP_EXPIRE_MS: u8 = 252;
pub(crate) const OP_EXPIRE: u8 = 253;
pub(crate) const OP_SELECT_DB: u8 = 254;
pub(crate) const OP_EOF: u8 = 255;

pub(crate) const STRING: u8 = 0;
pub(crate) const LIST: u8 = 1;
pub(crate) const SET: u8 = 2;
/// Scores as text.
pub(crate) const ZSET: u8 = 3;
pub(crate) const HASH: u8 = 4;
/// Scores as binary doubles.
pub(crate) const ZSET_2: u8 = 5;
pub(crate) const MODULE_PRE_GA: u8 = 6;
pub(crate) const MODULE_2: u8 = 7;
pub(crate) const HASH_ZIPMAP: u8 = 9;
pub(crate) const LIST_ZIPLIST: u8 = 10;
pub(crate) const SET_INTSET: u8 = 11;
pub(crate) const ZSET_ZIPLIST: u8 = 12;
pub(crate) const HASH_ZIPLIST: u8 = 13;
pub(crate) const LIST_QUICKLIST: u8 = 14;
pub(crate) const STREAM_LISTPACKS: u8 = 15;
pub(crate) const HASH_LISTPACK: u8 = 16;
pub(crate) const ZSET_LISTPACK: u8 = 17;
pub(crate) const LIST_QUICKLIST_2: u8 = 18;
pub(crate) const STREAM_LISTPACKS_2: u8 = 19;
pub(crate) const SET_LISTPACK: u8 = 20;
pub(crate) const STREAM_LISTPACKS_3: u8 = 21;
/// Redis 7.4 before its release: field expiries absolute.
pub(crate) const HASH_METADATA_PRE_GA: u8 = 22;
/// Valkey 9: a hash table whose fields carry an expiry.
pub(crate) const VALKEY_HASH_2: u8 = 22;
pub(crate) const HASH_LISTPACK_EX_PRE_GA: u8 = 23;
/// Redis 7.4: field expiries relative to the smallest one.
pub(crate) const HASH_METADATA: u8 = 24;
/// Redis 7.4: a listpack of field, value, expiry.
pub(crate) const HASH_LISTPACK_EX: u8 = 25;

/// Redis 8.6: with the ids of idempotent producers.
pub(crate) const STREAM_LISTPACKS_4: u8 = 26;
/// Redis 8.8: with pending entries that nobody owns.
pub(crate) const STREAM_LISTPACKS_5: u8 = 27;
/// Redis 8.8.
pub(crate) const ARRAY: u8 = 28;

/// Redis 8.10, as in the three that follow: see templates.rs.
pub(crate) const HASH_TEMPLATE_LISTPACK: u8 = 29;
pub(crate) const HASH_TEMPLATE_LISTPACK_REF: u8 = 30;
pub(crate) const HASH_TEMPLATE_ARRAY: u8 = 31;
pub(crate) const HASH_TEMPLATE_ARRAY_REF: u8 = 32;

/// The lowest RDB version whose servers read this value type, or `None` when the type is not known.
///
/// RESTORE refuses a payload whose version is above its own, not one whose type it knows; so a payload is
/// stamped with this, and a newer source can feed an older destination.
pub fn minimum_version(type_id: u8, flavour: Flavour) -> Option<u32> {
    Some(match (type_id, flavour) {
        (STRING..=HASH | HASH_ZIPMAP..=HASH_ZIPLIST, _) => 6, // 2.6
        (LIST_QUICKLIST, _) => 7,                             // 3.2
        (ZSET_2 | MODULE_PRE_GA | MODULE_2, _) => 8,          // 4.0
        (STREAM_LISTPACKS, _) => 9,                           // 5.0
        (HASH_LISTPACK..=STREAM_LISTPACKS_2, _) => 10,        // 7.0
        (SET_LISTPACK | STREAM_LISTPACKS_3, _) => 11,         // 7.2
        (HASH_METADATA_PRE_GA..=HASH_LISTPACK_EX, Flavour::Redis) => 12, // 7.4
        (STREAM_LISTPACKS_4, Flavour::Redis) => 13,           // 8.6
        (STREAM_LISTPACKS_5 | ARRAY | HASH_TEMPLATE_LISTPACK..=HASH_TEMPLATE_ARRAY_REF, Flavour::Redis) => 15, // 8.10
        (VALKEY_HASH_2, Flavour::Valkey) => 80, // Valkey 9.0
        _ => return None,
    })
}

/// Whether this is a value of a module, which a server without that module cannot load.
pub(crate) fn is_module(type_id: u8) -> bool {
    matches!(type_id, MODULE_PRE_GA | MODULE_2)
}

/// Whether this is one of the stream types.
pub(crate) fn is_stream(type_id: u8) -> bool {
    matches!(
        type_id,
        STREAM_LISTPACKS | STREAM_LISTPACKS_2 | STREAM_LISTPACKS_3 | STREAM_LISTPACKS_4 | STREAM_LISTPACKS_5
    )
}

/// The name of a value type as `TYPE` gives it, for messages.
pub fn type_name(type_id: u8) -> &'static str {
    match type_id {
        STRING => "string",
        LIST | LIST_ZIPLIST | LIST_QUICKLIST | LIST_QUICKLIST_2 => "list",
        SET | SET_INTSET | SET_LISTPACK => "set",
        ZSET | ZSET_2 | ZSET_ZIPLIST | ZSET_LISTPACK => "zset",
        HASH | HASH_ZIPMAP | HASH_ZIPLIST | HASH_LISTPACK | HASH_METADATA_PRE_GA..=HASH_LISTPACK_EX => "hash",
        HASH_TEMPLATE_LISTPACK..=HASH_TEMPLATE_ARRAY_REF => "hash",
        _ if is_stream(type_id) => "stream",
        ARRAY => "array",
        MODULE_PRE_GA | MODULE_2 => "module",
        _ => "unknown",
    }
}
