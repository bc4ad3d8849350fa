//! Streams that are long, large or slow pass as they come, and take no memory.

use tests::policy_text::PolicyText;
use tests::stack::Gateway;
use tests::streams::{GIGABYTE, LARGE_BODIES, streams};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;

#[tokio::test]
async fn clients_that_do_not_read_hold_a_bound_and_are_cut_off() {
    const CLIENTS: u64 = 100;
    let policy = PolicyText::of(LARGE_BODIES)
        .set("requests.write_timeout", "2s")
        .set("requests.max_connections", 1_000);
    let gateway = Gateway::start(streams().await, &policy, &[]).await;
    gateway.client().raw(b"GET /down/1000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let hold = async {
        let mut held = Vec::new();
        for _ in 0..CLIENTS {
            let mut stream = gateway.client().connect().await;
            let ask = format!("GET /down/{GIGABYTE} HTTP/1.1\r\nHost: a\r\n\r\n");
            stream.write_all(ask.as_bytes()).await.unwrap();
            held.push(stream);
        }
        tests::eventually("all of them are cut off", || async {
            gateway.metric("palisade_connections_open").await < 0.5
        })
        .await;
    };
    let ((), grown) = gateway.grows_by(hold).await;
    println!("{CLIENTS} clients that do not read: {} KiB each", grown / CLIENTS);
    // A piece of 32 KiB on its way, and what a request takes.
    assert!(grown / CLIENTS < 200, "{grown} KiB for {CLIENTS}");
}

#[tokio::test]
async fn a_client_that_takes_none_of_many_small_answers_is_cut_off() {
    let policy = PolicyText::of(LARGE_BODIES).set("requests.write_timeout", "1s");
    let gateway = Gateway::start(streams().await, &policy, &[("PALISADE_GATEWAY__LOG__ACCESS", "off")]).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let (taken, mut asked) = socket.connect(gateway.address).await.unwrap().into_split();
    let asking = tokio::spawn(async move {
        let ask = "GET /down/0 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
        while asked.write_all(ask.as_bytes()).await.is_ok() {}
    });
    tests::eventually("it is cut off", || async { asking.is_finished() }).await;
    drop(taken);
}
