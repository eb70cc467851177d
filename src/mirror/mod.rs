//! From the journal to the destination: decode, batch with position, apply exactly once.

pub mod expiry;
