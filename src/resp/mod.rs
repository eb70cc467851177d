//! RESP2 and RESP3 as they stand on the wire.
//!
//! [`scan`] finds boundaries in place and never copies; it is what the data path uses. The other
//! modules serve the cold paths: decoded values and a writer.

pub mod scan;
pub mod value;
pub mod write;

#[cfg(test)]
mod tests;
