//! Byte by byte: what is malformed is refused and closed and never reaches the upstream, as a second request least of all;
//! what is valid but rare arrives as it should. Each case is sent at once and one byte a segment.

use tests::client::read_until;
use tests::policy_text::PolicyText;
use tests::stack::Gateway;
use tests::upstream::RawUpstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const POLICY: &str = r#"
version = 1
[requests]
max_connections = 10000
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
[[routes]]
name = "root"
path = "/"
upstream = "backend"
"#;

/// What follows a malformed request as if it were one of its own.
const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

async fn start() -> (RawUpstream, Gateway) {
    let upstream = RawUpstream::start(vec![(std::time::Duration::ZERO, ANSWER)], false).await;
    let gateway = Gateway::start(upstream.address, POLICY, &[("PALISADE_GATEWAY__LOG__ACCESS", "off")]).await;
    (upstream, gateway)
}

/// Sends `bytes`, one a segment where `apart` says so. The other side may close before the end.
async fn send(gateway: &Gateway, bytes: &[u8], apart: bool) -> TcpStream {
    let mut stream = gateway.client().connect().await;
    stream.set_nodelay(true).unwrap();
    for piece in bytes.chunks(if apart { 1 } else { bytes.len() }) {
        if stream.write_all(piece).await.is_err() {
            break;
        }
    }
    stream
}

