//! Where the state lives that replicas share: limits, failed logins, bans. In process by default, in Redis where it
//! is configured. One trait, two stores, one test suite (`tests/tests/it/stores.rs`).

use std::future::Future;

use std::time::Duration;

use ipnet::IpNet;
use policy::blocks::AutoBlock;
use policy::gcra::Reading;
use policy::limits::{Charge, Charges};
use policy::time::Timestamp;
use policy::world::StoreAway;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

pub mod local;
pub mod redis;

/// One reading for each charge, in order.
pub type Readings = SmallVec<[Reading; 4]>;

/// A change to the ban list. Of two for one network the later counts, so that replicas that were cut off from each
/// other agree again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanChange {
    /// Whom it concerns.
    pub network: IpNet,
    /// When the ban ends, in nanoseconds since the epoch; `None` never.
    pub until: Option<u64>,
    /// Whether it was lifted.
    pub lifted: bool,
    /// Why.
    pub reason: String,
    /// When it was changed, in nanoseconds since the epoch.
    pub changed_at: u64,
}

impl BanChange {
    /// Whether it still matters at `now`: a ban in force, or the lifting of one that others may still hold.
    pub fn matters(&self, now: Timestamp) -> bool {
        const REMEMBER_LIFTED: Duration = Duration::from_hours(24);
        if self.lifted {
            now.since(Timestamp::from_nanos(self.changed_at)) < REMEMBER_LIFTED
        } else {
            self.until.is_none_or(|until| until > now.as_nanos())
        }
    }
}

/// What a store can do.
pub trait Store: Send + Sync + 'static {
    /// Takes one token from every bucket, or none from any when one that enforces is empty.
    fn spend(
        &self,
        charges: &[Charge],
        now: Timestamp,
    ) -> impl Future<Output = Result<Readings, StoreAway>> + Send;

    /// Gives one token back to every bucket.
    fn refund(&self, charges: Charges, now: Timestamp) -> impl Future<Output = Result<(), StoreAway>> + Send;

    /// Counts a failed login and says how many there are in the window.
    fn count_failure(
        &self,
        client: IpNet,
        rule: AutoBlock,
        now: Timestamp,
    ) -> impl Future<Output = Result<u32, StoreAway>> + Send;

    /// Forgets the failed logins of a client.
    fn clear_failures(&self, client: IpNet) -> impl Future<Output = Result<(), StoreAway>> + Send;

    /// Makes a ban known to all replicas.
    fn publish_ban(&self, change: &BanChange) -> impl Future<Output = Result<(), StoreAway>> + Send;

    /// Every ban that is known.
    fn bans(&self) -> impl Future<Output = Result<Vec<BanChange>, StoreAway>> + Send;
}
