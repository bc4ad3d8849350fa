//! The breakers of this replica: the arithmetic of `policy` behind short locks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use policy::rules::breaker::{Breaker, BreakerRule, Outcome, Pass, State};
use policy::values::time::Timestamp;
use tracing::warn;

use crate::clock;
use crate::observe::metrics::Metrics;

/// Every breaker by name. A reload keeps the state of the breakers that still exist.
#[derive(Clone)]
pub struct Breakers {
    all: Arc<Mutex<HashMap<Arc<str>, Breaker>>>,
    metrics: Metrics,
}

/// The permission to send one request. It may be dropped without a verdict, when a later stage refuses or a task is
/// cancelled. Then it is given back and says nothing about the upstream.
pub struct BreakerPass {
    guard: Option<(Breakers, Arc<BreakerRule>, Pass)>,
}

impl Breakers {
    /// Begins with no failures.
    pub fn new(metrics: Metrics) -> Self {
        Self { all: Arc::default(), metrics }
    }

    /// Asks to send a request under `rule`.
    pub fn enter(&self, rule: Option<&Arc<BreakerRule>>, now: Timestamp) -> Result<BreakerPass, Duration> {
        let Some(rule) = rule else { return Ok(BreakerPass { guard: None }) };
        let pass = self.with(rule, |breaker| breaker.enter(rule, now))?;
        Ok(BreakerPass { guard: Some((self.clone(), Arc::clone(rule), pass)) })
    }

    /// The state and the error rate of `rule`'s breaker.
    pub fn state(&self, rule: &BreakerRule, now: Timestamp) -> (State, f64) {
        let all = self.all.lock();
        all.get(&rule.name)
            .map_or((State::Closed, 0.0), |breaker| (breaker.state(rule, now), breaker.error_rate(rule, now)))
    }

    /// Closes a breaker by hand; `false` when it has never been used.
    pub fn reset(&self, name: &str) -> bool {
        let before = self.all.lock().get_mut(name).map(|breaker| {
            let before = breaker.moved_to();
            breaker.reset();
            before
        });
        match before {
            Some(State::Closed) | None => {}
            Some(before) => self.metrics.breaker_moved(name, before, State::Closed),
        }
        before.is_some()
    }

    fn with<T>(&self, rule: &BreakerRule, work: impl FnOnce(&mut Breaker) -> T) -> T {
        let (result, before, after) = {
            let mut all = self.all.lock();
            if !all.contains_key(&rule.name) {
                all.insert(Arc::clone(&rule.name), Breaker::default());
            }
            let Some(breaker) = all.get_mut(&rule.name) else { unreachable!("inserted above") };
            // The stored state, not the state at this time: an open breaker becomes half-open at its first trial.
            let before = breaker.moved_to();
            let result = work(breaker);
            (result, before, breaker.moved_to())
        };
        if before != after {
            warn!(breaker = &*rule.name, from = before.as_str(), to = after.as_str(), "breaker moved");
            self.metrics.breaker_moved(&rule.name, before, after);
        }
        result
    }
}

impl BreakerPass {
    /// Reports how the request goes as soon as other requests should know: a failure before the client receives it, and
    /// the result of a trial when its answer begins, because nobody should wait for the end of a long download or a
    /// WebSocket.
    pub fn settle_early(&mut self, outcome: Outcome, now: Timestamp) {
        let early =
            self.guard.take_if(|(_, rule, pass)| pass.is_trial() || outcome.failed(rule) == Some(true));
        if let Some((breakers, rule, pass)) = early {
            breakers.with(&rule, |breaker| breaker.settle(&rule, pass, outcome, now));
        }
    }

    /// Reports how the request ended.
    pub fn settle(mut self, outcome: Outcome, now: Timestamp) {
        if let Some((breakers, rule, pass)) = self.guard.take() {
            breakers.with(&rule, |breaker| breaker.settle(&rule, pass, outcome, now));
        }
    }
}

impl Drop for BreakerPass {
    fn drop(&mut self) {
        if let Some((breakers, rule, pass)) = self.guard.take() {
            let now = clock::steady();
            breakers.with(&rule, |breaker| breaker.settle(&rule, pass, Outcome::ClientLeft, now));
        }
    }
}
