//! Requests that are sent again, and those that are not.

use std::time::{Duration, Instant};

use tests::stack::{Gateway, POLICY};
use tests::upstream::{RawUpstream, Script};

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy";

fn says(answer: &'static [u8]) -> Script {
    vec![(Duration::ZERO, answer)]
}

/// A policy whose only route is retried by `rule`.
fn policy(rule: &str) -> String {
    let begin = POLICY.find("[limits.login]").unwrap();
    format!(
        "{}[breakers.backend]\nfailures = 1000\n[retries.default]\n{rule}\n[[routes]]\nname = \"all\"\npath = \"/{{*rest}}\"\nupstream = \"backend\"\nretry = \"default\"\n",
        &POLICY[..begin]
    )
}

async fn gateway(scripts: Vec<Script>, rule: &str) -> (RawUpstream, Gateway) {
    let upstream = RawUpstream::start_each(scripts, false).await;
    let gateway = Gateway::start(upstream.address, &policy(rule), &[]).await;
    (upstream, gateway)
}

#[tokio::test]
async fn a_request_that_may_be_repeated_is_tried_until_it_succeeds() {
    let scripts = vec![says(BUSY), says(b""), says(GOOD)];
    let (upstream, gateway) = gateway(scripts, "base = \"10ms\"\ntry_timeout = \"300ms\"").await;
    let answer = gateway.client().ask("PUT", "/a", &[], "the body").await;
    assert_eq!((answer.status(), &answer.body[..]), (200, &b"ok"[..]), "a 503, then a silence, then this");
    let received = upstream.received();
    assert_eq!(received.len(), 3);
    assert!(
        received.iter().all(|one| one.ends_with("\r\n\r\nthe body")),
        "the body goes with each: {received:?}"
    );
    let made = "palisade_retries_total{outcome=\"made\",upstream=\"backend\"}";
    assert!((gateway.metric(made).await - 2.0).abs() < 0.1);
}

#[tokio::test]
async fn a_request_that_may_not_be_repeated_is_sent_once() {
    let (upstream, gateway) = gateway(vec![says(BUSY), says(GOOD)], "base = \"10ms\"").await;
    let client = gateway.client();
    assert_eq!(client.ask("POST", "/a", &[], "x").await.status(), 503, "the upstream's own answer");
    assert_eq!(upstream.received().len(), 1);
    let (upstream, gateway) = self::gateway(vec![says(BUSY), says(GOOD)], "base = \"10ms\"").await;
    let keyed = gateway.client().ask("POST", "/a", &[("idempotency-key", "k1")], "x").await;
    assert_eq!((keyed.status(), upstream.received().len()), (200, 2), "a key makes it repeatable");
}

#[tokio::test]
async fn a_request_is_not_retried_once_its_answer_has_begun() {
    let broken = says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nthe beginn");
    let cut: Script = vec![broken[0]];
    let (upstream, gateway) =
        gateway(vec![cut, says(GOOD)], "base = \"10ms\"\ntry_timeout = \"300ms\"").await;
    let text = gateway.client().raw(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(text.contains("the beginn") && !text.contains("ok"), "{text}");
    assert_eq!(upstream.received().len(), 1);
}

#[tokio::test]
async fn retry_after_is_waited_for_or_ends_the_trying() {
    let wait = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (_upstream, gateway) = gateway(vec![says(wait), says(GOOD)], "base = \"1ms\"\nmax = \"2s\"").await;
    let begun = Instant::now();
    assert_eq!(gateway.client().get("/a", None).await.status(), 200);
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    let long = b"HTTP/1.1 503 Busy\r\nRetry-After: 60\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (upstream, gateway) = self::gateway(vec![says(long), says(GOOD)], "base = \"1ms\"").await;
    let answer = gateway.client().get("/a", None).await;
    assert_eq!((answer.status(), answer.field("retry-after"), upstream.received().len()), (503, "60", 1));
}

#[tokio::test]
async fn the_budget_bounds_what_retries_add() {
    let (upstream, gateway) = gateway(vec![says(BUSY)], "base = \"1ms\"\nattempts = 5\nbudget = 0.1").await;
    for _ in 0..50 {
        assert_eq!(gateway.client().get("/a", None).await.status(), 503);
    }
    let count = upstream.received().len();
    assert!((60..=66).contains(&count), "50 requests, a tenth, and the reserve of ten: {count}");
    let spent = "palisade_retries_total{outcome=\"budget_spent\",upstream=\"backend\"}";
    assert!(gateway.metric(spent).await > 30.0);
}
