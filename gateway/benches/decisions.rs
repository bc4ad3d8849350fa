//! What a decision costs that is made here: `make bench`. One request of one client among many, each time.
#![expect(clippy::unwrap_used, reason = "a benchmark panics to fail")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use divan::Bencher;
use futures_util::FutureExt as _;
use gateway::clock;
use gateway::store::local::LocalStore;
use gateway::store::pots::Pots;
use ipnet::Ipv4Net;
use policy::Policy;
use policy::lease::Grant;
use policy::limits::{Charge, LimitRule};
use policy::networks::NetworkTable;

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
const CLIENTS: u32 = 4_096;

fn charges() -> Vec<[Charge; 1]> {
    let policy = Policy::parse("bench", LIMITS, None).unwrap();
    let rule: &Arc<LimitRule> = &policy.limits[0];
    let charge = |client: u32| {
        let bucket = rule.bucket_of(&Ipv4Addr::from(client).to_string(), &policy.client).unwrap();
        [Charge { rule: Arc::clone(rule), bucket }]
    };
    (0..CLIENTS).map(charge).collect()
}

/// The next of many, whoever asks.
fn turn(turns: &AtomicU32) -> usize {
    (turns.fetch_add(2_654_435_761, Ordering::Relaxed) % CLIENTS) as usize
}

#[divan::bench(threads = [1, 2])]
fn limit_local(bencher: Bencher<'_, '_>) {
    let (store, charges, turns) = (LocalStore::default(), charges(), AtomicU32::new(0));
    let now = clock::now();
    bencher.bench(|| black_box(store.spend_now(&charges[turn(&turns)], now)));
}

#[divan::bench(threads = [1, 2])]
fn limit_leased(bencher: Bencher<'_, '_>) {
    let (pots, charges, turns) = (Pots::default(), charges(), AtomicU32::new(0));
    let now = clock::now();
    // The store answers at once and with plenty: what is measured is the replica's part.
    let spend = |charges: &[Charge]| {
        let granted = async |question| {
            pots.answered(&question, Some(Grant { tokens: 1_000_000, debt: Duration::ZERO }));
            Ok(())
        };
        pots.spend(charges, now, granted).now_or_never().unwrap().unwrap()
    };
    charges.iter().for_each(|charges| drop(spend(charges)));
    bencher.bench(|| black_box(spend(&charges[turn(&turns)])));
}

#[divan::bench(args = [10_000, 100_000], threads = [1, 2])]
fn block_lookup(bencher: Bencher<'_, '_>, networks: u32) {
    // Spread over all addresses, of all sizes that lists have.
    let network = |number: u32| {
        let address = Ipv4Addr::from(number.wrapping_mul(2_654_435_761));
        let prefix = [16, 20, 24, 24, 28, 32, 32, 32][(number % 8) as usize];
        (Ipv4Net::new_assert(address, prefix).trunc().into(), ())
    };
    let table = NetworkTable::new((0..networks).map(network), |(), ()| ());
    assert_eq!(table.len(), networks as usize);
    let turns = AtomicU32::new(0);
    bencher.bench(|| {
        let address = Ipv4Addr::from(turns.fetch_add(0x9e37_79b9, Ordering::Relaxed));
        black_box(table.find(IpAddr::V4(address)))
    });
}

fn main() {
    divan::main();
}
