//! What this replica knows of the buckets that it shares: a [`Pot`] for each, behind sharded locks.
//!
//! A request that finds a token in every pot, or an empty pot, is decided here. Otherwise it asks the store: one
//! request asks for all that wait for the same bucket, and when its answer is there all of them look again.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use policy::rules::limits::bucket::Bucket;
use policy::rules::limits::gcra::{Gcra, Reading};
use policy::rules::limits::lease::{Ask, Grant, LeasedBucket as Pot, Level};
use policy::rules::limits::spend::StoreUnavailable;
use policy::rules::limits::{Charge, Mode, Readings};
use policy::values::time::Timestamp;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::clock;
use crate::state::shards::Shards;

/// The pots of this replica.
pub struct Pots {
    entries: Shards<Entry>,
    /// Buckets whose pots may hold tokens.
    leased: Mutex<Vec<Bucket>>,
    /// Woken when tokens should go back at once.
    unused: Notify,
}

#[derive(Default)]
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
        Self { entries: Shards::default(), leased: Mutex::default(), unused: Notify::new() }
    }
}

impl Entry {
    /// A reload or an override may have changed the rule.
    fn follow_rule(&mut self, gcra: Gcra, now: Timestamp) {
        if self.gcra != gcra {
            self.pot.change_rule(self.gcra, gcra, now);
            self.gcra = gcra;
        }
    }

    fn says_something(&self, now: Timestamp) -> bool {
        self.asking.is_some() || !self.pot.says_nothing(now)
    }
}

impl Pots {
    /// Takes a token from every bucket or from none, asking the store through `ask` for what is not known here.
    pub async fn spend<F>(
        &self,
        charges: &[Charge],
        mut now: Timestamp,
        ask: impl Fn(Question) -> F,
    ) -> Result<Readings, StoreUnavailable>
    where
        F: Future<Output = Result<(), StoreUnavailable>>,
    {
        /// A bucket that others keep emptying in between.
        const MOST_TRIES: usize = 20;
        if let [charge] = charges
            && let Some(readings) = self.look_at_one(charge, now)
        {
            return Ok(readings);
        }
        let mut waited_for: SmallVec<[usize; 2]> = SmallVec::new();
        for _ in 0..MOST_TRIES {
            match self.look(charges, now, &mut waited_for) {
                Look::Decided(readings) => return Ok(readings),
                Look::Wait { ask: questions, others } => {
                    let asked = futures_util::future::join_all(questions.into_iter().map(&ask));
                    let waited = futures_util::future::join_all(others);
                    let (answers, _) = tokio::join!(asked, waited);
                    answers.into_iter().collect::<Result<(), _>>()?;
                    now = clock::steady();
                }
            }
        }
        Err(StoreUnavailable)
    }

    /// The usual case: one limit, and a token is there or known not to be.
    fn look_at_one(&self, charge: &Charge, now: Timestamp) -> Option<Readings> {
        let mut locked = self.entries.lock(&charge.bucket);
        let entry = locked.find()?;
        entry.follow_rule(charge.rule.gcra, now);
        let conforms = match entry.pot.level(now) {
            Level::Ready => {
                entry.pot.take();
                true
            }
            Level::Empty => {
                entry.pot.turn_away();
                false
            }
            Level::Unknown => return None,
        };
        Some(SmallVec::from_iter([entry.pot.describe(entry.gcra, now, conforms)]))
    }

    fn look(&self, charges: &[Charge], now: Timestamp, waited_for: &mut SmallVec<[usize; 2]>) -> Look {
        let mut entries = self.entries.lock_all(charges);
        // An entry that has just been made may have had to make room for the next one: it is asked for each time.
        let says_something = |entry: &Entry| entry.says_something(now);
        let mut levels: SmallVec<[Level; 4]> = SmallVec::new();
        for (at, charge) in charges.iter().enumerate() {
            let entry = entries.find_or_insert(at, says_something);
            entry.follow_rule(charge.rule.gcra, now);
            levels.push(entry.pot.level(now));
        }
        for at in waited_for.drain(..) {
            if let Some(entry) = entries.find(at) {
                entry.waiting = entry.waiting.saturating_sub(1);
            }
        }
        let enforced = |at: usize| charges[at].rule.mode == Mode::Enforce;
        let refused = (0..charges.len()).any(|at| levels[at] == Level::Empty && enforced(at));
        if refused || !levels.contains(&Level::Unknown) {
            let decide = |(at, level): (usize, &Level)| {
                let entry = entries.find_or_insert(at, says_something);
                match level {
                    Level::Ready if !refused => entry.pot.take(),
                    Level::Empty => entry.pot.turn_away(),
                    Level::Ready if entry.pot.should_return(entry.gcra, now) => self.unused.notify_one(),
                    Level::Ready | Level::Unknown => {}
                }
                entry.pot.describe(entry.gcra, now, *level != Level::Empty)
            };
            return Look::Decided(levels.iter().enumerate().map(decide).collect());
        }
        let (mut ask, mut others) = (Vec::new(), Vec::new());
        for at in (0..charges.len()).filter(|at| levels[*at] == Level::Unknown) {
            let entry = entries.find_or_insert(at, says_something);
            if let Some(question) = &entry.asking {
                entry.waiting += 1;
                waited_for.push(at);
                // Made under the lock: the answer cannot come before.
                others.push(Arc::clone(question).notified_owned());
            } else {
                let waiting = std::mem::take(&mut entry.waiting) + 1;
                ask.push(entry.question(&charges[at].bucket, waiting, now));
            }
        }
        Look::Wait { ask, others }
    }