/// All that comes until the connection is closed.
async fn until_closed(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(tests::PATIENCE, stream.read_to_end(&mut bytes)).await;
    let _ = read.expect("it is closed"); // a reset after the answer is an end, too
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn refused(cases: &[Vec<u8>], statuses: &[&str]) {
    let (upstream, gateway) = start().await;
    for case in cases {
        for apart in [false, true] {
            let bytes = [case, SMUGGLED].concat();
            let answer = until_closed(&mut send(&gateway, &bytes, apart).await).await;
            let shown = String::from_utf8_lossy(case);
            let status = answer.get(9..12).unwrap_or_default();
            assert!(statuses.contains(&status), "{shown:?}, apart: {apart}: {answer:?}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{shown:?}, apart: {apart}: {answer:?}");
            assert!(answer.contains("application/problem+json"), "{shown:?}: {answer:?}");
            assert!(upstream.received().is_empty(), "{shown:?}, apart: {apart}: {:?}", upstream.received());
        }
    }
    println!("{} cases, each at once and byte by byte", cases.len());
}

/// A header with `fields` after Host.
fn with(method: &str, fields: &[u8]) -> Vec<u8> {
    [method.as_bytes(), b" /a HTTP/1.1\r\nHost: h\r\n", fields, b"\r\n\r\n"].concat()
}

fn chunked(body: &[u8]) -> Vec<u8> {
    [&with("POST", b"Transfer-Encoding: chunked"), body].concat()
}

#[tokio::test]
async fn a_message_whose_end_two_parties_could_see_in_two_places_is_refused() {
    let lengths = ["5, 5", "5,5", "+5", "-5", "5 5", "0x5", "", "5\t5", "18446744073709551621"];
    let codings = [
        "gzip, chunked",
        "chunked, chunked",
        "identity",
        "xchunked",
        "chunked;q=1",
        "chunked,",
        ",chunked",
        "",
        "\"chunked\"",
        "\u{b}chunked",
    ];
    let mut cases: Vec<Vec<u8>> = vec![
        with("POST", b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
        with("POST", b"Transfer-Encoding: chunked\r\nContent-Length: 5"),
        with("POST", b"Content-Length: 5\r\nContent-Length: 5"),
        with("POST", b"Content-Length: 5\r\nContent-Length: 6"),
        with("GET", b"Content-Length: 0\r\nContent-Length: 0"),
        with("POST", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        with("POST", b"Transfer_Encoding: chunked"),
        with("POST", b"Content_Length: 5"),
        with("POST", b"Transfer-Encoding : chunked"),
        with("POST", b"Content-Length\t: 5"),
        b"POST /a HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
        b"POST /a HTTP/1.0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
    ];
    cases.extend(lengths.map(|length| with("POST", format!("Content-Length: {length}").as_bytes())));
    cases.extend(codings.map(|coding| with("POST", format!("Transfer-Encoding: {coding}").as_bytes())));
    refused(&cases, &["400"]).await;
}

#[tokio::test]
async fn lines_fields_and_hosts_that_break_the_grammar_are_refused() {
    let fields: [&[u8]; 17] = [
        b"X: a\rb",
        b"X: a\nY: b",
        b"X: a\0b",
        b"X\0: a",
        b"X\x7f: a",
        b"X\xc3\xa9: a",
        b"X: a\r\n fold",
        b"X: a\r\n\tfold",
        b" X: a",
        b": a",
        b"nocolon",
        b"X y: a",
        b"X(: a",
        b"X: a\x08b",
        b"X: a\x7fb",
        b"X : b",
        b"Host: h",
    ];
    let lines = [
        "GET  /a HTTP/1.1",
        "GET /a HTTP/1.1 ",
        "GET\t/a HTTP/1.1",
        "GET /a http/1.1",
        "GET /a HTTP/1.2",
        "G(T /a HTTP/1.1",
        "GET /a",
    ];
    let hosts: [&[u8]; 13] = [
        b"",
        b"a b",
        b"u@a",
        b"a/b",
        b"a:x",
        b":80",
        b"[::1",
        b"a%",
        b"a%zz",
        b"a\\b",
        b"h\xc3\xa9",
        b"a:80:80",
        b"a\"b",
    ];
    let mut cases: Vec<Vec<u8>> = vec![
        b"GET /a HTTP/1.1\nHost: h\n\n".to_vec(),
        b"GET /a HTTP/1.1\r\nHost: h\r\n\n".to_vec(),
        b"GET /a HTTP/1.1\r\n Host: h\r\n\r\n".to_vec(),
        b"\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
        b"GET /a HTTP/1.1\r\nX: y\r\n\r\n".to_vec(),
        b"GET /a HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n".to_vec(),
        b"GET http://g/a HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
    ];
    cases.extend(fields.map(|field| with("GET", field)));
    cases.extend(lines.map(|line| format!("{line}\r\nHost: h\r\n\r\n").into_bytes()));
    cases.extend(hosts.map(|host| [b"GET /a HTTP/1.1\r\nHost: ", host, b"\r\n\r\n"].concat()));
    refused(&cases, &["400"]).await;
}

#[tokio::test]
async fn targets_that_could_be_read_in_two_ways_are_refused() {
    let targets: [&[u8]; 20] = [
        b"/a\\b",
        b"/a#b",
        b"/a%00b",
        b"/a%2Fb",
        b"/a%5cb",
        b"/..",
        b"/%2e%2e/a",
        b"/a/../..",
        b"/a/.%2E/%2e./b",
        b"/%zz",
        b"/a%2",
        b"/\xc3\xa9",
        b"/a\x01",
        b"/a?x#y",
        b"a",
        b"*",
        b"http://u@h/a",
        b"/a<b",
        b"/a\"b",
        b"/a`b",
    ];
    let cases = targets.map(|target| [b"GET ", target, b" HTTP/1.1\r\nHost: h\r\n\r\n"].concat());
    refused(&cases, &["400"]).await;
    let methods = ["CONNECT h:80", "CONNECT /a", "TRACE /a"];
    let cases = methods.map(|line| format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes());
    refused(&cases, &["405"]).await;
}

#[tokio::test]
async fn chunks_and_trailers_that_break_the_grammar_are_refused() {
    let bodies: [&[u8]; 18] = [
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;a\0\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\nA: b\nC: d\r\n\r\n",
        b"0\r\nA: b\r\n fold\r\n\r\n",
        b"0\r\nA: \xc3\xa9\r\n\r\n",
        b"0\r\nA: b\0\r\n\r\n",
        b"0\r\nnocolon\r\n\r\n",
        b"0\r\n\n",
    ];
    refused(&bodies.map(chunked), &["400"]).await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_before_the_upstream_receives_it() {
    let fields = (0..100).map(|number| format!("X{number}: a\r\n")).collect::<Vec<_>>().concat();
    let many = with("GET", fields.trim_end().as_bytes());
    let large = with("GET", format!("X: {}", "a".repeat(65_000)).as_bytes());
    refused(&[many, large], &["431"]).await;
    refused(&[with("POST", b"Content-Length: 1000001")], &["413"]).await;
}

#[tokio::test]
async fn a_message_that_is_valid_but_rare_arrives_as_it_should() {
    let (upstream, gateway) = start().await;
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes();
    let host = |host: &str| format!("GET /a HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    // What is sent, and what the upstream receives: its beginning, and what is in it, in lower case.
    let cases: Vec<(Vec<u8>, &str, &str)> = vec![
        (get("//a///b"), "get /a/b http/1.1\r\n", "host: h\r\n"),
        (get("/a/./b/../c"), "get /a/c ", ""),
        (get("/%41%7e"), "get /a~ ", ""),
        (get("/%252F"), "get /%252f ", ""),
        (get("/a;b=c/..;/d"), "get /a;b=c/..;/d ", ""),
        (get("/%c3%a9"), "get /%c3%a9 ", ""),
        (get("/a?x=%2F&y=../..//"), "get /a?x=%2f&y=../..// ", ""),
        (get("/a??"), "get /a?? ", ""),
        (get("/a+b%2Bc%3a%40%26;%3B"), "get /a+b%2bc%3a%40%26;%3b ", ""),
        (get("/a?x\\y\"z<`{|}^&%00&100%&[]"), "get /a?x%5cy%22z%3c%60%7b%7c%7d%5e&%00&100%25&[] ", ""),
        (get("http://h/a?\""), "get /a?%22 ", "host: h\r\n"),
        (get("http://h/a//b?c"), "get /a/b?c ", "host: h\r\n"),
        (get("http://h"), "get / ", ""),
        (get("/a/%2e%2e/"), "get / ", ""),
        (get("/..."), "get /... ", ""),
        (host("h:80"), "get /a ", "host: h:80\r\n"),
        (host("[::1]:8080"), "get /a ", "host: [::1]:8080\r\n"),
        (host("\t h \t"), "get /a ", "host: h\r\n"),
        (b"GET /a HTTP/1.0\r\n\r\n".to_vec(), "get /a http/1.1\r\n", "host: backend\r\n"),
        ([b"\r\n".as_slice(), &get("/a")].concat(), "get /a ", ""),
        (with("M-!#~", b"X: y"), "m-!#~ /a ", "x: y\r\n"),
        (with("GET", b"X-T:\t a\tb "), "get /a ", "x-t: a\tb\r\n"),
        ([&with("POST", b"Content-Length: 003"), b"abc".as_slice()].concat(), "post /a ", "\r\n\r\nabc"),
        (chunked(b"0\r\n\r\n"), "post /a ", "\r\n\r\n0\r\n\r\n"),
        (
            chunked(b"0005;a=\"b;c\"\r\nhello\r\n00\r\nX-T: v\r\nX-Auth-User: root\r\n\r\n"),
            "post /a ",
            "\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
    ];
    for (case, begins, holds) in &cases {
        for apart in [false, true] {
            let before = upstream.received().len();
            let mut stream = send(&gateway, case, apart).await;
            let answer = read_until(&mut stream, "\r\n\r\nok").await;
            let shown = String::from_utf8_lossy(case);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{shown:?}: {answer:?}");
            let of_it = |all: &[String]| all[before..].concat().to_ascii_lowercase();
            println!("{shown:?}, apart: {apart}"); // shown where it fails
            upstream.receives(|all| of_it(all).starts_with(begins) && of_it(all).contains(holds)).await;
            let received = of_it(&upstream.received());
            let dropped = ["x-auth-user", "x-t: v", "transfer-encoding: chunked\r\ncontent-length"];
            assert!(!dropped.iter().any(|field| received.contains(field)), "{shown:?}: {received:?}");
        }
    }
}

#[tokio::test]
async fn a_chunk_that_is_announced_beyond_the_limit_is_refused_before_it_comes() {
    let upstream = RawUpstream::start(vec![(std::time::Duration::ZERO, ANSWER)], false).await;
    let policy = PolicyText::of(POLICY).set("requests.max_body", "1KB");
    let gateway = Gateway::start(upstream.address, &policy, &[]).await;
    let head = "PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    for announced in ["3e9\r\n", "1\r\nx\r\n3e8\r\n", "ffffffffffffffff\r\n"] {
        let mut stream = gateway.client().connect().await;
        stream.write_all(format!("{head}{announced}").as_bytes()).await.unwrap();
        let text = read_until(&mut stream, "}").await;
        assert!(text.starts_with("HTTP/1.1 413 ") && text.contains("\"body_too_large\""), "{text}");
    }
    assert!(upstream.received().is_empty(), "{:?}", upstream.received());
}

#[tokio::test]
async fn a_client_with_too_many_connections_gets_429_with_retry_after() {
    let upstream = RawUpstream::start(vec![(std::time::Duration::ZERO, ANSWER)], false).await;
    let policy = PolicyText::of(POLICY).set("requests.max_connections", 1);
    let gateway = Gateway::start(upstream.address, &policy, &[]).await;
    let mut first = gateway.client().connect().await;
    first.write_all(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    read_until(&mut first, "\r\n\r\nok").await;
    let text = gateway.client().raw(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n").await.to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 429 ") && text.contains("\r\nretry-after: 1\r\n"), "{text}");
}
