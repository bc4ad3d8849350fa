//! The store of the state that replicas share: limits, failed logins, and what replicas agree about (bans, overrides,
//! revocations). It is in process by default, and in Redis where that is configured. One trait, two stores, one test
//! suite (`tests/tests/it/stores.rs`).

use std::future::Future;
use std::time::Duration;

use ipnet::IpNet;
use policy::rules::blocks::AutoBlock;
use policy::rules::limits::bucket::Bucket;
use policy::rules::limits::spend::StoreUnavailable;
use policy::rules::limits::{Charge, Charges, Readings};
use policy::values::time::Timestamp;
use serde::{Deserialize, Serialize};

/// What a [`Change`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// Bans: the key is a network.
    Bans,
    /// Overrides of the policy file: the key is a path in it.
    Overrides,
    /// Tokens that are not accepted any more: the key is the kind and the value, `jti/…`, `sub/…` or `iat/…`.
    Revocations,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 3] = [Self::Bans, Self::Overrides, Self::Revocations];

    /// The name in stores.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bans => "bans",
            Self::Overrides => "overrides",
            Self::Revocations => "revocations",
        }
    }
}

/// The state of `key` since `changed_at`. Of two changes of one key the later one wins, so that replicas that were cut
/// off from each other agree again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What it is about.
    pub topic: Topic,
    /// What exactly it is about, as the topic says.
    pub key: String,
    /// The value now; `None`: removed.
    pub value: Option<serde_json::Value>,
    /// When it ends, in nanoseconds since the epoch; `None`: never.
    pub until: Option<u64>,
    /// When it was changed, in nanoseconds since the epoch.
    pub changed_at: u64,
}

impl Change {
    /// Whether it still matters at `now`: it holds, or it takes back something that other replicas may still have in
    /// force.
    pub fn matters(&self, now: Timestamp) -> bool {
        const REMEMBER_REMOVED: Duration = Duration::from_hours(24);
        match self.value {
            None => now.since(Timestamp::from_nanos(self.changed_at)) < REMEMBER_REMOVED,
            Some(_) => self.until.is_none_or(|until| until > now.as_nanos()),
        }
    }

    /// Whether a later change is possible: its time is before the year 2262.
    pub fn is_credible(&self) -> bool {
        i64::try_from(self.changed_at).is_ok()
    }

    /// Whether it holds at `now`.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.value.is_some() && self.matters(now)
    }
}

/// The result of putting a change into a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The change is in force.
    Stored,
    /// Another change wins, which was made at this time.
    Known(u64),
}

/// The failed logins of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// How many there are within the window.
    pub count: u32,
    /// How often the count reached the number that makes a ban, within [`AutoBlock::memory`].
    pub offences: u32,
}

/// What a store can do.
pub trait Store: Send + Sync + 'static {
    /// Takes one token from every bucket; takes none at all when a bucket that enforces is empty.
    fn spend(
        &self,
        charges: &[Charge],
        now: Timestamp,
    ) -> impl Future<Output = Result<Readings, StoreUnavailable>> + Send;

    /// Gives one token back to every bucket.
    fn refund(
        &self,
        charges: Charges,
        now: Timestamp,
    ) -> impl Future<Output = Result<(), StoreUnavailable>> + Send;

    /// Makes a bucket full. Returns whether it was not full.
    fn refill(&self, bucket: &Bucket) -> impl Future<Output = Result<bool, StoreUnavailable>> + Send;

    /// Counts a failed login.
    fn count_failure(
        &self,
        client: IpNet,
        rule: AutoBlock,
        now: Timestamp,
    ) -> impl Future<Output = Result<Failures, StoreUnavailable>> + Send;

    /// Forgets the failed logins of a client, but not its offences.
    fn clear_failures(&self, client: IpNet) -> impl Future<Output = Result<(), StoreUnavailable>> + Send;

    /// Sends a change to all replicas, unless a change of the same key is known that is as new.
    fn put(&self, change: &Change) -> impl Future<Output = Result<Put, StoreUnavailable>> + Send;

    /// Every change of a topic.
    fn all(&self, topic: Topic) -> impl Future<Output = Result<Vec<Change>, StoreUnavailable>> + Send;
}
