//! Leases: how replicas share a bucket without asking for every token.
//!
//! The shared bucket is one number, as in [`crate::rules::limits::gcra`], and for each replica the tokens that it was handed ahead. A
//! replica keeps those in a [`Pot`] and spends them without asking; when the pot is empty it asks for as many as it
//! will need soon. What an answer says of an empty bucket is believed until it has refilled, so that nobody asks for
//! what is known.
//!
//! INVARIANT: over any window of length T all replicas together admit at most `burst + rate × T`. A token on lease keeps
//! its place in the bucket, which therefore never refills beyond `burst` less what is out. A lease ends at the replica
//! before it ends in the bucket, and one whose tokens never came back counts as spent at its end. Why that suffices,
//! and what a store that forgets costs, is in `docs/decisions/0003-leases.md`; `tests/leases.rs` holds it against
//! delays, lost answers, replicas that die and a store that forgets. `take.lua` is [`SharedBucket::grant`] word for
//! word.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::rules::limits::gcra::{Gcra, Level as Kept, Reading};
use crate::values::time::{Timestamp, nanos};

/// A lease ends after this time, in the shared bucket. Unspent tokens go back long before.
pub const LEASE: Duration = Duration::from_secs(1);

/// A lease ends at the replica so much earlier, for clocks that tick differently and threads that wait.
const MARGIN: Duration = Duration::from_millis(100);

/// A lease is for what the replica will need in this time.
pub const HORIZON: Duration = Duration::from_millis(250);

/// The first lease of a key that is asked for again soon.
const FIRST_LEASE: u32 = 4;

/// A bucket that gets so many tokens within [`HORIZON`] is asked for several at a time when it was empty.
const FAST: u64 = 8;

/// A bucket smaller than this is never leased from: it is exact to the request.
const SMALLEST: u32 = 8;

impl Gcra {
    /// The most that all replicas together may hold on lease: a quarter of the burst, nothing of a small one.
    pub const fn most_on_lease(self) -> u32 {
        if self.burst() < SMALLEST { 0 } else { self.burst() / 4 }
    }
}

/// What a replica asks of the shared bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Tokens for requests that wait.
    pub need: u32,
    /// Tokens to spend later.
    pub ahead: u32,
    /// Tokens of the last lease that were not spent.
    pub returned: u32,
    /// How far the bucket is from full, as far as this replica knows; for a store that forgot it.
    pub known_debt: Duration,
    /// Whether the store was away since, so that what it knows of the bucket may be less than this replica does.
    pub after_outage: bool,
}

/// What the shared bucket answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Tokens handed out, at most `need + ahead`.
    pub tokens: u32,
    /// How far the bucket is from full after that.
    pub debt: Duration,
}

/// The bucket that replicas share: what the store does, as arithmetic.
#[derive(Clone, Debug, Default)]
pub struct SharedBucket {
    /// When it is full again, and under which rule that was counted.
    level: Option<Kept>,
    leases: BTreeMap<u64, (u32, Timestamp)>,
    /// When it last answered.
    seen: Timestamp,
}

impl SharedBucket {
    /// Answers `replica` at `now`, on the store's clock.
    pub fn grant(&mut self, gcra: Gcra, replica: u64, ask: Ask, now: Timestamp) -> Grant {
        let interval = nanos(gcra.interval());
        // Leases of a larger bucket, before the rule was changed, are more than this one has.
        let tokens =
            |count: u32| Duration::from_nanos(interval.saturating_mul(u64::from(count.min(gcra.burst()))));
        let full_debt = tokens(gcra.burst());
        self.follow_clock(now);
        // A bucket that is not there is full, or the store forgot it.
        let known = now + ask.known_debt.min(full_debt);
        let mut arrival = self.level.map_or(known, |level| gcra.arrival(level, now)).max(now);
        if ask.after_outage {
            arrival = arrival.max(known);
        }
        // What is on lease has its place in the bucket until the lease ends, at the latest.
        let out: u32 = self.leases.values().map(|(count, _)| count).sum();
        if let Some(last) = self.leases.values().map(|(_, ends)| *ends).max() {
            arrival = arrival.max(last.min(now) + tokens(out));
        }
        self.leases.remove(&replica);
        self.leases.retain(|_, (_, ends)| *ends > now);
        let others: u32 = self.leases.values().map(|(count, _)| count).sum();
        arrival = (arrival - tokens(ask.returned)).max(now + tokens(others));
        let debt = nanos(arrival.since(now));
        let free = u32::try_from(nanos(full_debt).saturating_sub(debt) / interval).unwrap_or(gcra.burst());
        let need = ask.need.min(free);
        let ahead = ask.ahead.min(free - need).min(gcra.most_on_lease().saturating_sub(others));
        let arrival = arrival + tokens(need + ahead);
        self.level = Some(gcra.keep(arrival));
        if gcra.most_on_lease() > 0 && need + ahead > 0 {
            self.leases.insert(replica, (need + ahead, now + LEASE));
        }
        Grant { tokens: need + ahead, debt: arrival.since(now) }
    }

