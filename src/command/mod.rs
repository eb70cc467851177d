//! The command table: what the gateway knows of every command of Redis and Valkey.
