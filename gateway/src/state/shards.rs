//! A bounded map from buckets to what is known of them, with sharded locks and one hash for each look-up.

use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};
use policy::rules::limits::Charge;
use policy::rules::limits::bucket::Bucket;
use smallvec::SmallVec;

/// So many locks share the buckets.
const SHARDS: usize = 64;

/// The most buckets of a shard. Beyond it, buckets of which nothing is known are dropped first, which loses nothing,
/// and then others.
const MOST_IN_SHARD: usize = 20_000;

type Table<V> = HashTable<(Bucket, V)>;

/// The map.
pub(super) struct Shards<V> {
    shards: Vec<Mutex<Table<V>>>,
    /// Has a random key, so that an attacker cannot make keys that collide.
    hasher: ahash::RandomState,
}

impl<V> Default for Shards<V> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(HashTable::new())).collect();
        Self { shards, hasher: ahash::RandomState::new() }
    }
}

/// One bucket's shard, locked.
pub(super) struct Locked<'s, 'b, V> {
    table: MutexGuard<'s, Table<V>>,
    hash: u64,
    bucket: &'b Bucket,
    hasher: &'s ahash::RandomState,
}

/// The shards of several charges, each locked once.
pub(super) struct LockedAll<'s, 'b, V> {
    tables: SmallVec<[MutexGuard<'s, Table<V>>; 4]>,
    /// For each charge: the index of its table, its hash and its bucket.
    places: SmallVec<[(usize, u64, &'b Bucket); 4]>,
    hasher: &'s ahash::RandomState,
}

/// The table uses the low bits of a hash, the choice of the shard uses others.
fn shard_of(hash: u64) -> usize {
    usize::try_from(hash >> 40).unwrap_or(0) % SHARDS
}

impl<V> Shards<V> {
    /// Locks the shard of `bucket`.
    pub(super) fn lock<'s, 'b>(&'s self, bucket: &'b Bucket) -> Locked<'s, 'b, V> {
        let hash = self.hasher.hash_one(bucket);
        Locked { table: self.shards[shard_of(hash)].lock(), hash, bucket, hasher: &self.hasher }
    }

    /// Locks the shards of `charges`.
    pub(super) fn lock_all<'s, 'b>(&'s self, charges: &'b [Charge]) -> LockedAll<'s, 'b, V> {
        let hashes: SmallVec<[u64; 4]> =
            charges.iter().map(|charge| self.hasher.hash_one(&charge.bucket)).collect();
        // INVARIANT: shards are locked in ascending order, so that two requests never wait for each other.
        let mut numbers: SmallVec<[usize; 4]> = hashes.iter().map(|hash| shard_of(*hash)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let tables = numbers.iter().map(|number| self.shards[*number].lock()).collect();
        let place = |(charge, hash): (&'b Charge, &u64)| {
            (numbers.binary_search(&shard_of(*hash)).unwrap_or(0), *hash, &charge.bucket)
        };
        LockedAll { tables, places: charges.iter().zip(&hashes).map(place).collect(), hasher: &self.hasher }
    }

    /// Every value, shard by shard.
    pub(super) fn for_each(&self, mut work: impl FnMut(&Bucket, &mut V)) {
        for shard in &self.shards {
            shard.lock().iter_mut().for_each(|(bucket, value)| work(bucket, value));
        }
    }

    /// Drops the values for which `says_something` is false.
    pub(super) fn retain(&self, says_something: impl Fn(&V) -> bool) {
        for shard in &self.shards {
            shard.lock().retain(|(_, value)| says_something(value));
        }
    }

    /// Buckets in it.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl<V: Default> Locked<'_, '_, V> {
    /// What is known of the bucket.
    pub(super) fn find(&mut self) -> Option<&mut V> {
        let entry = self.table.find_mut(self.hash, |(bucket, _)| bucket == self.bucket);
        entry.map(|(_, value)| value)
    }

    /// The same; inserts an empty value if there is none.
    pub(super) fn find_or_insert(&mut self, says_something: impl Fn(&V) -> bool) -> &mut V {
        find_or_insert(&mut self.table, self.hash, self.bucket, self.hasher, says_something)
    }

    /// Forgets the bucket, and returns what was known of it.
    pub(super) fn remove(&mut self) -> Option<V> {
        let entry = self.table.find_entry(self.hash, |(bucket, _)| bucket == self.bucket).ok()?;
        Some(entry.remove().0.1)
    }
}

impl<V: Default> LockedAll<'_, '_, V> {
    /// What is known of the bucket of the charge `at`.
    pub(super) fn find(&mut self, at: usize) -> Option<&mut V> {
        let (place, hash, bucket) = self.places[at];
        self.tables[place].find_mut(hash, |(other, _)| other == bucket).map(|(_, value)| value)
    }

    /// The same; inserts an empty value if there is none.
    pub(super) fn find_or_insert(&mut self, at: usize, says_something: impl Fn(&V) -> bool) -> &mut V {
        let (place, hash, bucket) = self.places[at];
        find_or_insert(&mut self.tables[place], hash, bucket, self.hasher, says_something)
    }
}

fn find_or_insert<'t, V: Default>(
    table: &'t mut Table<V>,
    hash: u64,
    bucket: &Bucket,
    hasher: &ahash::RandomState,
    says_something: impl Fn(&V) -> bool,
) -> &'t mut V {
    if table.find(hash, |(other, _)| other == bucket).is_none() {
        make_room(table, says_something);
        table.insert_unique(hash, (bucket.clone(), V::default()), |(other, _)| hasher.hash_one(other));
    }
    let entry = table.find_mut(hash, |(other, _)| other == bucket);
    let Some((_, value)) = entry else { unreachable!("inserted above") };
    value
}

fn make_room<V>(table: &mut Table<V>, says_something: impl Fn(&V) -> bool) {
    if table.len() < MOST_IN_SHARD {
        return;
    }
    table.retain(|(_, value)| says_something(value));
    if table.len() >= MOST_IN_SHARD {
        // Too many clients have debts at once. A quarter of them is dropped, because memory is bounded.
        let mut count = 0;
        table.retain(|_| {
            count += 1;
            count % 4 != 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_a_bound_and_what_says_nothing_goes_first() {
        let shards: Shards<bool> = Shards::default();
        for number in 0..SHARDS * MOST_IN_SHARD * 2 {
            let bucket = Bucket::of(&number.to_string());
            *shards.lock(&bucket).find_or_insert(|says| *says) = number == 7;
        }
        assert!(shards.len() <= SHARDS * MOST_IN_SHARD);
        assert_eq!(shards.lock(&Bucket::of("7")).find(), Some(&mut true));
        shards.lock(&Bucket::of("7")).remove();
        assert_eq!(shards.lock(&Bucket::of("7")).find(), None);
    }
}
