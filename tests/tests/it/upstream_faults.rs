//! Why an upstream's answer was not passed on is in the logs and in a metric, and in no answer.

use std::collections::BTreeSet;

use tests::PATIENCE;
use tests::answers::{Answers, OPEN, ask};
use tests::client::{closes, read_until};
use tests::eventually;
use tests::stack::Gateway;
use tests::upstream::RawUpstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Answers, the word for what is wrong with each, and what the log says of it at least.
const FAULTS: [(&[u8], &str, &str); 12] = [
    (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "lengths_differ",
        "two different",
    ),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello", "length_malformed", "not a number"),
    (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "length_and_chunks",
        "both Content-Length and Transfer-Encoding",
    ),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nsecret\xff",
        "transfer_encoding",
        "not one `chunked`",
    ),
    (b"HTTP/1.1 200 OK\r\nsecret : 0\r\n\r\n", "field_name", "name of a field"),
    (b"HTTP/1.1 200 OK\r\nA: secret\0\r\n\r\n", "field_value", "value of a field"),
    (b"secret\r\n\r\n", "status_line", "status line"),
    (b"HTTP/1.1 200 OK\r\nContent-Le\xff", "header_cut", "within the answer's header"),
    (b"\xff", "no_answer", "before the first byte"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n", "chunks", "grammar of chunks"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nwiki\xff", "body_cut", "before the answer's body did"),
    (b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "upgrade", "was not asked for"),
];

#[tokio::test]
async fn which_rule_an_answer_broke_is_in_both_logs_and_in_the_metric() {
    let upstream = Answers::start(FAULTS.map(|(answer, ..)| answer.to_vec()).into()).await;
    let gateway = Gateway::start(upstream.address, OPEN, &[]).await;
    for number in 0..FAULTS.len() {
        let text = ask(&gateway, "GET", &format!("/{number}")).await;
        assert!(text.starts_with("HTTP/1.1 502 ") || text.contains("wiki"), "{number}: {text}");
        assert!(!text.contains("secret") && !text.contains("Content-Length and"), "{number}: {text}");
    }
    for (number, (_, word, says)) in FAULTS.iter().enumerate() {
        eventually(&format!("the access log says `{says}`"), || async {
            gateway.program.events().iter().any(|line| {
                let is_it = line["path"] == format!("/{number}");
                is_it && line["upstream_fault"].as_str().is_some_and(|fault| fault.contains(says))
            })
        })
        .await;
        let events = gateway.program.events();
        let said = events
            .iter()
            .find(|line| line["fault"] == **word)
            .unwrap_or_else(|| panic!("{word}: {events:#?}"));
        assert!(said["detail"].as_str().unwrap().contains(says) && said["level"] == "WARN", "{said}");
        let metric = format!("palisade_upstream_faults_total{{fault=\"{word}\",upstream=\"backend\"}}");
        assert!((gateway.metric(&metric).await - 1.0).abs() < 0.1, "{metric}");
    }
    let log = gateway.program.log();
    let of_an_answer = |line: &String| line.contains("secret") && !line.contains("secrets_found");
    assert!(!log.iter().any(of_an_answer), "nothing of an answer is quoted: {log:#?}");
    let words: BTreeSet<_> = FAULTS.iter().map(|(_, word, _)| word).collect();
    assert_eq!(words.len(), FAULTS.len());
}

#[tokio::test]
async fn lines_of_an_answer_s_header_may_end_in_a_bare_line_feed() {
    let cases: [&[u8]; 4] = [
        b"HTTP/1.1 200 OK\nContent-Length: 2\nX-A: b\n\nok",
        b"HTTP/1.0 200 OK\nX-A: b\n\nok\xff",
        b"HTTP/1.1 200 OK\r\nX-A: b\nContent-Length: 2\r\n\nok",
        b"HTTP/1.1 200 OK\nX-A: b\nTransfer-Encoding: chunked\n\n2\r\nok\r\n0\r\n\r\n",
    ];
    let upstream = Answers::start(cases.map(<[u8]>::to_vec).into()).await;
    let gateway = upstream.gateway().await;
    for number in 0..cases.len() {
        for path in [format!("/{number}"), format!("/{number}/apart")] {
            let text = ask(&gateway, "GET", &path).await;
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {text}");
            assert!(
                text.to_ascii_lowercase().contains("\r\nx-a: b\r\n") && text.contains("ok"),
                "{path}: {text}"
            );
        }
    }
}

const HANDSHAKE: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test]
async fn a_handshake_that_is_refused_says_close_and_closes() {
    let refused = b"HTTP/1.1 400 No\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nno";
    let upstream = RawUpstream::start(vec![(std::time::Duration::ZERO, refused)], false).await;
    let policy = format!(
        "{OPEN}[[routes]]\nname = \"ours\"\npath = \"/ours\"\nmethods = [\"PUT\"]\nupstream = \"backend\"\n"
    );
    let gateway = Gateway::start(upstream.address, &policy, &[]).await;
    let ours = String::from_utf8_lossy(HANDSHAKE).replace("/a", "/ours");
    for (handshake, status) in [(HANDSHAKE, "400"), (ours.as_bytes(), "405")] {
        let mut stream = gateway.client().connect().await;
        stream.write_all(handshake).await.unwrap();
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
        read.expect("it is closed").unwrap();
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        assert!(text.starts_with(&format!("http/1.1 {status} ")), "{text}");
        assert!(text.contains("\r\nconnection: close\r\n") && !text.contains("keep-alive"), "{text}");
    }
}

#[tokio::test]
async fn a_change_of_protocol_is_framed_by_nothing() {
    let switch = b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello, all";
    let upstream = RawUpstream::start(vec![(std::time::Duration::ZERO, switch)], true).await;
    let gateway = Gateway::start(upstream.address, OPEN, &[]).await;
    let mut stream = gateway.client().connect().await;
    stream.write_all(HANDSHAKE).await.unwrap();
    let text = read_until(&mut stream, "hello, all").await.to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 101 ") && !text.contains("content-length"), "{text}");
    stream.write_all(b"and back").await.unwrap();
    read_until(&mut stream, "and back").await;
    stream.shutdown().await.unwrap();
    assert!(closes(&mut stream).await);
}
