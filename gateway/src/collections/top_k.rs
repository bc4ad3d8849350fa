//! The most frequent items, in bounded memory: the Space-Saving sketch (Metwally, Agrawal, El Abbadi 2005) over a
//! sliding window of slices.
//!
//! A slice counts [`COUNTERS`] items. An item that is not among them replaces the least frequent one and starts with
//! its count. That count is the most by which its own count can be too high. Every item with more than `total /
//! COUNTERS` requests in a slice is among its counters.

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use policy::values::time::Timestamp;

/// Items that a slice counts.
pub const COUNTERS: usize = 256;

/// The length of a slice.
const SLICE: Duration = Duration::from_secs(10);

/// The longest window.
pub const LONGEST_WINDOW: Duration = Duration::from_mins(5);

/// How often an item was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// At most so often.
    pub count: u64,
    /// The count may be too high by this much.
    pub error: u64,
}

/// The most frequent items of the last minutes.
pub struct Sketch<K>(Mutex<VecDeque<(u64, Slice<K>)>>);

impl<K> Default for Sketch<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone> Sketch<K> {
    /// Counts `item`.
    pub fn record<Q>(&self, item: &Q, now: Timestamp)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let number = now.as_secs() / SLICE.as_secs();
        let mut slices = self.0.lock();
        if slices.back().is_none_or(|(newest, _)| *newest < number) {
            let most = usize::try_from(LONGEST_WINDOW.as_secs() / SLICE.as_secs()).unwrap_or(1);
            if slices.len() > most {
                slices.pop_front();
            }
            slices.push_back((number, Slice::default()));
        }
        if let Some((_, slice)) = slices.back_mut() {
            slice.record(item);
        }
    }

    /// The items of the last `window`, the busiest first, at most `most` of them.
    pub fn top(&self, window: Duration, most: usize, now: Timestamp) -> Vec<(K, Count)> {
        let oldest = (now - window).as_secs() / SLICE.as_secs();
        let slices = self.0.lock();
        let recent: Vec<_> =
            slices.iter().filter(|(number, _)| *number >= oldest).map(|(_, slice)| slice).collect();
        let mut total: HashMap<&K, Count> = HashMap::new();
        for slice in &recent {
            for counter in &slice.counters {
                total.entry(&counter.item).or_insert(Count { count: 0, error: 0 });
            }
        }
        for (item, sum) in &mut total {
            for slice in &recent {
                let Count { count, error } = slice.count(item);
                (sum.count, sum.error) = (sum.count + count, sum.error + error);
            }
        }
        let mut top: Vec<_> = total.into_iter().map(|(item, count)| (item.clone(), count)).collect();
        top.sort_by_key(|(_, count)| std::cmp::Reverse(count.count));
        top.truncate(most);
        top
    }
}

struct Counter<K> {
    item: K,
    count: u64,
    error: u64,
}

/// Counters as a heap with the least on top, and where each item is.
struct Slice<K> {
    counters: Vec<Counter<K>>,
    places: HashMap<K, usize, ahash::RandomState>,
}

impl<K> Default for Slice<K> {
    fn default() -> Self {
        Self { counters: Vec::new(), places: HashMap::default() }
    }
}

impl<K: Hash + Eq + Clone> Slice<K> {
    fn record<Q>(&mut self, item: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(place) = self.places.get(item) {
            let place = *place;
            self.counters[place].count += 1;
            self.sink(place);
        } else if self.counters.len() < COUNTERS {
            let place = self.counters.len();
            self.counters.push(Counter { item: item.to_owned(), count: 1, error: 0 });
            self.places.insert(item.to_owned(), place);
            self.rise(place);
        } else {
            let least = &mut self.counters[0];
            self.places.remove::<K>(&least.item);
            *least = Counter { item: item.to_owned(), count: least.count + 1, error: least.count };
            self.places.insert(item.to_owned(), 0);
            self.sink(0);
        }
    }

    /// What is known of an item. One that is not counted may have been seen as often as the least frequent one.
    fn count(&self, item: &K) -> Count {
        match self.places.get(item) {
            Some(place) => {
                let Counter { count, error, .. } = &self.counters[*place];
                Count { count: *count, error: *error }
            }
            None if self.counters.len() < COUNTERS => Count { count: 0, error: 0 },
            None => Count { count: self.counters[0].count, error: self.counters[0].count },
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.counters.swap(one, other);
        for place in [one, other] {
            if let Some(known) = self.places.get_mut(&self.counters[place].item) {
                *known = place;
            }
        }
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.counters[parent].count <= self.counters[place].count {
                return;
            }
            self.swap(parent, place);
            place = parent;
        }
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let children = [2 * place + 1, 2 * place + 2].into_iter().filter(|at| *at < self.counters.len());
            let Some(least) = children.min_by_key(|at| self.counters[*at].count) else { return };
            if self.counters[place].count <= self.counters[least].count {
                return;
            }
            self.swap(place, least);
            place = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    #[test]
    fn the_busiest_are_found_among_many_and_the_error_bounds_hold() {
        let sketch: Sketch<String> = Sketch::default();
        for round in 0..1_000 {
            sketch.record("hot", NOW);
            if round % 2 == 0 {
                sketch.record("warm", NOW);
            }
            for other in 0..3 {
                sketch.record(format!("{round}-{other}").as_str(), NOW);
            }
        }
        let top = sketch.top(Duration::from_mins(1), 2, NOW);
        let names: Vec<_> = top.iter().map(|(item, _)| item.as_str()).collect();
        assert_eq!(names, ["hot", "warm"]);
        for ((_, Count { count, error }), truth) in top.iter().zip([1_000, 500]) {
            assert!(count - error <= truth && truth <= *count, "{truth} is in {}..={count}", count - error);
        }
    }

    #[test]
    fn what_is_past_the_window_is_forgotten_and_memory_has_a_bound() {
        let sketch: Sketch<String> = Sketch::default();
        sketch.record("old", NOW);
        let later = NOW + Duration::from_secs(100);
        sketch.record("new", later);
        let names = |window| {
            let top = sketch.top(Duration::from_secs(window), 9, later);
            top.into_iter().map(|(item, _)| item).collect::<Vec<_>>()
        };
        assert_eq!(names(60), ["new"]);
        assert_eq!(names(200).len(), 2);
        for second in 0..10_000 {
            sketch.record("tick", later + Duration::from_secs(second));
        }
        assert!(sketch.0.lock().len() <= 31);
    }
}
