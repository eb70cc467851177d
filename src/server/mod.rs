//! One Redis or Valkey server: address, transport, authentication, INFO, capabilities.
