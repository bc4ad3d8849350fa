//! What this replica knows of the buckets that it shares: a [`Pot`] for each, behind sharded locks.
//!
//! A request that finds a token in every pot, or an empty pot, is decided here. Otherwise it asks the store: one
//! request asks for all that wait for the same bucket, and when its answer is there all of them look again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use policy::bucket::Bucket;
use policy::gcra::{Gcra, Reading};
use policy::lease::{Ask, Grant, Level, Pot};
use policy::limits::{Charge, Mode};
use policy::time::Timestamp;
use policy::world::StoreAway;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::Readings;
use super::local::{Hasher, SHARDS, lock_all, make_room, shard_of};
use crate::clock;

/// The pots of this replica.
pub struct Pots {
    shards: Vec<Mutex<Shard>>,
    hasher: Hasher,
    /// Woken when tokens should go back at once.
    unused: Notify,
}

#[derive(Default)]
struct Shard {
    pots: HashMap<Bucket, Entry, Hasher>,
    /// Buckets whose pots may hold tokens.
    leased: Vec<Bucket>,
}

struct Entry {
    pot: Pot,
    gcra: Gcra,
    /// Requests that wait for the question in flight, and were not counted in it.
    waiting: u32,
    /// The question in flight.
    asking: Option<Arc<Notify>>,
}

/// A question to the store about one bucket.
pub struct Question {
    /// The bucket.
    pub bucket: Bucket,
    /// Its arithmetic.
    pub gcra: Gcra,
    /// What is asked.
    pub ask: Ask,
    sent_at: Timestamp,
}

/// What a look at the pots leads to.
enum Look {
    Decided(Readings),
    Wait { ask: Vec<Question>, others: Vec<OwnedNotified> },
}

impl Default for Pots {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: Hasher::default(),
            unused: Notify::new(),
        }
    }
}

impl Entry {
    fn new(gcra: Gcra) -> Self {
        Self { pot: Pot::default(), gcra, waiting: 0, asking: None }
    }

    fn says_something(&self, now: Timestamp) -> bool {
        self.asking.is_some() || self.waiting > 0 || !self.pot.says_nothing(now)
    }
}

impl Shard {
    fn entry(&mut self, charge: &Charge, now: Timestamp) -> &mut Entry {
        if !self.pots.contains_key(&charge.bucket) {
            make_room(&mut self.pots, |entry| entry.says_something(now));
            self.pots.insert(charge.bucket.clone(), Entry::new(charge.rule.gcra));
        }
        let Some(entry) = self.pots.get_mut(&charge.bucket) else { unreachable!("inserted above") };
        entry.gcra = charge.rule.gcra; // a reload may have changed it
        entry
    }
}

impl Pots {
    /// Takes a token from every bucket or from none, asking the store through `ask` for what is not known here.
    pub async fn spend<F>(
        &self,
        charges: &[Charge],
        mut now: Timestamp,
        ask: impl Fn(Question) -> F,
    ) -> Result<Readings, StoreAway>
    where
        F: Future<Output = Result<(), StoreAway>>,
    {
        /// A bucket that others keep emptying in between.
        const MOST_TRIES: usize = 20;
        let mut waited_for: SmallVec<[Bucket; 2]> = SmallVec::new();
        for _ in 0..MOST_TRIES {
            match self.look(charges, now, &mut waited_for) {
                Look::Decided(readings) => return Ok(readings),
                Look::Wait { ask: questions, others } => {
                    let asked = futures_util::future::join_all(questions.into_iter().map(&ask));
                    let waited = futures_util::future::join_all(others);
                    let (answers, _) = tokio::join!(asked, waited);
                    answers.into_iter().collect::<Result<(), _>>()?;
                    now = clock::now();
                }
            }
        }
        Err(StoreAway)
    }

