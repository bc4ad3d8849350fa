//! What an upstream answers is passed on as it was meant, or not at all. Each answer comes at once and a byte a segment.

use std::process::Stdio;

use tests::answers::{Answers, HTTP2, OPEN, ask};
use tests::policy_text::PolicyText;
use tests::stack::Gateway;
use tokio::process::Command;

/// The data of a body in chunks and what follows the last one, or `None` where the body breaks off.
fn unchunk(mut body: &str) -> Option<(String, &str)> {
    let mut data = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return rest.ends_with("\r\n").then_some((data, rest));
        }
        data.push_str(rest.get(..size)?);
        body = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}

/// An answer and what a client gets of it.
struct Passed {
    /// What the upstream says.
    said: &'static [u8],
    /// What is in the header, at least.
    told: &'static [&'static str],
    /// What the body says.
    body: &'static str,
    /// Where it comes in chunks, what follows the last one.
    after: Option<&'static str>,
}

/// Answers in every framing that there is.
fn framed() -> Vec<Passed> {
    let case =
        |said: &'static [u8], told: &'static [&'static str], body, after| Passed { said, told, body, after };
    vec![
        case(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", &["HTTP/1.1 200 OK\r\n"], "ok", None),
        case(
            b"HTTP/1.1 200 OK\r\nX-CaSe: \xe9\r\nContent-Length: 2,2\r\nContent-Length: 2\r\n\r\nok",
            &["X-CaSe: "],
            "ok",
            None,
        ),
        case(
            b"HTTP/1.1 299 As You Like\r\nContent-Length: 0\r\n\r\n",
            &["HTTP/1.1 299 As You Like\r\n"],
            "",
            None,
        ),
        case(b"HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\n", &["HTTP/1.1 204 "], "", None),
        case(b"HTTP/1.1 204 None\r\nTransfer-Encoding: chunked\r\n\r\n", &["HTTP/1.1 204 "], "", None),
        case(
            b"HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n",
            &["HTTP/1.1 304 ", "Content-Length: 5\r\n"],
            "",
            None,
        ),
        case(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n004;a=\"b\"\r\nwiki\r\n5\r\npedia\r\n0;x\r\n\r\n",
            &[],
            "wikipedia",
            Some("\r\n"),
        ),
        case(
            b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\nX-Sum: \t1 \r\nContent-Length: 9\r\nX-More:\r\n\r\n",
            &["Trailer: X-Sum\r\n"],
            "wiki",
            Some("x-sum: 1\r\nx-more: \r\n\r\n"),
        ),
        case(b"HTTP/1.1 200 OK\r\n\r\nuntil the end\xff", &[], "until the end", Some("\r\n")),
        case(b"HTTP/1.0 200 OK\r\n\r\nof old\xff", &["HTTP/1.1 200 "], "of old", Some("\r\n")),
        case(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nend\xff",
            &[],
            "end",
            None,
        ),
    ]
}

#[tokio::test]
async fn an_answer_is_passed_on_however_it_is_framed() {
    let cases = framed();
    let upstream = Answers::start(cases.iter().map(|case| case.said.to_vec()).collect()).await;
    let gateway = upstream.gateway().await;
    for (number, Passed { said, told, body, after }) in cases.iter().enumerate() {
        for path in [format!("/{number}"), format!("/{number}/apart")] {
            let shown = String::from_utf8_lossy(said);
            let text = ask(&gateway, "GET", &path).await;
            let (head, rest) = text.split_once("\r\n\r\n").expect(&shown);
            let head = format!("{head}\r\n");
            let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked\r\n");
            assert_eq!(is_chunked, after.is_some(), "{shown:?}: {head}");
            assert!(told.iter().all(|told| head.contains(told)), "{shown:?}: {head}");
            assert!(head.to_ascii_lowercase().matches("content-length").count() < 2, "{shown:?}: {head}");
            match after {
                None => assert_eq!(rest, *body, "{shown:?}"),
                Some(after) => {
                    assert_eq!(unchunk(rest), Some(((*body).to_owned(), *after)), "{shown:?}: {rest}");
                }
            }
        }
    }
    let text = ask(&gateway, "HEAD", "/0").await;
    assert!(text.ends_with("\r\n\r\n"), "{text}");
    let connections = upstream.connections();
    assert!(connections <= 8, "one for each answer that closes it, and a few: {connections}");
}

#[tokio::test]
async fn hints_go_before_the_answer_and_trailers_after_it_over_http2_too() {
    let hinted =
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let trailed = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\nX-Sum: 1\r\n\r\n";
    let upstream = Answers::start(vec![hinted.to_vec(), trailed.to_vec()]).await;
    let gateway = upstream.gateway().await;
    let text = ask(&gateway, "GET", "/0").await;
    assert!(
        text.starts_with("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{text}"
    );
    // Two gateways speak HTTP/2 with each other, so a trailer crosses every pair of protocols.
    let front = Gateway::start(gateway.address, OPEN, &[HTTP2]).await;
    for near in [&gateway, &front] {
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            let mut curl = Command::new("curl");
            let url = format!("http://{}/1", near.address);
            curl.args(["-s", protocol, "-D", "-", &url]).stdin(Stdio::null());
            let output = curl.kill_on_drop(true).output().await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout).to_ascii_lowercase();
            let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
            assert_eq!(body, Some("wikix-sum: 1\r\n"), "{protocol}: {text}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_could_mean_two_things_is_none() {
    let many = [&b"HTTP/1.1 200 OK\r\n"[..], &b"A: b\r\n".repeat(300), b"\r\n\xff"].concat();
    let large = [&b"HTTP/1.1 200 OK\r\nA: "[..], &b"b".repeat(300_000), b"\r\n\r\n\xff"].concat();
    let cases: Vec<Vec<u8>> = [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le\xff",
        b"\xff",
    ]
    .map(<[u8]>::to_vec)
    .into_iter()
    .chain([many, large])
    .collect();
    let upstream = Answers::start(cases.clone()).await;
    let gateway = upstream.gateway().await;
    for (number, case) in cases.iter().enumerate().skip(1) {
        for path in [format!("/{number}"), format!("/{number}/apart")] {
            let (text, shown) = (ask(&gateway, "GET", &path).await, String::from_utf8_lossy(case));
            assert!(text.starts_with("HTTP/1.1 502 "), "{shown:?}: {text}");
            assert!(text.contains("\"code\":\"upstream_unreachable\""), "{shown:?}: {text}");
            assert!(ask(&gateway, "GET", "/0").await.ends_with("\r\n\r\nok"), "after {shown:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_at_once_is_none() {
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let cases = vec![[head, &b"x\r\n"[..]].concat(), [head, &b"4 \r\nwiki\r\n0\r\n\r\n"[..]].concat()];
    let gateway = Answers::start(cases).await.gateway().await;
    for path in ["/0", "/1"] {
        let text = ask(&gateway, "GET", path).await;
        assert!(text.starts_with("HTTP/1.1 502 ") && text.contains("\"upstream_unreachable\""), "{text}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_client() {
    let cases: Vec<Vec<u8>> = [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nwiki\xff"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n5\r\npe\xff",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\nx5\r\npedia\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwikipedia\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\nA: b\nC: d\r\n\r\n",
    ]
    .map(<[u8]>::to_vec)
    .into();
    let upstream = Answers::start(cases.clone()).await;
    let gateway =
        Gateway::start(upstream.address, &PolicyText::of(OPEN).set("requests.upstream_timeout", "1s"), &[])
            .await;
    for (number, case) in cases.iter().enumerate() {
        for path in [format!("/{number}"), format!("/{number}/apart")] {
            let (text, shown) = (ask(&gateway, "GET", &path).await, String::from_utf8_lossy(case));
            let (head, body) = text.split_once("\r\n\r\n").expect(&shown);
            assert!(head.starts_with("HTTP/1.1 200 ") && body.contains('w'), "{shown:?}: {text}");
            assert!(unchunk(body).is_none(), "{shown:?}: {text}");
        }
    }
    tests::eventually("it is known whose fault each of them was", || async {
        let events = gateway.program.events();
        events.iter().filter(|line| line["upstream_fault"].is_string()).count() == cases.len() * 2
    })
    .await;
}
