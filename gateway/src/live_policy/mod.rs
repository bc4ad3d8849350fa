//! The policy in force and how it changes: it is read from its files, judged, watched on trial, rolled back.
//!
//! Floor 6: imports `identity`, `state` and what lies below.

pub mod canary;
pub mod counts;
pub(crate) mod deny_lists;
pub mod files;
pub mod in_force;
pub mod loaded;
pub(crate) mod named;
pub mod reload;
