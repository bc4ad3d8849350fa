//! The policy in force and how it changes: read from its files, judged, tried, taken back.
//!
//! Floor 6: imports `identity`, `state` and what lies below.

pub mod canary;
pub mod files;
pub(crate) mod named;
pub mod reload;
