//! How a request ends: what is written down of one that is refused, what it gets back, and what it never holds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::eventually;
use tests::policy_text::PolicyText;
use tests::stack::{Gateway, Stack};
use tests::upstream::RawUpstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
const BAD: &[u8] = b"HTTP/1.1 500 Bad\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbad";
const WRONG: &[u8] = b"HTTP/1.1 401 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";

fn policy(more: &str) -> String {
    format!(
        "version = 1\n[client]\ntrusted_proxies = [\"127.0.0.1\"]\n[requests]\nrequest_timeout = \"20s\"\n{more}\n\
         [[routes]]\nname = \"all\"\npath = \"/{{*rest}}\"\nupstream = \"backend\"\n"
    )
}

async fn line_of(gateway: &Gateway, path: &str) -> Value {
    let find = || gateway.program.events().into_iter().find(|line| line["path"] == path);
    eventually("it is in the access log", || async { find().is_some() }).await;
    find().unwrap()
}

#[tokio::test]
async fn a_refused_request_behind_a_proxy_is_the_client_s_and_its_route_s() {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, GOOD)], false).await;
    let policy = policy("[blocks]\ndeny = [\"198.51.100.66\"]\n[limits.few]\nkey = \"ip\"\nrate = \"1/h\"\n")
        + "limits = [\"few\"]\n[[routes]]\nname = \"small\"\npath = \"/small/{*rest}\"\nupstream = \"backend\"\nmax_body = \"1KB\"\n";
    let gateway = Gateway::start(upstream.address, &policy, &[]).await;
    let client = gateway.client();
    let from = |address| [("x-forwarded-for", address)];
    let ask = async |address, path| client.ask("GET", path, &from(address), "").await.code();
    assert_eq!(client.ask("GET", "/first", &from("198.51.100.1"), "").await.status(), 200);
    assert_eq!(ask("198.51.100.1", "/limited").await, "rate_limited");
    assert_eq!(ask("198.51.100.66", "/blocked").await, "client_blocked");
    let large = "x".repeat(2_000);
    let answer = client.ask("POST", "/small/large", &from("198.51.100.2"), large.clone()).await;
    assert_eq!(answer.code(), "body_too_large");
    assert_eq!(ask("198.51.100.3", "/a%2Fb").await, "malformed_target");
    for (path, address, route) in [
        ("/limited", "198.51.100.1", json!("all")),
        ("/blocked", "198.51.100.66", Value::Null),
        ("/small/large", "198.51.100.2", json!("small")),
        ("/a%2Fb", "198.51.100.3", Value::Null),
    ] {
        let line = line_of(&gateway, path).await;
        assert_eq!((&line["client"], &line["route"]), (&json!(address), &route), "{line}");
    }
    let refused =
        gateway.metric("palisade_requests_total{method=\"GET\",route=\"all\",status=\"429\"}").await;
    assert!(refused > 0.5, "it is counted for its route: {refused}");
    let top = gateway.operator().get("/admin/top?by=ip", None).await.json();
    let busiest: Vec<&str> =
        top["items"].as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap()).collect();
    assert!(busiest.contains(&"198.51.100.66") && !busiest.contains(&"127.0.0.1"), "{top}");
}

#[tokio::test]
async fn a_request_that_is_not_sent_gets_back_what_limits_that_count_failures_took() {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, WRONG)], false).await;
    let policy = policy("[limits.guesses]\nkey = \"ip\"\nrate = \"2/h\"\ncounts = \"failures\"\n")
        + "max_body = \"1KB\"\nlimits = [\"guesses\"]\ncounts_failed_logins = [401]\n";
    let gateway = Gateway::start(upstream.address, &policy, &[]).await;
    let client = gateway.client();
    let large = "x".repeat(2_000);
    for _ in 0..4 {
        assert_eq!(client.ask("POST", "/login", &[], large.clone()).await.code(), "body_too_large");
        let chunked = format!(
            "POST /login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n{large}\r\n0\r\n\r\n"
        );
        assert!(client.raw(chunked.as_bytes()).await.contains("body_too_large"));
    }
    for _ in 0..2 {
        assert_eq!(client.ask("POST", "/login", &[], "{}").await.status(), 401);
    }
    assert_eq!(client.ask("POST", "/login", &[], "{}").await.code(), "rate_limited", "guesses are counted");
}

