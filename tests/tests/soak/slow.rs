//! A thousand slow clients, by slowhttptest, beside honest ones. A client's address has 100 connections, as it is shipped:
//! the others are refused, again and again.

use std::net::SocketAddr;
use std::time::Instant;

use tests::load::{Load, Sample, count, quantile};
use tests::stack::{Gateway, tool};
use tests::streams::streams;
use tokio::process::Command;
use tokio::sync::watch;

const POLICY: &str = r#"
version = 1
[requests]
header_timeout = "3s"
request_timeout = "3s"
write_timeout = "3s"
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
"#;

/// Ten honest clients for some four seconds.
async fn honest(gateway: SocketAddr) -> Vec<Sample> {
    let (_keep, gateways) = watch::channel(vec![gateway]);
    let load = Load::start(&gateways, "/down/100", 10, 50);
    load.continues(2_000).await;
    load.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_slow_clients_cost_nobody_else_a_request_and_take_a_bound() {
    let Some(slowhttptest) = tool("slowhttptest") else { return };
    let environment = [("PALISADE_GATEWAY__LOG__ACCESS", "off")];
    let gateway = Gateway::start(streams().await, POLICY, &environment).await;
    let quiet = honest(gateway.address).await;
    println!("quiet: {:?}, p99 {:?}", count(&quiet), quantile(&quiet, 0.99));
    let modes = [
        ("headers", "/down/100", vec!["-H", "-i", "1"]),
        ("bodies", "/up", vec!["-B", "-i", "1", "-s", "8192"]),
        ("reading", "/down/5000000", vec!["-X", "-n", "1", "-z", "5", "-w", "10", "-y", "20"]),
    ];
    for (mode, path, arguments) in modes {
        let url = format!("http://{}{path}", gateway.address);
        let mut attack = Command::new(&slowhttptest);
        attack.args(["-c", "1000", "-r", "500", "-p", "2", "-v", "0", "-u", &url]).args(arguments);
        attack.args(["-l", "60"]).kill_on_drop(true);
        attack.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let before = gateway.memory();
        let mut attack = attack.spawn().unwrap();
        let refused =
            "palisade_stage_denials_total{code=\"too_many_connections\",rule=\"none\",stage=\"accept\"}";
        let sofar = gateway.metric(refused).await;
        // Places become free while they come, so that more than a hundred of them may have had one.
        tests::eventually("all of them have come", || async {
            gateway.metric(refused).await - sofar > 500.0
        })
        .await;
        let (begun, samples) = (Instant::now(), honest(gateway.address).await);
        let grown = gateway.memory().saturating_sub(before);
        println!(
            "slow {mode}: {:?} in {:?}, p99 {:?}, {grown} KiB more",
            count(&samples),
            begun.elapsed(),
            quantile(&samples, 0.99)
        );
        attack.kill().await.unwrap();
        assert_eq!(count(&samples).into_keys().collect::<Vec<_>>(), [200], "{mode}");
        assert!(grown < 100_000, "{mode}: {grown} KiB");
        tests::eventually("they are gone", || async {
            gateway.metric("palisade_connections_open").await < 0.5
        })
        .await;
    }
}