    fn look(&self, charges: &[Charge], now: Timestamp, waited_for: &mut SmallVec<[Bucket; 2]>) -> Look {
        let (mut locked, places) = lock_all(&self.shards, &self.hasher, charges);
        for bucket in waited_for.drain(..) {
            let place = charges.iter().position(|charge| charge.bucket == bucket).unwrap_or(0);
            if let Some(entry) = locked[places[place]].pots.get_mut(&bucket) {
                entry.waiting = entry.waiting.saturating_sub(1);
            }
        }
        let levels: SmallVec<[Level; 4]> = charges
            .iter()
            .zip(&places)
            .map(|(charge, place)| locked[*place].entry(charge, now).pot.level(now))
            .collect();
        let refused = charges
            .iter()
            .zip(&levels)
            .any(|(charge, level)| *level == Level::Empty && charge.rule.mode == Mode::Enforce);
        let known = !levels.contains(&Level::Unknown);
        if refused || known {
            let decide = |((charge, place), level): ((&Charge, &usize), &Level)| {
                let entry = locked[*place].entry(charge, now);
                match level {
                    Level::Ready if !refused => entry.pot.take(),
                    Level::Empty => entry.pot.turn_away(),
                    Level::Ready if entry.pot.should_return(entry.gcra, now) => self.unused.notify_one(),
                    Level::Ready | Level::Unknown => {}
                }
                entry.pot.describe(entry.gcra, now, *level != Level::Empty)
            };
            return Look::Decided(charges.iter().zip(&places).zip(&levels).map(decide).collect());
        }
        let (mut ask, mut others) = (Vec::new(), Vec::new());
        for ((charge, place), level) in charges.iter().zip(&places).zip(&levels) {
            if *level != Level::Unknown {
                continue;
            }
            let entry = locked[*place].entry(charge, now);
            if let Some(question) = &entry.asking {
                entry.waiting += 1;
                waited_for.push(charge.bucket.clone());
                // Made under the lock: the answer cannot come before.
                others.push(Arc::clone(question).notified_owned());
            } else {
                let waiting = std::mem::take(&mut entry.waiting) + 1;
                ask.push(entry.question(&charge.bucket, waiting, now));
            }
        }
        Look::Wait { ask, others }
    }

    /// Takes in an answer, or that there is none, and wakes those who wait for it.
    pub fn answered(&self, question: &Question, grant: Option<Grant>) {
        let mut shard = self.shards[shard_of(&self.hasher, &question.bucket)].lock();
        let Some(entry) = shard.pots.get_mut(&question.bucket) else { return };
        if let Some(grant) = grant {
            let now = clock::now();
            entry.pot.receive(entry.gcra, grant, question.sent_at, now);
        }
        let holds_tokens = entry.pot.holds_tokens();
        if let Some(asking) = entry.asking.take() {
            asking.notify_waiters();
        }
        if holds_tokens {
            shard.leased.push(question.bucket.clone());
        }
    }

    /// Takes a token from this replica's share of every bucket or from none, in the outage that began at `since`.
    pub fn spend_alone(
        &self,
        charges: &[Charge],
        replicas: u32,
        since: Timestamp,
        now: Timestamp,
    ) -> Readings {
        let (mut locked, places) = lock_all(&self.shards, &self.hasher, charges);
        let mut trial = |take: bool| -> Readings {
            let one = |(charge, place): (&Charge, &usize)| {
                let entry = locked[*place].entry(charge, now);
                let mut pot = entry.pot.clone();
                let reading = pot.take_alone(entry.gcra, replicas, since, now);
                if take && reading.conforms {
                    entry.pot = pot;
                } else if !take {
                    if reading.conforms {
                        pot.put_back_alone(entry.gcra, replicas, now);
                    }
                    return pot.describe_alone(entry.gcra, replicas, now, reading.conforms);
                }
                reading
            };
            charges.iter().zip(&places).map(one).collect()
        };
        let before = trial(false);
        let holds_back =
            |(charge, reading): (&Charge, &Reading)| !reading.conforms && charge.rule.mode == Mode::Enforce;
        if charges.iter().zip(&before).any(holds_back) { before } else { trial(true) }
    }

    /// Puts back tokens that were taken from leases.
    pub fn put_back(&self, charges: &[Charge]) {
        for charge in charges {
            let mut shard = self.shards[shard_of(&self.hasher, &charge.bucket)].lock();
            if let Some(entry) = shard.pots.get_mut(&charge.bucket) {
                entry.pot.put_back();
                shard.leased.push(charge.bucket.clone());
            }
        }
        self.unused.notify_one();
    }

