//! All that the specification may ask of the outside: the sum of what each rule asks, and the time.

use crate::rules::authenticate::Proofs;
use crate::rules::authorize::Permissions;
use crate::rules::blocks::Bans;
use crate::rules::breaker::Breakers;
use crate::rules::concurrency::Permits;
use crate::rules::limits::spend::Buckets;
use crate::values::time::Now;

/// What the specification may ask. An implementation never waits without a bound.
pub trait World: Bans + Buckets + Proofs + Permissions + Permits + Breakers {
    /// The time. A step of a request has one: it is asked once.
    fn now(&self) -> Now;
}
