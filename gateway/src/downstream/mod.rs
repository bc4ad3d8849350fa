//! The client side of the wire: everything between a socket and a request that can be judged.
//!
//! pingora repairs what it can: a Content-Length beside a Transfer-Encoding, bare line feeds, an illegal target. Two
//! parties read a repaired message differently, and that is how requests are smuggled. So each connection has a strict
//! reader of our own in front of pingora: [`head`] checks a whole header before a session exists, [`body`] lets exactly
//! one message pass and nothing that follows it, and `server::accept` enforces the deadlines. An idle connection is a
//! small future here and costs a few KiB.

pub mod body;
pub mod connection;
#[doc(hidden)]
pub mod fuzz;
pub mod head;
pub(crate) mod http2;
pub(crate) mod proxy_protocol;
pub(crate) mod socket;
