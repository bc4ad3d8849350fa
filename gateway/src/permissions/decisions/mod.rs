//! Answers of the permission service that are remembered while they may be believed.
//!
//! An answer is believed while all of this holds:
//!
//! - no change that touches it is known: such a change drops it, and one that comes late is not kept;
//! - it is younger than its `ttl` (`negative_ttl` for a no), counted from when it was asked for, whenever it was last used;
//! - the change feed was heard of within `max_staleness`, or the answer itself is younger than that.
//!
//! So an answer that is used was right at some time within the last `max_staleness`; the tests below hold it to that
//! against a model with late answers, late changes and a lost feed. Questions for the same thing at the same time are
//! asked once. A question that was asked before a change is not joined by one that comes after it.

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

/// The longest key that is remembered, in bytes: a client's path is in it, and memory has a bound in bytes, too.
const LONGEST_KEY: usize = 1024;

/// So many answers have room in a shard whatever the capacity is, as far as bytes go.
const LARGEST_IN_SHARD: usize = 16;

/// All answers together have at most so many bytes for each that there is room for. A usual one has some 200.
const BYTES_EACH: usize = 512;

/// What is remembered.
pub trait Answer: Clone + Send + Sync + 'static {
    /// Whether it is a yes.
    fn is_yes(&self) -> bool;

    /// Whether a change may make it another.
    fn touched_by(&self, key: &[u8], change: &Change) -> bool;

    /// Bytes that it holds outside of itself.
    fn heap(&self) -> usize;
}

/// Where the answers are that a change may touch.
#[derive(Clone, Copy, Debug)]
pub enum Reach<'c> {
    /// It touches none.
    Nothing,
    /// Those with this home.
    Home(&'c [u8]),
    /// Anywhere.
    All,
}

/// What was asked: as bytes, and by what it is found when something about it changes.
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
    /// What became of questions.
    pub statistics: Statistics,
}

/// Counted since the start.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Answered from memory.
    pub hits: AtomicU64,
    /// Asked, or joined to one that was being asked.
    pub misses: AtomicU64,
    /// Of those, joined.
    pub joined: AtomicU64,
    /// Dropped for lack of room.
    pub evictions: AtomicU64,
    /// Dropped because of a change, or by hand.
    pub invalidations: AtomicU64,
    /// Not kept, for a change had overtaken them.
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
    /// The last change that the answer knows.
    revision: i64,
}

impl<A: Answer> Entry<A> {
    /// Whether a change may make the answer another. One that knows it already is right with it.
    fn touched_by(&self, key: &[u8], change: &Change) -> bool {
        self.revision < change.revision && self.answer.touched_by(key, change)
    }
}

/// A question that is being asked.
struct Flight<A> {
    asked: Moment,
    landed: watch::Receiver<Landing<A>>,
}

/// What became of a question.
#[derive(Clone)]
enum Landing<A> {
    Asked,
    Answered(A),
    Failed,
}

impl<A: Answer> Answers<A> {
    /// No answers yet.
    pub fn new(knowledge: Arc<Knowledge>) -> Arc<Self> {
        let shard = || Mutex::new(Shard { cache: Cache::new(1, 0), flights: HashMap::new() });
        Arc::new(Self {
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            hasher: RandomState::new(),
            knowledge,
            statistics: Statistics::default(),
        })
    }

    /// The key of what `parts` say; answers with the same `home` are found together.
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

    /// The answer, if it may be believed.
    pub fn find(&self, key: &Key, rule: &PermissionRule, now: Timestamp) -> Option<A> {
        let feed_is_fresh = self.knowledge.age(now).is_some_and(|age| age <= rule.max_staleness);
        let mut shard = self.shard(key.home).lock();
        let entry = shard.cache.get(key.hash, &key.bytes)?;
        let age = now.since(entry.asked_at);
        let ttl = if entry.answer.is_yes() { rule.ttl } else { rule.negative_ttl };
        let believed = age < ttl && (feed_is_fresh || age <= rule.max_staleness);
        let answer = believed.then(|| entry.answer.clone());
        drop(shard);
        if answer.is_some() {
            self.statistics.hits.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// The last answer, however old; one that a known change touches is never given again.
    pub fn last_known(&self, key: &Key) -> Option<A> {
        let shard = self.shard(key.home).lock();
        shard.cache.peek(key.hash, &key.bytes).map(|entry| entry.answer.clone())
    }

    /// Asks, or waits for who asks the same already. `question` gives an answer with the change that it was computed at.
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

    /// Joins a question that is being asked, or asks it.
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
        // In a task of its own: who asked first may leave, and others wait.
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
            return; // it came late, and a later answer is there already
        }
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX).div_ceil(SHARDS);
        // A shard may always hold a few of the largest: a small capacity is one of entries.
        let bytes = capacity.max(LARGEST_IN_SHARD).saturating_mul(BYTES_EACH);
        shard.cache.set_room(capacity, bytes);
        let heap = entry.answer.heap();
        let evicted = shard.cache.insert(key.hash, &key.bytes, entry, heap);
        self.statistics.evictions.fetch_add(evicted as u64, Ordering::Relaxed);
    }

    /// Drops what changes touch; they are noted already. However many of them reach everywhere, everything is looked
    /// through once.
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

    /// Drops what `unwanted` names; how many that were.
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

    /// Bytes of the answers in memory.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().cache.bytes()).sum()
    }

    /// Answers in memory.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().cache.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The parts of a key, as [`Answers::key`] was given them.
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
