//! Everything that the specification may ask of the outside: the ports of all rules, and the time.

use crate::rules::authenticate::Proofs;
use crate::rules::authorize::Permissions;
use crate::rules::blocks::Bans;
use crate::rules::breaker::Breakers;
use crate::rules::concurrency::Permits;
use crate::rules::limits::spend::Buckets;
use crate::values::time::Now;

/// The sum of all ports. An implementation never waits without a bound.
pub trait World: Bans + Buckets + Proofs + Permissions + Permits + Breakers {
    /// The time. Each step of a request asks once, so that it has one time.
    fn now(&self) -> Now;
}
