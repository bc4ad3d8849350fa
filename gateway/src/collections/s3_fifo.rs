//! A bounded cache that evicts by S3-FIFO (Yang et al., SOSP 2023). New entries wait in a small queue. Entries that are
//! used again move to the main queue. A key that was evicted lately enters the main queue at once. A hit changes one
//! number and moves nothing. A scan of keys that are used once evicts nothing useful. `hit_rate` below compares it with
//! LRU.
//!
//! It is bounded in entries and in bytes. The weight of an entry is its key, its value with the heap memory that the
//! value holds, and the cache's own share.

use std::collections::VecDeque;

use hashbrown::HashTable;

/// The share of new entries: a tenth of the room.
const SMALL: usize = 10;

/// The cache's own bytes for an entry, besides its slot: numbers in the table and in a queue, and a ghost.
const SHARE: usize = 48;

/// Uses are counted up to this.
const MOST_USES: u8 = 3;

/// A cache of one shard. The caller computes the hashes; keys are compared in full.
pub struct Cache<V> {
    capacity: usize,
    most_bytes: usize,
    bytes: usize,
    places: HashTable<u32>,
    slots: Vec<Slot<V>>,
    free: Vec<u32>,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghosts: Ghosts,
}

struct Slot<V> {
    hash: u64,
    uses: u8,
    weight: usize,
    /// `None`: it was removed, and its number is still in a queue.
    entry: Option<(Box<[u8]>, V)>,
}

impl<V> Cache<V> {
    /// Room for `capacity` entries, at least one, that weigh at most `most_bytes` together.
    pub fn new(capacity: usize, most_bytes: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            most_bytes,
            bytes: 0,
            places: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: Ghosts::default(),
        }
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// What the entries weigh.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the room. Entries that are too many are evicted when the next one is inserted.
    pub fn set_room(&mut self, capacity: usize, most_bytes: usize) {
        (self.capacity, self.most_bytes) = (capacity.max(1), most_bytes);
    }

    fn place(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let is_it = |place: &u32| {
            self.slots[*place as usize].entry.as_ref().is_some_and(|(known, _)| **known == *key)
        };
        self.places.find(hash, is_it).map(|place| *place as usize)
    }

    /// The value of `key`; notes that it was used.
    pub fn get(&mut self, hash: u64, key: &[u8]) -> Option<&V> {
        let place = self.place(hash, key)?;
        let slot = &mut self.slots[place];
        slot.uses = (slot.uses + 1).min(MOST_USES);
        slot.entry.as_ref().map(|(_, value)| value)
    }

    /// The value of `key`; does not note that it was used.
    pub fn peek(&self, hash: u64, key: &[u8]) -> Option<&V> {
        self.slots[self.place(hash, key)?].entry.as_ref().map(|(_, value)| value)
    }

    /// Stores `value`, which holds `heap` bytes outside of itself. Returns how many other entries were evicted. A value
    /// that is too heavy for the whole cache is not stored, and the value before it under this key is dropped.
    pub fn insert(&mut self, hash: u64, key: &[u8], value: V, heap: usize) -> usize {
        let weight = (size_of::<Slot<V>>() + SHARE).saturating_add(key.len()).saturating_add(heap);
        if let Some(place) = self.place(hash, key) {
            let slot = &mut self.slots[place];
            if weight > slot.weight {
                // It is weighed again like a new entry, because in its old slot it could be too heavy.
                self.vacate(u32::try_from(place).unwrap_or(u32::MAX));
            } else {
                self.bytes -= slot.weight - weight;
                (slot.weight, slot.entry) = (weight, Some((key.into(), value)));
                return 0;
            }
        }
        if weight > self.most_bytes {
            return 0;
        }
        let mut evicted = 0;
        while self.small.len() + self.main.len() >= self.capacity || self.bytes + weight > self.most_bytes {
            evicted += usize::from(self.evict());
        }
        self.bytes += weight;
        let slot = Slot { hash, uses: 0, weight, entry: Some((key.into(), value)) };
        let place = if let Some(place) = self.free.pop() {
            self.slots[place as usize] = slot;
            place
        } else {
            self.slots.push(slot);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        };
        let slots = &self.slots;
        self.places.insert_unique(hash, place, |place| slots[*place as usize].hash);
        if self.ghosts.take(hash) {
            self.main.push_back(place);
        } else {
            self.small.push_back(place);
        }
        evicted
    }

