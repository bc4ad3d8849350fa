//! gRPC through the gateway, between a server and a client by others.

use serde_json::{Value, json};
use tests::authority::Authority;
use tests::eventually;
use tests::peers::{grpc_calls, grpc_server, python};
use tests::policy_text::PolicyText;
use tests::stack::Gateway;

const POLICY: &str = r#"
version = 1

[breakers.backend]
failures = 3
cooldown = "1h"

[limits.few]
key = "global"
rate = "1/min"

[[routes]]
name = "echo"
path = "/palisade.test.Echo/{method}"
methods = ["POST"]
upstream = "backend"

[[routes]]
name = "limited"
path = "/palisade.test.Echo/Limited"
limits = ["few"]
upstream = "backend"
"#;

const HTTP2: [(&str, &str); 2] = [
    ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__PROTOCOL", "http2"),
    ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__HEALTH", "grpc:palisade.test.Echo"),
];

fn call(method: &str, messages: &[&str]) -> Value {
    json!({"method": method, "messages": messages, "metadata": {"x-note": "kept"}})
}

fn ok(method: &str, messages: &[&str]) -> Value {
    json!({"status": "OK", "messages": messages, "trailers": {"x-echo": method, "x-note": "kept"}})
}

#[tokio::test]
async fn calls_of_every_kind_pass_with_their_trailers() {
    let Some(python) = python() else { return };
    let (_server, address) = grpc_server(&python, &[]).await;
    let gateway = Gateway::start(address, POLICY, &HTTP2).await;
    let large = "x".repeat(500_000);
    let calls = [
        call("Unary", &["one"]),
        call("Server", &["a,b,c"]),
        call("Client", &["a", "b"]),
        call("Both", &["a", "b", "c"]),
        call("Unary", &[&large]),
    ];
    let answers = grpc_calls(&python, gateway.address, None, &calls).await;
    let expected = [
        ok("Unary", &["one"]),
        ok("Server", &["a", "b", "c"]),
        ok("Client", &["a,b"]),
        ok("Both", &["a", "b", "c"]),
        ok("Unary", &[&large]),
    ];
    assert_eq!(answers, expected);
    let health = gateway.operator().get("/health/detailed", None).await.json();
    assert_eq!(health["checks"][0]["status"], "ok", "by grpc.health.v1: {health}");
}

#[tokio::test]
async fn a_call_is_refused_in_the_words_of_grpc_and_its_failures_count_for_the_breaker() {
    let Some(python) = python() else { return };
    let (_server, address) = grpc_server(&python, &[]).await;
    let gateway = Gateway::start(address, POLICY, &HTTP2).await;
    let twice = [call("Limited", &["a"]), call("Limited", &["a"])];
    let refused = grpc_calls(&python, gateway.address, None, &twice).await.remove(1);
    assert_eq!(refused["status"], "RESOURCE_EXHAUSTED");
    assert_eq!(refused["details"], "rate_limited: limit few: 1/min for all clients together");
    let wait: u64 = refused["trailers"]["grpc-retry-pushback-ms"].as_str().unwrap().parse().unwrap();
    assert!((50_000..=60_000).contains(&wait), "{refused}");
    let calls = [
        call("Unary", &["fail:5"]), // not found: the client's business
        call("Unary", &["fail:14"]),
        call("Both", &["a", "fail:13"]), // said in the trailers, after an answer has begun
        call("Unary", &["fail:14"]),
        call("Unary", &["after"]),
    ];
    let answers = grpc_calls(&python, gateway.address, None, &calls).await;
    let statuses: Vec<_> = answers.iter().map(|answer| answer["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["NOT_FOUND", "UNAVAILABLE", "INTERNAL", "UNAVAILABLE", "UNAVAILABLE"]);
    let details = answers[4]["details"].as_str().unwrap();
    assert!(details.starts_with("breaker_open: "), "{details}");
    eventually("the log says how the calls went", || async {
        let mut logged: Vec<_> =
            gateway.program.events().iter().filter_map(|line| line["grpc_status"].as_u64()).collect();
        logged.sort_unstable(); // a line is written when its request is over, after its answer
        logged == [5, 8, 12, 13, 14, 14, 14]
    })
    .await;
}

#[tokio::test]
async fn a_trial_that_fails_in_its_trailers_closes_no_breaker() {
    let Some(python) = python() else { return };
    let (_server, address) = grpc_server(&python, &[]).await;
    let policy = PolicyText::of(POLICY).set("breakers.backend.cooldown", "1s");
    let gateway = Gateway::start(address, &policy, &HTTP2).await;
    let failing = [call("Both", &["fail:14"]), call("Both", &["fail:14"]), call("Both", &["fail:14"])];
    grpc_calls(&python, gateway.address, None, &failing).await;
    let state = async || gateway.metric("palisade_circuit_breaker_state{breaker=\"backend\"}").await;
    assert!((state().await - 1.0).abs() < 0.1, "open");
    eventually("a trial is made, and fails", || async {
        grpc_calls(&python, gateway.address, None, &[call("Both", &["fail:14"])]).await;
        let moves =
            "palisade_circuit_breaker_transitions_total{breaker=\"backend\",from=\"half-open\",to=\"open\"}";
        gateway.metric(moves).await > 0.5
    })
    .await;
    eventually("one that succeeds closes it", || async {
        grpc_calls(&python, gateway.address, None, &[call("Both", &["a"])]).await;
        state().await < 0.5
    })
    .await;
}

#[tokio::test]
async fn calls_pass_over_tls_on_both_sides() {
    let Some(python) = python() else { return };
    let authority = Authority::new().await;
    for name in ["server", "gate"] {
        authority.sign(name).await;
    }
    let files = ["server.pem", "server.key", "ca.pem"].map(|file| authority.path(file));
    let (_server, address) = grpc_server(&python, &files).await;
    let [ca, certificate, key] = ["ca.pem", "gate.pem", "gate.key"].map(|file| authority.path(file));
    let tls = [
        ("PALISADE_GATEWAY__SERVER__TLS__CERTIFICATE", certificate.as_str()),
        ("PALISADE_GATEWAY__SERVER__TLS__KEY", &key),
        ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__TLS__CA", &ca),
        ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__TLS__CERTIFICATE", &certificate),
        ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__TLS__KEY", &key),
        ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__HEALTH", "grpc"),
    ];
    let gateway = Gateway::start(address, POLICY, &tls).await;
    let answers = grpc_calls(&python, gateway.address, Some(&ca), &[call("Both", &["a", "b"])]).await;
    assert_eq!(answers, [ok("Both", &["a", "b"])]);
    let health = gateway.operator().get("/health/detailed", None).await.json();
    assert_eq!(health["checks"][0]["status"], "ok", "{health}");
}
