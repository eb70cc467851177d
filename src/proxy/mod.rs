//! The data path: listener, worker, session, lane, pinned connection, gate.