    /// Makes room for one entry. Returns whether an entry was evicted.
    fn evict(&mut self) -> bool {
        // Where bytes are the bound, the share of new entries is counted from the entries that are present.
        let entries = self.capacity.min(self.small.len() + self.main.len());
        let from_small = self.main.is_empty() || self.small.len() > entries / SMALL;
        let queue = if from_small { &mut self.small } else { &mut self.main };
        let Some(place) = queue.pop_front() else { return false };
        let slot = &mut self.slots[place as usize];
        if slot.entry.is_none() {
            self.free.push(place);
            return false;
        }
        if slot.uses > 0 {
            // Used again: it moves from the small queue to the main one, or stays for another round in the main one.
            slot.uses = if from_small { 0 } else { slot.uses - 1 };
            self.main.push_back(place);
            return false;
        }
        if from_small {
            self.ghosts.note(slot.hash, self.capacity);
        }
        self.vacate(place);
        self.free.push(place);
        true
    }

    /// Empties a slot whose number may still be in a queue.
    fn vacate(&mut self, place: u32) {
        let slot = &mut self.slots[place as usize];
        self.bytes -= std::mem::take(&mut slot.weight);
        slot.entry = None;
        if let Ok(found) = self.places.find_entry(slot.hash, |other| *other == place) {
            found.remove();
        }
    }

    /// Removes the entries that `keep` does not want. Returns how many.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &V) -> bool) -> usize {
        let before = self.places.len();
        let (slots, bytes) = (&mut self.slots, &mut self.bytes);
        self.places.retain(|place| {
            let slot = &mut slots[*place as usize];
            let kept = slot.entry.as_ref().is_some_and(|(key, value)| keep(key, value));
            if !kept {
                *bytes -= std::mem::take(&mut slot.weight);
                slot.entry = None;
            }
            kept
        });
        before - self.places.len()
    }
}

/// Hashes of what was evicted lately, as many as there is room for entries.
#[derive(Default)]
struct Ghosts {
    order: VecDeque<u64>,
    known: HashTable<u64>,
}

impl Ghosts {
    fn note(&mut self, hash: u64, most: usize) {
        if self.known.find(hash, |known| *known == hash).is_some() {
            return;
        }
        self.known.insert_unique(hash, hash, |known| *known);
        self.order.push_back(hash);
        while self.order.len() > most {
            if let Some(oldest) = self.order.pop_front() {
                self.forget(oldest);
            }
        }
    }

    fn forget(&mut self, hash: u64) -> bool {
        self.known
            .find_entry(hash, |known| *known == hash)
            .map(hashbrown::hash_table::OccupiedEntry::remove)
            .is_ok()
    }

