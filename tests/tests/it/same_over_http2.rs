//! What is true over HTTP/1.1 is true over HTTP/2: no body for HEAD, informational answers, cookies in crumbs, and a refusal
//! that says why, to the client, in the log and in the metrics.

use std::time::Duration;

use serde_json::Value;
use tests::frames::{DATA, END_STREAM_AND_HEADERS, HEADERS, block, frame, frames, open};
use tests::stack::Gateway;
use tests::upstream::RawUpstream;
use tests::{PATIENCE, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

const POLICY: &str = r#"
version = 1
[requests]
max_headers = 100
header_bytes = "64KB"
[limits.one]
key = "ip"
rate = "1/h"
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
[[routes]]
name = "limited"
path = "/limited"
upstream = "backend"
limits = ["one"]
[[routes]]
name = "read-only"
path = "/read-only"
methods = ["POST"]
upstream = "backend"
"#;

/// The flag `END_HEADERS` alone: a body follows.
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
const CONTINUATION: u8 = 9;

async fn start(answer: &'static [u8]) -> (RawUpstream, Gateway) {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, answer)], false).await;
    let gateway = Gateway::start(upstream.address, POLICY, &[]).await;
    (upstream, gateway)
}

/// What curl says over HTTP/2 without TLS: its exit code, the header and the body.
async fn curl(gateway: &Gateway, path: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-i", "--http2-prior-knowledge", "--max-time", "10"]).args(arguments);
    curl.arg(format!("http://{}{path}", gateway.address));
    let output = curl.kill_on_drop(true).output().await.unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sends frames on a connection of its own and returns the problem that the first stream is answered with.
async fn problem(gateway: &Gateway, sent: &[u8]) -> Value {
    let mut stream = open(gateway.client()).await;
    stream.write_all(sent).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut bytes)).await.expect("it is answered");
        assert!(read.unwrap() > 0, "closed: {:?}", frames(&bytes));
        let body = frames(&bytes)
            .into_iter()
            .find(|(kind, number, body)| *kind == DATA && *number == 1 && !body.is_empty());
        if let Some((.., body)) = body {
            return serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{body:?}"));
        }
    }
}

/// A header of GET with `more`, of which those that have the same name replace.
fn get_with(more: &[(&str, &str)]) -> Vec<u8> {
    let common = [(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", "/a")];
    let kept = common.into_iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name));
    let mut fields: Vec<_> = kept.chain(more.iter().copied()).collect();
    fields.sort_by_key(|(name, _)| !name.starts_with(':'));
    block(&fields)
}

