//! Limits: at most so many requests in so much time, for each key.
//!
//! All limits that a request meets are checked before any is charged, and a request that a later limit refuses gives
//! back what the earlier ones took. A key that a request lacks (no such header, no subject) shares one `anonymous`
//! bucket: leaving a key out never exempts. A limit in `shadow` counts and reports but refuses nobody.

pub mod bucket;
pub mod gcra;
pub mod key;
pub mod lease;
pub mod rule;
pub mod spend;

pub use self::key::KeyPart;
pub use self::rule::{Counts, LimitRule, Mode, OnStoreFailure, Scope};
pub use self::spend::{Charge, Charges, Readings, Reserved, spend_all};
