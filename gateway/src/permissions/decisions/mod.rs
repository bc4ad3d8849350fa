//! The cache of answers of the permission service.
//!
//! An answer is used while all of this holds:
//!
//! - no change that touches it is known: such a change drops it, and an answer that arrives after the change is not
//!   stored;
//! - it is younger than its `ttl` (`negative_ttl` for a no), counted from when it was asked for, not from its last use;
//! - the change feed answered within `max_staleness`, or the answer itself is younger than that.
//!
//! So an answer that is used was right at some time within the last `max_staleness`. The tests below check that against
//! a model with late answers, late changes and a lost feed. Equal questions at the same time are sent once. A question
//! from after a change does not join one from before it.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;
use parking_lot::Mutex;
use policy::rules::permissions::PermissionRule;
use policy::values::time::Timestamp;
use smallvec::SmallVec;
use tokio::sync::watch;

use crate::collections::s3_fifo::Cache;
use crate::permissions::feed::{Knowledge, Moment};
use protocol::feed::{Change, News};

/// So many locks share the answers.
const SHARDS: usize = 64;

/// The longest cached key, in bytes. It contains a client's path, and memory is bounded in bytes, too.
const LONGEST_KEY: usize = 1024;

/// The byte bound of a shard has room for at least so many answers, however small the capacity is.
const LARGEST_IN_SHARD: usize = 16;

/// The byte bound, for each answer of the capacity. A usual answer takes about 200 bytes.
const BYTES_EACH: usize = 512;

/// What is cached.
pub trait Answer: Clone + Send + Sync + 'static {
    /// Whether it is a yes.
    fn is_yes(&self) -> bool;

    /// Whether a change may alter it.
    fn touched_by(&self, key: &[u8], change: &Change) -> bool;

    /// Bytes that it holds outside of itself.
    fn heap(&self) -> usize;
}

/// Where to find the answers that a change may touch.
#[derive(Clone, Copy, Debug)]
pub enum Reach<'c> {
    /// It touches none.
    Nothing,
    /// It touches answers with this home.
    Home(&'c [u8]),
    /// It may touch any answer.
    All,
}

/// A question: its bytes, and the home by which its answer is found when something changes.
#[derive(Clone, Debug)]
pub struct Key {
    bytes: SmallVec<[u8; 128]>,
    home: u64,
    hash: u64,
}

/// Answers of one kind.
pub struct Answers<A> {
    shards: Vec<Mutex<Shard<A>>>,
    hasher: RandomState,
    knowledge: Arc<Knowledge>,
    /// What happened to questions.
    pub statistics: Statistics,
}

/// Counted since the start.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Answered from the cache.
    pub hits: AtomicU64,
    /// Sent, or joined to one in flight.
    pub misses: AtomicU64,
    /// The joined ones among these.
    pub joined: AtomicU64,
    /// Dropped for lack of room.
    pub evictions: AtomicU64,
    /// Dropped because of a change, or by hand.
    pub invalidations: AtomicU64,
    /// Not stored, because a change had overtaken them.
    pub overtaken: AtomicU64,
}

struct Shard<A> {
    cache: Cache<Entry<A>>,
    flights: HashMap<SmallVec<[u8; 128]>, Flight<A>>,
}

#[derive(Clone)]
struct Entry<A> {
    answer: A,
    asked_at: Timestamp,
    /// The last change that the answer takes into account.
    revision: i64,
}

impl<A: Answer> Entry<A> {
    /// Whether a change may alter the answer. An answer that takes the change into account stays right.
    fn touched_by(&self, key: &[u8], change: &Change) -> bool {
        self.revision < change.revision && self.answer.touched_by(key, change)
    }
}

/// A question in flight.
struct Flight<A> {
    asked: Moment,
    landed: watch::Receiver<Landing<A>>,
}

/// The result of a question.
#[derive(Clone)]
enum Landing<A> {
    Asked,
    Answered(A),
    Failed,
}

