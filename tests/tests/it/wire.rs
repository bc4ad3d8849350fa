//! The wire: what is malformed never reaches the upstream, what is rare is served right, and slow clients end.

use std::time::Duration;

use tests::client::{closes, read_for, read_until};
use tests::policy_text::PolicyText;
use tests::stack::{Gateway, Stack};
use tests::upstream::RawUpstream;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

const KEYS: &str = "/.well-known/jwks.json";

#[tokio::test]
async fn a_malformed_request_is_refused_and_closed_and_never_forwarded() {
    let stack = Stack::start().await;
    let client = stack.gateway.client();
    let smuggled = format!("GET {KEYS} HTTP/1.1\r\nHost: a\r\n\r\n");
    for head in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\nContent-Length: 4\r\n",
        "Content-Length: 4, 4\r\n",
        "Content-Length: +4\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer_Encoding: chunked\r\n",
        "X: a\r\n b\r\n",
        "X : a\r\n",
        "Host: b\r\n",
    ] {
        let text = format!("GET {KEYS} HTTP/1.1\r\nHost: a\r\n{head}\r\n{smuggled}");
        let mut stream = client.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        let answer = read_for(&mut stream, Duration::from_millis(500)).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head:?}: {answer}");
        assert!(
            answer.contains("\"code\":\"malformed_request\"") && answer.contains("\"stage\":\"accept\""),
            "{answer}"
        );
        assert!(closes(&mut stream).await, "{head:?}");
    }
    let asked = stack.backend.program.events().iter().filter(|event| event["route"] == KEYS).count();
    // The gateway's own fetch of the key set is the only one.
    assert!(asked <= 1, "{asked} requests reached the backend");
}

#[tokio::test]
async fn a_request_that_is_valid_but_rare_is_served() {
    let stack = Stack::start().await;
    let client = stack.gateway.client();
    for request in [
        format!("GET {KEYS} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("\r\nGET {KEYS} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET http://a{KEYS} HTTP/1.1\r\nHost: a\r\n\r\n"),
        "GET //.well-known/./x/../jwks%2Ejson HTTP/1.1\r\nHost:\t a:80 \r\n\r\n".to_string(),
        format!("GET {KEYS}?a=/../b HTTP/1.1\r\nhOST: a\r\n\r\n"),
        format!("HEAD {KEYS} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET {KEYS} HTTP/1.0\r\n\r\n"),
        format!(
            "GET {KEYS} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\nz\r\n0\r\nT: u\r\n\r\n"
        ),
    ] {
        let answer = client.raw(request.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") || answer.starts_with("HTTP/1.0 200 "),
            "{request:?}: {answer}"
        );
        assert_eq!(answer.contains("\"keys\""), !request.contains("HEAD"), "{request:?}: {answer}");
    }
    // One byte a segment.
    let mut stream = client.connect().await;
    stream.set_nodelay(true).unwrap();
    for byte in format!("GET {KEYS} HTTP/1.1\r\nHost: a\r\n\r\n").bytes() {
        stream.write_all(&[byte]).await.unwrap();
    }
    assert!(read_for(&mut stream, Duration::from_millis(300)).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn requests_on_one_connection_are_answered_in_order() {
    let stack = Stack::start().await;
    let client = stack.gateway.client();
    let one = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.raw(format!("{}{}{}", one(KEYS), one("/nowhere"), one(KEYS)).as_bytes()).await;
    let statuses: Vec<_> =
        answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "404", "200"], "{answer}");
}

#[tokio::test]
async fn a_bad_chunk_is_400_and_closes() {
    let stack = Stack::start().await;
    let answer = stack
        .gateway
        .client()
        .raw(format!("GET {KEYS} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").as_bytes())
        .await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("malformed_request"), "{answer}");
}

