//! Data structures that know nothing of a gateway: a cache that scans do not spoil, and what is most frequent.
//!
//! Floor 1: imports nothing of this crate.

pub mod s3_fifo;
pub mod top_k;
