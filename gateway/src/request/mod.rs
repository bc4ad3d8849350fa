//! One request from top to bottom: [`serve`] holds the line, `exchange` what is known of it, `forward` what the upstream is
//! sent, `relay` how it is passed on, `respond` what is written in the upstream's place, `record` what is written down.
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