#[tokio::test]
async fn a_short_chunked_body_is_checked_before_the_upstream_receives_it_and_a_slow_one_is_streamed() {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, OK)], false).await;
    let received = || upstream.received().into_iter().filter(|received| received.starts_with("POST "));
    let policy = "version = 1\n[[routes]]\nname = \"all\"\npath = \"/{*rest}\"\nupstream = \"backend\"\n";
    let gateway = Gateway::start(upstream.address, policy, &[]).await;
    let start = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let pieces = async |pieces: &[&[u8]]| {
        let mut stream = gateway.client().connect().await;
        stream.set_nodelay(true).unwrap();
        stream.write_all(start).await.unwrap();
        for piece in pieces {
            // In that time the header would go up, were it not held.
            assert_eq!(gateway.client().get("/meanwhile", None).await.status(), 200);
            stream.write_all(piece).await.unwrap();
        }
        stream
    };
    for bad in
        [&[b"5\r\nhello\r\n".as_slice(), b"0\r\nA: b\r\n fold\r\n\r\n"], &[b"5\r\nhel", b"loX\r\n0\r\n\r\n"]]
    {
        let mut stream = pieces(bad).await;
        let refused = read_for(&mut stream, Duration::from_millis(500)).await;
        assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    }
    assert_eq!(received().next(), None);
    let _unfinished = pieces(&[b"5\r\nhello\r\n"]).await;
    tests::eventually("a body that takes longer is sent as it comes", || async {
        received().any(|received| received.ends_with("hello\r\n"))
    })
    .await;
    let mut empty = pieces(&[b"0\r\n\r\n"]).await;
    assert!(read_for(&mut empty, Duration::from_millis(500)).await.starts_with("HTTP/1.1 200 "));
    upstream.receives(|all| all.iter().any(|one| one.ends_with("\r\n\r\n0\r\n\r\n"))).await; // an empty body is one
}

#[tokio::test]
async fn a_header_that_trickles_is_cut_off_at_its_deadline() {
    let stack = Stack::start().await;
    let mut stream = stack.gateway.client().connect().await;
    let begun = std::time::Instant::now();
    stream.write_all(format!("GET {KEYS} HTTP/1.1\r\n").as_bytes()).await.unwrap();
    let trickle = async {
        while stream.write_all(b"X: y\r\n").await.is_ok() {
            let answer = read_for(&mut stream, Duration::from_millis(200)).await;
            if !answer.is_empty() {
                return answer;
            }
        }
        String::new()
    };
    let answer = tokio::time::timeout(tests::PATIENCE, trickle).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("header_timeout"), "{answer}");
    assert!(begun.elapsed() >= Duration::from_millis(1_900), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_header_that_is_too_large_is_431() {
    let stack = Stack::start().await;
    let client = stack.gateway.client();
    let many = format!("GET {KEYS} HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(100));
    let large = format!("GET {KEYS} HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(70_000));
    for request in [many, large] {
        let answer = client.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 ") && answer.contains("header_too_large"), "{answer}");
    }
}

#[tokio::test]
async fn http2_is_judged_and_answered_like_http1() {
    let stack = Stack::start().await;
    let ask = |target: &str| {
        let mut curl = tokio::process::Command::new("curl");
        let address = format!("http://{}{target}", stack.gateway.address);
        curl.args(["-sS", "--http2-prior-knowledge", "-w", "\n%{http_version} %{http_code}", &address]);
        async move { String::from_utf8(curl.output().await.unwrap().stdout).unwrap() }
    };
    assert!(ask(KEYS).await.ends_with("\n2 200"));
    let refused = ask("/nowhere").await;
    assert!(refused.ends_with("\n2 404") && refused.contains("route_not_found"), "{refused}");
}

/// The status of a request over HTTP/2 whose body begins and does not continue.
async fn stalled_over_http2(client: &tests::client::Client) -> u16 {
    let stream = client.connect().await;
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://a/v1/auth/login").header("content-type", "application/json");
    let mut client = client.ready().await.unwrap();
    let (answer, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
    body.send_data("{".into(), false).unwrap();
    answer.await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_body_that_does_not_come_is_the_clients_fault_and_never_the_upstreams() {
    let hurried = PolicyText::usual().set("requests.request_timeout", "400ms");
    let stack = Stack::with(&hurried, &[]).await;
    let stalled = "POST /v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    for _ in 0..5 {
        let mut stream = stack.gateway.client().connect().await;
        stream.write_all(stalled.as_bytes()).await.unwrap();
        let answer = read_for(&mut stream, Duration::from_secs(2)).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"body_timeout\""), "{answer}");
    }
    assert_eq!(stalled_over_http2(&stack.gateway.client().at([127, 9, 0, 1])).await, 408);
    let breaker = stack.gateway.metric("palisade_circuit_breaker_state{breaker=\"backend\"}").await;
    assert!(breaker < 0.5, "five stalled bodies opened the breaker");
    assert_eq!(stack.gateway.client().get(KEYS, None).await.status(), 200);
}

#[tokio::test]
async fn a_client_that_resets_is_still_known_by_its_address() {
    let stack = Stack::start().await;
    let client = stack.gateway.client().at([127, 66, 0, 1]);
    for _ in 0..20 {
        let mut stream = client.connect().await;
        stream.set_zero_linger().unwrap();
        stream.write_all(format!("GET {KEYS}?reset HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
    }
    let seen = || {
        stack
            .gateway
            .program
            .events()
            .into_iter()
            .filter(|event| event["method"] == "GET" && event["path"] == KEYS)
    };
    tests::eventually("a request of the reset client is logged", || async { seen().count() > 0 }).await;
    for event in seen() {
        assert_eq!(
            (&event["client"], &event["code"]),
            (&"127.66.0.1".into(), &"client_blocked".into()),
            "{event}"
        );
    }
}

/// The status that curl gets over HTTP/2.
async fn http2(stack: &Stack, arguments: &[&str]) -> String {
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--http2-prior-knowledge"]).args(arguments);
    let output = curl.arg(format!("http://{}{KEYS}", stack.gateway.address)).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn http2_is_under_the_rules_of_the_wire_too() {
    let stack = Stack::start().await;
    assert_eq!(http2(&stack, &[]).await, "200");
    assert_eq!(http2(&stack, &["-X", "TRACE"]).await, "405");
    assert_eq!(http2(&stack, &["-H", "Transfer_Encoding: chunked"]).await, "400");
    assert_eq!(http2(&stack, &["-H", "Content_Length: 5"]).await, "400");
    let many: Vec<String> = (0..101).map(|number| format!("X-{number}: a")).collect();
    let many: Vec<&str> = many.iter().flat_map(|field| ["-H", field.as_str()]).collect();
    assert_eq!(http2(&stack, &many).await, "431");
}

/// A policy that lets everything through, with short deadlines.
const OPEN: &str = r#"
version = 1
[requests]
request_timeout = "400ms"
upstream_timeout = "400ms"
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
"#;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

async fn before(upstream: &RawUpstream) -> Gateway {
    Gateway::start(upstream.address, OPEN, &[]).await
}

#[tokio::test]
async fn an_empty_piece_of_an_http2_body_does_not_end_it_twice() {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, OK)], false).await;
    let gateway = before(&upstream).await;
    // curl ends a body of unknown length with an empty DATA frame of its own.
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-s", "--http2-prior-knowledge", "-X", "POST", "-T", "-"])
        .arg(format!("http://{}/a", gateway.address));
    let mut child =
        curl.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"abc").await.unwrap();
    assert!(child.wait().await.unwrap().success());
    upstream.receives(|all| all.concat().ends_with("\r\n3\r\nabc\r\n0\r\n\r\n")).await;
}

#[tokio::test]
async fn a_chunked_body_arrives_whole_however_it_is_cut() {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, OK)], false).await;
    let gateway = before(&upstream).await;
    let request = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n000\r\nT: u\r\n\r\n";
    let mut stream = gateway.client().connect().await;
    stream.set_nodelay(true).unwrap();
    for byte in request.bytes() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await; // so that each byte is read by itself
    }
    assert!(read_for(&mut stream, Duration::from_millis(300)).await.starts_with("HTTP/1.1 200 "));
    upstream.receives(|all| all.concat().ends_with("\r\n0\r\n\r\n")).await;
    let received = upstream.received().concat();
    let body = received.split_once("\r\n\r\n").unwrap().1;
    let pieces: String = body.split("\r\n").skip(1).step_by(2).collect();
    assert!(pieces == "hello!", "{body:?}");
}

