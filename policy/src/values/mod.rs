//! The data that rules work on: time, paths, requests, networks, stages, refusals. Plain data, without any rule.
//!
//! Floor 1: imports `document` and its own files.

pub mod backoff;
pub mod network_table;
pub mod path;
pub mod pattern;
pub mod quota;
pub mod refusal;
pub mod request;
pub mod stage;
pub mod time;
