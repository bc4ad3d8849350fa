//! Which of several Redis nodes is connected to: one that takes writes, and with the password that the settings say.

use tests::eventually;
use tests::free_port;
use tests::redis::{Redis, replica_of};
use tests::stack::{Backend, Gateway, POLICY};

async fn gateway(backend: &Backend, url: &str, password: &str) -> Gateway {
    let environment = [("PALISADE_GATEWAY__REDIS__URL", url), ("REDIS_PASSWORD", password)];
    let environment = if password.is_empty() { &environment[..1] } else { &environment[..] };
    Gateway::start(backend.address, POLICY, environment).await
}

async fn connects(gateway: &Gateway) {
    eventually("Redis is there", || async { gateway.metric("palisade_redis_up").await > 0.5 }).await;
}

/// Waits for the line that says why it does not connect.
async fn does_not_connect(gateway: &Gateway, why: &str) {
    let line = || {
        gateway.program.log().into_iter().find(|line| line.contains("no server that takes writes is reached"))
    };
    eventually("it says why", || async { line().is_some_and(|line| line.contains(why)) }).await;
    // It has tried again and again since, and says it once.
    eventually("it is tried again", || async { gateway.metric("palisade_redis_errors_total").await > 3.5 })
        .await;
    let said =
        gateway.program.log().iter().filter(|line| line.contains("no server that takes writes")).count();
    assert!(said == 1 && gateway.metric("palisade_redis_up").await < 0.5, "{said}");
}

#[tokio::test]
async fn the_node_that_takes_writes_is_found_among_several() {
    let master = Redis::start().await;
    let replica = replica_of(&master, &[]).await;
    let backend = Backend::start(&[]).await;
    let gone: Vec<String> = (0..4).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    let url = format!("redis://{},{},{}", gone.join(","), replica.address, master.address);
    let (first, second) = (gateway(&backend, &url, "").await, gateway(&backend, &master.url(), "").await);
    connects(&first).await;
    connects(&second).await;
    assert_eq!(first.operator().ask("PUT", "/admin/ip-blocks/127.0.0.99", &[], "").await.status(), 204);
    let client = second.client().at([127, 0, 0, 99]);
    eventually("they share the master", || async { client.get("/health", None).await.status() == 403 }).await;
    let alone = gateway(&backend, &replica.url(), "").await;
    does_not_connect(&alone, &format!("it is a replica of 127.0.0.1:{}", master.address.port())).await;
}

#[tokio::test]
async fn a_password_is_left_out_for_no_server() {
    let backend = Backend::start(&[]).await;
    let open = Redis::start().await;
    does_not_connect(
        &gateway(&backend, &open.url(), "not asked for").await,
        "the user or the password is refused",
    )
    .await;
    let port = free_port();
    let arguments = ["--port", &port.to_string(), "--save", "", "--requirepass", "s3cret"].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let closed = Redis::start_with(port, &arguments).await;
    does_not_connect(&gateway(&backend, &closed.url(), "wrong").await, "the user or the password is refused")
        .await;
    does_not_connect(&gateway(&backend, &closed.url(), "").await, "NOAUTH").await;
    connects(&gateway(&backend, &closed.url(), "s3cret").await).await;
}

#[tokio::test]
async fn a_sentinel_without_a_password_leads_to_a_master_with_one() {
    let backend = Backend::start(&[]).await;
    let (port, watching) = (free_port(), free_port());
    let arguments = ["--port", &port.to_string(), "--save", "", "--requirepass", "s3cret"].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let _master = Redis::start_with(port, &arguments).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sentinel.conf");
    let config = format!(
        "port {watching}\nsentinel monitor main 127.0.0.1 {port} 1\nsentinel auth-pass main s3cret\n"
    );
    std::fs::write(&file, config).unwrap();
    let sentinel = Redis::start_with(watching, &[file.to_str().unwrap(), "--sentinel"]).await;
    connects(&gateway(&backend, &sentinel.url(), "s3cret").await).await;
    does_not_connect(
        &gateway(&backend, &sentinel.url(), "wrong").await,
        "the master that the Sentinel names",
    )
    .await;
}
