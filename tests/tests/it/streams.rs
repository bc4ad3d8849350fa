//! Streams that are long, large or slow pass as they come, and take no memory.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tests::PATIENCE;
use tests::policy_text::PolicyText;
use tests::stack::Gateway;
use tests::streams::streams;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::process::Command;

const POLICY: &str = r#"
version = 1
[requests]
max_body = "2GB"
request_timeout = "5m"
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
"#;

const GIGABYTE: u64 = 1_000_000_000;

async fn gateway(upstream: SocketAddr) -> Gateway {
    Gateway::start(upstream, POLICY, &[]).await
}

/// Does `work` and says by how many KiB the gateway has grown at most meanwhile.
async fn grows<T>(gateway: &Gateway, work: impl Future<Output = T>) -> (T, u64) {
    let before = gateway.memory();
    let (mut most, mut work) = (before, std::pin::pin!(work));
    let mut look = tokio::time::interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            done = &mut work => return (done, most.max(gateway.memory()).saturating_sub(before)),
            _ = look.tick() => most = most.max(gateway.memory()),
        }
    }
}

/// What curl was answered, and how many bytes it sent and got.
async fn curl(arguments: &[&str], url: &str) -> String {
    let mut curl = Command::new("curl");
    curl.args([
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{http_version} %{size_upload} %{size_download}",
    ]);
    let output = curl.args(arguments).arg(url).kill_on_drop(true).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_passes_up_and_down_in_a_few_megabytes() {
    let gateway = gateway(streams().await).await;
    let (down, up) = (format!("http://{}/down", gateway.address), format!("http://{}/up", gateway.address));
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(GIGABYTE).unwrap(); // a file of holes
    let body = format!("{}", file.path().display());
    for (flag, version) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
        curl(&[flag], &format!("{down}/20000000")).await; // what is kept between requests is there
        let begun = Instant::now();
        let (answer, grown) = grows(&gateway, curl(&[flag], &format!("{down}/{GIGABYTE}"))).await;
        println!("down, HTTP/{version}: {:?}, {grown} KiB more", begun.elapsed());
        assert_eq!(answer, format!("200 {version} 0 {GIGABYTE}"));
        assert!(grown < 10_000, "{grown} KiB");
        let begun = Instant::now();
        let (answer, grown) = grows(&gateway, curl(&[flag, "-X", "POST", "-T", &body], &up)).await;
        println!("up, HTTP/{version}: {:?}, {grown} KiB more", begun.elapsed());
        assert_eq!(answer, format!("200 {version} {GIGABYTE} 10"), "it counted ten digits");
        assert!(grown < 10_000, "{grown} KiB");
    }
}

#[tokio::test]
async fn events_arrive_one_by_one_for_a_minute() {
    let gateway = gateway(streams().await).await;
    let mut stream = gateway.client().connect().await;
    stream.write_all(b"GET /events/60 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut text, begun, mut latest) = (String::new(), Instant::now(), Duration::ZERO);
    for event in 0..60 {
        let wanted = format!("data: {event}\n\n");
        while !text.contains(&wanted) {
            let mut piece = [0; 1024];
            let count = tokio::time::timeout(PATIENCE, stream.read(&mut piece)).await.unwrap().unwrap();
            assert!(count > 0, "it ended after {text}");
            text.push_str(std::str::from_utf8(&piece[..count]).unwrap());
        }
        latest = latest.max(begun.elapsed().saturating_sub(Duration::from_secs(event)));
    }
    println!("60 events in {:?}, the latest {latest:?} behind its second", begun.elapsed());
    assert!(
        begun.elapsed() > Duration::from_secs(58) && latest < Duration::from_secs(5),
        "as they were sent"
    );
    assert!(!text.contains("data: 60"));
}

#[tokio::test]
async fn clients_that_do_not_read_hold_a_bound_and_are_cut_off() {
    const CLIENTS: u64 = 100;
    let policy =
        PolicyText::of(POLICY).set("requests.write_timeout", "2s").set("requests.max_connections", 1_000);
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
    let ((), grown) = grows(&gateway, hold).await;
    println!("{CLIENTS} clients that do not read: {} KiB each", grown / CLIENTS);
    // A piece of 32 KiB on its way, and what a request takes.
    assert!(grown / CLIENTS < 200, "{grown} KiB for {CLIENTS}");
}

#[tokio::test]
async fn a_client_that_takes_none_of_many_small_answers_is_cut_off() {
    let policy = PolicyText::of(POLICY).set("requests.write_timeout", "1s");
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
