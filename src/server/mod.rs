//! One Redis or Valkey server: address, transport, authentication, INFO, capabilities.
//!
//! [`Endpoint`] is what a URL of the configuration becomes, [`Stream`] a connection to it over TCP, TLS or a
//! unix socket, [`Client`] a request/response connection for everything that is not the data path, and
//! [`Capabilities`] what the server at the other end can do.
//!
//! Guarantees: a secret is never part of a `Debug` or `Display` text or of an error; an error carries the
//! side of the endpoint; a connection on which a call was cut short is never used for another call.

mod address;
mod capabilities;
mod client;
mod clock;
mod endpoint;
mod events;
mod info;
pub(crate) mod paused;
pub(crate) mod processors;
mod scheduling;
mod socket;
mod stream;
mod tls;

pub use address::{Address, Secret};
pub(crate) use capabilities::version;
pub use capabilities::{Capabilities, Flavour};
pub use client::{Client, passes};
pub use clock::Clock;
pub use endpoint::Endpoint;
pub use events::Events;
pub use info::{Info, Keyspace};
pub use processors::{roam, stand_aside};
pub use scheduling::let_neighbours_run;
pub(crate) use socket::{keep_alive, swift};
pub use stream::Stream;
pub use tls::{TlsClient, TlsOptions};