#[tokio::test]
async fn a_websocket_outlives_the_deadlines_of_a_request() {
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let upstream = RawUpstream::start(vec![(Duration::ZERO, switch)], true).await;
    let gateway = before(&upstream).await;
    let mut stream = gateway.client().connect().await;
    let handshake = "GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(handshake.as_bytes()).await.unwrap();
    assert!(read_for(&mut stream, Duration::from_millis(300)).await.starts_with("HTTP/1.1 101 "));
    tokio::time::sleep(Duration::from_secs(1)).await; // not a wait for a state: longer than both deadlines
    stream.write_all(b"ping").await.unwrap();
    assert_eq!(read_for(&mut stream, Duration::from_millis(500)).await, "ping");
}

#[tokio::test]
async fn only_a_websocket_is_an_upgrade_whatever_either_side_says() {
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    let upstream = RawUpstream::start(vec![(Duration::ZERO, switch)], true).await;
    let gateway = before(&upstream).await;
    for head in ["Connection: Upgrade\r\nUpgrade: websocket\r\n", "Upgrade: websocket\r\n", ""] {
        let request = format!("GET /a HTTP/1.1\r\nHost: a\r\n{head}\r\n");
        let answer = gateway.client().raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{head:?}: {answer}");
    }
    let forwarded = upstream.received();
    assert!(forwarded[0].to_lowercase().contains("upgrade: websocket"));
    assert!(
        forwarded[1..].iter().all(|received| !received.to_lowercase().contains("upgrade")),
        "{forwarded:?}"
    );
}

