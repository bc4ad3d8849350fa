//! Retries: a request that failed because of its upstream is sent again, where that is safe and useful.
//!
//! - It is safe for idempotent methods (RFC 9110, 9.2.2) and for requests with an `Idempotency-Key`, as long as nothing
//!   was sent to the client.
//! - It is useful after a failed connection, a timeout, or one of `statuses`.
//! - `Retry-After` is respected. If it asks for more than `max`, there is no retry.
//! - The waits grow as `backoff` says, with full jitter (Brooker, "Exponential Backoff And Jitter").
//! - All retries together may add at most the share `budget` to the load.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::document::Section;
use crate::document::units::Span;
use crate::rules::breaker::Outcome;
use crate::values::backoff::Backoff;
use crate::values::request::Headers;
use crate::words;

/// The most tries of one request.
pub const MOST_ATTEMPTS: u32 = 10;

/// How waits grow from try to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Each wait is `base`.
    Fixed,
    /// Each wait is longer by `base`.
    Linear,
    /// Each wait is twice as long.
    Exponential,
}

words! { Growth { "fixed" => Fixed, "linear" => Linear, "exponential" => Exponential } or "fixed, linear or exponential" }

/// `[retries.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryRule {
    /// The name in the policy.
    pub name: Arc<str>,
    /// The most tries of one request, including the first.
    pub attempts: u32,
    /// How the waits grow.
    pub backoff: Growth,
    /// The first wait.
    pub base: Duration,
    /// The longest wait.
    pub max: Duration,
    /// Whether each wait is a random part of its full length.
    pub jitter: bool,
    /// The share that retries may add to the load, from 0 to 1.
    pub budget: f64,
    /// The time for each try. The route's `upstream_timeout` bounds all tries together.
    pub try_timeout: Option<Duration>,
    /// The statuses after which another try is useful.
    pub statuses: Vec<u32>,
}

impl RetryRule {
    pub(crate) fn read_all(root: &Section<'_>) -> HashMap<String, Arc<Self>> {
        let sections = root.named_sections("retries");
        sections
            .into_iter()
            .map(|(name, section)| (name.clone(), Arc::new(Self::read(&name, section))))
            .collect()
    }

    fn read(name: &str, section: Section<'_>) -> Self {
        let attempts = section.get_checked("attempts", 3, |attempts| {
            let fault = || format!("from 1 to {MOST_ATTEMPTS} (got {attempts})");
            (1..=MOST_ATTEMPTS).contains(attempts).then_some(()).ok_or_else(fault)
        });
        let share = |budget: &f64| {
            (0.0..=1.0).contains(budget).then_some(()).ok_or(format!("from 0 to 1 (got {budget})"))
        };
        let rule = Self {
            name: name.into(),
            attempts,
            backoff: section.get_or("backoff", Growth::Exponential),
            base: section.get_or("base", Span(Duration::from_millis(100))).0,
            max: section.get_or("max", Span(Duration::from_secs(2))).0,
            jitter: section.get_or("jitter", true),
            budget: section.get_checked("budget", 0.2, share),
            try_timeout: section.get::<Span>("try_timeout").map(|span| span.0),
            statuses: section.get_or("statuses", vec![502, 503, 504]),
        };
        section.finish();
        rule
    }

    /// How long to wait before the next try, after `tried` tries. `None`: no further try. `chance` is uniform in
    /// `0.0..1.0`, and `retry_after` is the wait that the upstream asks for.
    pub fn again(
        &self,
        tried: u32,
        outcome: Outcome,
        retry_after: Option<Duration>,
        chance: f64,
    ) -> Option<Duration> {
        let useful = match outcome {
            Outcome::Answered(status) => self.statuses.contains(&u32::from(status)),
            Outcome::Unreachable | Outcome::TimedOut => true,
            Outcome::ClientLeft | Outcome::NotSent | Outcome::ReadOnly => false,
        };
        let asked_for = retry_after.unwrap_or_default();
        if !useful || tried >= self.attempts || asked_for > self.max {
            return None;
        }
        let cap = match self.backoff {
            Growth::Fixed => self.base,
            Growth::Linear => self.base.saturating_mul(tried),
            Growth::Exponential => Backoff { base: self.base, max: self.max }.cap(tried),
        };
        let cap = cap.min(self.max);
        let wait = if self.jitter { cap.mul_f64(chance.clamp(0.0, 1.0)) } else { cap };
        Some(wait.max(asked_for))
    }
}

/// Whether sending a request twice has the same effect as sending it once.
pub fn is_repeatable(method: &str, headers: Headers<'_>) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE")
        || headers.first("idempotency-key").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(backoff: Growth) -> RetryRule {
        RetryRule {
            name: "default".into(),
            attempts: 4,
            backoff,
            base: Duration::from_millis(100),
            max: Duration::from_millis(250),
            jitter: false,
            budget: 0.2,
            try_timeout: None,
            statuses: vec![503],
        }
    }

    #[test]
    fn waits_grow_as_configured_and_end() {
        let waits = |growth| -> Vec<_> {
            let again = |tried| rule(growth).again(tried, Outcome::Unreachable, None, 0.5);
            (1..=4).map(|tried| again(tried).map(|wait| wait.as_millis())).collect()
        };
        assert_eq!(waits(Growth::Fixed), [Some(100), Some(100), Some(100), None]);
        assert_eq!(waits(Growth::Linear), [Some(100), Some(200), Some(250), None]);
        assert_eq!(waits(Growth::Exponential), [Some(100), Some(200), Some(250), None]);
        let jittered = RetryRule { jitter: true, ..rule(Growth::Fixed) };
        assert_eq!(jittered.again(1, Outcome::TimedOut, None, 0.5), Some(Duration::from_millis(50)));
    }

    #[test]
    fn only_temporary_failures_are_tried_again_and_not_before_retry_after() {
        let rule = rule(Growth::Fixed);
        let again = |outcome, after| rule.again(1, outcome, after, 0.0);
        assert!(again(Outcome::Answered(503), None).is_some());
        assert!(again(Outcome::Answered(500), None).is_none() && again(Outcome::ClientLeft, None).is_none());
        let soon = Duration::from_millis(200);
        assert_eq!(again(Outcome::Answered(503), Some(soon)), Some(soon));
        assert_eq!(again(Outcome::Answered(503), Some(Duration::from_secs(9))), None);
        assert!(is_repeatable("PUT", Headers::default()) && !is_repeatable("POST", Headers::default()));
        assert!(is_repeatable("POST", Headers::new(&[("Idempotency-Key", b"k")])));
    }
}