#[tokio::test]
async fn an_answer_to_head_has_no_body_whoever_makes_it() {
    let (_upstream, gateway) =
        start(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n").await;
    for (path, status) in [("/a", 200), ("/read-only", 405), ("/limited", 200), ("/limited", 429)] {
        let (exit, answer) = curl(&gateway, path, &["-I"]).await;
        assert_eq!(exit, Some(0), "{path}: {answer}");
        assert!(answer.starts_with(&format!("HTTP/2 {status}")), "{path}: {answer}");
        assert!(answer.contains("content-length: ") && answer.ends_with("\r\n\r\n"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn informational_answers_pass_and_a_client_that_expects_100_gets_it() {
    let hinted =
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    let (upstream, gateway) = start(hinted).await;
    let (exit, answer) = curl(&gateway, "/a", &[]).await;
    assert_eq!(exit, Some(0));
    assert!(answer.starts_with("HTTP/2 103 \r\nlink: </a.css>\r\n"), "{answer}");
    assert!(answer.contains("HTTP/2 200 ") && answer.ends_with("\r\n\r\nok"), "{answer}");
    let (exit, answer) = curl(&gateway, "/b", &["-H", "Expect: 100-continue", "-d", "a body"]).await;
    assert_eq!(exit, Some(0));
    assert!(answer.starts_with("HTTP/2 100 "), "{answer}");
    upstream.receives(|all| all.iter().any(|one| one.ends_with("\r\n\r\na body"))).await;
    // A client that expected 100 receives the refusal and nothing else.
    let large = ["-H", "Expect: 100-continue", "-H", "Content-Length: 2000000", "-X", "POST", "-d", "a"];
    let (_, answer) = curl(&gateway, "/c", &large).await;
    assert!(answer.starts_with("HTTP/2 413 "), "{answer}");
}

#[tokio::test]
async fn a_cookie_in_crumbs_is_one_field() {
    let (upstream, gateway) =
        start(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
    let crumbs: Vec<String> = (0..101).map(|number| format!("c{number}=v")).collect();
    let fields: Vec<_> = crumbs.iter().map(|crumb| ("cookie", crumb.as_str())).collect();
    let mut stream = open(gateway.client()).await;
    stream.write_all(&frame(HEADERS, END_STREAM_AND_HEADERS, 1, &get_with(&fields))).await.unwrap();
    let joined = format!("cookie: {}\r\n", crumbs.join("; "));
    upstream.receives(|all| all.len() == 1 && all[0].contains(&joined)).await;
}

#[tokio::test]
async fn a_query_passes_as_over_http_1() {
    let (upstream, gateway) =
        start(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
    let query = "/a?`\\\"<>^{|}&100%&[]";
    let mut stream = open(gateway.client()).await;
    let header = get_with(&[(":path", query)]);
    stream.write_all(&frame(HEADERS, END_STREAM_AND_HEADERS, 1, &header)).await.unwrap();
    eventually("the upstream is asked", || async { upstream.received().len() == 1 }).await;
    let raw = format!("GET {query} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    let answer = gateway.client().raw(raw.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let expected = "GET /a?%60%5C%22%3C%3E%5E%7B%7C%7D&100%25&[] HTTP/1.1\r\n";
    upstream.receives(|all| all.iter().all(|received| received.starts_with(expected))).await;
}

#[tokio::test]
async fn a_malformed_request_over_http2_gets_a_reason_and_a_log_line() {
    let (upstream, gateway) =
        start(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
    let whole = |fields: &[(&str, &str)]| frame(HEADERS, END_STREAM_AND_HEADERS, 1, &get_with(fields));
    let body = |fields: &[(&str, &str)], rest: Vec<u8>| {
        let post = [&[(":method", "POST")], fields].concat();
        [frame(HEADERS, END_HEADERS, 1, &get_with(&post)), rest].concat()
    };
    let trailers = |fields: &[(&str, &str)]| frame(HEADERS, END_STREAM_AND_HEADERS, 1, &block(fields));
    let long = "x".repeat(13_000);
    let pieces: Vec<Vec<u8>> = (0..6)
        .map(|number| {
            let more = [("x-long", long.as_str())];
            if number == 0 { get_with(&more) } else { block(&more) }
        })
        .collect();
    let too_long = [
        frame(HEADERS, END_STREAM, 1, &pieces[0]),
        pieces[1..5].iter().flat_map(|piece| frame(CONTINUATION, 0, 1, piece)).collect(),
        frame(CONTINUATION, END_HEADERS, 1, &pieces[5]),
    ];
    let many: Vec<_> = (0..101).map(|_| ("x-many", "y")).collect();
    let cases: Vec<(Vec<u8>, u64, &str)> = vec![
        (too_long.concat(), 431, "header_too_large"),
        (whole(&many), 431, "header_too_large"),
        (whole(&[(":path", "/a#b")]), 400, "malformed_request"),
        (whole(&[(":path", "/a\"b")]), 400, "malformed_request"),
        (whole(&[(":path", "/a\\b")]), 400, "malformed_request"),
        (whole(&[(":path", "/\u{e9}")]), 400, "malformed_request"),
        (whole(&[(":path", "")]), 400, "malformed_request"),
        (whole(&[(":method", "TRACE")]), 405, "method_not_allowed"),
        (whole(&[("X-Upper", "y")]), 400, "malformed_request"),
        (whole(&[("x", " y")]), 400, "malformed_request"),
        (whole(&[("connection", "close")]), 400, "malformed_request"),
        (whole(&[("transfer-encoding", "chunked")]), 400, "malformed_request"),
        (whole(&[("host", "other")]), 400, "malformed_request"),
        (whole(&[("content-length", "1")]), 400, "malformed_request"),
        (body(&[("content-length", "3")], frame(DATA, END_STREAM, 1, b"ab")), 400, "malformed_request"),
        (body(&[("content-length", "3")], frame(DATA, END_STREAM, 1, b"abcd")), 400, "malformed_request"),
        (body(&[("content-length", "0")], trailers(&[(":path", "/b")])), 400, "malformed_request"),
        (body(&[("content-length", "0")], trailers(&[("x-\u{e9}", "b")])), 400, "malformed_request"),
    ];
    for (number, (sent, status, code)) in cases.iter().enumerate() {
        let problem = problem(&gateway, sent).await;
        assert_eq!(
            (problem["status"].as_u64(), problem["code"].as_str()),
            (Some(*status), Some(*code)),
            "{number}"
        );
        let id = problem["request_id"].as_str().unwrap();
        eventually("it is in the access log", || async {
            gateway.program.events().iter().any(|line| {
                line["request_id"] == id && line["code"] == *code && line["protocol"] == "HTTP/2.0"
            })
        })
        .await;
    }
    assert!(upstream.received().is_empty(), "{:?}", upstream.received());
    let refused = gateway
        .metric("palisade_stage_denials_total{code=\"header_too_large\",rule=\"none\",stage=\"accept\"}");
    assert!((refused.await - 2.0).abs() < 0.1);
}
