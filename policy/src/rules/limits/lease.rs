//! Leases: how replicas share a bucket without asking for every token.
//!
//! The shared bucket is one number, as in [`crate::rules::limits::gcra`], and for each replica the number of tokens
//! that it has on lease. A replica holds those tokens in a [`LeasedBucket`] and spends them without asking. When they
//! are spent it asks for as many as it will need soon. When an answer says that the bucket is empty, the replica does
//! not ask again until the bucket has refilled.
//!
//! INVARIANT: over any window of length T all replicas together admit at most `burst + rate × T`. A token on lease
//! still counts in the bucket, so the bucket never refills beyond `burst` minus what is on lease. A lease ends at the
//! replica before it ends in the bucket. If its tokens never came back, they count as spent when it ends.
//!
//! `docs/decisions/0003-leases.md` says why that is enough, and what it costs when a store loses its memory.
//! `tests/leases.rs` checks the bound with delays, lost answers, replicas that die and a store that loses its memory.
//! `take.lua` is [`SharedBucket::grant`], line by line.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::rules::limits::gcra::{Gcra, Level as Kept, Reading};
use crate::values::time::{Timestamp, nanos};

/// How long a lease lasts in the shared bucket. Unspent tokens are given back long before.
pub const LEASE: Duration = Duration::from_secs(1);

/// How much earlier a lease ends at the replica, because clocks run at different speeds and threads wait.
const MARGIN: Duration = Duration::from_millis(100);

/// A lease holds what the replica will probably need within this time.
pub const HORIZON: Duration = Duration::from_millis(250);

/// The size of the first lease of a key that is asked for again soon.
const FIRST_LEASE: u32 = 4;

/// A bucket that gets at least this many tokens within [`HORIZON`] is fast. After it was empty, replicas wait until it
/// has several tokens again.
const FAST: u64 = 8;

/// A bucket with a smaller burst is never leased from, so it counts every single request exactly.
const SMALLEST: u32 = 8;

impl Gcra {
    /// The most tokens that all replicas together may hold on lease: a quarter of the burst, or none of a small bucket.
    pub const fn most_on_lease(self) -> u32 {
        if self.burst() < SMALLEST { 0 } else { self.burst() / 4 }
    }
}

/// The question of a replica to the shared bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Tokens for requests that wait now.
    pub need: u32,
    /// Tokens to spend later.
    pub ahead: u32,
    /// Unspent tokens of the last lease.
    pub returned: u32,
    /// How far the bucket is from full, as far as this replica knows, in case the store has lost it.
    pub known_debt: Duration,
    /// Whether the store was unavailable since the last answer. Then it may know less of the bucket than this replica.
    pub after_outage: bool,
}

/// The answer of the shared bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Tokens granted, at most `need + ahead`.
    pub tokens: u32,
    /// How far the bucket is from full after this grant.
    pub debt: Duration,
}

/// The bucket that replicas share: the work of the store, as arithmetic.
#[derive(Clone, Debug, Default)]
pub struct SharedBucket {
    /// When it is full again, and the rule with which that was computed.
    level: Option<Kept>,
    leases: BTreeMap<u64, (u32, Timestamp)>,
    /// The time of its last answer.
    seen: Timestamp,
}

