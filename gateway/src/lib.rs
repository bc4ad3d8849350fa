//! Palisade's gateway: thin adapters around [`policy`], on pingora.
//!
//! [`server`] accepts a connection and [`downstream`] reads a request. [`request`] judges it with what [`engine`]
//! offers, and sends it to an upstream through [`upstream`], or answers it itself. The policy comes from
//! [`live_policy`]; state that replicas share is in [`state`].

pub mod admin;
pub mod check;
pub mod clock;
pub mod collections;
pub mod config;
pub mod downstream;
pub mod engine;
#[doc(hidden)]
pub mod fuzz;
pub mod healthcheck;
pub mod http;
pub mod identity;
pub mod live_policy;
pub mod observe;
pub mod permissions;
pub mod request;
pub mod resilience;
pub mod run;
pub mod server;
pub mod state;
pub mod tls;
pub mod upstream;
