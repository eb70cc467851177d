//! The replica side of replication: handshake, snapshot and stream framing, ACKs, the journal on disk.
//!
//! A [`Receiver`] attaches to a server as a replica does, takes its snapshot and its stream as fast as they
//! come, and puts both into a [`Journal`]. Whoever loads the snapshot reads it through a [`SnapshotReader`]
//! while it still arrives; whoever applies the stream follows a [`JournalReader`]. The receiver never waits for
//! either of them: the disk takes up the difference.
//!
//! Guarantees: the offset is exact to the byte (the offset in `+FULLRESYNC` plus every byte of the stream,
//! `PING` and `REPLCONF GETACK` included); what is acknowledged to the server is what has been *applied*, never what
//! has only been received; a byte is handed out once, in order, or an error is; a full synchronisation is
//! never mistaken for a continuation, since it raises the generation.

mod framing;
mod handshake;
mod journal;
mod position;
mod receiver;

pub use journal::{Chunk, Journal, JournalOptions, JournalReader, SnapshotInfo, SnapshotReader};
pub use position::{ParsePositionError, Position};
pub use receiver::{Link, ReceiveFrom, Receiver, ReceiverHandle, ReceiverOptions, ReceiverState};
