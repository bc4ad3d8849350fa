//! The addresses of one upstream: which one a request uses, and which ones are ejected for a while.
//!
//! Two addresses are picked at random, and the one with fewer requests in flight is used (Mitzenmacher, "The Power of
//! Two Choices"). An address that fails [`EJECT_AFTER`] times in a row is ejected, each time for longer. An address
//! whose health checks fail is ejected, too. At most half of the addresses are ejected for these reasons: if more fail,
//! the cause is not a single address. An address to which no connection can be made is ejected sooner, however many
//! others are ejected, because the request goes to another address at once. If all addresses are ejected, all are
//! tried. An upstream with one address is not balanced; its breaker protects it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use policy::values::time::Timestamp;
use smallvec::SmallVec;

/// So many failures in a row eject an address.
const EJECT_AFTER: u32 = 5;

/// So many failed connections in a row eject an address. After the first ejection, one more failure is enough.
const UNREACHABLE_AFTER: u32 = 3;

/// How long an address is ejected the first time, and at most. Each time is twice as long as the one before.
const EJECT_FOR: Duration = Duration::from_secs(10);
const EJECT_AT_MOST: Duration = Duration::from_mins(5);

/// So many failed health checks in a row eject an address.
const UNWELL_AFTER: u32 = 3;

/// The number of an address. A pool never uses a number twice.
pub type Member = u64;

/// The addresses of an upstream.
#[derive(Debug)]
pub struct AddressPool<A>(Mutex<Addresses<A>>);

#[derive(Debug)]
struct Addresses<A> {
    all: Vec<Known<A>>,
    next: Member,
}

/// What is known of an address.
#[derive(Debug)]
struct Known<A> {
    member: Member,
    address: A,
    in_flight: u32,
    answers: Trouble,
    connections: Trouble,
    failed_checks: u32,
}

/// Failures of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    in_a_row: u32,
    ejections: u32,
    ejected_until: Timestamp,
}

impl Trouble {
    fn eject(&mut self, now: Timestamp) -> Duration {
        let lasts = EJECT_FOR.saturating_mul(1 << self.ejections.min(10)).min(EJECT_AT_MOST);
        *self = Self { in_a_row: 0, ejections: self.ejections + 1, ejected_until: now + lasts };
        lasts
    }
}

impl<A> Known<A> {
    fn is_ejected(&self, now: Timestamp) -> bool {
        self.answers.ejected_until > now
            || self.connections.ejected_until > now
            || self.failed_checks >= UNWELL_AFTER
    }
}

impl<A> Addresses<A> {
    fn find(&mut self, member: Member) -> Option<&mut Known<A>> {
        self.all.iter_mut().find(|known| known.member == member)
    }

    /// Whether one more ejection would be too many.
    fn too_many_are_ejected(&self, now: Timestamp) -> bool {
        let ejected = self.all.iter().filter(|known| known.is_ejected(now)).count();
        (ejected + 1) * 2 > self.all.len()
    }
}

