//! One request from top to bottom. [`serve`] holds the main line, `exchange` what is known of the request, `forward`
//! what is sent to the upstream, `relay` the exchange with the upstream, `respond` the answers of the gateway itself,
//! `record` what is logged.
//!
//! Floor 8: imports `engine` and what lies below; `admin` stands beside it.

pub(crate) mod body;
pub(crate) mod exchange;
pub(crate) mod failure;
pub(crate) mod forward;
mod proxy;
pub(crate) mod record;
pub(crate) mod relay;
pub(crate) mod respond;
pub(crate) mod retry;
mod serve;
pub(crate) mod upstream_response;
pub mod websockets;

pub use self::proxy::Proxy;