    /// The store's clock was set back: what is known moves with it, so that nobody waits for the time that was taken back.
    fn follow_clock(&mut self, now: Timestamp) {
        let back = self.seen.since(now);
        self.seen = now;
        if !back.is_zero() {
            self.level = self.level.map(|level| level.earlier(back));
            self.leases.values_mut().for_each(|(_, ends)| *ends = *ends - back);
        }
    }
}

/// What a replica knows of a shared bucket, and the tokens that it holds.
#[derive(Clone, Debug, Default)]
pub struct Pot {
    tokens: u32,
    /// When the tokens are worth nothing any more.
    ends: Timestamp,
    /// Until when the bucket is known to be empty.
    empty_until: Timestamp,
    /// When the bucket is full again, as far as the store has told.
    known: Timestamp,
    /// When the store last answered.
    heard_at: Timestamp,
    /// When this replica's share is full again, in the outage that began at `alone_since`.
    alone: Timestamp,
    alone_since: Timestamp,
    /// Tokens of leases that have ended, for the bucket.
    unused: u32,
    asked_at: Timestamp,
    spent: u32,
    turned_away: u32,
    ahead: u32,
}

/// Whether a request may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// There is a token here.
    Ready,
    /// There is none, here or in the store.
    Empty,
    /// The store has to be asked.
    Unknown,
}

impl Pot {
    /// Whether there is a token.
    pub fn level(&self, now: Timestamp) -> Level {
        if self.tokens > 0 && now < self.ends {
            Level::Ready
        } else if now < self.empty_until {
            Level::Empty
        } else {
            Level::Unknown
        }
    }

    /// Takes a token. Only from a pot that is ready.
    pub fn take(&mut self) {
        self.tokens = self.tokens.saturating_sub(1);
        self.spent = self.spent.saturating_add(1);
    }

    /// Puts back a token that a request did not use: into the lease that it came from, else into the bucket.
    pub fn put_back(&mut self) {
        if self.spent > 0 {
            self.tokens = self.tokens.saturating_add(1);
            self.spent -= 1;
        } else {
            self.unused = self.unused.saturating_add(1);
        }
    }

    /// Notes that a request was refused for want of a token: it counts as demand.
    pub fn turn_away(&mut self) {
        self.turned_away = self.turned_away.saturating_add(1);
    }

    /// What can be said of the bucket; tokens on lease here are left, too.
    pub fn describe(&self, gcra: Gcra, now: Timestamp, conforms: bool) -> Reading {
        let mut reading = gcra.describe(self.known, now, conforms);
        if now < self.ends {
            reading.remaining = reading.remaining.saturating_add(self.tokens).min(gcra.burst());
        }
        if !conforms {
            reading.remaining = 0;
            reading.next = reading.next.max(self.empty_until.since(now));
        }
        reading
    }

    /// The question for `waiting` requests. What the pot holds goes back with it.
    pub fn ask(&mut self, gcra: Gcra, waiting: u32, now: Timestamp) -> Ask {
        let ahead = if waiting > 0 { self.forecast(gcra, now) } else { 0 };
        let returned = std::mem::take(&mut self.tokens).saturating_add(std::mem::take(&mut self.unused));
        (self.asked_at, self.spent, self.turned_away, self.ahead) = (now, 0, 0, ahead);
        let known_debt = self.known.max(self.alone).since(now);
        Ask { need: waiting, ahead, returned, known_debt, after_outage: false }
    }

    /// The question after an outage: nothing is asked for, but the store is told what this replica knows. A share that
    /// was emptied alone stands for the whole bucket: the others did the same, or the bucket is fuller than it says.
    pub fn report(&mut self, gcra: Gcra, now: Timestamp) -> Ask {
        Ask { after_outage: true, ..self.ask(gcra, 0, now) }
    }

    /// How many tokens will be needed within [`HORIZON`], going by how many were wanted since the last question; at
    /// most twice as many as last time.
    fn forecast(&self, gcra: Gcra, now: Timestamp) -> u32 {
        let elapsed = nanos(now.since(self.asked_at)).max(1);
        let wanted = u64::from(self.spent) + u64::from(self.turned_away);
        let soon = wanted.saturating_mul(nanos(HORIZON)) / elapsed;
        let most = self.ahead.saturating_mul(2).max(FIRST_LEASE).min(gcra.most_on_lease());
        u32::try_from(soon).unwrap_or(u32::MAX).min(most)
    }