impl SharedBucket {
    /// Answers `replica` at `now`, by the store's clock.
    pub fn grant(&mut self, gcra: Gcra, replica: u64, ask: Ask, now: Timestamp) -> Grant {
        let interval = nanos(gcra.interval());
        // Leases that were granted before the burst was made smaller may be larger than the bucket is now.
        let tokens =
            |count: u32| Duration::from_nanos(interval.saturating_mul(u64::from(count.min(gcra.burst()))));
        let full_debt = tokens(gcra.burst());
        self.follow_clock(now);
        // A bucket without a level is full, or the store has lost it.
        let known = now + ask.known_debt.min(full_debt);
        let mut arrival = self.level.map_or(known, |level| gcra.arrival(level, now)).max(now);
        if ask.after_outage {
            arrival = arrival.max(known);
        }
        // Tokens on lease count in the bucket until their lease ends, at the latest.
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

    /// When the store's clock was set back, the stored times move back with it. Otherwise everybody would wait for the
    /// difference.
    fn follow_clock(&mut self, now: Timestamp) {
        let back = self.seen.since(now);
        self.seen = now;
        if !back.is_zero() {
            self.level = self.level.map(|level| level.earlier(back));
            self.leases.values_mut().for_each(|(_, ends)| *ends = *ends - back);
        }
    }
}

/// What one replica knows of a shared bucket, and the tokens that it holds.
#[derive(Clone, Debug, Default)]
pub struct LeasedBucket {
    tokens: u32,
    /// When the lease of the tokens ends. From then on they must not be spent.
    ends: Timestamp,
    /// The bucket is known to be empty until then.
    empty_until: Timestamp,
    /// When the bucket is full again, by the last answer of the store.
    known: Timestamp,
    /// When the last answer of the store was received.
    received_at: Timestamp,
    /// During the outage that began at `alone_since`: when this replica's share is full again.
    alone: Timestamp,
    alone_since: Timestamp,
    /// Tokens of ended leases, which go back to the bucket.
    unused: u32,
    asked_at: Timestamp,
    spent: u32,
    turned_away: u32,
    ahead: u32,
}

/// Whether a request can have a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// There is a token here.
    Ready,
    /// There is none, neither here nor in the store.
    Empty,
    /// Only the store knows: it has to be asked.
    Unknown,
}

impl LeasedBucket {
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

    /// Takes a token. The level has to be [`Level::Ready`].
    pub fn take(&mut self) {
        self.tokens = self.tokens.saturating_sub(1);
        self.spent = self.spent.saturating_add(1);
    }

    /// Puts back a token that a request did not use: into the lease that it came from or, if that has ended, into the
    /// bucket.
    pub fn put_back(&mut self) {
        if self.spent > 0 {
            self.tokens = self.tokens.saturating_add(1);
            self.spent -= 1;
        } else {
            self.unused = self.unused.saturating_add(1);
        }
    }

    /// Notes that a request was refused because there was no token. It counts as demand.
    pub fn turn_away(&mut self) {
        self.turned_away = self.turned_away.saturating_add(1);
    }

    /// Describes the bucket. Tokens on lease here count as remaining.
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

    /// The question for `waiting` requests. It gives back the tokens that are held here.
    pub fn ask(&mut self, gcra: Gcra, waiting: u32, now: Timestamp) -> Ask {
        let ahead = if waiting > 0 { self.forecast(gcra, now) } else { 0 };
        let returned = std::mem::take(&mut self.tokens).saturating_add(std::mem::take(&mut self.unused));
        (self.asked_at, self.spent, self.turned_away, self.ahead) = (now, 0, 0, ahead);
        let known_debt = self.known.max(self.alone).since(now);
        Ask { need: waiting, ahead, returned, known_debt, after_outage: false }
    }

    /// The question after an outage. It asks for no token, but reports what this replica knows. The level of this
    /// replica's share is reported as the level of the whole bucket: either the other replicas have spent as much, or
    /// the bucket is fuller than reported, which is safe.
    pub fn report(&mut self, gcra: Gcra, now: Timestamp) -> Ask {
        Ask { after_outage: true, ..self.ask(gcra, 0, now) }
    }

    /// How many tokens will be needed within [`HORIZON`], estimated from the demand since the last question. At most
    /// twice as many as last time.
    fn forecast(&self, gcra: Gcra, now: Timestamp) -> u32 {
        let elapsed = nanos(now.since(self.asked_at)).max(1);
        let wanted = u64::from(self.spent) + u64::from(self.turned_away);
        let soon = wanted.saturating_mul(nanos(HORIZON)) / elapsed;
        let most = self.ahead.saturating_mul(2).max(FIRST_LEASE).min(gcra.most_on_lease());
        u32::try_from(soon).unwrap_or(u32::MAX).min(most)
    }