    /// Takes in an answer, or that there is none, and wakes those who wait for it.
    pub fn answered(&self, question: &Question, grant: Option<Grant>) {
        let mut locked = self.entries.lock(&question.bucket);
        let Some(entry) = locked.find() else { return };
        if let Some(mut grant) = grant {
            // The rule may have changed since it was asked: it was counted by the old one.
            if question.gcra != entry.gcra {
                grant.debt = entry.gcra.convert(grant.debt, question.gcra);
            }
            entry.pot.receive(entry.gcra, grant, question.sent_at, clock::steady());
        }
        if let Some(asking) = entry.asking.take() {
            asking.notify_waiters();
        }
        if entry.pot.holds_tokens() {
            self.leased.lock().push(question.bucket.clone());
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
        let mut entries = self.entries.lock_all(charges);
        let mut pots: SmallVec<[(Pot, Reading); 4]> = SmallVec::new();
        for (at, charge) in charges.iter().enumerate() {
            let entry = entries.find_or_insert(at, |entry| entry.says_something(now));
            entry.follow_rule(charge.rule.gcra, now);
            let mut pot = entry.pot.clone();
            let reading = pot.take_alone(entry.gcra, replicas, since, now);
            pots.push((pot, reading));
        }
        let holds_back = |(charge, (_, reading)): (&Charge, &(Pot, Reading))| {
            !reading.conforms && charge.rule.mode == Mode::Enforce
        };
        let refused = charges.iter().zip(&pots).any(holds_back);
        let keep = |(at, (mut pot, reading)): (usize, (Pot, Reading))| {
            let gcra = charges[at].rule.gcra;
            if refused && reading.conforms {
                pot.put_back_alone(gcra, replicas, now);
                return pot.describe_alone(gcra, replicas, now, true);
            }
            if let Some(entry) = entries.find(at) {
                entry.pot = pot;
            }
            reading
        };
        pots.into_iter().enumerate().map(keep).collect()
    }

    /// Puts back tokens that were taken from leases.
    pub fn put_back(&self, charges: &[Charge]) {
        for charge in charges {
            if let Some(entry) = self.entries.lock(&charge.bucket).find() {
                entry.pot.put_back();
                self.leased.lock().push(charge.bucket.clone());
            }
        }
        self.unused.notify_one();
    }

    /// Puts back tokens that were taken alone.
    pub fn put_back_alone(&self, charges: &[Charge], replicas: u32, now: Timestamp) {
        for charge in charges {
            if let Some(entry) = self.entries.lock(&charge.bucket).find() {
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
        let mut leased = std::mem::take(&mut *self.leased.lock());
        leased.sort_unstable();
        leased.dedup();
        let mut questions = Vec::new();
        leased.retain(|bucket| {
            let mut locked = self.entries.lock(bucket);
            let Some(entry) = locked.find() else { return false };
            // Who waited has been woken long before a lease is idle.
            let idle = entry.asking.is_none() && (entry.waiting == 0 || entry.gcra.most_on_lease() > 0);
            if idle && (all || entry.pot.should_return(entry.gcra, now)) && entry.pot.holds_tokens() {
                questions.push(entry.question(bucket, 0, now));
                return false;
            }
            entry.pot.holds_tokens() || !idle
        });
        self.leased.lock().append(&mut leased);
        questions
    }

    /// Questions that tell the store, after an outage, what is known here and what was spent meanwhile.
    pub fn reports(&self, now: Timestamp) -> Vec<Question> {
        let mut questions = Vec::new();
        self.entries.for_each(|bucket, entry| {
            if entry.pot.has_news(now) && entry.asking.is_none() {
                entry.asking = Some(Arc::new(Notify::new()));
                let ask = entry.pot.report(entry.gcra, now);
                questions.push(Question { bucket: bucket.clone(), gcra: entry.gcra, ask, sent_at: now });
            }
        });
        questions
    }

    /// Forgets that a bucket is empty.
    pub fn refilled(&self, bucket: &Bucket, now: Timestamp) -> bool {
        let mut shard = self.entries.lock(bucket);
        let Some(entry) = shard.find() else { return false };
        let was_used = entry.pot.has_news(now);
        entry.pot.refilled(now);
        was_used
    }

    /// The same for a bucket by its name in the store.
    pub fn refilled_by_name(&self, name: &str, now: Timestamp) {
        self.entries.for_each(|bucket, entry| {
            if bucket.to_string() == name {
                entry.pot.refilled(now);
            }
        });
    }

    /// Buckets of which something is known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known of any bucket.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops the pots that say nothing any more.
    pub fn sweep(&self, now: Timestamp) {
        self.entries.retain(|entry| entry.says_something(now));
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
