//! Canary: a new policy is on trial for a while. If the share of refused requests, or of requests that end in a 5xx,
//! rises by more than the policy allows, compared with the time before, the previous policy is restored.
//!
//! Only a rise counts, because a fall may mean that an attack is over. It is off unless `[canary]` is there, because an
//! attack that begins just after a reload would roll back a good policy.

use std::time::Duration;

use crate::document::Section;
use crate::document::units::Span;

/// `[canary]`: how a new policy is watched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CanaryRule {
    /// How long a policy is on trial, and the length of the time before it to compare with.
    pub window: Duration,
    /// With fewer requests than these, before the reload or after it, nothing is compared.
    pub min_requests: u64,
    /// By how much the share of refused requests may rise, from 0 to 1.
    pub refusals: f64,
    /// By how much the share of requests that end in a 5xx may rise, from 0 to 1.
    pub errors: f64,
}

/// The longest trial.
pub const LONGEST_WINDOW: Duration = Duration::from_mins(10);

/// The shortest trial.
const SHORTEST_WINDOW: Duration = Duration::from_secs(5);

impl CanaryRule {
    pub(crate) fn read(section: Option<Section<'_>>) -> Option<Self> {
        let section = section?;
        let share = |share: &f64| {
            (*share > 0.0 && *share < 1.0).then_some(()).ok_or(format!("above 0 and below 1 (got {share})"))
        };
        let window = section.get_checked("window", Span(Duration::from_mins(2)), |window| {
            (SHORTEST_WINDOW..=LONGEST_WINDOW)
                .contains(&window.0)
                .then_some(())
                .ok_or(format!("from 5s to 10m (got {window})"))
        });
        let min_requests = section.get_checked("min_requests", 50_u32, |number| {
            (*number > 0).then_some(()).ok_or("at least 1 (got 0)".to_owned())
        });
        let rule = Self {
            window: window.0,
            min_requests: min_requests.into(),
            refusals: section.get_checked("refusals", 0.1, share),
            errors: section.get_checked("errors", 0.05, share),
        };
        section.finish();
        Some(rule)
    }

    /// Compares how requests ended under the policy before and under the one on trial. `Some` says which share rose too
    /// much. `None`: no share did, or there were too few requests.
    pub fn judge(&self, usual: Tally, now: Tally) -> Option<String> {
        if usual.requests.min(now.requests) < self.min_requests {
            return None;
        }
        let rose = |what, count: fn(Tally) -> u64, band| {
            let [before, after] = [usual, now].map(|tally| share(count(tally), tally.requests));
            let (number, before, after_percent) = (now.requests, before * 100.0, after * 100.0);
            (after * 100.0 > before + band * 100.0)
                .then(|| format!("{what} {after_percent:.1} % of {number} requests, {before:.1} % before it"))
        };
        let refused = rose("it refused", |tally| tally.refusals, self.refusals);
        refused.or_else(|| rose("a 5xx ended", |tally| tally.errors, self.errors))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share of counts far below 2^52")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// How requests ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub requests: u64,
    /// Those that the policy refused.
    pub refusals: u64,
    /// Those that ended in a 5xx, from the service or from the gateway.
    pub errors: u64,
}

impl Tally {
    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            refusals: self.refusals.saturating_sub(earlier.refusals),
            errors: self.errors.saturating_sub(earlier.errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: CanaryRule =
        CanaryRule { window: Duration::from_mins(2), min_requests: 50, refusals: 0.1, errors: 0.05 };

    fn tally(requests: u64, refusals: u64, errors: u64) -> Tally {
        Tally { requests, refusals, errors }
    }

    #[test]
    fn a_rise_beyond_the_band_counts_and_a_fall_does_not() {
        let usual = tally(1_000, 50, 10);
        assert_eq!(
            RULE.judge(usual, tally(100, 15, 6)),
            None,
            "15 % is 5 % and the band; 6 % is 1 % and the band"
        );
        let refused = RULE.judge(usual, tally(100, 16, 0)).unwrap();
        assert_eq!(refused, "it refused 16.0 % of 100 requests, 5.0 % before it");
        let failed = RULE.judge(usual, tally(200, 0, 13)).unwrap();
        assert_eq!(failed, "a 5xx ended 6.5 % of 200 requests, 1.0 % before it");
        assert_eq!(RULE.judge(tally(1_000, 900, 500), tally(1_000, 0, 0)), None);
    }

    #[test]
    fn too_few_requests_are_not_compared() {
        assert_eq!(RULE.judge(tally(1_000, 0, 0), tally(49, 49, 49)), None);
        assert_eq!(RULE.judge(tally(49, 0, 0), tally(1_000, 1_000, 0)), None, "what is usual is unknown");
    }
}
