//! SIGTERM: not ready, what is in flight finishes, and the process ends by itself.

use std::time::{Duration, Instant};

use tests::client::read_for;
use tests::eventually;
use tests::stack::{POLICY, Stack};
use tokio::io::AsyncWriteExt as _;

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_ends() {
    let Stack { backend, mut gateway } =
        Stack::with(POLICY, &[("PALISADE_GATEWAY__SERVER__DRAIN_DELAY", "\"500ms\"")]).await;
    let client = gateway.client();
    assert_eq!(gateway.operator().get("/health/ready", None).await.status(), 200);
    // A request whose answer is held back: the backend is stopped in the middle.
    client.get("/.well-known/jwks.json", None).await;
    backend.program.freeze().await;
    let in_flight = tokio::spawn(async move { client.get("/.well-known/jwks.json", None).await.status() });
    let mut idle = client.connect().await;
    idle.write_all(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(read_for(&mut idle, Duration::from_millis(100)).await.starts_with("HTTP/1.1 404"));
    let begun = Instant::now();
    gateway.program.signal("TERM");
    let operator = gateway.operator();
    eventually("not ready", || async { operator.get("/health/ready", None).await.status() == 503 }).await;
    assert_eq!(client.get("/nowhere", None).await.status(), 404, "it still accepts while balancers notice");
    assert!(tests::client::closes(&mut idle).await, "idle connections end");
    backend.program.signal("CONT");
    assert_eq!(in_flight.await.unwrap(), 200, "what was in flight is answered");
    assert!(gateway.program.ended().await.success());
    println!("ended {:?} after SIGTERM", begun.elapsed());
    for step in ["leaving: not ready, still accepting", "all requests are answered", "stopped"] {
        assert!(gateway.program.events().iter().any(|event| event["message"] == step), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_come_again_and_again_do_not_delay_a_shutdown() {
    let Stack { backend: _backend, mut gateway } = Stack::start().await;
    let client = gateway.client();
    let coming = tokio::spawn(async move {
        let mut served = 0_u32;
        let request =
            || http::Request::get("/nowhere").header("host", "a").body(http_body_util::Full::default());
        while client.send(request().unwrap()).await.is_ok() {
            served += 1;
        }
        served
    });
    eventually("they come", || async {
        gateway
            .metric("palisade_stage_denials_total{code=\"route_not_found\",rule=\"none\",stage=\"route\"}")
            .await
            > 10.0
    })
    .await;
    gateway.program.signal("TERM");
    assert!(coming.await.unwrap() > 10);
    assert!(gateway.program.ended().await.success());
    assert!(gateway.program.events().iter().any(|event| event["message"] == "all requests are answered"));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let Stack { backend, mut gateway } = Stack::start().await;
    let client = gateway.client();
    client.get("/.well-known/jwks.json", None).await;
    backend.program.freeze().await;
    let in_flight = tokio::spawn(async move { client.send(http_get()).await.is_ok() });
    eventually("it is in flight", || async { gateway.metric("palisade_connections_open").await > 0.5 }).await;
    gateway.program.signal("TERM");
    let leaving =
        |event: &serde_json::Value| event["message"] == "no new connections, requests in flight finish";
    eventually("it is leaving", || async { gateway.program.events().iter().any(leaving) }).await;
    gateway.program.signal("TERM");
    assert_eq!(gateway.program.ended().await.code(), Some(1));
    assert!(!in_flight.await.unwrap());
    backend.program.signal("CONT");
}

fn http_get() -> http::Request<http_body_util::Full<bytes::Bytes>> {
    http::Request::get("/.well-known/jwks.json")
        .header("host", "a")
        .body(http_body_util::Full::default())
        .unwrap()
}
