//! The token bucket as one number: the generic cell rate algorithm.
//!
//! A bucket stores its theoretical arrival time: the time at which it is full again. A request moves it one emission
//! interval into the future. The request conforms when the new time is at most `burst` intervals after now.
//! Source: ITU-T I.371 annex A. The bucket form is Turner's leaky bucket as a meter.
//!
//! INVARIANT: over any window of length T at most `burst + rate × T` requests conform. The emission interval is rounded
//! up to a whole nanosecond, so a rounding error admits fewer requests, never more.

use std::time::Duration;

use crate::values::time::{Timestamp, nanos};

/// The longest time in which an empty bucket may fill. Now plus twice this time does not overflow, so no sum here
/// saturates. A saturated sum would admit everybody.
pub const LONGEST_REFILL: Duration = Duration::from_hours(100 * 8_766);

/// The most replicas among which a limit is divided. More of them do not make a share smaller.
const MOST_SHARES: u32 = 1_000;

/// A rate with a burst, as arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gcra {
    interval: u64,
    burst: u32,
}

impl Default for Gcra {
    /// One request a second.
    fn default() -> Self {
        Self::new(1, Duration::from_secs(1), 1)
    }
}

/// What is stored of a bucket: when it is full again, and the emission interval with which that was computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    arrival: Timestamp,
    interval: u64,
}

impl Level {
    /// Whether the bucket is not full. A full bucket need not be stored.
    pub fn says_something(self, now: Timestamp) -> bool {
        self.arrival > now
    }

    /// The same level, moved back in time by `by`.
    #[must_use]
    pub fn earlier(self, by: Duration) -> Self {
        Self { arrival: self.arrival - by, ..self }
    }

    /// The same level with one more token, by the rule with which it was stored. It is never more than full.
    #[must_use]
    pub fn refund(self, now: Timestamp) -> Self {
        let arrival = Timestamp::from_nanos(self.arrival.as_nanos().saturating_sub(self.interval)).max(now);
        Self { arrival, ..self }
    }
}

/// The answer of a bucket. `arrival` is to be stored, whether or not the request conforms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The theoretical arrival time after this request.
    pub arrival: Timestamp,
    /// Whether the request conforms. If not, nothing was taken.
    pub conforms: bool,
    /// Whole tokens left now.
    pub remaining: u32,
    /// The time until there is one more token than now; zero when the bucket is full.
    pub next: Duration,
}

impl Gcra {
    /// `count` requests every `per`, at most `burst` at once, and never more than [`Gcra::most_burst`].
    pub fn new(count: u32, per: Duration, burst: u32) -> Self {
        let interval = nanos(per).div_ceil(u64::from(count.max(1))).max(1);
        Self { interval, burst: burst.clamp(1, Self::most_burst(count, per)) }
    }

    /// The largest burst of a bucket that fills within [`LONGEST_REFILL`].
    pub fn most_burst(count: u32, per: Duration) -> u32 {
        let interval = nanos(per).div_ceil(u64::from(count.max(1))).max(1);
        u32::try_from(nanos(LONGEST_REFILL) / interval).unwrap_or(u32::MAX).max(1)
    }

    /// The emission interval: the time in which one token comes back.
    pub const fn interval(self) -> Duration {
        Duration::from_nanos(self.interval)
    }

    /// The most tokens that can be taken at once.
    pub const fn burst(self) -> u32 {
        self.burst
    }

    /// The share of one of `replicas` replicas that cannot see each other: rate and burst are divided, and the burst is
    /// at least one.
    #[must_use]
    pub fn share(self, replicas: u32) -> Self {
        let replicas = replicas.clamp(1, MOST_SHARES);
        Self {
            interval: self.interval.saturating_mul(u64::from(replicas)),
            burst: (self.burst / replicas).max(1),
        }
    }

    /// The level to store of a bucket that is full again at `arrival`.
    pub const fn keep(self, arrival: Timestamp) -> Level {
        Level { arrival, interval: self.interval }
    }

    /// When a bucket is full again whose stored level is `kept`. If `kept` was stored under another rate, the same
    /// number of tokens is missing now, and never more than the burst: a client that an hourly limit refused does not
    /// wait for an hour once the limit is 10000/s.
    pub fn arrival(self, kept: Level, now: Timestamp) -> Timestamp {
        now + self.debt(kept.arrival.since(now), kept.interval)
    }

    /// Converts a debt (the time until full) from the rule `before` to this one.
    pub fn convert(self, debt: Duration, before: Self) -> Duration {
        self.debt(debt, before.interval)
    }

    fn debt(self, debt: Duration, interval: u64) -> Duration {
        let debt = nanos(debt);
        let converted = if interval == self.interval || interval == 0 {
            debt
        } else {
            let converted = u128::from(debt) * u128::from(self.interval) / u128::from(interval);
            u64::try_from(converted).unwrap_or(u64::MAX)
        };
        Duration::from_nanos(converted.min(self.tolerance()))
    }

    /// Takes one token at `now` from a bucket whose stored time is `arrival`.
    pub fn take(self, arrival: Timestamp, now: Timestamp) -> Reading {
        let base = arrival.max(now);
        let moved = Timestamp::from_nanos(base.as_nanos().saturating_add(self.interval));
        let conforms = nanos(moved.since(now)) <= self.tolerance();
        self.describe(if conforms { moved } else { base }, now, conforms)
    }

    /// Gives one token back. A bucket is never more than full.
    pub fn refund(self, arrival: Timestamp, now: Timestamp) -> Timestamp {
        Timestamp::from_nanos(arrival.as_nanos().saturating_sub(self.interval)).max(now)
    }

