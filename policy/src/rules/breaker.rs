//! Circuit breaker: stops sending requests to an upstream that fails too often.
//!
//! A closed breaker lets requests through, an open one refuses them, and a half-open one probes with one trial at a
//! time. It opens after `failures` failures in a row within `window`. It also opens when the share of failures within
//! `window` exceeds `error_rate`, if there were at least `min_requests` requests. Source of the states: Nygard,
//! "Release It!", circuit breaker.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::document::Section;
use crate::document::units::Span;
use crate::values::time::{Timestamp, nanos};

/// `[breakers.NAME]`, named after the upstream that it guards.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerRule {
    /// The name in the policy: the upstream's.
    pub name: Arc<str>,
    /// Opens after this many failures in a row.
    pub failures: u32,
    /// Opens above this share of failures, from 0 to 1. `None`: the share does not count.
    pub error_rate: Option<f64>,
    /// The share counts only with at least this many requests in the window.
    pub min_requests: u32,
    /// How far back failures count.
    pub window: Duration,
    /// How long it stays open before it probes.
    pub cooldown: Duration,
    /// It closes after this many successful trials.
    pub half_open_successes: u32,
    /// The statuses that are failures.
    pub statuses: Vec<u32>,
}

impl BreakerRule {
    pub(crate) fn read_all(root: &Section<'_>) -> HashMap<String, Arc<Self>> {
        let sections = root.named_sections("breakers");
        sections
            .into_iter()
            .map(|(name, section)| (name.clone(), Arc::new(Self::read(&name, section))))
            .collect()
    }

    fn read(name: &str, section: Section<'_>) -> Self {
        let at_least_one = |number: &u32| (*number > 0).then_some(()).ok_or("at least 1 (got 0)".to_owned());
        let share = |rate: &f64| {
            (*rate > 0.0 && *rate <= 1.0).then_some(()).ok_or(format!("above 0 and up to 1 (got {rate})"))
        };
        let duration = |key: &'static str, default: u64| {
            section
                .get_checked(key, Span(Duration::from_secs(default)), |span| {
                    (!span.0.is_zero()).then_some(()).ok_or("longer than 0s (got 0s)".to_owned())
                })
                .0
        };
        let rule = Self {
            name: name.into(),
            failures: section.get_checked("failures", 5, at_least_one),
            error_rate: section.has("error_rate").then(|| section.get_checked("error_rate", 0.5, share)),
            min_requests: section.get_checked("min_requests", 20, at_least_one),
            window: duration("window", 60),
            cooldown: duration("cooldown", 30),
            half_open_successes: section.get_checked("half_open_successes", 1, at_least_one),
            statuses: section.get_or("statuses", vec![500, 502, 503, 504]),
        };
        section.finish();
        rule
    }
}

/// How a request to an upstream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered with this status.
    Answered(u16),
    /// It could not be reached, or closed the connection before its answer was complete.
    Unreachable,
    /// It took too long.
    TimedOut,
    /// The client closed the connection first. This says nothing about the upstream.
    ClientLeft,
    /// The gateway refused it after it had been admitted, or failed itself.
    NotSent,
    /// The service refused a change because it is read-only. This is not a failure.
    ReadOnly,
}

impl Outcome {
    /// Whether the upstream failed; `None` when the outcome says nothing about it.
    pub fn failed(self, rule: &BreakerRule) -> Option<bool> {
        match self {
            Self::Answered(status) => Some(rule.statuses.contains(&u32::from(status))),
            Self::Unreachable | Self::TimedOut => Some(true),
            Self::ClientLeft | Self::NotSent | Self::ReadOnly => None,
        }
    }
}

/// What the breaker stage asks of the outside. An implementation never waits without a bound.
pub trait Breakers: Sync {
    /// Proof that the breaker lets a request through. When it is dropped without `settle`, its trial is free again.
    type Pass: Send;

