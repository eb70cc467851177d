//! CLUSTER, answered for a cluster of one: the gateway, which holds every slot.
//!
//! A client that knows clusters asks where its keys are, and then sends everything here, on either side of a switch.
//! What it announces is the address at which this client came in. Forms of the replies: `clusterGenNodesDescription`,
//! `clusterReplyMultiBulkSlots` and `clusterCommandShards` of Redis 7.0 (`cluster.c`).

use std::rc::Rc;

use crc::Crc;

use super::local::say;
use super::session::{Core, Session};
use super::special::Step;
use crate::resp::write::{self, Proto};

/// Slots of a cluster.
const SLOTS: u16 = 16384;

const CRC16: Crc<u16> = Crc::<u16>::new(&crc::CRC_16_XMODEM);
const CRC32: Crc<u32> = Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// Answers what can be known without the server; everything else is asked of it.
pub(super) fn answer(session: &Rc<Session>, core: &mut Core, raw: &[u8], args: &[&[u8]]) -> Step {
    let sub = args.get(1).map(|sub| sub.to_ascii_lowercase()).unwrap_or_default();
    let node = Node::of(session);
    let proto = Session::proto(core);
    match (sub.as_slice(), &args[2.min(args.len())..]) {
        (b"slots", []) => say(session, core, |out| node.slots(out)),
        (b"shards", []) => say(session, core, |out| node.shards(out, proto)),
        (b"nodes", []) => say(session, core, |out| write::verbatim(out, proto, node.line().as_bytes())),
        (b"info", []) => say(session, core, |out| write::verbatim(out, proto, INFO.as_bytes())),
        (b"myid" | b"myshardid", []) => say(session, core, |out| write::bulk(out, node.id.as_bytes())),
        (b"keyslot", [key]) => say(session, core, |out| write::integer(out, i64::from(slot(key)))),
        (b"replicas" | b"slaves", [_]) | (b"links", []) => {
            say(session, core, |out| write::array_header(out, 0))
        }
        _ => {
            session.push(core, raw, 1, !session.wants_replies(core));
            Step::Done
        }
    }
}

/// Whether the gateway itself answers this.
pub(super) fn is_own(args: &[&[u8]]) -> bool {
    let sub = args.get(1).map(|sub| sub.to_ascii_lowercase()).unwrap_or_default();
    match sub.as_slice() {
        b"slots" | b"shards" | b"nodes" | b"info" | b"myid" | b"myshardid" | b"links" => args.len() == 2,
        b"keyslot" | b"replicas" | b"slaves" => args.len() == 3,
        _ => false,
    }
}

const INFO: &str = "cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_slots_ok:16384\r\n\
                    cluster_slots_pfail:0\r\ncluster_slots_fail:0\r\ncluster_known_nodes:1\r\ncluster_size:1\r\n\
                    cluster_current_epoch:1\r\ncluster_my_epoch:1\r\ncluster_stats_messages_sent:0\r\n\
                    cluster_stats_messages_received:0\r\n";

/// The gateway as a node.
struct Node {
    id: String,
    host: String,
    port: u16,
}

impl Node {
    fn of(session: &Session) -> Self {
        let listen = &session.worker.options().listen;
        // A client at the Unix socket hears of the TCP port.
        let address =
            if session.entry.laddr.starts_with('/') { &listen.address } else { &session.entry.laddr };
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port.parse().unwrap_or(0);
        // 40 hexadecimal digits, the same for everybody who uses this address.
        let mut id = String::new();
        for part in 0..5u32 {
            let sum = CRC32.checksum(format!("{part} {address}").as_bytes());
            id.push_str(&format!("{sum:08x}"));
        }
        Self { id, host, port }
    }

    fn slots(&self, out: &mut Vec<u8>) {
        write::array_header(out, 1);
        write::array_header(out, 3);
        write::integer(out, 0);
        write::integer(out, i64::from(SLOTS) - 1);
        write::array_header(out, 4);
        write::bulk(out, self.host.as_bytes());
        write::integer(out, i64::from(self.port));
        write::bulk(out, self.id.as_bytes());
        write::array_header(out, 0);
    }

    fn shards(&self, out: &mut Vec<u8>, proto: Proto) {
        write::array_header(out, 1);
        write::map_header(out, proto, 2);
        write::bulk(out, b"slots");
        write::array_header(out, 2);
        write::integer(out, 0);
        write::integer(out, i64::from(SLOTS) - 1);
        write::bulk(out, b"nodes");
        write::array_header(out, 1);
        write::map_header(out, proto, 7);
        write::bulk(out, b"id");
        write::bulk(out, self.id.as_bytes());
        write::bulk(out, b"port");
        write::integer(out, i64::from(self.port));
        for (name, text) in [("ip", self.host.as_str()), ("endpoint", &self.host), ("role", "master")] {
            write::bulk(out, name.as_bytes());
            write::bulk(out, text.as_bytes());
        }
        write::bulk(out, b"replication-offset");
        write::integer(out, 0);
        write::bulk(out, b"health");
        write::bulk(out, b"online");
    }

    fn line(&self) -> String {
        let Self { id, host, port } = self;
        let bus = u32::from(*port) + 10_000;
        format!("{id} {host}:{port}@{bus} myself,master - 0 0 1 connected 0-{}\n", SLOTS - 1)
    }
}

/// The slot of a key: CRC16 (XMODEM) of it, or of what stands between its first `{` and the next `}`.
fn slot(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let rest = &key[open + 1..];
        memchr::memchr(b'}', rest).filter(|close| *close > 0).map(|close| &rest[..close])
    });
    CRC16.checksum(tag.unwrap_or(key)) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `CLUSTER KEYSLOT` of Redis 7.0 says.
    #[test]
    fn slots_of_keys() {
        for (key, expected) in [
            ("123456789", 12739),
            ("", 0),
            ("foo", 12182),
            ("{user1000}.following", 3443),
            ("foo{}{bar}", 8363),
            ("foo{{bar}}zap", 4015),
            ("foo{bar}{zap}", 5061),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }
}
