//! Palisade's gateway: thin adapters around [`policy`], on pingora.
//!
//! A request comes in through [`wire`], is judged in [`proxy`] in the world that [`gateway`] offers, is
//! rewritten in [`forward`] and passed on in [`relay`], and is answered, by the upstream or by [`answer`]. The policy comes from [`reload`]; state
//! that replicas share is in [`store`].

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
