//! What thousands of connections cost on every listener.

use std::net::SocketAddr;

use tests::client::{Client, ask_on};
use tests::policy_text::PolicyText;
use tests::program::Program;
use tests::stack::Stack;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const KEYS: &str = "/.well-known/jwks.json";

/// A request without its end.
const HALF: &[u8] = b"POST /v1/auth/login HTTP/1.1\r\nHost: localhost\r\nX-Slow: ";

const HALF_OPEN: usize = 2_000;

const IDLE: usize = 10_000;

/// The most that a connection may cost, in KiB.
const MOST: f64 = 20.0;

/// Opens connections, a few thousand from each address, and does something with each.
async fn open(to: SocketAddr, network: u8, count: usize, begin: &[u8]) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    for number in 0..count {
        let from = [127, network, 0, u8::try_from(1 + number / 2_000).unwrap()];
        let mut stream = Client::of(to).at(from).connect().await;
        if begin == HALF {
            stream.write_all(HALF).await.unwrap();
        } else {
            assert_eq!(ask_on(&mut stream, begin).await.unwrap().0, 200);
        }
        streams.push(stream);
    }
    streams
}

/// KiB a connection, and that the program answers beside them.
async fn cost(program: &Program, to: SocketAddr, network: u8, what: &str) {
    const ASK: &[u8] = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (kind, count, begin) in [("half-open", HALF_OPEN, HALF), ("idle", IDLE, ASK)] {
        let before = program.memory();
        let streams = open(to, network, count, begin).await;
        assert_eq!(
            Client::of(to).of_host("localhost").get("/health/live", None).await.status(),
            200,
            "{what}: beside {count}"
        );
        let grown = program.memory().saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "a figure to print")]
        let each = grown as f64 / count as f64;
        println!("{what}: {count} {kind} connections take {each:.1} KiB each");
        assert!(each < MOST, "{what}, {kind}: {each:.1} KiB");
        drop(streams);
    }
}

#[tokio::test]
async fn a_connection_costs_less_than_20_kib_on_every_listener() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    // The feed is not to wait for what this test does to its backend.
    let policy = PolicyText::usual()
        .set("limits.shared.rate", "100000/s")
        .set("limits.shared.burst", 100_000)
        .set("requests.header_timeout", "20s");
    let stack = Stack::with(&policy, &[]).await;
    cost(&stack.backend.program, stack.backend.address, 21, "backend").await;
    cost(&stack.gateway.program, stack.gateway.admin, 22, "gateway, admin plane").await;
    cost(&stack.gateway.program, stack.gateway.address, 23, "gateway, data plane").await;
}

#[tokio::test]
async fn ten_thousand_idle_connections_cost_a_few_kib_each() {
    const CONNECTIONS: u32 = 10_000;
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(
        descriptors > u64::from(CONNECTIONS) + 500,
        "at most {descriptors} open files: raise the hard limit"
    );
    let stack = Stack::start().await;
    let client = stack.gateway.client();
    // What pools and caches take once is not the connections'.
    for _ in 0..50 {
        client.get(KEYS, None).await;
    }
    let before = stack.gateway.memory();
    let mut idle = Vec::new();
    for number in 0..CONNECTIONS {
        let mut stream = client.at([127, 0, 1, u8::try_from(number % 250).unwrap() + 1]).connect().await;
        stream.write_all(format!("GET {KEYS} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut piece = [0; 4096];
        let answered = tokio::io::AsyncReadExt::read(&mut stream, &mut piece).await.unwrap();
        assert!(answered > 0);
        idle.push(stream);
    }
    let grown = u32::try_from(stack.gateway.memory() - before).unwrap();
    let each = f64::from(grown) / f64::from(CONNECTIONS);
    println!("{CONNECTIONS} idle keep-alive connections: {each:.2} KiB each");
    assert!(each < 12.0, "{each:.2} KiB for each idle connection");
}
