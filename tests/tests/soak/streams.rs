//! Streams that are long or large pass as they come, and take no memory; and many of them at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tests::PATIENCE;
use tests::answers::{HTTP2, OPEN};
use tests::stack::{Gateway, tool};
use tests::streams::{GIGABYTE, LARGE_BODIES, streams};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

async fn gateway(upstream: SocketAddr) -> Gateway {
    Gateway::start(upstream, LARGE_BODIES, &[]).await
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
        let (answer, grown) = gateway.grows_by(curl(&[flag], &format!("{down}/{GIGABYTE}"))).await;
        println!("down, HTTP/{version}: {:?}, {grown} KiB more", begun.elapsed());
        assert_eq!(answer, format!("200 {version} 0 {GIGABYTE}"));
        assert!(grown < 10_000, "{grown} KiB");
        let begun = Instant::now();
        let (answer, grown) = gateway.grows_by(curl(&[flag, "-X", "POST", "-T", &body], &up)).await;
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
async fn two_large_bodies_pass_each_other() {
    const SIZE: u64 = 50_000_000;
    let far = Gateway::start(streams().await, OPEN, &[]).await;
    let near = Gateway::start(far.address, OPEN, &[HTTP2]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    for (gateway, hop) in [(&far, "HTTP/1.1"), (&near, "HTTP/2")] {
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            let mut curl = Command::new("curl");
            curl.args([
                "-s",
                protocol,
                "-o",
                "/dev/null",
                "-w",
                "%{http_code} %{size_upload} %{size_download}",
            ]);
            curl.arg("-T").arg(file.path()).arg(format!("http://{}/echo", gateway.address));
            let output = tokio::time::timeout(PATIENCE, curl.kill_on_drop(true).output()).await;
            let text =
                String::from_utf8(output.expect("neither waits for the other").unwrap().stdout).unwrap();
            assert_eq!(text, format!("200 {SIZE} {SIZE}"), "{protocol}, then {hop}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_of_many_streams_is_served_whole() {
    let Some(h2load) = tool("h2load") else { return };
    let gateway = Gateway::start(streams().await, OPEN, &[("PALISADE_GATEWAY__LOG__ACCESS", "off")]).await;
    let mut load = Command::new(h2load);
    load.args(["-n", "10000", "-c", "10", "-m", "50", "-t", "1"]);
    load.arg(format!("http://{}/down/1000", gateway.address));
    let output = load.kill_on_drop(true).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line =
        |begins: &str| text.lines().find(|line| line.starts_with(begins)).unwrap_or_default().to_owned();
    println!("{}; {}", line("finished"), line("requests:"));
    assert!(line("status codes:").starts_with("status codes: 10000 2xx,"), "{text}");
    assert!(line("requests:").contains("10000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
}
