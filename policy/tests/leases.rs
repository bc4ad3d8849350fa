//! Checks the bound of `lease` with everything that can go wrong between replicas and their store.
#![expect(clippy::unwrap_used, reason = "a test panics to fail")]

use std::time::Duration;

use policy::rules::limits::gcra::Gcra;
use policy::rules::limits::lease::{Ask, Grant, LeasedBucket, Level, SharedBucket};
use policy::values::time::Timestamp;
use proptest::prelude::*;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// What happens in one millisecond.
#[derive(Clone, Debug)]
enum Event {
    /// A number of requests at one replica.
    Requests(usize, u32),
    /// One replica dies with its tokens, and another replaces it.
    Death(usize),
    /// The store loses everything.
    Forget,
    /// Nothing happens for this many milliseconds.
    Quiet(u64),
}

/// What happens to a question: the milliseconds to the store and back, and whether it or its answer is lost.
#[derive(Clone, Copy, Debug)]
struct Fate {
    there: u64,
    back: u64,
    question_lost: bool,
    answer_lost: bool,
}

struct Replica {
    id: u64,
    lease: LeasedBucket,
    waiting: u32,
    asking: bool,
}

struct Message {
    replica: u64,
    ask: Ask,
    sent_at: Timestamp,
    arrives: u64,
    grant: Option<(Grant, Timestamp)>,
    returns: u64,
    fate: Fate,
}

struct Network {
    gcra: Gcra,
    bucket: SharedBucket,
    replicas: Vec<Replica>,
    messages: Vec<Message>,
    fates: Box<dyn Iterator<Item = Fate>>,
    admitted: Vec<Timestamp>,
    ms: u64,
    next_id: u64,
    trips: u32,
}

impl Network {
    fn new(gcra: Gcra, replicas: u64, fates: impl Iterator<Item = Fate> + 'static) -> Self {
        let replica = |id| Replica { id, lease: LeasedBucket::default(), waiting: 0, asking: false };
        Self {
            gcra,
            bucket: SharedBucket::default(),
            replicas: (0..replicas).map(replica).collect(),
            messages: Vec::new(),
            fates: Box::new(fates),
            admitted: Vec::new(),
            ms: 0,
            next_id: replicas,
            trips: 0,
        }
    }

    fn now(&self) -> Timestamp {
        START + Duration::from_millis(self.ms)
    }

    fn request(&mut self, at: usize) {
        let now = self.now();
        let replica = &mut self.replicas[at];
        match replica.lease.level(now) {
            Level::Ready => {
                replica.lease.take();
                self.admitted.push(now);
            }
            Level::Empty => replica.lease.turn_away(),
            Level::Unknown => {
                replica.waiting += 1;
                if !replica.asking {
                    self.ask(at);
                }
            }
        }
    }

    fn ask(&mut self, at: usize) {
        let (now, fate) = (self.now(), self.fates.next().unwrap());
        let replica = &mut self.replicas[at];
        replica.asking = true;
        let waiting = replica.waiting;
        let ask = replica.lease.ask(self.gcra, waiting, now);
        self.trips += 1;
        self.messages.push(Message {
            replica: replica.id,
            ask,
            sent_at: now,
            arrives: self.ms + fate.there,
            grant: None,
            returns: self.ms + fate.there + fate.back,
            fate,
        });
    }

