//! Compares two servers key by key.
