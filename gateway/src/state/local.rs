//! The store in process.

use std::collections::HashMap;

use ipnet::IpNet;
use parking_lot::Mutex;
use policy::rules::blocks::AutoBlock;
use policy::rules::limits::bucket::Bucket;
use policy::rules::limits::gcra::Level;
use policy::rules::limits::spend::StoreUnavailable;
use policy::rules::limits::{Charge, Charges, Readings, spend_all};
use policy::values::time::Timestamp;
use smallvec::SmallVec;

use crate::clock;
use crate::state::shards::Shards;
use crate::state::store::{Change, Failures, Put, Store, Topic};

/// The most clients whose failures are counted.
const MOST_FAILING: usize = 1_000_000;

/// Limits and failures in this process.
#[derive(Default)]
pub struct LocalStore {
    buckets: Shards<Level>,
    failures: Mutex<HashMap<IpNet, FailureCount>>,
    changes: Mutex<HashMap<(Topic, String), Change>>,
}

struct FailureCount {
    failures: Failures,
    began: Timestamp,
    last: Timestamp,
}

impl LocalStore {
    /// Takes a token from every bucket, or none at all.
    pub fn spend_now(&self, charges: &[Charge], now: Timestamp) -> Readings {
        if let [charge] = charges {
            return self.spend_one(charge, now);
        }
        let mut buckets = self.buckets.lock_all(charges);
        let mut kept: SmallVec<[(usize, Timestamp); 4]> = SmallVec::new();
        let readings = spend_all(
            charges,
            now,
            |at| charges[at].rule.gcra.arrival(buckets.find(at).copied().unwrap_or_default(), now),
            |at, arrival| kept.push((at, arrival)),
        );
        for (at, arrival) in kept {
            let level = buckets.find_or_insert(at, |level| level.says_something(now));
            *level = charges[at].rule.gcra.keep(arrival);
        }
        readings
    }

    /// The usual case: one limit, so one look-up.
    fn spend_one(&self, charge: &Charge, now: Timestamp) -> Readings {
        let (mut shard, gcra) = (self.buckets.lock(&charge.bucket), charge.rule.gcra);
        let reading = if let Some(stored) = shard.find() {
            let reading = gcra.take(gcra.arrival(*stored, now), now);
            *stored = gcra.keep(reading.arrival);
            reading
        } else {
            let reading = gcra.take(Timestamp::EPOCH, now);
            *shard.find_or_insert(|level| level.says_something(now)) = gcra.keep(reading.arrival);
            reading
        };
        SmallVec::from_iter([reading])
    }

    /// Gives one token back to every bucket.
    pub fn refund_now(&self, charges: &[Charge], now: Timestamp) {
        for charge in charges {
            if let Some(level) = self.buckets.lock(&charge.bucket).find() {
                *level = level.refund(now);
            }
        }
    }

    /// Buckets that are not full.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether every bucket is full.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops what has no effect any more: full buckets, old failures, ended bans.
    pub fn sweep(&self, now: Timestamp, auto: Option<AutoBlock>) {
        self.buckets.retain(|level| level.says_something(now));
        self.failures.lock().retain(|_, count| auto.is_some_and(|rule| count.counts(&rule, now)));
        self.changes.lock().retain(|_, change| change.matters(clock::wall()));
    }
}

impl FailureCount {
    fn counts(&self, rule: &AutoBlock, now: Timestamp) -> bool {
        now.since(self.began) < rule.window
            || (self.failures.offences > 0 && now.since(self.last) < rule.memory())
    }
}

impl Store for LocalStore {
    async fn spend(&self, charges: &[Charge], now: Timestamp) -> Result<Readings, StoreUnavailable> {
        Ok(self.spend_now(charges, now))
    }

    async fn refund(&self, charges: Charges, now: Timestamp) -> Result<(), StoreUnavailable> {
        self.refund_now(&charges, now);
        Ok(())
    }

    async fn refill(&self, bucket: &Bucket) -> Result<bool, StoreUnavailable> {
        Ok(self.buckets.lock(bucket).remove().is_some_and(|level| level.says_something(clock::steady())))
    }

    async fn count_failure(
        &self,
        client: IpNet,
        rule: AutoBlock,
        now: Timestamp,
    ) -> Result<Failures, StoreUnavailable> {
        let mut failures = self.failures.lock();
        if failures.len() >= MOST_FAILING {
            failures.retain(|_, count| count.counts(&rule, now));
            if failures.len() >= MOST_FAILING {
                failures.clear();
            }
        }
        let fresh = || FailureCount { failures: Failures::default(), began: now, last: now };
        let count = failures.entry(client).or_insert_with(fresh);
        if now.since(count.began) >= rule.window {
            (count.failures.count, count.began) = (0, now);
        }
        if now.since(count.last) >= rule.memory() {
            count.failures.offences = 0;
        }
        count.last = now;
        count.failures.count += 1;
        if count.failures.count == rule.failures {
            count.failures.offences += 1;
        }
        Ok(count.failures)
    }

    async fn clear_failures(&self, client: IpNet) -> Result<(), StoreUnavailable> {
        if let Some(count) = self.failures.lock().get_mut(&client) {
            count.failures.count = 0;
        }
        Ok(())
    }

    async fn put(&self, change: &Change) -> Result<Put, StoreUnavailable> {
        let mut changes = self.changes.lock();
        let key = (change.topic, change.key.clone());
        match changes.get(&key) {
            Some(known) if known.changed_at >= change.changed_at => Ok(Put::Known(known.changed_at)),
            _ => {
                changes.insert(key, change.clone());
                Ok(Put::Stored)
            }
        }
    }

    async fn all(&self, topic: Topic) -> Result<Vec<Change>, StoreUnavailable> {
        Ok(self.changes.lock().values().filter(|change| change.topic == topic).cloned().collect())
    }
}