impl<A: Clone + PartialEq> AddressPool<A> {
    /// A pool without addresses.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Addresses { all: Vec::new(), next: 0 })))
    }

    /// Replaces the addresses. What is known of an address that stays is kept.
    pub fn set(&self, addresses: &[A]) {
        let mut pool = self.0.lock();
        pool.all.retain(|known| addresses.contains(&known.address));
        for address in addresses {
            if !pool.all.iter().any(|known| known.address == *address) {
                let known = Known {
                    member: pool.next,
                    address: address.clone(),
                    in_flight: 0,
                    answers: Trouble::default(),
                    connections: Trouble::default(),
                    failed_checks: 0,
                };
                pool.next += 1;
                pool.all.push(known);
            }
        }
    }

    /// The addresses.
    pub fn members(&self) -> Vec<(Member, A)> {
        self.0.lock().all.iter().map(|known| (known.member, known.address.clone())).collect()
    }

    /// Selects an address for a request: none of those that it has `tried`, and not the `last` one if there is another.
    /// `chance` picks the two candidates. `None` when no address is left.
    pub fn take(
        self: &Arc<Self>,
        tried: &[Member],
        last: Option<Member>,
        now: Timestamp,
        chance: [usize; 2],
    ) -> Option<Selection<A>> {
        let mut pool = self.0.lock();
        let fine = |wanted: &dyn Fn(&Known<A>) -> bool| -> SmallVec<[usize; 16]> {
            let untried = |(_, known): &(usize, &Known<A>)| !tried.contains(&known.member) && wanted(known);
            pool.all.iter().enumerate().filter(untried).map(|(at, _)| at).collect()
        };
        let is_other = |known: &Known<A>| Some(known.member) != last;
        let mut candidates = fine(&|known| is_other(known) && !known.is_ejected(now));
        if candidates.is_empty() {
            candidates = fine(&is_other);
        }
        if candidates.is_empty() {
            candidates = fine(&|_| true);
        }
        let pick = |chance: usize| candidates.get(chance.checked_rem(candidates.len())?).copied();
        let [one, other] = chance.map(pick);
        let (one, other) = (pool.all.get(one?)?, pool.all.get(other?)?);
        let member = if other.in_flight < one.in_flight { other.member } else { one.member };
        let known = pool.find(member)?;
        known.in_flight += 1;
        let address = known.address.clone();
        drop(pool);
        Some(Selection { pool: Arc::clone(self), member, address, reported: false })
    }

    /// Notes the result of a health check. Returns whether the state of the address changed.
    pub fn checked(&self, member: Member, well: bool, now: Timestamp) -> bool {
        let mut pool = self.0.lock();
        let too_many = pool.too_many_are_ejected(now);
        let Some(known) = pool.find(member) else { return false };
        let before = known.failed_checks >= UNWELL_AFTER;
        if well {
            known.failed_checks = 0;
        } else if known.failed_checks + 1 < UNWELL_AFTER || !too_many {
            known.failed_checks = (known.failed_checks + 1).min(UNWELL_AFTER);
        }
        before != (known.failed_checks >= UNWELL_AFTER)
    }

    /// The addresses with their requests in flight, and whether each is ejected.
    pub fn describe(&self, now: Timestamp) -> Vec<(A, u32, bool)> {
        let pool = self.0.lock();
        pool.all.iter().map(|known| (known.address.clone(), known.in_flight, known.is_ejected(now))).collect()
    }
}

impl<A> AddressPool<A> {
    fn answered(&self, member: Member, failed: bool, now: Timestamp) -> Option<Duration> {
        let mut pool = self.0.lock();
        let too_many = pool.too_many_are_ejected(now);
        let known = pool.find(member)?;
        let is_ejected = known.is_ejected(now);
        let trouble = &mut known.answers;
        if !failed {
            (trouble.in_a_row, trouble.ejections) = (0, trouble.ejections.min(trouble.in_a_row));
            return None;
        }
        trouble.in_a_row += 1;
        (trouble.in_a_row >= EJECT_AFTER && !too_many && !is_ejected).then(|| trouble.eject(now))
    }

    fn connected(&self, member: Member, failed: bool, now: Timestamp) -> Option<Duration> {
        let mut pool = self.0.lock();
        let is_the_only_one = pool.all.len() == 1;
        let trouble = &mut pool.find(member)?.connections;
        if !failed || is_the_only_one {
            *trouble = Trouble::default();
            return None;
        }
        trouble.in_a_row += 1;
        let enough = trouble.in_a_row >= UNREACHABLE_AFTER || trouble.ejections > 0;
        (enough && trouble.ejected_until <= now).then(|| trouble.eject(now))
    }
}

/// An address that was selected for a request. The request counts as in flight there until this is dropped.
#[derive(Debug)]
pub struct Selection<A> {
    pool: Arc<AddressPool<A>>,
    member: Member,
    address: A,
    reported: bool,
}

impl<A> Selection<A> {
    /// The number of the address.
    pub fn member(&self) -> Member {
        self.member
    }

    /// The address itself.
    pub fn address(&self) -> &A {
        &self.address
    }

    /// Reports the result of the request; only the first report counts. Returns for how long the address is ejected, if
    /// it is.
    pub fn report(&mut self, failed: bool, now: Timestamp) -> Option<Duration> {
        if std::mem::replace(&mut self.reported, true) {
            None
        } else {
            self.pool.answered(self.member, failed, now)
        }
    }

    /// Reports that a connection was made.
    pub fn reached(&self, now: Timestamp) {
        self.pool.connected(self.member, false, now);
    }

    /// Reports that no connection could be made and nothing was sent. Returns for how long the address is ejected, if
    /// it is.
    pub fn unreachable(&mut self, now: Timestamp) -> Option<Duration> {
        self.reported = true;
        self.pool.connected(self.member, true, now)
    }
}

