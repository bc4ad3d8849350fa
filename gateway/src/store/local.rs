//! The store in process: sharded maps, swept now and then, with a bound.

use std::collections::HashMap;

use ipnet::IpNet;
use parking_lot::{Mutex, MutexGuard};
use policy::blocks::AutoBlock;
use policy::bucket::Bucket;
use policy::limits::{Charge, Charges, spend_all};
use policy::time::Timestamp;
use policy::world::StoreAway;
use smallvec::SmallVec;

use super::{Change, Failures, Readings, Store, Topic};

/// So many locks share the buckets.
pub(super) const SHARDS: usize = 64;

/// The most buckets a shard keeps. Beyond it full buckets are dropped, which loses nothing, and then any.
const MOST_IN_SHARD: usize = 20_000;

/// The most clients whose failures are counted.
const MOST_FAILING: usize = 1_000_000;

/// Keyed at random, so that nobody can make keys that collide.
pub(super) type Hasher = ahash::RandomState;

type Shard = HashMap<Bucket, Timestamp, Hasher>;

/// Limits and failures in this process.
pub struct LocalStore {
    shards: Vec<Mutex<Shard>>,
    hasher: Hasher,
    failures: Mutex<HashMap<IpNet, FailureCount>>,
    changes: Mutex<HashMap<(Topic, String), Change>>,
}

struct FailureCount {
    failures: Failures,
    began: Timestamp,
    last: Timestamp,
}

impl Default for LocalStore {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: Hasher::default(),
            failures: Mutex::default(),
            changes: Mutex::default(),
        }
    }
}

/// The shard of a bucket.
pub(super) fn shard_of(hasher: &Hasher, bucket: &Bucket) -> usize {
    usize::try_from(hasher.hash_one(bucket) % SHARDS as u64).unwrap_or(0)
}

/// The shards of `charges`, locked once each, with the place of each charge among them.
pub(super) fn lock_all<'s, T>(
    shards: &'s [Mutex<T>],
    hasher: &Hasher,
    charges: &[Charge],
) -> (SmallVec<[MutexGuard<'s, T>; 4]>, SmallVec<[usize; 4]>) {
    // INVARIANT: shards are locked in ascending order, so that two requests never wait for each other.
    let mut places: SmallVec<[usize; 4]> =
        charges.iter().map(|charge| shard_of(hasher, &charge.bucket)).collect();
    let mut numbers = places.clone();
    numbers.sort_unstable();
    numbers.dedup();
    let locked = numbers.iter().map(|number| shards[*number].lock()).collect();
    for place in &mut places {
        *place = numbers.binary_search(place).unwrap_or(0);
    }
    (locked, places)
}

impl LocalStore {
    /// Takes from every bucket or from none.
    pub fn spend_now(&self, charges: &[Charge], now: Timestamp) -> Readings {
        if let [charge] = charges {
            return self.spend_one(charge, now);
        }
        let (mut locked, places) = lock_all(&self.shards, &self.hasher, charges);
        let mut kept: SmallVec<[(usize, Timestamp); 4]> = SmallVec::new();
        let readings = spend_all(
            charges,
            now,
            |at| locked[places[at]].get(&charges[at].bucket).copied().unwrap_or_default(),
            |at, arrival| kept.push((at, arrival)),
        );
        for (at, arrival) in kept {
            keep(&mut locked[places[at]], &charges[at].bucket, arrival, now);
        }
        readings
    }

    /// The usual case: one limit, one look-up.
    fn spend_one(&self, charge: &Charge, now: Timestamp) -> Readings {
        let mut shard = self.shards[shard_of(&self.hasher, &charge.bucket)].lock();
        let stored = shard.get_mut(&charge.bucket);
        let arrival = stored.as_ref().map_or(Timestamp::EPOCH, |arrival| **arrival);
        let reading = charge.rule.gcra.take(arrival, now);
        match stored {
            Some(stored) => *stored = reading.arrival,
            None => keep(&mut shard, &charge.bucket, reading.arrival, now),
        }
        SmallVec::from_iter([reading])
    }

    /// Gives one token back to every bucket.
    pub fn refund_now(&self, charges: &[Charge], now: Timestamp) {
        for charge in charges {
            let mut shard = self.shards[shard_of(&self.hasher, &charge.bucket)].lock();
            if let Some(arrival) = shard.get_mut(&charge.bucket) {
                *arrival = charge.rule.gcra.refund(*arrival, now);
            }
        }
    }

    /// Buckets that are not full.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether every bucket is full.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops what says nothing any more: full buckets, old failures, ended bans.
    pub fn sweep(&self, now: Timestamp, auto: Option<AutoBlock>) {
        for shard in &self.shards {
            shard.lock().retain(|_, arrival| *arrival > now);
        }
        self.failures.lock().retain(|_, count| auto.is_some_and(|rule| count.counts(&rule, now)));
        self.changes.lock().retain(|_, change| change.matters(now));
    }
}

fn keep(shard: &mut Shard, bucket: &Bucket, arrival: Timestamp, now: Timestamp) {
    if let Some(stored) = shard.get_mut(bucket) {
        *stored = arrival;
        return;
    }
    make_room(shard, |arrival| *arrival > now);
    shard.insert(bucket.clone(), arrival);
}

/// Makes room for one more, if need be: first what says nothing goes, then a quarter of the rest.
pub(super) fn make_room<T>(shard: &mut HashMap<Bucket, T, Hasher>, says_something: impl Fn(&T) -> bool) {
    if shard.len() < MOST_IN_SHARD {
        return;
    }
    shard.retain(|_, value| says_something(value));
    if shard.len() >= MOST_IN_SHARD {
        // Too many clients with debts at once. A quarter of them is forgiven: memory has a bound.
        let mut count = 0;
        shard.retain(|_, _| {
            count += 1;
            count % 4 != 0
        });
    }
}

impl FailureCount {
    fn counts(&self, rule: &AutoBlock, now: Timestamp) -> bool {
        now.since(self.began) < rule.window
            || (self.failures.offences > 0 && now.since(self.last) < rule.memory())
    }
}

impl Store for LocalStore {
    async fn spend(&self, charges: &[Charge], now: Timestamp) -> Result<Readings, StoreAway> {
        Ok(self.spend_now(charges, now))
    }

    async fn refund(&self, charges: Charges, now: Timestamp) -> Result<(), StoreAway> {
        self.refund_now(&charges, now);
        Ok(())
    }

    async fn refill(&self, bucket: &Bucket) -> Result<(), StoreAway> {
        self.shards[shard_of(&self.hasher, bucket)].lock().remove(bucket);
        Ok(())
    }

    async fn count_failure(
        &self,
        client: IpNet,
        rule: AutoBlock,
        now: Timestamp,
    ) -> Result<Failures, StoreAway> {
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

    async fn clear_failures(&self, client: IpNet) -> Result<(), StoreAway> {
        if let Some(count) = self.failures.lock().get_mut(&client) {
            count.failures.count = 0;
        }
        Ok(())
    }

    async fn put(&self, change: &Change) -> Result<(), StoreAway> {
        let mut changes = self.changes.lock();
        let key = (change.topic, change.key.clone());
        if changes.get(&key).is_none_or(|known| known.changed_at < change.changed_at) {
            changes.insert(key, change.clone());
        }
        Ok(())
    }

    async fn all(&self, topic: Topic) -> Result<Vec<Change>, StoreAway> {
        Ok(self.changes.lock().values().filter(|change| change.topic == topic).cloned().collect())
    }
}
