//! The rules. Each table of the policy has one file, which holds its words, its section, its type, the questions that
//! it asks of the outside, and the function that judges.
//!
//! Floor 2: imports `document`, `values` and its own files.

pub mod authenticate;
pub mod authorize;
pub mod blocks;
pub mod breaker;
pub mod canary;
pub mod client;
pub mod concurrency;
pub mod limits;
pub mod permissions;
pub mod requests;
pub mod response_headers;
pub mod retry;