    /// Whether `hash` was evicted lately. It is removed; its position in the order is dropped later, by age.
    fn take(&mut self, hash: u64) -> bool {
        self.forget(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashMap};
    use std::hash::{BuildHasher as _, RandomState};

    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    #[test]
    fn what_is_kept_is_found_and_what_is_taken_out_is_not() {
        let mut cache = Cache::new(100, usize::MAX);
        let hasher = RandomState::new();
        let mut model = HashMap::new();
        let mut random = StdRng::seed_from_u64(7);
        for step in 0..20_000u32 {
            let number: u8 = random.random();
            let key = [number];
            let hash = hasher.hash_one(key);
            match random.random_range(0..10) {
                0 => {
                    let gone = random.random_range(2..9u8);
                    cache.retain(|key, _| !key[0].is_multiple_of(gone));
                    model.retain(|key: &u8, _| !key.is_multiple_of(gone));
                }
                1..5 => {
                    cache.insert(hash, &key, step, 0);
                    model.insert(number, step);
                }
                _ => {
                    if let Some(found) = cache.get(hash, &key) {
                        assert_eq!(
                            model.get(&number),
                            Some(found),
                            "never an old value, never a removed one"
                        );
                    }
                }
            }
            assert!(cache.len() <= 100 && cache.slots.len() <= 101, "{} {}", cache.len(), cache.slots.len());
        }
    }

    #[test]
    fn entries_weigh_no_more_than_there_is_room_for() {
        const MOST: usize = 100_000;
        let mut cache = Cache::new(usize::MAX, MOST);
        let hasher = RandomState::new();
        let mut random = StdRng::seed_from_u64(7);
        let weigh = |cache: &Cache<Vec<u8>>| {
            let entries = cache.slots.iter().filter_map(|slot| Some((slot.weight, slot.entry.as_ref()?)));
            entries
                .map(|(weight, (key, value))| {
                    assert_eq!(weight, size_of::<Slot<Vec<u8>>>() + SHARE + key.len() + value.len());
                    weight
                })
                .sum::<usize>()
        };
        for step in 0..5_000 {
            let key = vec![b'k'; random.random_range(1..200)];
            let value = vec![b'v'; random.random_range(0..3_000)];
            let heap = value.len();
            cache.insert(hasher.hash_one(&key), &key, value, heap);
            if step % 100 == 99 {
                let longest = random.random_range(0..200);
                cache.retain(|key, _| key.len() <= longest);
            }
            assert!(cache.bytes() <= MOST, "{}", cache.bytes());
            assert_eq!(weigh(&cache), cache.bytes());
        }
        cache.insert(1, b"a", vec![1], 1);
        cache.insert(1, b"a", vec![2; MOST], MOST);
        assert!(cache.get(1, b"a").is_none(), "too heavy, and what it replaces is outdated");
        cache.insert(1, b"b", vec![0; MOST / 2], MOST / 2);
        assert!(cache.get(1, b"b").is_some());
    }

    /// Least recently used, in the simplest form.
    struct Lru {
        capacity: usize,
        last_use: HashMap<u32, u64>,
        order: BTreeMap<u64, u32>,
        clock: u64,
    }

    impl Lru {
        fn hit(&mut self, key: u32) -> bool {
            self.clock += 1;
            let before = self.last_use.insert(key, self.clock);
            if let Some(before) = before {
                self.order.remove(&before);
            }
            self.order.insert(self.clock, key);
            if self.last_use.len() > self.capacity
                && let Some((_, oldest)) = self.order.pop_first()
            {
                self.last_use.remove(&oldest);
            }
            before.is_some()
        }
    }

    /// Keys with the probabilities of Zipf's law, found in the cumulative sums.
    fn zipf(keys: u32, exponent: f64) -> Vec<f64> {
        let mut sum = 0.0;
        (1..=keys)
            .map(|rank| {
                sum += f64::from(rank).powf(-exponent);
                sum
            })
            .collect()
    }

    #[test]
    fn hit_rate() {
        println!("entries  keys  exponent  S3-FIFO  LRU");
        for (capacity, keys, exponent) in
            [(10_000, 50_000, 1.0), (5_000, 100_000, 1.0), (10_000, 30_000, 1.2)]
        {
            let sums = zipf(keys, exponent);
            let total = sums[sums.len() - 1];
            let mut random = StdRng::seed_from_u64(42);
            let mut cache = Cache::new(capacity, usize::MAX);
            let mut lru = Lru { capacity, last_use: HashMap::new(), order: BTreeMap::new(), clock: 0 };
            let hasher = RandomState::new();
            let (mut hits, mut lru_hits, mut asked) = (0u32, 0u32, 0u32);
            for turn in 0..1_000_000 {
                let point = random.random::<f64>() * total;
                let key = u32::try_from(sums.partition_point(|sum| *sum < point)).unwrap();
                let bytes = key.to_le_bytes();
                let hash = hasher.hash_one(bytes);
                let hit = cache.get(hash, &bytes).is_some();
                if !hit {
                    cache.insert(hash, &bytes, (), 0);
                }
                let lru_hit = lru.hit(key);
                if turn >= 200_000 {
                    asked += 1;
                    hits += u32::from(hit);
                    lru_hits += u32::from(lru_hit);
                }
            }
            let [ours, theirs] = [hits, lru_hits].map(|hits| f64::from(hits) / f64::from(asked));
            println!("{capacity:7} {keys:6} {exponent:8.1} {ours:8.4} {theirs:6.4}");
            assert!(ours > theirs, "S3-FIFO {ours:.4} should beat LRU {theirs:.4}");
        }
    }
}
