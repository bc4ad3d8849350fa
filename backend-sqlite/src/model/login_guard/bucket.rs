//! A leaky bucket that counts refused attempts as well: a client that stays within the rate is served at once, and a
//! flood gets nothing at all for as long as it continues.

use std::time::{Duration, Instant};

/// What a bucket takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// What runs out, in attempts a second.
    pub(super) rate: f64,
    /// Attempts at once.
    pub(super) burst: f64,
    /// How long after the end of a flood the bucket takes the next attempt, at most; zero: what is refused is not
    /// counted.
    pub(super) debt: Duration,
}

/// What is in a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    /// An empty one.
    pub(super) const fn new(now: Instant) -> Self {
        Self { level: 0.0, at: now }
    }

    fn drain(&mut self, rule: &Rule, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level - passed * rule.rate).max(0.0);
        self.at = now;
    }

    /// Takes an attempt, or returns after what time without attempts it takes one.
    pub(super) fn take(&mut self, rule: &Rule, now: Instant) -> Result<(), Duration> {
        self.drain(rule, now);
        if self.level + 1.0 <= rule.burst {
            self.level += 1.0;
            return Ok(());
        }
        let brim = rule.burst + rule.rate * rule.debt.as_secs_f64();
        if rule.debt > Duration::ZERO {
            self.level = (self.level + 1.0).min(brim);
        }
        Err(Duration::from_secs_f64(((self.level + 1.0 - rule.burst) / rule.rate).clamp(0.0, 3_600.0)))
    }

    /// Holds no more than `rule` allows, where another rule held before.
    pub(super) fn shrink(&mut self, rule: &Rule) {
        self.level = self.level.min(rule.burst);
    }

    /// Gives back an attempt that was none.
    pub(super) fn give_back(&mut self) {
        self.level = (self.level - 1.0).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { rate: 10.0, burst: 20.0, debt: Duration::from_secs(2) };

    fn admitted(per_second: u32, seconds: u32) -> usize {
        let begun = Instant::now();
        let mut bucket = Bucket::new(begun);
        (0..per_second * seconds)
            .filter(|turn| {
                let now = begun + Duration::from_secs(1) / per_second * *turn;
                bucket.take(&RULE, now).is_ok()
            })
            .count()
    }

    #[test]
    fn who_keeps_to_the_rate_is_served_and_a_flood_gets_no_more_than_the_burst() {
        assert_eq!(admitted(5, 60), 300);
        assert_eq!(admitted(500, 60), 20, "and nothing for the rest of the minute");
    }

    #[test]
    fn the_wait_that_is_said_is_the_wait_that_helps() {
        let begun = Instant::now();
        let mut bucket = Bucket::new(begun);
        let waits: Vec<_> = (0..1_000).filter_map(|_| bucket.take(&RULE, begun).err()).collect();
        let last = *waits.last().unwrap();
        assert!(last <= RULE.debt + Duration::from_millis(101), "{last:?}");
        assert!(bucket.take(&RULE, begun + last + Duration::from_millis(1)).is_ok());
        bucket.give_back();
        assert!(bucket.take(&RULE, begun + last + Duration::from_millis(2)).is_ok());
    }
}
