//! What servers of which version understand of the commands that a mirror writes.

/// What the server that is written to understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    /// SET with PXAT (6.2).
    pub set_pxat: bool,
    /// RESTORE with ABSTTL (5.0).
    pub restore_absttl: bool,
    /// PEXPIRETIME (7.0).
    pub pexpiretime: bool,
    /// The highest RDB version that its RESTORE reads.
    pub rdb_version: u32,
    /// XGROUP CREATECONSUMER (6.2).
    pub create_consumer: bool,
    /// ENTRIESREAD, ENTRIESADDED and MAXDELETEDID (7.0).
    pub stream_counters: bool,
    /// HSETEX (Redis 8.0, Valkey 9.0).
    pub hash_set_ex: bool,
    /// XIDMPRECORD (8.6).
    pub idempotence: bool,
    /// HPEXPIREAT (Redis 7.4, Valkey 9.0).
    pub hash_field_expiry: bool,
    /// Hashes with a template (8.10).
    pub hash_templates: bool,
    /// SET with KEEPTTL (6.0).
    pub keep_ttl: bool,
}

impl Dialect {
    /// What a Redis of this version understands (Valkey and Redict count on from 7.2).
    pub fn of_version(major: u16, minor: u16) -> Self {
        let at_least = |version: (u16, u16)| (major, minor) >= version;
        let reads =
            [(8, 8, 15), (8, 6, 13), (7, 4, 12), (7, 2, 11), (7, 0, 10), (5, 0, 9), (4, 0, 8), (3, 2, 7)];
        let read = reads.into_iter().find(|(major, minor, _)| at_least((*major, *minor)));
        Self {
            set_pxat: at_least((6, 2)),
            restore_absttl: at_least((5, 0)),
            pexpiretime: at_least((7, 0)),
            rdb_version: read.map_or(6, |(.., version)| version),
            create_consumer: at_least((6, 2)),
            stream_counters: at_least((7, 0)),
            hash_set_ex: at_least((8, 0)),
            idempotence: at_least((8, 6)),
            hash_field_expiry: at_least((7, 4)),
            hash_templates: at_least((8, 10)),
            keep_ttl: at_least((6, 0)),
        }
    }
}
