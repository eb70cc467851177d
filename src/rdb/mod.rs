//! The RDB reader: opcodes, value boundaries, values, DUMP payloads.
