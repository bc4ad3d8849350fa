//! How a loop of the gateway waits for what it needs.

use std::time::Duration;

/// The pauses of a loop that tries again and again: they double, a random part of each is waited, and the log is told of the
/// first failure and of the end of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    failures: u32,
}

impl Backoff {
    /// The longest first pause; later ones double it.
    pub(crate) const fn from(first: Duration) -> Self {
        Self { first, failures: 0 }
    }

    /// It worked; whether it had failed before.
    pub(crate) fn succeeded(&mut self) -> bool {
        std::mem::take(&mut self.failures) > 0
    }

    /// It failed: whether for the first time in a row, and how long to wait, at most `most`. `chance` is from 0 to 1.
    pub(crate) fn failed(&mut self, most: Duration, chance: f64) -> (bool, Duration) {
        let pause = self.first.saturating_mul(1 << self.failures.min(20)).min(most);
        self.failures = self.failures.saturating_add(1);
        // From half of it on: many replicas that lost the same service do not come back at the same moment.
        (self.failures == 1, pause.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew_after_a_success() {
        let most = Duration::from_secs(2);
        let mut backoff = Backoff::from(Duration::from_millis(200));
        assert!(!backoff.succeeded());
        let pauses: Vec<_> = (0..6).map(|_| backoff.failed(most, 1.0).1.as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1_600, 2_000, 2_000]);
        assert_eq!(backoff.failed(most, 0.0), (false, Duration::from_secs(1)), "a random part");
        assert!((0..100).all(|_| backoff.failed(most, 1.0).1 <= most));
        assert!(backoff.succeeded() && !backoff.succeeded());
        assert_eq!(backoff.failed(most, 1.0), (true, Duration::from_millis(200)));
    }
}
