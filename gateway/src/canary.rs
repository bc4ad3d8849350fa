//! A policy that has just come into force is watched, and the one before it put back when it leaves its band; the
//! arithmetic is in [`policy::canary`].
//!
//! Each policy in force counts its own requests, so those in flight at a reload count for the policy that judged them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use policy::canary::{CanaryRule, LONGEST_WINDOW, Tally};
use tokio::time::Instant;
use tracing::info;

use crate::gateway::Gateway;
use crate::reload::{Loaded, Reloader};

/// How often a trial is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How requests went under one policy.
#[derive(Debug, Default)]
pub struct Counts {
    requests: AtomicU64,
    refusals: AtomicU64,
    errors: AtomicU64,
}

impl Counts {
    /// Counts a request that ended with `status`.
    pub fn record(&self, status: u16, refused: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if status >= 500 {
            self.errors.fetch_add(1, Ordering::Relaxed);
        } else if refused {
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tally(&self) -> Tally {
        Tally {
            requests: self.requests.load(Ordering::Relaxed),
            refusals: self.refusals.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }
}

/// What is known of the policy in force, and of the one before it while this one is on trial.
#[derive(Default)]
pub struct Canary(Mutex<State>);

#[derive(Default)]
struct State {
    /// What had been counted when, second by second; the policy that counted it.
    history: VecDeque<(Instant, Tally)>,
    of: Option<Arc<Loaded>>,
    trial: Option<Trial>,
}

struct Trial {
    rule: CanaryRule,
    before: Arc<Loaded>,
    usual: Tally,
    until: Instant,
}

/// A trial, as `/admin/policy` shows it.
#[derive(serde::Serialize)]
pub struct TrialState {
    until: String,
    requests: u64,
    refusals: u64,
    errors: u64,
}

impl State {
    /// Notes what `policy` has counted; begins anew with another policy.
    fn note(&mut self, policy: &Arc<Loaded>, now: Instant) {
        if !self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, policy)) {
            self.of = Some(Arc::clone(policy));
            self.history.clear();
            self.trial = None;
        }
        self.history.push_back((now, policy.counts.tally()));
        while self.history.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > LONGEST_WINDOW)
        {
            self.history.pop_front();
        }
    }

    /// What the policy counted within `window`.
    fn within(&self, window: Duration, now: Instant) -> Tally {
        let recent = self.history.iter().find(|(at, _)| now.saturating_duration_since(*at) <= window);
        let (Some((_, first)), Some((_, last))) = (recent, self.history.back()) else {
            return Tally::default();
        };
        // Until the history is as long as the window all that was counted counts.
        let whole = self.history.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) <= window);
        if whole { *last } else { last.since(*first) }
    }
}

impl Canary {
    /// Another policy takes the place of `before`.
    pub(crate) fn begin(&self, before: &Arc<Loaded>, candidate: &Arc<Loaded>) {
        let (mut state, now) = (self.0.lock(), Instant::now());
        state.note(before, now);
        let Some(rule) = candidate.rules.canary else { return };
        // A trial goes on against what was usual before it, whatever comes meanwhile.
        let trial = state.trial.take().filter(|trial| trial.rule == rule);
        let usual = trial.as_ref().map_or_else(|| state.within(rule.window, now), |trial| trial.usual);
        let before = trial.map_or_else(|| Arc::clone(before), |trial| trial.before);
        state.note(candidate, now);
        state.trial = Some(Trial { rule, before, usual, until: now + rule.window });
    }

    /// The policy in force is laid out anew, with other overrides: a trial goes on.
    pub(crate) fn go_on(&self, before: &Arc<Loaded>, candidate: &Arc<Loaded>) {
        if self.0.lock().trial.is_some() {
            self.begin(before, candidate);
        }
    }

    /// The trial that goes on, if any.
    pub fn describe(&self) -> Option<TrialState> {
        let state = self.0.lock();
        let (trial, of) = state.trial.as_ref().zip(state.of.as_ref())?;
        let until = SystemTime::now() + trial.until.saturating_duration_since(Instant::now());
        let Tally { requests, refusals, errors } = of.counts.tally();
        let until = humantime::format_rfc3339_seconds(until).to_string();
        Some(TrialState { until, requests, refusals, errors })
    }

    /// What the policy in force has to answer for, and the policy to go back to.
    fn look(&self, in_force: &Arc<Loaded>) -> Option<(String, Arc<Loaded>)> {
        let (mut state, now) = (self.0.lock(), Instant::now());
        state.note(in_force, now);
        let trial = state.trial.as_ref()?;
        if let Some(departure) = trial.rule.judge(trial.usual, in_force.counts.tally()) {
            let before = Arc::clone(&trial.before);
            state.trial = None;
            return Some((departure, before));
        }
        if now >= trial.until {
            info!(sha256 = in_force.sha256, "the policy has stood its trial");
            state.trial = None;
        }
        None
    }
}

impl Reloader {
    /// Looks at the policy in force, forever.
    pub async fn watch_trials(self: Arc<Self>, gateway: Arc<Gateway>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let in_force = gateway.policy();
            if let Some((departure, before)) = self.canary.look(&in_force) {
                let (reloader, gateway) = (Arc::clone(&self), Arc::clone(&gateway));
                let back = move || reloader.roll_back(&gateway, &in_force, before, &departure);
                let _ = tokio::task::spawn_blocking(back).await;
            }
        }
    }
}