    /// Asks the breaker, if there is one. A refusal gives the time after which to try again.
    fn enter(&self, breaker: Option<&Arc<BreakerRule>>, now: Timestamp) -> Result<Self::Pass, Duration>;

    /// Notifies the breaker how the request ended.
    fn settle(&self, pass: Self::Pass, outcome: Outcome, now: Timestamp);
}

/// The state, as operators and metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Lets through.
    Closed,
    /// Refuses.
    Open,
    /// Probes.
    HalfOpen,
}

impl State {
    /// The name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }

    /// 0 closed, 1 open, 2 half-open.
    pub const fn number(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::Open => 1,
            Self::HalfOpen => 2,
        }
    }
}

/// Permission to send one request. It belongs to the state in which it was given: an answer that arrives after the
/// breaker has changed its state is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    generation: u64,
    trial: bool,
}

impl Pass {
    /// Whether this request is the trial, so that other requests wait for its outcome.
    pub const fn is_trial(&self) -> bool {
        self.trial
    }
}

/// The state of one breaker. Rule and clock are arguments.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    phase: Phase,
    generation: u64,
}

#[derive(Clone, Debug)]
enum Phase {
    Closed { run: Run, window: Window },
    Open { since: Timestamp },
    HalfOpen { trial: bool, successes: u32 },
}

impl Default for Phase {
    fn default() -> Self {
        Self::Closed { run: Run::default(), window: Window::default() }
    }
}

/// Failures in a row.
#[derive(Clone, Debug, Default)]
struct Run {
    length: u32,
    began: Timestamp,
}

/// Counts over a sliding window, in slots of a tenth of it.
#[derive(Clone, Debug, Default)]
struct Window {
    slots: [Slot; SLOTS],
    /// The length of the whole window.
    length: Duration,
}

const SLOTS: usize = 10;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    number: u64,
    total: u32,
    failed: u32,
}

impl Breaker {
    /// The state now. An open breaker whose cooldown is over counts as half-open.
    pub fn state(&self, rule: &BreakerRule, now: Timestamp) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { since } if since + rule.cooldown > now => State::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// The state that it last changed to. An open breaker stays open until a trial is let through, even long after its
    /// cooldown.
    pub fn moved_to(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Asks to send a request. A refusal gives the time after which to ask again.
    pub fn enter(&mut self, rule: &BreakerRule, now: Timestamp) -> Result<Pass, Duration> {
        match &mut self.phase {
            Phase::Closed { .. } => Ok(Pass { generation: self.generation, trial: false }),
            // By the rule in force now: a cooldown that was made shorter ends sooner.
            Phase::Open { since } if *since + rule.cooldown > now => Err((*since + rule.cooldown).since(now)),
            Phase::Open { .. } => {
                self.move_to(Phase::HalfOpen { trial: true, successes: 0 });
                Ok(self.trial())
            }
            // The trial in flight will open or close the breaker soon, at an unknown time.
            Phase::HalfOpen { trial: true, .. } => Err(rule.cooldown.min(Duration::from_secs(1))),
            Phase::HalfOpen { trial, .. } => {
                *trial = true;
                Ok(self.trial())
            }
        }
    }

    /// Notes how the request of `pass` ended.
    pub fn settle(&mut self, rule: &BreakerRule, pass: Pass, outcome: Outcome, now: Timestamp) {
        if pass.generation != self.generation {
            return;
        }
        let failed = outcome.failed(rule);
        match (&mut self.phase, failed) {
            (Phase::Closed { run, window }, Some(failed)) => {
                run.count(failed, rule, now);
                window.count(failed, rule, now);
                if run.length >= rule.failures || window.too_bad(rule, now) {
                    self.move_to(Phase::Open { since: now });
                }
            }
            (Phase::HalfOpen { .. }, Some(true)) => self.move_to(Phase::Open { since: now }),
            (Phase::HalfOpen { trial, successes }, Some(false)) => {
                *trial = false;
                *successes += 1;
                if *successes >= rule.half_open_successes {
                    self.move_to(Phase::default());
                }
            }
            (Phase::HalfOpen { trial, .. }, None) => *trial = false,
            (Phase::Closed { .. }, None) | (Phase::Open { .. }, _) => {}
        }
    }

    /// The share of failures in the window while closed; 1 while open or half-open.
    pub fn error_rate(&self, rule: &BreakerRule, now: Timestamp) -> f64 {
        match &self.phase {
            Phase::Closed { window, .. } => window.error_rate(rule, now),
            Phase::Open { .. } | Phase::HalfOpen { .. } => 1.0,
        }
    }

    /// Closes it, for an operator.
    pub fn reset(&mut self) {
        self.move_to(Phase::default());
    }

    const fn trial(&self) -> Pass {
        Pass { generation: self.generation, trial: true }
    }

    fn move_to(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation += 1;
    }
}

impl Run {
    fn count(&mut self, failed: bool, rule: &BreakerRule, now: Timestamp) {
        if !failed {
            self.length = 0;
        } else if self.length == 0 || now.since(self.began) > rule.window {
            *self = Self { length: 1, began: now };
        } else {
            self.length += 1;
        }
    }
}

impl Window {
    fn number(rule: &BreakerRule, now: Timestamp) -> u64 {
        now.as_nanos() / (nanos(rule.window) / SLOTS as u64).max(1)
    }