    fn tolerance(self) -> u64 {
        self.interval.saturating_mul(u64::from(self.burst))
    }

    /// Describes a bucket whose stored time is `arrival`, without taking anything.
    pub fn describe(self, arrival: Timestamp, now: Timestamp, conforms: bool) -> Reading {
        let debt = nanos(arrival.since(now));
        let free = self.tolerance().saturating_sub(debt);
        let over = debt.saturating_sub(self.tolerance()); // the debt exceeds the burst after the burst was made smaller
        let next = if debt == 0 { 0 } else { self.interval - free % self.interval + over };
        Reading {
            arrival,
            conforms,
            remaining: u32::try_from(free / self.interval).unwrap_or(self.burst),
            next: Duration::from_nanos(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Timestamp = Timestamp::from_secs(1_000);

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_one_an_interval() {
        let gcra = Gcra::new(5, Duration::from_mins(1), 5);
        let mut arrival = Timestamp::EPOCH;
        for left in (0..5).rev() {
            let reading = gcra.take(arrival, START);
            assert!(reading.conforms);
            assert_eq!(reading.remaining, left);
            arrival = reading.arrival;
        }
        let refused = gcra.take(arrival, START);
        assert!(!refused.conforms);
        assert_eq!(refused.next, Duration::from_secs(12));
        assert_eq!(refused.arrival, arrival);
        assert!(
            gcra.take(arrival, START + refused.next).conforms,
            "a client that waits for `next` is admitted"
        );
        assert!(
            !gcra.take(arrival, START + refused.next.checked_sub(Duration::from_nanos(1)).unwrap()).conforms
        );
    }

    #[test]
    fn a_client_that_waits_for_next_is_admitted_after_a_limit_was_made_smaller() {
        let before = Gcra::new(1_000, Duration::from_hours(1), 1_000);
        let arrival = (0..1_000).fold(Timestamp::EPOCH, |arrival, _| before.take(arrival, START).arrival);
        let after = Gcra::new(5, Duration::from_mins(1), 5);
        let refused = after.take(arrival, START);
        assert!(!refused.conforms && refused.next > Duration::from_mins(58));
        assert!(after.take(arrival, START + refused.next).conforms);
    }

    #[test]
    fn a_stored_level_is_converted_when_the_rule_changes() {
        let (hourly, fast) =
            (Gcra::new(60, Duration::from_hours(1), 60), Gcra::new(10_000, Duration::from_secs(1), 10_000));
        let emptied = |gcra: Gcra, count| {
            gcra.keep((0..count).fold(Timestamp::EPOCH, |arrival, _| gcra.take(arrival, START).arrival))
        };
        let raised = fast.take(fast.arrival(emptied(hourly, 60), START), START);
        assert_eq!((raised.conforms, raised.remaining), (true, 10_000 - 61), "as many tokens as were taken");
        let lowered = hourly.take(hourly.arrival(emptied(fast, 10_000), START), START);
        assert_eq!(
            (lowered.conforms, lowered.next),
            (false, Duration::from_mins(1)),
            "empty, and no more than that"
        );
        let lowered = hourly.take(hourly.arrival(emptied(fast, 10), START), START);
        assert_eq!((lowered.conforms, lowered.remaining), (true, 49));
        assert_eq!(hourly.arrival(Level::default(), START), START, "nothing is known: it is full");
        // A request that began under the old rule gives its token back.
        assert_eq!(fast.arrival(emptied(hourly, 1).refund(START), START), START);
        let same = emptied(hourly, 7);
        assert_eq!(hourly.arrival(same, START), same.arrival);
    }

    #[test]
    fn a_refund_undoes_a_take() {
        let gcra = Gcra::new(1, Duration::from_secs(1), 1);
        let taken = gcra.take(Timestamp::EPOCH, START).arrival;
        assert!(!gcra.take(taken, START).conforms);
        assert!(gcra.take(gcra.refund(taken, START), START).conforms);
    }

    #[test]
    fn the_largest_burst_of_the_slowest_rate_is_a_bound_too() {
        let day = Duration::from_hours(24);
        let gcra = Gcra::new(1, day, 220_000);
        assert_eq!(gcra.burst(), Gcra::most_burst(1, day));
        let now = Timestamp::from_secs(1_900_000_000);
        for gcra in [gcra, gcra.share(u32::MAX)] {
            let mut arrival = Timestamp::EPOCH;
            let admitted = (0..250_000).take_while(|_| {
                let reading = gcra.take(arrival, now);
                arrival = reading.arrival;
                reading.conforms
            });
            assert_eq!(admitted.count(), gcra.burst() as usize);
        }
    }

    proptest! {
        /// Over any window at most `burst + rate × T` requests are admitted.
        #[test]
        fn no_window_admits_more_than_its_bound(
            count in 1u32..2_000, burst in 1u32..50,
            steps in prop::collection::vec(0u64..40_000_000, 1..400),
        ) {
            let gcra = Gcra::new(count, Duration::from_secs(1), burst);
            let (mut arrival, mut now, mut admitted) = (Timestamp::EPOCH, START, Vec::new());
            for step in steps {
                now = now + Duration::from_nanos(step);
                let reading = gcra.take(arrival, now);
                arrival = reading.arrival;
                if reading.conforms { admitted.push(now) }
            }
            for (first, from) in admitted.iter().enumerate() {
                for (last, to) in admitted.iter().enumerate().skip(first) {
                    let tokens = nanos(to.since(*from)) / nanos(gcra.interval());
                    prop_assert!((last - first + 1) as u64 <= u64::from(burst) + tokens);
                }
            }
        }
    }
}