    /// Takes in the answer to a question that was sent at `sent_at`.
    pub fn receive(&mut self, gcra: Gcra, grant: Grant, sent_at: Timestamp, now: Timestamp) {
        self.tokens = self.tokens.saturating_add(grant.tokens);
        self.ends = sent_at + LEASE.saturating_sub(MARGIN);
        (self.known, self.heard_at, self.alone) = (now + grant.debt, now, now);
        // A request that came before the answer has an earlier time than `now`: to it, too, the bucket is not empty.
        self.empty_until = Self::refill(gcra, grant.debt).map_or_else(Timestamp::default, |wait| now + wait);
    }

    /// How long nothing is worth asking for, when the bucket's debt is `debt`; `None` when there is a token. It lasts until
    /// one token is there, and for a bucket that is leased from until some more are, for at most [`HORIZON`].
    fn refill(gcra: Gcra, debt: Duration) -> Option<Duration> {
        let interval = nanos(gcra.interval());
        let full_debt = interval.saturating_mul(u64::from(gcra.burst()));
        let one = nanos(debt).saturating_add(interval).saturating_sub(full_debt);
        if one == 0 {
            return None;
        }
        // Many replicas that ask for each token of a fast bucket would ask more often than it has tokens.
        let many = nanos(HORIZON).min(interval.saturating_mul(u64::from(gcra.most_on_lease())));
        let fast = interval.saturating_mul(FAST) <= nanos(HORIZON);
        Some(Duration::from_nanos(if fast { one.max(many) } else { one }))
    }

    /// The rule has changed: what is known is converted, and whether the bucket is empty is asked anew.
    pub fn change_rule(&mut self, before: Gcra, after: Gcra, now: Timestamp) {
        // What was full is as full as it was, and known for as long.
        let convert =
            |full: Timestamp| if full > now { now + after.convert(full.since(now), before) } else { full };
        (self.known, self.alone) = (convert(self.known), convert(self.alone));
        self.empty_until = Timestamp::default();
        // A lease of a larger bucket is more than this one hands out: the rest is lost, not spent.
        self.tokens = self.tokens.min(after.most_on_lease());
        self.unused = self.unused.min(after.burst());
    }

    /// Takes a token in the outage that began at `since`: from what is still on lease, then from this replica's share of
    /// the bucket, at the level last known.
    pub fn take_alone(&mut self, gcra: Gcra, replicas: u32, since: Timestamp, now: Timestamp) -> Reading {
        let share = gcra.share(replicas);
        self.begin_alone(since);
        if self.tokens > 0 && now < self.ends {
            self.take();
            return share.describe(self.alone.max(now), now, true);
        }
        let reading = share.take(self.alone, now);
        if reading.conforms {
            self.alone = reading.arrival;
        }
        reading
    }

    /// What came back to the bucket between the last answer and the outage was taken by others, as far as is known.
    fn begin_alone(&mut self, since: Timestamp) {
        if self.alone_since != since {
            let unheard = since.since(self.heard_at).min(LEASE);
            (self.alone, self.alone_since) = (self.known + unheard, since);
        }
    }

    /// Puts back a token that was taken alone.
    pub fn put_back_alone(&mut self, gcra: Gcra, replicas: u32, now: Timestamp) {
        self.alone = gcra.share(replicas).refund(self.alone, now);
    }

    /// What would be read without taking anything.
    pub fn describe_alone(&self, gcra: Gcra, replicas: u32, now: Timestamp, conforms: bool) -> Reading {
        gcra.share(replicas).describe(self.alone.max(now), now, conforms)
    }

    /// Whether there are tokens that should go back: not spent within two horizons, or left over in a bucket that is
    /// not leased from.
    pub fn should_return(&self, gcra: Gcra, now: Timestamp) -> bool {
        let idle = gcra.most_on_lease() == 0 || now.since(self.asked_at) >= HORIZON * 2;
        self.unused > 0 || (self.tokens > 0 && idle)
    }

    /// Whether tokens are held.
    pub fn holds_tokens(&self) -> bool {
        self.tokens > 0 || self.unused > 0
    }

    /// Whether there is something to report after an outage.
    pub fn has_news(&self, now: Timestamp) -> bool {
        self.known > now || self.alone > now
    }

    /// Whether nothing would be lost by forgetting this pot.
    pub fn says_nothing(&self, now: Timestamp) -> bool {
        !self.holds_tokens()
            && self.empty_until <= now
            && self.known <= now
            && self.alone <= now
            && now.since(self.asked_at) > LEASE
    }

    /// Forgets that the bucket is empty, as when an operator refills it.
    pub fn refilled(&mut self, now: Timestamp) {
        (self.empty_until, self.known, self.alone) = (Timestamp::default(), now, now);
    }
}
