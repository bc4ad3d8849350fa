//! What can be seen from outside: metrics, logs, traces.

pub mod access;
pub mod audit;
pub mod metrics;
mod request;
pub mod usage;
