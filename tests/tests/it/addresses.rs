//! Addresses of an upstream that cannot be reached: the request goes to another one, whatever it carries.

use std::time::Duration;

use tests::answers::HTTP2;
use tests::eventually;
use tests::stack::Gateway;
use tests::upstream::RawUpstream;

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

const POLICY: &str = r#"
version = 1
[breakers.backend]
failures = 3
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
"#;

const ADDRESSES: &str = "PALISADE_GATEWAY__UPSTREAMS__BACKEND__ADDRESSES";
const OPEN: &str = "palisade_circuit_breaker_state{breaker=\"backend\"}";
const FAILURES: &str = "palisade_upstream_connect_failures_total{upstream=\"backend\"}";

fn dead() -> String {
    format!("127.0.0.1:{}", tests::free_port())
}

#[tokio::test]
async fn two_dead_addresses_of_three_fail_no_request_and_open_no_breaker() {
    let well = RawUpstream::start(vec![(Duration::ZERO, GOOD)], false).await;
    let addresses = format!("{},localhost:{},{}", dead(), well.address.port(), dead());
    let gateway = Gateway::start(well.address, POLICY, &[(ADDRESSES, &addresses)]).await;
    for number in 0..40 {
        let (method, body) = if number % 2 == 0 { ("GET", "") } else { ("POST", "the body") };
        let answer = gateway.client().ask(method, "/a", &[], body).await;
        assert_eq!(answer.status(), 200, "{method} {number}");
    }
    let with_body = |all: &[String]| all.iter().filter(|one| one.ends_with("\r\n\r\nthe body")).count();
    well.receives(|all| with_body(all) == 20).await; // each once
    assert!(gateway.metric(OPEN).await < 0.5);
    let failures = gateway.metric(FAILURES).await;
    assert!((6.0..20.0).contains(&failures), "three for each, until it is ejected: {failures}");
    let events = gateway.program.events();
    let ejected =
        events.iter().filter(|line| line["message"] == "an address that cannot be reached is ejected");
    assert_eq!(ejected.count(), 2, "the log says so once for each");
    let health = gateway.operator().get("/health/detailed", None).await.json();
    let states: Vec<_> = health["addresses"].as_array().unwrap().iter().collect();
    let named = states.iter().find(|one| one["address"].as_str().unwrap().starts_with("localhost:")).unwrap();
    assert_eq!((named["left_alone"].as_bool(), states.len()), (Some(false), 3), "{health}");
    assert!(named["resolved"].as_str().unwrap().ends_with(&format!(":{}", well.address.port())), "{health}");
}

#[tokio::test]
async fn an_upstream_of_http2_has_several_addresses_as_well() {
    let well = RawUpstream::start(vec![(Duration::ZERO, GOOD)], false).await;
    let far = Gateway::start(well.address, POLICY, &[]).await;
    let addresses = format!("{},{},{}", dead(), dead(), far.address);
    let near = Gateway::start(far.address, POLICY, &[(ADDRESSES, &addresses), HTTP2]).await;
    for number in 0..20 {
        assert_eq!(near.client().ask("POST", "/a", &[], "the body").await.status(), 200, "{number}");
    }
}

#[tokio::test]
async fn every_address_is_tried_and_the_log_says_why_when_none_can_be_reached() {
    let addresses = format!("{},{}", dead(), dead());
    let unused = "127.0.0.1:1".parse().unwrap();
    let gateway = Gateway::start(unused, POLICY, &[(ADDRESSES, &addresses)]).await;
    let answer = gateway.client().get("/a", None).await;
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream_unreachable"));
    assert!((gateway.metric(FAILURES).await - 2.0).abs() < 0.1);
    eventually("the access log says why", || async {
        let events = gateway.program.events();
        events
            .iter()
            .any(|line| line["upstream_fault"].as_str().is_some_and(|fault| fault.contains("refused")))
    })
    .await;
    let unknown = [(ADDRESSES, "no-such-name.invalid:80")];
    let gateway = Gateway::start(unused, POLICY, &unknown).await;
    assert_eq!(gateway.client().get("/a", None).await.code(), "upstream_unreachable");
    eventually("the log names the name", || async {
        let events = gateway.program.events();
        let said = events.iter().any(|line| line["message"] == "the name cannot be looked up");
        said && events.iter().any(|line| line["upstream_fault"].to_string().contains("cannot be looked up"))
    })
    .await;
}
