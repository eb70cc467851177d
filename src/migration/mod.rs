//! The phases of a migration and their durable record.

pub mod status;
