//! How long to wait before the next attempt.
//!
//! Exponential with full jitter: Brooker, "Exponential Backoff And Jitter". Chance is an argument.

use std::time::Duration;

/// Waits that double from `base` up to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait.
    pub base: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row, between zero and the cap. `chance` is uniform in `0.0..1.0`; it
    /// spreads clients that failed at the same time.
    pub fn wait(&self, failures: u32, chance: f64) -> Duration {
        self.cap(failures).mul_f64(chance.clamp(0.0, 1.0))
    }

    /// The longest wait after `failures` failures in a row.
    pub fn cap(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);
        self.base.saturating_mul(1 << doublings).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_chance_spreads_them() {
        let backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(2) };
        let caps: Vec<_> = (1..=7).map(|failures| backoff.cap(failures).as_millis()).collect();
        assert_eq!(caps, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(backoff.wait(2, 0.5), Duration::from_millis(100));
        assert_eq!(backoff.cap(u32::MAX), backoff.max);
    }
}
