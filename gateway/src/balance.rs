//! Several addresses of one upstream: which one a request goes to, and which ones are left alone for a while.
//!
//! Of two addresses by chance the one with fewer requests in flight is taken (Mitzenmacher, "The Power of Two Choices").
//! An address that fails [`EJECT_AFTER`] times in a row is left alone, each time for longer; so is one whose health
//! check fails. Never more than half of them are: when that many fail, it is not the addresses. An upstream with one
//! address is not balanced; its breaker is there for that.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use policy::time::Timestamp;

/// So many failures in a row.
const EJECT_AFTER: u32 = 5;

/// An address is left alone for so long the first time, twice as long the second, and at most so long.
const EJECT_FOR: Duration = Duration::from_secs(10);
const EJECT_AT_MOST: Duration = Duration::from_mins(5);

/// So many health checks in a row, until an address is left alone.
const UNWELL_AFTER: u32 = 3;

/// The addresses of an upstream, by number.
#[derive(Debug)]
pub struct Fleet(Mutex<Vec<Member>>);

#[derive(Clone, Copy, Debug, Default)]
struct Member {
    in_flight: u32,
    failures: u32,
    ejections: u32,
    ejected_until: Timestamp,
    failed_checks: u32,
}

impl Member {
    fn is_left_alone(&self, now: Timestamp) -> bool {
        self.ejected_until > now || self.failed_checks >= UNWELL_AFTER
    }
}

impl Fleet {
    /// So many addresses, all well.
    pub fn new(members: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![Member::default(); members])))
    }

    /// Takes an address for a request, not `last` if there is another. `chance` picks the two.
    pub fn take(self: &Arc<Self>, last: Option<usize>, now: Timestamp, chance: [usize; 2]) -> Turn {
        let mut members = self.0.lock();
        let fine = |wanted: &dyn Fn(usize, &Member) -> bool| -> Vec<usize> {
            members.iter().enumerate().filter(|(at, member)| wanted(*at, member)).map(|(at, _)| at).collect()
        };
        let mut candidates = fine(&|at, member| Some(at) != last && !member.is_left_alone(now));
        if candidates.is_empty() {
            candidates = fine(&|at, _| Some(at) != last || members.len() == 1);
        }
        let [one, other] = chance.map(|chance| candidates[chance % candidates.len()]);
        let member = if members[other].in_flight < members[one].in_flight { other } else { one };
        members[member].in_flight += 1;
        Turn { fleet: Arc::clone(self), member, told: false }
    }

    fn tell(&self, member: usize, failed: bool, now: Timestamp) -> bool {
        let mut members = self.0.lock();
        let left_alone = members.iter().filter(|member| member.is_left_alone(now)).count();
        let floor = (left_alone + 1) * 2 > members.len();
        let member = &mut members[member];
        if !failed {
            (member.failures, member.ejections) = (0, member.ejections.min(member.failures));
            return false;
        }
        member.failures += 1;
        if member.failures < EJECT_AFTER || floor || member.is_left_alone(now) {
            return false;
        }
        let lasts = EJECT_FOR.saturating_mul(1 << member.ejections.min(10)).min(EJECT_AT_MOST);
        member.ejected_until = now + lasts;
        (member.failures, member.ejections) = (0, member.ejections + 1);
        true
    }

    /// What a health check of an address found. Whether that changed anything.
    pub fn checked(&self, member: usize, well: bool, now: Timestamp) -> bool {
        let mut members = self.0.lock();
        let left_alone = members.iter().filter(|member| member.is_left_alone(now)).count();
        let floor = (left_alone + 1) * 2 > members.len();
        let member = &mut members[member];
        let before = member.failed_checks >= UNWELL_AFTER;
        if well {
            member.failed_checks = 0;
        } else if member.failed_checks + 1 < UNWELL_AFTER || !floor {
            member.failed_checks = (member.failed_checks + 1).min(UNWELL_AFTER);
        }
        before != (member.failed_checks >= UNWELL_AFTER)
    }

    /// Addresses that are taken at `now`.
    pub fn available(&self, now: Timestamp) -> usize {
        self.0.lock().iter().filter(|member| !member.is_left_alone(now)).count()
    }

    /// Requests in flight to each address, and whether it is left alone.
    pub fn describe(&self, now: Timestamp) -> Vec<(u32, bool)> {
        self.0.lock().iter().map(|member| (member.in_flight, member.is_left_alone(now))).collect()
    }
}

/// A request's turn at an address, which ends when this is dropped.
#[derive(Debug)]
pub struct Turn {
    fleet: Arc<Fleet>,
    member: usize,
    told: bool,
}

impl Turn {
    /// Which address.
    pub fn member(&self) -> usize {
        self.member
    }

    /// Says how it went, once. Whether the address is left alone from now on.
    pub fn tell(&mut self, failed: bool, now: Timestamp) -> bool {
        !std::mem::replace(&mut self.told, true) && self.fleet.tell(self.member, failed, now)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut members = self.fleet.0.lock();
        members[self.member].in_flight -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000);

    fn fail(fleet: &Arc<Fleet>, member: usize, now: Timestamp) -> bool {
        fleet.tell(member, true, now)
    }

    #[test]
    fn the_less_busy_of_two_is_taken_and_another_after_a_failure() {
        let fleet = Fleet::new(3);
        let first = fleet.take(None, NOW, [0, 0]);
        assert_eq!(first.member(), 0);
        assert_eq!(fleet.take(None, NOW, [0, 1]).member(), 1, "0 has a request in flight");
        drop(first);
        assert_eq!(fleet.take(None, NOW, [0, 1]).member(), 0);
        assert!((0..9).all(|chance| fleet.take(Some(1), NOW, [chance, chance]).member() != 1));
        assert_eq!(Fleet::new(1).take(Some(0), NOW, [0, 0]).member(), 0, "there is no other");
    }

    #[test]
    fn an_address_that_keeps_failing_is_left_alone_for_longer_each_time_and_never_too_many() {
        let fleet = Fleet::new(4);
        let eject = |member, now| (0..EJECT_AFTER).any(|_| fail(&fleet, member, now));
        assert!(eject(0, NOW) && eject(1, NOW));
        assert!(!eject(2, NOW), "half of them are already");
        assert_eq!(fleet.available(NOW), 2);
        assert!((0..20).all(|chance| fleet.take(None, NOW, [chance, chance]).member() > 1));
        let later = NOW + EJECT_FOR;
        assert_eq!(fleet.available(later), 4);
        assert!(eject(0, later));
        assert_eq!(fleet.available(later + EJECT_FOR), 3, "twice as long");
        fleet.tell(2, false, NOW);
        assert!(!fail(&fleet, 2, later), "a success begins the count anew");
    }

    #[test]
    fn health_checks_leave_alone_and_bring_back() {
        let fleet = Fleet::new(2);
        assert!((0..UNWELL_AFTER).any(|_| fleet.checked(0, false, NOW)));
        assert!(!(0..9).any(|_| fleet.checked(1, false, NOW)), "one is always taken");
        assert_eq!(fleet.take(None, NOW, [0, 0]).member(), 1);
        assert!(fleet.checked(0, true, NOW));
        assert_eq!(fleet.available(NOW), 2);
    }
}
