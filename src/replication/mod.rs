//! The replica side of replication: handshake, snapshot and stream framing, ACKs, the journal on disk.
