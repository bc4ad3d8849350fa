//! A new policy is on trial: it is watched, and the one before it is put back when the new one leaves its band. The
//! arithmetic is in [`policy::rules::canary`].
//!
//! Each policy counts its own requests, so requests in flight at a reload count for the policy that judged them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use policy::rules::canary::{CanaryRule, LONGEST_WINDOW, Tally};
use tokio::time::Instant;

use crate::live_policy::counts::Counts;
use crate::live_policy::loaded::Loaded;

/// The state of the policy in force, and of the one before it while this one is on trial.
#[derive(Default)]
pub struct Canary(Mutex<State>);

#[derive(Default)]
struct State {
    /// The counts of the policy in force over time, second by second: since it came into force, or since one look
    /// before the longest window.
    history: VecDeque<(Instant, Tally)>,
    of: Option<Arc<Counts>>,
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

/// The verdict on a trial.
pub(crate) enum Verdict {
    /// The policy has passed its trial.
    Stood,
    /// The policy has left its band, as the text says, and this policy is to be put back.
    Left(String, Arc<Loaded>),
}

impl State {
    /// Notes the counts. Begins again with another policy, whose counts may be old.
    fn note(&mut self, counts: &Arc<Counts>, now: Instant) {
        if !self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, counts)) {
            // The first policy has no earlier counts.
            let begin = if self.of.is_none() { Tally::default() } else { counts.tally() };
            *self = Self { of: Some(Arc::clone(counts)), history: [(now, begin)].into(), trial: None };
        }
        self.history.push_back((now, counts.tally()));
        let past = |at: &Instant| now.saturating_duration_since(*at) > LONGEST_WINDOW;
        while self.history.get(1).is_some_and(|(at, _)| past(at)) {
            self.history.pop_front();
        }
    }

    /// The counts within `window`, or since the policy came into force.
    fn within(&self, window: Duration, now: Instant) -> Tally {
        let old = |at: &Instant| now.saturating_duration_since(*at) >= window;
        let begin = self.history.iter().take_while(|(at, _)| old(at)).last().or(self.history.front());
        let (Some((_, first)), Some((_, last))) = (begin, self.history.back()) else {
            return Tally::default();
        };
        last.since(*first)
    }
}

impl Canary {
    /// Another policy replaces `before`. Returns whether it is on trial.
    pub(crate) fn begin(&self, before: &Arc<Loaded>, candidate: &Loaded) -> bool {
        let (mut state, now) = (self.0.lock(), Instant::now());
        state.note(&before.counts, now);
        let Some(rule) = candidate.rules.canary else { return false };
        // A policy that has not passed its trial is not put back later, and its counts are not the usual ones.
        let trial = state.trial.take();
        let usual = trial.as_ref().map_or_else(|| state.within(rule.window, now), |trial| trial.usual);
        let before = trial.map_or_else(|| Arc::clone(before), |trial| trial.before);
        state.note(&candidate.counts, now);
        state.trial = Some(Trial { rule, before, usual, until: now + rule.window });
        true
    }

    /// The trial in progress, if there is one.
    pub fn describe(&self) -> Option<TrialState> {
        let state = self.0.lock();
        let (trial, counts) = state.trial.as_ref().zip(state.of.as_ref())?;
        let until = SystemTime::now() + trial.until.saturating_duration_since(Instant::now());
        let Tally { requests, refusals, errors } = counts.tally();
        let until = humantime::format_rfc3339_seconds(until).to_string();
        Some(TrialState { until, requests, refusals, errors })
    }

    /// Judges the policy in force. A verdict ends its trial.
    pub(crate) fn look(&self, in_force: &Loaded) -> Option<Verdict> {
        let (mut state, now) = (self.0.lock(), Instant::now());
        state.note(&in_force.counts, now);
        let trial = state.trial.as_ref()?;
        let verdict = match trial.rule.judge(trial.usual, in_force.counts.tally()) {
            Some(departure) => Verdict::Left(departure, Arc::clone(&trial.before)),
            None if now >= trial.until => Verdict::Stood,
            None => return None,
        };
        state.trial = None;
        Some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_is_what_happened_within_the_window() {
        let (mut state, begun) = (State::default(), Instant::now());
        state.note(&Arc::default(), begun);
        let counts = Arc::new(Counts::default());
        (0..1_000).for_each(|_| counts.record(403, true)); // long before, as of a policy that is put back
        let window = Duration::from_secs(10);
        for second in 0..1_000 {
            state.note(&counts, begun + Duration::from_secs(second));
            counts.record(200, false);
        }
        let now = begun + Duration::from_secs(999);
        assert_eq!(state.within(window, now), Tally { requests: 10, refusals: 0, errors: 0 });
        let longest = state.within(LONGEST_WINDOW, now);
        assert_eq!(longest, Tally { requests: 600, refusals: 0, errors: 0 });
        assert!(state.history.len() < 610, "{}", state.history.len());
        let other = Arc::new(Counts::default());
        state.note(&other, now);
        assert_eq!(state.within(window, now), Tally::default(), "another policy begins anew");
    }
}