#[tokio::test]
async fn a_client_that_has_its_answer_does_not_get_its_guess_back() {
    // The service answers at once; what the client sends afterwards is more than its route takes.
    let upstream =
        RawUpstream::start(vec![(Duration::ZERO, b"HTTP/1.1 401 No\r\nContent-Length: 9\r\n\r\nno")], false)
            .await;
    let policy = policy("[limits.guesses]\nkey = \"ip\"\nrate = \"2/h\"\ncounts = \"failures\"\n")
        + "max_body = \"100KB\"\nlimits = [\"guesses\"]\ncounts_failed_logins = [401]\n";
    let gateway = Gateway::start(upstream.address, &policy, &[]).await;
    for _ in 0..2 {
        let mut stream = gateway.client().connect().await;
        stream
            .write_all(b"POST /login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await
            .unwrap();
        let piece = format!("ea60\r\n{}\r\n", "x".repeat(60_000));
        stream.write_all(piece.as_bytes()).await.unwrap();
        tests::client::read_until(&mut stream, "no").await;
        let _ = stream.write_all(piece.as_bytes()).await;
        assert!(tests::client::closes(&mut stream).await);
    }
    eventually("both guesses count", || async {
        gateway.client().ask("POST", "/login", &[], "{}").await.code() == "rate_limited"
    })
    .await;
}

#[tokio::test]
async fn a_right_password_in_read_only_mode_is_no_failed_login() {
    let policy = PolicyText::usual().set("limits.login.counts", "failures");
    let stack = Stack::with(&policy, &[]).await;
    stack.user("ann", &[]).await;
    stack.gateway.operator().ask("POST", "/admin/readonly", &[], "").await;
    let client = stack.gateway.client().at([127, 0, 9, 9]);
    let login = json!({"username": "ann", "password": tests::stack::PASSWORD});
    for _ in 0..8 {
        let answer = client.json("POST", "/v1/auth/login", None, &login).await;
        assert_eq!(answer.code(), "read_only");
    }
    stack.gateway.operator().ask("POST", "/admin/readwrite", &[], "").await;
    eventually("it is let in", || async {
        client.json("POST", "/v1/auth/login", None, &login).await.status() == 200
    })
    .await;
}

#[tokio::test]
async fn a_right_password_is_no_failed_login_while_the_backend_cannot_write() {
    let policy = PolicyText::usual().set("limits.login.counts", "failures");
    let stack = Stack::with(&policy, &[]).await;
    stack.user("ann", &[]).await;
    stack.backend.program.limit_files("4096");
    let client = stack.gateway.client().at([127, 0, 9, 8]);
    let login = json!({"username": "ann", "password": tests::stack::PASSWORD});
    let attempt = async || client.json("POST", "/v1/auth/login", None, &login).await;
    eventually("the backend cannot write", || async { attempt().await.status() == 503 }).await;
    for _ in 0..8 {
        assert_eq!(attempt().await.json()["code"], "read_only");
    }
    stack.backend.program.limit_files("unlimited");
    eventually("ann is let in", || async { attempt().await.status() == 200 }).await;
}

/// A client that announces a body and sends half of it.
async fn half_a_request(gateway: &Gateway, head: &str) -> tokio::net::TcpStream {
    let mut stream = gateway.client().connect().await;
    let head = format!("POST /a HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_slow_body_holds_no_place_among_the_requests_in_flight() {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, GOOD)], false).await;
    let policy = policy("[concurrency.backend]\nmax_in_flight = 1\nmax_queued = 10\nmax_wait = \"5s\"\n");
    let gateway = Gateway::start(upstream.address, &policy, &[]).await;
    let mut slow = Vec::new();
    for head in ["Content-Length: 10", "Content-Length: 100000", "Transfer-Encoding: chunked"] {
        slow.push(half_a_request(&gateway, head).await);
        assert_eq!(gateway.client().get("/b", None).await.status(), 200, "{head}");
    }
    slow[0].write_all(b"0123456789").await.unwrap();
    let answer = tests::client::read_until(&mut slow[0], "ok").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "who is slow is answered as well: {answer}");
}

/// An upstream that fails twice, and then answers once it has the whole body. Counts the requests that it received.
async fn upstream_that_wants_the_body() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let received = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&received);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let head = tests::client::read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
                let number = count.fetch_add(1, Ordering::SeqCst);
                let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
                let length: usize = length.map_or(0, |length| length.parse().unwrap());
                if number >= 2 && stream.read_exact(&mut vec![0; length]).await.is_err() {
                    return;
                }
                let _ = stream.write_all(if number < 2 { BAD } else { GOOD }).await;
            });
        }
    });
    (address, received)
}

#[tokio::test]
async fn a_slow_body_holds_no_trial_of_the_breaker() {
    let (upstream, received) = upstream_that_wants_the_body().await;
    let policy = policy("[breakers.backend]\nfailures = 2\ncooldown = \"1s\"\n")
        .replace("request_timeout = \"20s\"", "request_timeout = \"60s\"");
    let gateway = Gateway::start(upstream, &policy, &[]).await;
    for _ in 0..2 {
        assert_eq!(gateway.client().get("/a", None).await.status(), 500);
    }
    let slow = tokio::sync::Mutex::new(Vec::new());
    eventually("a slow client is the trial", || async {
        slow.lock().await.push(half_a_request(&gateway, "Content-Length: 100000").await);
        received.load(Ordering::SeqCst) > 2
    })
    .await;
    eventually("a quick client closes the breaker", || async {
        gateway.client().get("/b", None).await.status() == 200
    })
    .await;
}
