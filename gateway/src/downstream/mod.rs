//! The wire: everything between a socket and a request that can be judged.
//!
//! pingora repairs what it can: a Content-Length beside a Transfer-Encoding, bare line feeds, an illegal target. What is
//! repaired is read differently by two parties, which is how requests are smuggled. So each connection has a strict
//! reader of our own in front of pingora: [`head`] checks a whole header before a session exists, [`body`] lets
//! through exactly one message and nothing that follows it, and `server::accept` keeps the deadlines. An idle connection is a
//! small future here and costs a few KiB.

pub mod body;
pub mod connection;
#[doc(hidden)]
pub mod fuzz;
pub mod head;
pub(crate) mod http2;
pub(crate) mod proxy_protocol;
pub(crate) mod socket;