    /// Receives the answer to a question that was sent at `sent_at`.
    pub fn receive(&mut self, gcra: Gcra, grant: Grant, sent_at: Timestamp, now: Timestamp) {
        self.tokens = self.tokens.saturating_add(grant.tokens);
        self.ends = sent_at + LEASE.saturating_sub(MARGIN);
        (self.known, self.received_at, self.alone) = (now + grant.debt, now, now);
        // A request that came before the answer has an earlier time than `now`. Without this default it would still see
        // an empty bucket.
        self.empty_until = Self::refill(gcra, grant.debt).map_or_else(Timestamp::default, |wait| now + wait);
    }

    /// How long it is useless to ask again, when the bucket's debt is `debt`; `None` when there is a token. This is the
    /// time until there is one token. For a fast bucket it is the time in which several come back, if that is longer;
    /// that part is at most [`HORIZON`].
    fn refill(gcra: Gcra, debt: Duration) -> Option<Duration> {
        let interval = nanos(gcra.interval());
        let full_debt = interval.saturating_mul(u64::from(gcra.burst()));
        let one = nanos(debt).saturating_add(interval).saturating_sub(full_debt);
        if one == 0 {
            return None;
        }
        // If many replicas asked for each single token of a fast bucket, there would be more questions than tokens.
        let many = nanos(HORIZON).min(interval.saturating_mul(u64::from(gcra.most_on_lease())));
        let fast = interval.saturating_mul(FAST) <= nanos(HORIZON);
        Some(Duration::from_nanos(if fast { one.max(many) } else { one }))
    }

    /// The rule has changed: the known levels are converted, and the store is asked again whether the bucket is empty.
    pub fn change_rule(&mut self, before: Gcra, after: Gcra, now: Timestamp) {
        // A bucket that is full stays full, and its time does not change.
        let convert =
            |full: Timestamp| if full > now { now + after.convert(full.since(now), before) } else { full };
        (self.known, self.alone) = (convert(self.known), convert(self.alone));
        self.empty_until = Timestamp::default();
        // A lease of the larger bucket may be more than the smaller one grants. The difference is lost, never spent.
        self.tokens = self.tokens.min(after.most_on_lease());
        self.unused = self.unused.min(after.burst());
    }

    /// Takes a token during the outage that began at `since`: first from the lease, then from this replica's share of
    /// the bucket, which begins at the last known level.
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

    /// Begins an outage. It is assumed that others took the tokens that came back between the last answer and the
    /// outage.
    fn begin_alone(&mut self, since: Timestamp) {
        if self.alone_since != since {
            let unknown = since.since(self.received_at).min(LEASE);
            (self.alone, self.alone_since) = (self.known + unknown, since);
        }
    }

    /// Puts back a token that was taken from the share during an outage.
    pub fn put_back_alone(&mut self, gcra: Gcra, replicas: u32, now: Timestamp) {
        self.alone = gcra.share(replicas).refund(self.alone, now);
    }

    /// Describes the share during an outage, without taking anything.
    pub fn describe_alone(&self, gcra: Gcra, replicas: u32, now: Timestamp, conforms: bool) -> Reading {
        gcra.share(replicas).describe(self.alone.max(now), now, conforms)
    }

    /// Whether tokens should be given back: they were not spent within two horizons, or the bucket is one that is not
    /// leased from.
    pub fn should_return(&self, gcra: Gcra, now: Timestamp) -> bool {
        let idle = gcra.most_on_lease() == 0 || now.since(self.asked_at) >= HORIZON * 2;
        self.unused > 0 || (self.tokens > 0 && idle)
    }

    /// Whether tokens are held.
    pub fn holds_tokens(&self) -> bool {
        self.tokens > 0 || self.unused > 0
    }

    /// Whether there is anything to report after an outage.
    pub fn has_news(&self, now: Timestamp) -> bool {
        self.known > now || self.alone > now
    }

    /// Whether this can be removed without losing anything.
    pub fn says_nothing(&self, now: Timestamp) -> bool {
        !self.holds_tokens()
            && self.empty_until <= now
            && self.known <= now
            && self.alone <= now
            && now.since(self.asked_at) > LEASE
    }

    /// Notes that the bucket is full, for example because an operator refilled it.
    pub fn refilled(&mut self, now: Timestamp) {
        (self.empty_until, self.known, self.alone) = (Timestamp::default(), now, now);
    }
}
