//! What operators see: metrics, and the span and the log line of each request.
//!
//! Floor 1: it imports nothing of the crate.

pub(crate) mod metrics;
mod request;

pub(crate) use self::request::{current_request_id, observe};
