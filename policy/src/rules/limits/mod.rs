//! Limits: at most N requests in a time, for each key.
//!
//! Limits that are asked together are all checked before any of them is charged. When a later limit refuses a request,
//! the request gets back what the earlier ones took. Requests without a key (no such header, no subject) share one
//! `anonymous` bucket, so a missing key never exempts anybody. A limit in `shadow` mode counts and reports, but refuses
//! nobody.

pub mod bucket;
pub mod gcra;
pub mod key;
pub mod lease;
pub mod rule;
pub mod spend;

pub use self::key::KeyPart;
pub use self::rule::{Counts, LimitRule, Mode, OnStoreFailure, Scope};
pub use self::spend::{Charge, Charges, Readings, Reserved, spend_all};