impl<A: Answer> Answers<A> {
    /// An empty cache.
    pub fn new(knowledge: Arc<Knowledge>) -> Arc<Self> {
        let shard = || Mutex::new(Shard { cache: Cache::new(1, 0), flights: HashMap::new() });
        Arc::new(Self {
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            hasher: RandomState::new(),
            knowledge,
            statistics: Statistics::default(),
        })
    }

    /// The key for `parts`. Answers with the same `home` are found together.
    pub fn key(&self, home: &[u8], parts: &[&[u8]]) -> Key {
        let mut bytes = SmallVec::new();
        for part in parts {
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(part);
        }
        Key { home: self.hasher.hash_one(home), hash: self.hasher.hash_one(bytes.as_slice()), bytes }
    }

    fn shard(&self, home: u64) -> &Mutex<Shard<A>> {
        let place = usize::try_from(home % SHARDS as u64).unwrap_or_default();
        &self.shards[place]
    }

    /// The answer, if it may be used.
    pub fn find(&self, key: &Key, rule: &PermissionRule, now: Timestamp) -> Option<A> {
        let feed_is_fresh = self.knowledge.age(now).is_some_and(|age| age <= rule.max_staleness);
        let mut shard = self.shard(key.home).lock();
        let entry = shard.cache.get(key.hash, &key.bytes)?;
        let age = now.since(entry.asked_at);
        let ttl = if entry.answer.is_yes() { rule.ttl } else { rule.negative_ttl };
        let usable = age < ttl && (feed_is_fresh || age <= rule.max_staleness);
        let answer = usable.then(|| entry.answer.clone());
        drop(shard);
        if answer.is_some() {
            self.statistics.hits.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// The last answer, however old. An answer that a known change touches is never returned.
    pub fn last_known(&self, key: &Key) -> Option<A> {
        let shard = self.shard(key.home).lock();
        shard.cache.peek(key.hash, &key.bytes).map(|entry| entry.answer.clone())
    }

    /// Asks, or waits for an equal question in flight. `question` returns an answer with the change at which it was
    /// computed.
    pub async fn ask<Asked>(
        self: &Arc<Self>,
        key: &Key,
        capacity: u32,
        now: Timestamp,
        question: impl FnOnce() -> Asked,
    ) -> Option<A>
    where
        Asked: Future<Output = Option<(A, i64)>> + Send + 'static,
    {
        self.statistics.misses.fetch_add(1, Ordering::Relaxed);
        let mut landed = self.board(key, capacity, now, question);
        match &*landed.wait_for(|landing| !matches!(landing, Landing::Asked)).await.ok()? {
            Landing::Answered(answer) => Some(answer.clone()),
            Landing::Asked | Landing::Failed => None,
        }
    }

    /// Joins a question in flight, or asks it.
    fn board<Asked>(
        self: &Arc<Self>,
        key: &Key,
        capacity: u32,
        now: Timestamp,
        question: impl FnOnce() -> Asked,
    ) -> watch::Receiver<Landing<A>>
    where
        Asked: Future<Output = Option<(A, i64)>> + Send + 'static,
    {
        let mut shard = self.shard(key.home).lock();
        let asked = self.knowledge.moment();
        if let Some(flight) = shard.flights.get(&key.bytes).filter(|flight| flight.asked == asked) {
            self.statistics.joined.fetch_add(1, Ordering::Relaxed);
            return flight.landed.clone();
        }
        let (landing, landed) = watch::channel(Landing::Asked);
        shard.flights.insert(key.bytes.clone(), Flight { asked, landed: landed.clone() });
        // In a task of its own, because the request that asked first may be cancelled while others wait.
        let (answers, key, asking) = (Arc::clone(self), key.clone(), question());
        tokio::spawn(async move {
            let answered = asking.await;
            answers.land(&key, asked, answered.as_ref(), capacity, now);
            let became = answered.map_or(Landing::Failed, |(answer, _)| Landing::Answered(answer));
            landing.send_replace(became);
        });
        landed
    }

    fn land(
        &self,
        key: &Key,
        asked: Moment,
        answered: Option<&(A, i64)>,
        capacity: u32,
        asked_at: Timestamp,
    ) {
        let mut shard = self.shard(key.home).lock();
        if shard.flights.get(&key.bytes).is_some_and(|flight| flight.asked == asked) {
            shard.flights.remove(&key.bytes);
        }
        let Some((answer, revision)) = answered else { return };
        let entry = Entry { answer: answer.clone(), asked_at, revision: *revision };
        self.keep(&mut shard, key, asked, entry, capacity);
    }

    fn keep(&self, shard: &mut Shard<A>, key: &Key, asked: Moment, entry: Entry<A>, capacity: u32) {
        if key.bytes.len() > LONGEST_KEY {
            return;
        }
        let touches = |change: &Change| entry.answer.touched_by(&key.bytes, change);
        if self.knowledge.voids(asked, entry.revision, touches) {
            self.statistics.overtaken.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let known = shard.cache.peek(key.hash, &key.bytes);
        if known.is_some_and(|known| known.revision > entry.revision) {
            return; // it arrived late, and a later answer is stored already
        }
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX).div_ceil(SHARDS);
        // A shard may always hold a few of the largest answers: a small capacity is meant in entries, not in bytes.
        let bytes = capacity.max(LARGEST_IN_SHARD).saturating_mul(BYTES_EACH);
        shard.cache.set_room(capacity, bytes);
        let heap = entry.answer.heap();
        let evicted = shard.cache.insert(key.hash, &key.bytes, entry, heap);
        self.statistics.evictions.fetch_add(evicted as u64, Ordering::Relaxed);
    }

    /// Drops the answers that changes touch; the changes are noted already. Even if several changes may touch any
    /// answer, all answers are searched once only.
    pub fn apply<'n>(&self, news: &'n News, reach: impl Fn(&'n Change) -> Reach<'n>) -> usize {
        if news.reset {
            return self.invalidate(|_, _| true);
        }
        let (mut dropped, mut everywhere) = (0, Vec::new());
        for change in &news.changes {
            match reach(change) {
                Reach::Nothing => {}
                Reach::All => everywhere.push(change),
                Reach::Home(home) => {
                    let untouched = |key: &[u8], entry: &Entry<A>| !entry.touched_by(key, change);
                    dropped += self.shard(self.hasher.hash_one(home)).lock().cache.retain(untouched);
                }
            }
        }
        self.statistics.invalidations.fetch_add(dropped as u64, Ordering::Relaxed);
        if !everywhere.is_empty() {
            let touched =
                |key: &[u8], entry: &Entry<A>| everywhere.iter().any(|change| entry.touched_by(key, change));
            dropped += self.drop_all(touched);
        }
        dropped
    }

    /// Drops the answers for which `unwanted` is true. Returns how many.
    pub fn invalidate(&self, unwanted: impl Fn(&[u8], &A) -> bool) -> usize {
        self.drop_all(|key, entry| unwanted(key, &entry.answer))
    }

    fn drop_all(&self, unwanted: impl Fn(&[u8], &Entry<A>) -> bool) -> usize {
        let drop_from = |shard: &Mutex<Shard<A>>| {
            shard.lock().cache.retain(|key, entry: &Entry<A>| !unwanted(key, entry))
        };
        let dropped = self.shards.iter().map(drop_from).sum();
        self.statistics.invalidations.fetch_add(dropped as u64, Ordering::Relaxed);
        dropped
    }

    /// The bytes of all answers in the cache.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().cache.bytes()).sum()
    }

    /// The number of answers in the cache.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().cache.len()).sum()
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The parts of a key, as they were passed to [`Answers::key`].
pub fn parts(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = key;
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (part, tail) = tail.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        rest = tail;
        Some(part)
    })
}

#[cfg(test)]
mod tests;
