//! The store in process: sharded maps, swept now and then, with a bound.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use ipnet::IpNet;
use parking_lot::{Mutex, MutexGuard};
use policy::blocks::AutoBlock;
use policy::limits::{Charge, Charges, spend_all};
use policy::time::Timestamp;
use policy::world::StoreAway;
use smallvec::SmallVec;

use super::{BanChange, Readings, Store};

/// So many locks share the buckets.
const SHARDS: usize = 64;

/// The most buckets a shard keeps. Beyond it full buckets are dropped, which loses nothing, and then any.
const MOST_IN_SHARD: usize = 20_000;

type Shard = HashMap<String, Timestamp>;

/// Limits and failures in this process.
pub struct LocalStore {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    failures: Mutex<HashMap<IpNet, (u32, Timestamp)>>,
    bans: Mutex<HashMap<IpNet, BanChange>>,
}

impl Default for LocalStore {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            failures: Mutex::default(),
            bans: Mutex::default(),
        }
    }
}

impl LocalStore {
    fn shard_of(&self, bucket: &str) -> usize {
        usize::try_from(self.hasher.hash_one(bucket) % SHARDS as u64).unwrap_or(0)
    }

    /// Takes from every bucket or from none; `replicas` share the limits between them.
    pub fn spend_shared(&self, charges: &[Charge], now: Timestamp, replicas: u32) -> Readings {
        // INVARIANT: shards are locked in ascending order, so that two requests never wait for each other.
        let mut numbers: SmallVec<[usize; 4]> =
            charges.iter().map(|charge| self.shard_of(&charge.bucket)).collect();
        let places = numbers.clone();
        numbers.sort_unstable();
        numbers.dedup();
        let mut locked: SmallVec<[MutexGuard<'_, Shard>; 4]> =
            numbers.iter().map(|number| self.shards[*number].lock()).collect();
        let place = |at: usize| numbers.binary_search(&places[at]).unwrap_or(0);
        let mut kept: SmallVec<[(usize, Timestamp); 4]> = SmallVec::new();
        let readings = spend_all(
            charges,
            now,
            replicas,
            |at| locked[place(at)].get(&charges[at].bucket).copied().unwrap_or_default(),
            |at, arrival| kept.push((at, arrival)),
        );
        for (at, arrival) in kept {
            let shard = &mut locked[place(at)];
            if let Some(stored) = shard.get_mut(&charges[at].bucket) {
                *stored = arrival;
            } else {
                make_room(shard, now);
                shard.insert(charges[at].bucket.clone(), arrival);
            }
        }
        readings
    }

    /// Notes the level of a bucket as another store knows it.
    pub fn note(&self, bucket: &str, arrival: Timestamp, now: Timestamp) {
        let mut shard = self.shards[self.shard_of(bucket)].lock();
        if let Some(stored) = shard.get_mut(bucket) {
            *stored = arrival;
        } else {
            make_room(&mut shard, now);
            shard.insert(bucket.to_owned(), arrival);
        }
    }

    /// Drops what says nothing any more: full buckets, old failures, ended bans.
    pub fn sweep(&self, now: Timestamp, failure_window: std::time::Duration) {
        for shard in &self.shards {
            shard.lock().retain(|_, arrival| *arrival > now);
        }
        self.failures.lock().retain(|_, (_, began)| now.since(*began) < failure_window);
        self.bans.lock().retain(|_, change| change.matters(now));
    }
}

fn make_room(shard: &mut Shard, now: Timestamp) {
    if shard.len() < MOST_IN_SHARD {
        return;
    }
    shard.retain(|_, arrival| *arrival > now);
    if shard.len() >= MOST_IN_SHARD {
        // Too many clients with debts at once. A quarter of them is forgiven: memory has a bound.
        let mut count = 0;
        shard.retain(|_, _| {
            count += 1;
            count % 4 != 0
        });
    }
}

impl Store for LocalStore {
    async fn spend(&self, charges: &[Charge], now: Timestamp) -> Result<Readings, StoreAway> {
        Ok(self.spend_shared(charges, now, 1))
    }

    async fn refund(&self, charges: Charges, now: Timestamp) -> Result<(), StoreAway> {
        for charge in charges {
            if let Some(arrival) = self.shards[self.shard_of(&charge.bucket)].lock().get_mut(&charge.bucket) {
                *arrival = charge.rule.gcra.refund(*arrival, now);
            }
        }
        Ok(())
    }

    async fn count_failure(&self, client: IpNet, rule: AutoBlock, now: Timestamp) -> Result<u32, StoreAway> {
        const MOST: usize = 1_000_000;
        let mut failures = self.failures.lock();
        if failures.len() >= MOST {
            failures.retain(|_, (_, began)| now.since(*began) < rule.window);
        }
        let (count, began) = failures.entry(client).or_insert((0, now));
        if now.since(*began) >= rule.window {
            (*count, *began) = (0, now);
        }
        *count += 1;
        Ok(*count)
    }

    async fn clear_failures(&self, client: IpNet) -> Result<(), StoreAway> {
        self.failures.lock().remove(&client);
        Ok(())
    }

    async fn publish_ban(&self, change: &BanChange) -> Result<(), StoreAway> {
        self.bans.lock().insert(change.network, change.clone());
        Ok(())
    }

    async fn bans(&self) -> Result<Vec<BanChange>, StoreAway> {
        Ok(self.bans.lock().values().cloned().collect())
    }
}
