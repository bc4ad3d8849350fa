//! Client connections: listeners, the deadlines of a connection, how many a client may hold.
//!
//! Floor 9: imports every other room.

pub mod accept;
pub(crate) mod connection_counts;
mod http2;