#[tokio::test]
async fn an_answer_is_passed_on_as_it_comes() {
    // The upstream says nothing more before the client has what it said.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let policy = PolicyText::of(OPEN).set("requests.upstream_timeout", "20s");
    let gateway = Gateway::start(listener.local_addr().unwrap(), &policy, &[]).await;
    let mut client = gateway.client().connect().await;
    client.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut upstream = listener.accept().await.unwrap().0;
    read_until(&mut upstream, "\r\n\r\n").await;
    for (said, end) in
        [("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n", "\r\n\r\n"), ("abc", "abc"), ("def", "def")]
    {
        upstream.write_all(said.as_bytes()).await.unwrap();
        let passed = read_until(&mut client, end).await;
        assert!(passed.ends_with(end) && passed.contains("HTTP/1.1 200 ") == (end == "\r\n\r\n"), "{passed}");
    }
}

#[tokio::test]
async fn a_request_that_is_malformed_from_the_start_reaches_nobody_and_closes() {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, OK)], false).await;
    let gateway = before(&upstream).await;
    for request in [
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: \u{e9}\r\n\r\n",
        "GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /../a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a%zz\r\n\r\n",
    ] {
        let mut stream = gateway.client().connect().await;
        stream.write_all(format!("{request}GET /b HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let answer = read_for(&mut stream, Duration::from_millis(300)).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?}: {answer}");
        assert!(closes(&mut stream).await, "{request:?}");
    }
    assert!(upstream.received().is_empty(), "{:?}", upstream.received());
}

#[tokio::test]
async fn the_upstream_sees_one_host_and_no_field_of_the_clients_connection() {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, OK)], false).await;
    let gateway = before(&upstream).await;
    for (request, host) in [
        ("GET http://H/a HTTP/1.1\r\nHost: h\r\n\r\n", "host: h\r\n"),
        ("GET http://abc/a HTTP/1.0\r\n\r\n", "host: abc\r\n"),
        (
            "GET /a HTTP/1.1\r\nHost: a\r\nConnection: close, Host, X-Forwarded-For, X-Hop\r\nX-Hop: 1\r\n\r\n",
            "host: a\r\n",
        ),
    ] {
        let answer = gateway.client().raw(request.as_bytes()).await;
        assert!(answer.contains(" 200 "), "{request:?}: {answer}");
        let received = upstream.received().pop().unwrap().to_lowercase();
        assert!(
            received.starts_with("get /a http/1.1\r\n") && received.contains(host),
            "{request:?}: {received}"
        );
        assert!(received.contains("x-forwarded-for: 127.0.0.1") && !received.contains("x-hop"), "{received}");
    }
}

#[tokio::test]
async fn crumbs_of_an_http2_cookie_are_joined_and_its_header_is_checked() {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, OK)], false).await;
    let gateway = before(&upstream).await;
    let ask = async |arguments: &[&str]| {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--http2-prior-knowledge"]).args(arguments);
        let output = curl.arg(format!("http://{}/a", gateway.address)).output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ask(&["-H", "Cookie: a=1", "-H", "Cookie: b=2"]).await, "200");
    let received = upstream.received().pop().unwrap().to_lowercase();
    assert!(received.contains("cookie: a=1; b=2\r\n"), "{received}");
    assert_eq!(ask(&["-H", "Host: a:99999"]).await, "400");
    assert_eq!(ask(&["--request-target", "/a\\b"]).await, "400");
}

#[tokio::test]
async fn a_malformed_answer_is_not_quoted_in_the_log() {
    let answer: &[u8] =
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\r\nBad Header: x\r\nContent-Length: 0\r\n\r\n";
    let upstream = RawUpstream::start(vec![(Duration::ZERO, answer)], false).await;
    let policy = "version = 1\n[[routes]]\nname = \"all\"\npath = \"/{*rest}\"\nupstream = \"backend\"\n";
    let gateway = Gateway::start(upstream.address, policy, &[]).await;
    let refused = gateway.client().get("/a", None).await;
    assert_eq!((refused.status(), refused.code().as_str()), (502, "upstream_unreachable"));
    tests::eventually("it is logged", || async {
        gateway
            .program
            .events()
            .iter()
            .any(|line| line["status"] == 502 && line["upstream_fault"].is_string())
    })
    .await;
    assert!(!gateway.program.log().iter().any(|line| line.contains("hush")), "{:?}", gateway.program.log());
}
