//! Data structures that know nothing about a gateway: a cache that resists scans, and a sketch of the most frequent
//! items.
//!
//! Floor 1: imports nothing of this crate.

pub mod s3_fifo;
pub mod top_k;
