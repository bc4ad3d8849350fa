//! Several addresses of one upstream, and a breaker that tries whether it is well again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tests::eventually;
use tests::stack::{Gateway, POLICY};
use tests::upstream::{RawUpstream, Script};

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
const BAD: &[u8] = b"HTTP/1.1 500 Bad\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbad";

fn policy(more: &str) -> String {
    let begin = POLICY.find("[limits.login]").unwrap();
    format!(
        "{}{more}\n[[routes]]\nname = \"all\"\npath = \"/{{*rest}}\"\nupstream = \"backend\"\n",
        &POLICY[..begin]
    )
}

#[tokio::test]
async fn an_address_that_fails_is_ejected_and_used_again_when_it_is_well() {
    let well = RawUpstream::start(vec![(Duration::ZERO, GOOD)], false).await;
    let nobody = tests::free_port();
    let addresses = format!("{},127.0.0.1:{nobody}", well.address);
    let addresses = [("PALISADE_GATEWAY__UPSTREAMS__BACKEND__ADDRESSES", addresses.as_str())];
    let policy = policy("[breakers.backend]\nfailures = 1000\n");
    let gateway = Gateway::start(well.address, &policy, &addresses).await;
    let left_alone = async || {
        let health = gateway.operator().get("/health/detailed", None).await.json();
        health["addresses"][1]["left_alone"] == true
    };
    let mut asked = 0;
    while !left_alone().await {
        assert_eq!(gateway.client().get("/a", None).await.status(), 200, "the other one is tried at once");
        asked += 1;
        assert!(asked < 100, "it is left alone after a few failures");
    }
    for _ in 0..30 {
        assert_eq!(gateway.client().get("/a", None).await.status(), 200);
    }
    let _back = RawUpstream::start_at(nobody, vec![(Duration::ZERO, GOOD)]).await;
    eventually("it is taken again", || async { !left_alone().await }).await;
}

#[tokio::test]
async fn one_request_at_a_time_probes_a_half_open_breaker_among_two_hundred_clients() {
    // Five failures open it; then one trial that takes its time and fails, and one that succeeds.
    let mut scripts: Vec<Script> = vec![vec![(Duration::ZERO, BAD)]; 5];
    scripts.push(vec![(Duration::from_millis(1_500), BAD)]);
    scripts.push(vec![(Duration::from_millis(1_500), GOOD)]);
    scripts.push(vec![(Duration::ZERO, GOOD)]);
    let upstream = RawUpstream::start_each(scripts, false).await;
    let policy = policy("[breakers.backend]\nfailures = 5\ncooldown = \"1s\"\n");
    let gateway = Gateway::start(upstream.address, &policy, &[]).await;
    for _ in 0..5 {
        assert_eq!(gateway.client().get("/a", None).await.status(), 500);
    }
    assert_eq!(gateway.client().get("/a", None).await.code(), "breaker_open");
    let good = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..200)
        .map(|_| {
            let (client, good) = (gateway.client(), Arc::clone(&good));
            tokio::spawn(async move {
                while good.load(Ordering::Relaxed) == 0 {
                    let answer = client.get("/a", None).await;
                    match answer.status() {
                        200 => drop(good.fetch_add(1, Ordering::Relaxed)),
                        500 => {}
                        _ => assert_eq!(answer.code(), "breaker_open"),
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await; // a client's pause
                }
            })
        })
        .collect();
    // While a trial is on its way, which takes it a second and a half, nobody else is let through.
    for received in [6, 7] {
        eventually("a trial is made", || async { upstream.received().len() >= received }).await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(800) {
            assert_eq!(upstream.received().len(), received, "five failures and the trials, one at a time");
            tokio::time::sleep(Duration::from_millis(10)).await; // a look
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    let opened =
        "palisade_circuit_breaker_transitions_total{breaker=\"backend\",from=\"half-open\",to=\"open\"}";
    assert!(gateway.metric(opened).await > 0.5, "the first trial failed");
    let tried =
        "palisade_circuit_breaker_transitions_total{breaker=\"backend\",from=\"open\",to=\"half-open\"}";
    assert!((gateway.metric(tried).await - 2.0).abs() < 0.1, "each trial is a move");
}