    /// Puts back tokens that were taken alone.
    pub fn put_back_alone(&self, charges: &[Charge], replicas: u32, now: Timestamp) {
        for charge in charges {
            let mut shard = self.shards[shard_of(&self.hasher, &charge.bucket)].lock();
            if let Some(entry) = shard.pots.get_mut(&charge.bucket) {
                entry.pot.put_back_alone(entry.gcra, replicas, now);
            }
        }
    }

    /// Waits until tokens should go back at once.
    pub async fn unused(&self) {
        self.unused.notified().await;
    }

    /// Questions that give back what is not needed; with `all`, everything.
    pub fn returns(&self, all: bool, now: Timestamp) -> Vec<Question> {
        let mut questions = Vec::new();
        for shard in &self.shards {
            let Shard { pots, leased } = &mut *shard.lock();
            leased.sort_unstable();
            leased.dedup();
            leased.retain(|bucket| {
                let Some(entry) = pots.get_mut(bucket) else { return false };
                let idle = entry.asking.is_none() && entry.waiting == 0;
                if idle && (all || entry.pot.should_return(entry.gcra, now)) && entry.pot.holds_tokens() {
                    questions.push(entry.question(bucket, 0, now));
                    return false;
                }
                entry.pot.holds_tokens() || !idle
            });
        }
        questions
    }

    /// Questions that tell the store, after an outage, what is known here and what was spent meanwhile.
    pub fn reports(&self, now: Timestamp) -> Vec<Question> {
        let mut questions = Vec::new();
        for shard in &self.shards {
            for (bucket, entry) in &mut shard.lock().pots {
                if entry.pot.has_news(now) && entry.asking.is_none() {
                    entry.asking = Some(Arc::new(Notify::new()));
                    let ask = entry.pot.report(entry.gcra, now);
                    questions.push(Question { bucket: bucket.clone(), gcra: entry.gcra, ask, sent_at: now });
                }
            }
        }
        questions
    }

    /// Forgets that a bucket is empty.
    pub fn refilled(&self, bucket: &Bucket, now: Timestamp) {
        if let Some(entry) = self.shards[shard_of(&self.hasher, bucket)].lock().pots.get_mut(bucket) {
            entry.pot.refilled(now);
        }
    }

    /// The same for a bucket by its name in the store.
    pub fn refilled_by_name(&self, name: &str, now: Timestamp) {
        for shard in &self.shards {
            for (bucket, entry) in &mut shard.lock().pots {
                if bucket.to_string() == name {
                    entry.pot.refilled(now);
                }
            }
        }
    }

    /// Buckets of which something is known.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().pots.len()).sum()
    }

    /// Whether nothing is known of any bucket.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops the pots that say nothing any more.
    pub fn sweep(&self, now: Timestamp) {
        for shard in &self.shards {
            shard.lock().pots.retain(|_, entry| entry.says_something(now));
        }
    }
}

impl Entry {
    fn question(&mut self, bucket: &Bucket, waiting: u32, now: Timestamp) -> Question {
        self.asking = Some(Arc::new(Notify::new()));
        let ask = self.pot.ask(self.gcra, waiting, now);
        Question { bucket: bucket.clone(), gcra: self.gcra, ask, sent_at: now }
    }
}

/// Answers a question for good: when the request that asks is cancelled, the others must not wait for ever.
pub struct Asking<'p> {
    pots: &'p Pots,
    question: Question,
    grant: Option<Grant>,
}

impl<'p> Asking<'p> {
    /// A question that is about to be asked.
    pub fn new(pots: &'p Pots, question: Question) -> Self {
        Self { pots, question, grant: None }
    }

    /// The question.
    pub fn question(&self) -> &Question {
        &self.question
    }

    /// The answer.
    pub fn answer(mut self, grant: Grant) {
        self.grant = Some(grant);
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.pots.answered(&self.question, self.grant);
    }
}