impl<A> Drop for Selection<A> {
    fn drop(&mut self) {
        if let Some(known) = self.pool.0.lock().find(self.member) {
            known.in_flight = known.in_flight.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000);

    fn pool(addresses: usize) -> Arc<AddressPool<usize>> {
        let pool = AddressPool::new();
        pool.set(&(0..addresses).collect::<Vec<_>>());
        pool
    }

    fn available(pool: &AddressPool<usize>, now: Timestamp) -> usize {
        pool.describe(now).iter().filter(|(_, _, ejected)| !ejected).count()
    }

    fn fail(pool: &AddressPool<usize>, member: Member, now: Timestamp) -> bool {
        pool.answered(member, true, now).is_some()
    }

    #[test]
    fn the_less_busy_of_two_is_taken_and_another_after_a_failure() {
        let pool = pool(3);
        let take = |last, chance| pool.take(&[], last, NOW, chance).unwrap();
        let first = take(None, [0, 0]);
        assert_eq!((first.member(), *first.address()), (0, 0));
        assert_eq!(take(None, [0, 1]).member(), 1, "0 has a request in flight");
        drop(first);
        assert_eq!(take(None, [0, 1]).member(), 0);
        assert!((0..9).all(|chance| take(Some(1), [chance, chance]).member() != 1));
        let alone = self::pool(1);
        assert_eq!(alone.take(&[], Some(0), NOW, [0, 0]).unwrap().member(), 0, "there is no other");
    }

    #[test]
    fn an_address_that_keeps_failing_is_ejected_for_longer_each_time_and_never_too_many() {
        let pool = pool(4);
        let eject = |member, now| (0..EJECT_AFTER).any(|_| fail(&pool, member, now));
        assert!(eject(0, NOW) && eject(1, NOW));
        assert!(!eject(2, NOW), "half of them are already");
        assert_eq!(available(&pool, NOW), 2);
        assert!((0..20).all(|chance| pool.take(&[], None, NOW, [chance, chance]).unwrap().member() > 1));
        let later = NOW + EJECT_FOR;
        assert_eq!(available(&pool, later), 4);
        assert!(eject(0, later));
        assert_eq!(available(&pool, later + EJECT_FOR), 3, "twice as long");
        pool.answered(2, false, NOW);
        assert!(!fail(&pool, 2, later), "a success begins the count anew");
    }

    #[test]
    fn health_checks_eject_and_bring_back() {
        let pool = pool(2);
        assert!((0..UNWELL_AFTER).any(|_| pool.checked(0, false, NOW)));
        assert!(!(0..9).any(|_| pool.checked(1, false, NOW)), "one is always taken");
        assert_eq!(pool.take(&[], None, NOW, [0, 0]).unwrap().member(), 1);
        assert!(pool.checked(0, true, NOW));
        assert_eq!(available(&pool, NOW), 2);
    }

    #[test]
    fn an_address_that_cannot_be_reached_is_ejected_however_many_are_and_all_are_tried_then() {
        let pool = pool(3);
        let take = |tried: &[Member], now| pool.take(tried, None, now, [0, 1]);
        for member in 0..3 {
            let ejected = (0..UNREACHABLE_AFTER).filter_map(|_| pool.connected(member, true, NOW));
            assert_eq!(ejected.collect::<Vec<_>>(), [EJECT_FOR]);
        }
        let mut tried = Vec::new();
        while let Some(selection) = take(&tried, NOW) {
            tried.push(selection.member());
        }
        tried.sort_unstable();
        assert_eq!(tried, [0, 1, 2], "each once, and then there is no other");
        let later = NOW + EJECT_FOR;
        assert_eq!(pool.connected(0, true, later), Some(EJECT_FOR * 2), "one more is enough");
        pool.connected(1, false, later);
        assert_eq!(pool.connected(1, true, later), None, "a connection begins the count anew");
        let alone = self::pool(1);
        assert!((0..9).all(|_| alone.connected(0, true, NOW).is_none()), "there is no other");
    }

    #[test]
    fn what_is_known_of_an_address_that_stays_is_kept() {
        let pool = pool(3);
        assert!((0..EJECT_AFTER).any(|_| fail(&pool, 1, NOW)));
        let selection = pool.take(&[], None, NOW, [0, 0]).unwrap();
        pool.set(&[1, 7]);
        drop(selection); // its address was removed
        assert_eq!(pool.describe(NOW), [(1, 0, true), (7, 0, false)]);
        assert_eq!(pool.members(), [(1, 1), (3, 7)], "no number is used twice");
        pool.set(&[]);
        assert!(pool.take(&[], None, NOW, [0, 0]).is_none());
    }
}