    fn count(&mut self, failed: bool, rule: &BreakerRule, now: Timestamp) {
        if self.length != rule.window {
            *self = Self { length: rule.window, ..Self::default() }; // slots of another window have another length
        }
        let number = Self::number(rule, now);
        let slot = &mut self.slots[usize::try_from(number % SLOTS as u64).unwrap_or(0)];
        if slot.number != number {
            *slot = Slot { number, ..Slot::default() };
        }
        slot.total = slot.total.saturating_add(1);
        slot.failed = slot.failed.saturating_add(u32::from(failed));
    }

    fn sums(&self, rule: &BreakerRule, now: Timestamp) -> (u32, u32) {
        if self.length != rule.window {
            return (0, 0);
        }
        let newest = Self::number(rule, now);
        let current = self.slots.iter().filter(|slot| slot.number + SLOTS as u64 > newest);
        current.fold((0, 0), |(total, failed), slot| {
            (slot.total.saturating_add(total), slot.failed.saturating_add(failed))
        })
    }

    fn error_rate(&self, rule: &BreakerRule, now: Timestamp) -> f64 {
        let (total, failed) = self.sums(rule, now);
        if total == 0 { 0.0 } else { f64::from(failed) / f64::from(total) }
    }

    fn too_bad(&self, rule: &BreakerRule, now: Timestamp) -> bool {
        let Some(limit) = rule.error_rate else { return false };
        self.sums(rule, now).0 >= rule.min_requests && self.error_rate(rule, now) > limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_secs(1_000);
    const FINE: Outcome = Outcome::Answered(200);
    const BROKEN: Outcome = Outcome::Answered(503);

    fn rule() -> BreakerRule {
        BreakerRule {
            name: "backend".into(),
            failures: 5,
            error_rate: Some(0.5),
            min_requests: 20,
            window: Duration::from_mins(1),
            cooldown: Duration::from_secs(30),
            half_open_successes: 2,
            statuses: vec![500, 502, 503, 504],
        }
    }

    fn request(breaker: &mut Breaker, outcome: Outcome, now: Timestamp) {
        let pass = breaker.enter(&rule(), now).unwrap();
        breaker.settle(&rule(), pass, outcome, now);
    }

    fn open_breaker() -> Breaker {
        let mut breaker = Breaker::default();
        (0..5).for_each(|_| request(&mut breaker, BROKEN, START));
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_resets_the_count() {
        let mut breaker = Breaker::default();
        (0..4).for_each(|_| request(&mut breaker, BROKEN, START));
        request(&mut breaker, FINE, START);
        (0..4).for_each(|_| request(&mut breaker, Outcome::Unreachable, START));
        assert_eq!(breaker.state(&rule(), START), State::Closed);
        request(&mut breaker, Outcome::TimedOut, START);
        assert_eq!(breaker.state(&rule(), START), State::Open);
        assert_eq!(breaker.enter(&rule(), START + Duration::from_secs(10)), Err(Duration::from_secs(20)));
    }

    #[test]
    fn a_run_longer_than_the_window_does_not_open_it() {
        let mut breaker = Breaker::default();
        (0..8).for_each(|n| request(&mut breaker, BROKEN, START + Duration::from_secs(20 * n)));
        assert_eq!(breaker.state(&rule(), START + Duration::from_secs(140)), State::Closed);
    }

    #[test]
    fn half_open_sends_one_trial_at_a_time_and_closes_after_enough_successes() {
        let mut breaker = open_breaker();
        let later = START + Duration::from_secs(31);
        assert_eq!((breaker.state(&rule(), later), breaker.moved_to()), (State::HalfOpen, State::Open));
        let first = breaker.enter(&rule(), later).unwrap();
        assert_eq!(breaker.moved_to(), State::HalfOpen);
        assert!(breaker.enter(&rule(), later).is_err(), "one trial at a time");
        breaker.settle(&rule(), first, FINE, later);
        assert_eq!(breaker.state(&rule(), later), State::HalfOpen);
        request(&mut breaker, FINE, later);
        assert_eq!(breaker.state(&rule(), later), State::Closed);
    }

    #[test]
    fn a_failed_trial_opens_it_again_and_one_whose_client_left_allows_another() {
        let later = START + Duration::from_secs(31);
        let mut breaker = open_breaker();
        request(&mut breaker, Outcome::ClientLeft, later);
        request(&mut breaker, BROKEN, later);
        assert_eq!(breaker.state(&rule(), later), State::Open);
    }

    #[test]
    fn a_late_answer_from_an_earlier_state_is_ignored() {
        let mut breaker = Breaker::default();
        let late = breaker.enter(&rule(), START).unwrap();
        (0..5).for_each(|_| request(&mut breaker, BROKEN, START));
        breaker.settle(&rule(), late, FINE, START);
        assert_eq!(breaker.state(&rule(), START), State::Open);
    }

    #[test]
    fn the_share_of_failures_opens_it_from_the_minimum_on() {
        let mut breaker = Breaker::default();
        for n in 0..19 {
            request(&mut breaker, if n % 5 < 3 { BROKEN } else { FINE }, START);
        }
        assert_eq!(breaker.state(&rule(), START), State::Closed, "19 requests are too few");
        request(&mut breaker, BROKEN, START);
        assert_eq!(breaker.state(&rule(), START), State::Open);
    }

    #[test]
    fn a_changed_rule_applies_at_once() {
        let mut breaker = Breaker::default();
        let rule = BreakerRule { cooldown: Duration::from_hours(1), failures: 1, ..rule() };
        let pass = breaker.enter(&rule, START).unwrap();
        breaker.settle(&rule, pass, BROKEN, START);
        let later = START + Duration::from_secs(2);
        assert!(breaker.enter(&rule, later).is_err());
        let shorter = BreakerRule { cooldown: Duration::from_secs(1), ..rule };
        assert_eq!(breaker.state(&shorter, later), State::HalfOpen);
        assert!(breaker.enter(&shorter, later).is_ok(), "the cooldown that holds now is over");
        let mut window = Window::default();
        (0..30).for_each(|_| window.count(true, &shorter, START));
        let other = BreakerRule { window: Duration::from_mins(10), ..shorter };
        assert_eq!(window.sums(&other, START), (0, 0), "slots of another window do not count");
    }
}
