//! What a decision costs that is made here: `make bench`. One request of one client among many, each time.
#![expect(clippy::unwrap_used, reason = "a benchmark panics to fail")]

use std::cell::Cell;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use divan::{AllocProfiler, Bencher};
use futures_util::FutureExt as _;
use gateway::clock;
use gateway::permissions::decisions::{Answer, Answers, Key};
use gateway::state::leases::LeasedBuckets;
use gateway::state::local::LocalStore;
use ipnet::Ipv4Net;
use policy::Policy;
use policy::rules::limits::lease::Grant;
use policy::rules::limits::{Charge, LimitRule};
use policy::rules::permissions::PermissionRule;
use policy::values::network_table::NetworkTable;
use protocol::feed::Change;

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

const LIMITS: &str = r#"
version = 1
[limits.each]
key = "ip"
rate = "1000000/s"
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
limits = ["each"]
"#;

/// Clients that take turns, so that the caches of the machine are not warmer than they would be.
const CLIENTS: u32 = 256;

fn charges() -> Vec<[Charge; 1]> {
    let policy = Policy::parse("bench", LIMITS, None).unwrap();
    let rule: &Arc<LimitRule> = &policy.limits[0];
    let charge = |client: u32| {
        let bucket = rule.bucket_of(&Ipv4Addr::from(client).to_string(), &policy.client).unwrap();
        [Charge { rule: Arc::clone(rule), bucket }]
    };
    (0..CLIENTS).map(charge).collect()
}

thread_local! {
    static TURN: Cell<u32> = const { Cell::new(1) };
}

/// The next of many numbers, each thread's own.
fn turn() -> u32 {
    TURN.set(TURN.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    TURN.get()
}

fn next(charges: &[[Charge; 1]]) -> &[Charge] {
    &charges[(turn() % CLIENTS) as usize]
}

#[divan::bench(min_time = 1, sample_size = 256)]
fn limit_local(bencher: Bencher<'_, '_>) {
    let (store, charges) = (LocalStore::default(), charges());
    let now = clock::steady();
    bencher.bench(|| black_box(store.spend_now(next(&charges), now)));
}

#[divan::bench(min_time = 1, sample_size = 256)]
fn limit_leased(bencher: Bencher<'_, '_>) {
    let (buckets, charges) = (LeasedBuckets::default(), charges());
    let now = clock::steady();
    // The store answers at once and with plenty: what is measured is the replica's part.
    let spend = |charges: &[Charge]| {
        let granted = async |question| {
            buckets.answered(&question, Some(Grant { tokens: 1_000_000, debt: Duration::ZERO }));
            Ok(())
        };
        buckets.spend(charges, now, granted).now_or_never().unwrap().unwrap()
    };
    for charges in &charges {
        drop(spend(charges));
    }
    bencher.bench(|| black_box(spend(next(&charges))));
}

#[divan::bench(min_time = 1, sample_size = 256, args = [10_000, 100_000])]
fn block_lookup(bencher: Bencher<'_, '_>, networks: u32) {
    // Spread over all addresses, of all sizes that lists have.
    let network = |number: u32| {
        let address = Ipv4Addr::from(number.wrapping_mul(2_654_435_761));
        let prefix = [16, 20, 24, 24, 28, 32, 32, 32][(number % 8) as usize];
        (Ipv4Net::new_assert(address, prefix).trunc().into(), ())
    };
    let table = NetworkTable::new((0..networks).map(network), |(), ()| ());
    assert_eq!(table.len(), networks as usize);
    bencher.bench(|| black_box(table.find(IpAddr::V4(Ipv4Addr::from(turn())))));
}

/// Permission answers that are remembered, with all that a question is made of.
const QUESTIONS: u32 = 100_000;

#[derive(Clone, Copy)]
struct Yes;

impl Answer for Yes {
    fn is_yes(&self) -> bool {
        true
    }

    fn touched_by(&self, _: &[u8], _: &Change) -> bool {
        true
    }

    fn heap(&self) -> usize {
        0
    }
}

fn permission_rule() -> PermissionRule {
    Policy::parse("bench", LIMITS, None).unwrap().permissions
}

fn question(answers: &Answers<Yes>, number: u32) -> Key {
    let user = format!("019c0000-0000-7000-8000-{:012x}", number / 20);
    let resource = format!("collection-{}", number % 20);
    answers.key(user.as_bytes(), &[user.as_bytes(), b"records:read", resource.as_bytes(), b"read-record"])
}

fn answered(questions: u32) -> Arc<Answers<Yes>> {
    let answers = Answers::new(Arc::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for number in 0..questions {
            let key = question(&answers, number);
            answers.ask(&key, QUESTIONS * 2, clock::steady(), || async { Some((Yes, 1)) }).await;
        }
    });
    assert_eq!(answers.len(), questions as usize);
    answers
}

/// Making the key of a question and finding its answer among many.
#[divan::bench(min_time = 1, sample_size = 256, threads = [1, 2])]
fn permission_cached(bencher: Bencher<'_, '_>) {
    static ANSWERS: LazyLock<Arc<Answers<Yes>>> = LazyLock::new(|| answered(QUESTIONS));
    let (answers, rule, now) = (&**ANSWERS, permission_rule(), clock::steady());
    // The parts of a question are there already when a request is judged.
    let users: Vec<String> =
        (0..QUESTIONS / 20).map(|user| format!("019c0000-0000-7000-8000-{user:012x}")).collect();
    let resources: Vec<String> = (0..20).map(|number| format!("collection-{number}")).collect();
    bencher.bench(|| {
        let number = turn() >> 8;
        let user = users[(number % (QUESTIONS / 20)) as usize].as_bytes();
        let resource = resources[(number % 20) as usize].as_bytes();
        let key = answers.key(user, &[user, b"records:read", resource, b"read-record"]);
        assert!(black_box(answers.find(&key, &rule, now)).is_some());
    });
}

/// What the profiler says of memory, for so many entries.
#[divan::bench(sample_count = 3, sample_size = 1)]
fn permission_memory(bencher: Bencher<'_, '_>) {
    bencher.bench(|| answered(QUESTIONS));
}

fn main() {
    divan::main();
}
