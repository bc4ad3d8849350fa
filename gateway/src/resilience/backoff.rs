//! How a loop of the gateway waits before it tries again.

use std::time::Duration;

/// The pauses of a loop that retries. Each pause is twice the one before; the loop waits a random part of it. The
/// caller logs the first failure and the end of the failures.
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

    /// Notes a success. Returns whether it had failed before.
    pub(crate) fn succeeded(&mut self) -> bool {
        std::mem::take(&mut self.failures) > 0
    }

    /// Notes a failure. Returns whether it is the first one in a row, and how long to wait, at most `most`. `chance` is
    /// from 0 to 1.
    pub(crate) fn failed(&mut self, most: Duration, chance: f64) -> (bool, Duration) {
        let pause = self.first.saturating_mul(1 << self.failures.min(20)).min(most);
        self.failures = self.failures.saturating_add(1);
        // The wait is between half of the pause and all of it, so that replicas that lost the same service do not
        // return at the same moment.
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