    /// One millisecond: questions arrive, answers return.
    fn tick(&mut self) {
        let now = self.now();
        for message in &mut self.messages {
            if message.grant.is_none() && message.arrives <= self.ms && !message.fate.question_lost {
                let grant = self.bucket.grant(self.gcra, message.replica, message.ask, now);
                message.grant = Some((grant, now));
            }
        }
        let (done, open): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.messages).into_iter().partition(|message| message.returns <= self.ms);
        self.messages = open;
        for message in &done {
            self.answer(message);
        }
        for at in 0..self.replicas.len() {
            if !self.replicas[at].asking && self.replicas[at].lease.should_return(self.gcra, now) {
                self.ask(at);
            }
        }
        self.ms += 1;
    }

    fn answer(&mut self, message: &Message) {
        let now = self.now();
        let Some(at) = self.replicas.iter().position(|replica| replica.id == message.replica) else { return };
        let replica = &mut self.replicas[at];
        replica.asking = false;
        let Some((grant, granted_at)) = message.grant.filter(|_| !message.fate.answer_lost) else {
            replica.waiting = 0; // they were notified that the store is unavailable
            return;
        };
        replica.lease.receive(self.gcra, grant, message.sent_at, now);
        // A bucket that is not leased from counts by the store's clock, because the store admits each request.
        let counted_at = if self.gcra.most_on_lease() == 0 { granted_at } else { now };
        while replica.waiting > 0 && replica.lease.level(now) == Level::Ready {
            replica.lease.take();
            replica.waiting -= 1;
            self.admitted.push(counted_at);
        }
        match replica.lease.level(now) {
            Level::Empty => replica.waiting = 0,
            _ if replica.waiting > 0 => self.ask(at),
            _ => {}
        }
    }

    fn run(&mut self, events: &[Event]) {
        for event in events {
            match *event {
                Event::Requests(at, count) => {
                    let at = at % self.replicas.len();
                    (0..count).for_each(|_| self.request(at));
                    self.tick();
                }
                Event::Death(at) => {
                    let at = at % self.replicas.len();
                    self.replicas[at] = Replica {
                        id: self.next_id,
                        lease: LeasedBucket::default(),
                        waiting: 0,
                        asking: false,
                    };
                    self.next_id += 1;
                }
                Event::Forget => self.bucket = SharedBucket::default(),
                Event::Quiet(ms) => (0..ms).for_each(|_| self.tick()),
            }
        }
        (0..200).for_each(|_| self.tick());
    }

    /// By how many tokens the worst window exceeds `burst + rate × T`.
    fn excess(&self) -> u64 {
        let mut times = self.admitted.clone();
        times.sort();
        let interval = u64::try_from(self.gcra.interval().as_nanos()).unwrap();
        let (mut arrival, mut worst) = (Timestamp::EPOCH, 0);
        for at in times {
            arrival = arrival.max(at) + self.gcra.interval();
            let debt = u64::try_from(arrival.since(at).as_nanos()).unwrap();
            let over = debt.saturating_sub(interval * u64::from(self.gcra.burst()));
            worst = worst.max(over.div_ceil(interval));
        }
        worst
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        30 => (0usize..4, 0u32..40).prop_map(|(at, count)| Event::Requests(at, count)),
        4 => (1u64..1_500).prop_map(Event::Quiet),
        1 => (0usize..4).prop_map(Event::Death),
    ];
    prop::collection::vec(event, 1..150)
}

fn fate() -> impl Strategy<Value = Fate> {
    (0u64..30, 0u64..20, prop::bool::weighted(0.05), prop::bool::weighted(0.05)).prop_map(
        |(there, back, question_lost, answer_lost)| Fate { there, back, question_lost, answer_lost },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn replicas_together_keep_the_bound_of_one_bucket(
        rate in 1u32..3_000, burst in 1u32..200, replicas in 1u64..5,
        events in events(), fates in prop::collection::vec(fate(), 1..50),
    ) {
        let gcra = Gcra::new(rate, Duration::from_secs(1), burst);
        let mut network = Network::new(gcra, replicas, fates.into_iter().cycle());
        network.run(&events);
        prop_assert_eq!(network.excess(), 0, "{} admitted", network.admitted.len());
    }

    /// A loss of the store's memory may admit one burst and the leased tokens in addition, never more.
    #[test]
    fn a_store_that_loses_its_memory_costs_at_most_a_burst_and_the_leases(
        rate in 1u32..3_000, burst in 1u32..200, before in events(), after in events(),
        fates in prop::collection::vec(fate(), 1..50),
    ) {
        let gcra = Gcra::new(rate, Duration::from_secs(1), burst);
        let mut network = Network::new(gcra, 3, fates.into_iter().cycle());
        let all: Vec<_> = before.into_iter().chain([Event::Forget]).chain(after).collect();
        network.run(&all);
        prop_assert!(network.excess() <= u64::from(gcra.burst() + gcra.most_on_lease()));
    }
}

fn quiet_network() -> impl Iterator<Item = Fate> {
    std::iter::repeat(Fate { there: 0, back: 1, question_lost: false, answer_lost: false })
}

/// 20 seconds with three replicas, each of which gets `each` requests a millisecond.
fn hammered(gcra: Gcra, each: u32) -> Network {
    let mut network = Network::new(gcra, 3, quiet_network());
    for _ in 0..20_000 {
        (0..3).for_each(|at| (0..each).for_each(|_| network.request(at)));
        network.tick();
    }
    network
}

#[test]
fn a_hot_key_costs_few_questions_and_gets_all_that_it_may() {
    for (rate, per_ms) in [(1_000, 3), (10_000, 30)] {
        let gcra = Gcra::new(rate, Duration::from_secs(1), rate);
        let network = hammered(gcra, per_ms);
        let (admitted, may) = (network.admitted.len(), f64::from(rate) * 21.0);
        let share = f64::from(u32::try_from(admitted).unwrap()) / may;
        let trips = f64::from(network.trips) / f64::from(u32::try_from(admitted).unwrap());
        assert!((0.98..=1.0).contains(&share), "{rate}/s: {share}");
        assert!(trips < 0.02, "{rate}/s: {trips} questions a request");
    }
}

#[test]
fn a_small_rate_is_exact_to_the_request() {
    let gcra = Gcra::new(5, Duration::from_mins(1), 5);
    let network = hammered(gcra, 1);
    assert_eq!(network.admitted.len(), 5 + 1, "one came back after 12 s");
    assert_eq!(network.excess(), 0);
}

#[test]
fn what_a_replica_does_not_spend_comes_back_to_the_others() {
    let gcra = Gcra::new(100, Duration::from_secs(1), 100);
    let mut network = Network::new(gcra, 2, quiet_network());
    for _ in 0..20 {
        network.request(0);
        network.tick();
    }
    assert!(network.replicas[0].lease.holds_tokens(), "it has a lease");
    network.run(&[Event::Quiet(600)]);
    assert!(!network.replicas[0].lease.holds_tokens(), "and gave back what it did not spend");
    let before = network.admitted.len();
    for _ in 0..150 {
        network.request(1);
    }
    network.run(&[Event::Quiet(5)]);
    assert_eq!(network.admitted.len() - before, 100, "the bucket is as full as if nothing had been leased");
}

#[test]
fn a_replica_alone_has_its_share_at_the_level_last_known_and_says_so_on_return() {
    let gcra = Gcra::new(60, Duration::from_mins(1), 60);
    let (mut bucket, mut lease) = (SharedBucket::default(), LeasedBucket::default());
    let half = bucket.grant(gcra, 1, lease.ask(gcra, 30, START), START);
    lease.receive(gcra, half, START, START);
    (0..30).for_each(|_| lease.take());
    let outage = START + Duration::from_millis(500);
    let spent = (0..60).filter(|_| lease.take_alone(gcra, 3, outage, outage).conforms).count();
    assert_eq!(spent, 10, "a third of what was left; what came back since is taken for spent by others");
    let mut forgot = SharedBucket::default();
    forgot.grant(gcra, 1, lease.report(gcra, outage), outage);
    let left = forgot.grant(gcra, 2, Ask { need: 60, ..Ask::default() }, outage);
    assert_eq!(left.tokens, 0, "the others are taken to have done the same");
}

#[test]
fn a_request_that_came_before_an_answer_does_not_take_a_full_bucket_for_empty() {
    let gcra = Gcra::new(100, Duration::from_secs(1), 100);
    let mut lease = LeasedBucket::default();
    let came = START;
    let answered = START + Duration::from_millis(1);
    let grant = SharedBucket::default().grant(gcra, 1, lease.ask(gcra, 1, START), START);
    lease.receive(gcra, grant, START, answered);
    lease.take();
    assert_eq!(lease.level(came), Level::Unknown, "99 tokens are left in the store");
    lease.refilled(answered);
    assert_eq!(lease.level(came), Level::Unknown);
}

#[test]
fn a_store_that_came_back_empty_is_told_the_level() {
    let gcra = Gcra::new(60, Duration::from_mins(1), 60);
    let mut lease = LeasedBucket::default();
    let ask = lease.ask(gcra, 60, START);
    let grant = SharedBucket::default().grant(gcra, 1, ask, START);
    lease.receive(gcra, grant, START, START);
    (0..60).for_each(|_| lease.take());
    let later = START + Duration::from_secs(2);
    let ask = lease.ask(gcra, 60, later);
    assert_eq!(SharedBucket::default().grant(gcra, 1, ask, later).tokens, 2, "what came back in two seconds");
}

#[test]
fn of_several_reports_to_a_store_that_forgot_the_highest_level_counts() {
    let gcra = Gcra::new(3, Duration::from_mins(1), 3);
    let mut bucket = SharedBucket::default();
    let mut leases = [LeasedBucket::default(), LeasedBucket::default(), LeasedBucket::default()];
    for (id, lease) in (0..).zip(&mut leases) {
        let ask = lease.ask(gcra, 1, START);
        let grant = bucket.grant(gcra, id, ask, START);
        lease.receive(gcra, grant, START, START);
        lease.take();
    }
    let mut forgot = SharedBucket::default();
    for (id, lease) in (0..).zip(&mut leases) {
        forgot.grant(gcra, id, lease.report(gcra, START), START);
    }
    assert_eq!(forgot.grant(gcra, 9, Ask { need: 1, ..Ask::default() }, START).tokens, 0);
}

#[test]
fn a_rule_that_changes_holds_nobody_by_what_the_old_one_meant() {
    let (hourly, fast) =
        (Gcra::new(60, Duration::from_hours(1), 60), Gcra::new(10_000, Duration::from_secs(1), 10_000));
    let (mut bucket, mut lease) = (SharedBucket::default(), LeasedBucket::default());
    let ask = |need| Ask { need, ..Ask::default() };
    let emptied = bucket.grant(hourly, 1, lease.ask(hourly, 61, START), START);
    lease.receive(hourly, emptied, START, START);
    (0..60).for_each(|_| lease.take());
    assert_eq!(lease.level(START), Level::Empty);
    lease.change_rule(hourly, fast, START);
    assert_eq!(lease.level(START), Level::Unknown, "the store is asked again");
    assert!(lease.describe(fast, START, true).remaining >= 9_940);
    let later = START + Duration::from_secs(2);
    assert_eq!(bucket.grant(fast, 2, ask(5_000), later).tokens, 5_000);
    let mut rich = LeasedBucket::default();
    rich.receive(fast, Grant { tokens: 2_500, debt: Duration::ZERO }, later, later);
    rich.change_rule(fast, hourly, later);
    assert_eq!(std::iter::from_fn(|| (rich.level(later) == Level::Ready).then(|| rich.take())).count(), 15);
    let back = bucket.grant(hourly, 2, ask(60), later);
    assert_eq!(back.tokens, 0, "five thousand were taken lately");
    assert!(back.debt <= Duration::from_hours(1), "and nobody waits for longer than an empty bucket takes");
}

#[test]
fn a_rule_that_changes_leaves_a_bucket_that_was_full_as_full_as_it_was() {
    let gcra = Gcra::new(100_000, Duration::from_secs(1), 100_000);
    let mut lease = LeasedBucket::default();
    lease.change_rule(Gcra::default(), gcra, START);
    assert!(
        lease.take_alone(gcra, 3, START, START).conforms,
        "nothing is known of it, in an outage that begins now"
    );
}

#[test]
fn a_clock_of_the_store_that_is_set_back_holds_nobody() {
    let gcra = Gcra::new(5, Duration::from_mins(1), 5);
    let mut bucket = SharedBucket::default();
    let ask = |need| Ask { need, ..Ask::default() };
    assert_eq!(bucket.grant(gcra, 1, ask(3), START).tokens, 3);
    let before = START - Duration::from_hours(1);
    assert_eq!(bucket.grant(gcra, 1, ask(3), before).tokens, 2, "as if no time had passed");
    assert_eq!(bucket.grant(gcra, 1, ask(1), before + Duration::from_secs(12)).tokens, 1);
    assert_eq!(bucket.grant(gcra, 1, ask(1), before + Duration::from_secs(12)).tokens, 0);
}
