//! Connections of every listener: how many there may be, and how long each may take.

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use tests::client::{Client, ask_on, closes, read_until};
use tests::eventually;
use tests::program::{Program, command};
use tests::stack::{Backend, GATEWAY_TOKEN, Gateway, POLICY};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// A request without its end.
const HALF: &[u8] = b"POST /v1/auth/login HTTP/1.1\r\nHost: localhost\r\nX-Slow: ";

/// What comes until the other side closes.
async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut said = Vec::new();
    let all = tokio::time::timeout(tests::PATIENCE, stream.read_to_end(&mut said)).await;
    all.expect("it closes").unwrap();
    String::from_utf8(said).unwrap()
}

fn is_a_408(said: &str) {
    assert!(said.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{said:?}");
    assert!(said.contains("\"code\":\"request_timeout\""), "{said}");
}

#[tokio::test]
async fn a_header_that_does_not_end_gets_408_on_the_backend_and_the_admin_plane() {
    let environment = [("PALISADE_BACKEND__SERVER__HEADER_TIMEOUT", "300ms")];
    let backend = Backend::start(&environment).await;
    let gateway = Gateway::start(backend.address, POLICY, &[]).await;
    for address in [backend.address, gateway.admin] {
        let (mut slow, mut silent) =
            (Client::of(address).connect().await, Client::of(address).connect().await);
        slow.write_all(HALF).await.unwrap();
        is_a_408(&until_closed(&mut slow).await);
        assert_eq!(until_closed(&mut silent).await, "", "nothing was asked");
    }
    let told = Client::of(backend.address).get("/metrics", None).await;
    let told = String::from_utf8_lossy(&told.body).into_owned();
    assert!(told.contains("palisade_connections_timed_out_total{phase=\"header\"} 2"), "{told}");
    assert!(
        gateway.metric("palisade_admin_connections_timed_out_total{phase=\"header\"}").await > 1.5,
        "the same on the admin plane"
    );
}

#[tokio::test]
async fn a_unix_socket_has_the_same_deadlines() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("backend.sock");
    let mut serve = command("backend-sqlite");
    serve.args(["serve", "--profile", "testing"]);
    serve.env("PALISADE_BACKEND__SERVER__LISTEN", format!("unix:{}", socket.display()));
    serve.env("PALISADE_BACKEND__DATABASE__PATH", dir.path().join("palisade.db"));
    serve.env("PALISADE_BACKEND__SECRETS__DIR", dir.path());
    serve.env("PALISADE_BACKEND__SERVER__HEADER_TIMEOUT", "300ms");
    serve.env("PALISADE_BACKEND__SERVER__IDLE_TIMEOUT", "300ms");
    let program = Program::start("backend", serve);
    program.field_of("serving", "listen").await;
    let mut slow = UnixStream::connect(&socket).await.unwrap();
    slow.write_all(HALF).await.unwrap();
    is_a_408(&until_closed(&mut slow).await);
    let mut idle = UnixStream::connect(&socket).await.unwrap();
    idle.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let said = until_closed(&mut idle).await;
    assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with('}'), "an answer, and then an end: {said}");
}

#[tokio::test]
async fn a_body_that_trickles_gets_408_however_it_trickles() {
    let environment = [("PALISADE_BACKEND__SERVER__REQUEST_TIMEOUT", "500ms")];
    let backend = Backend::start(&environment).await;
    let now = jsonwebtoken::get_current_timestamp();
    let claims = json!({
        "iss": "palisade-gateway", "aud": "palisade-backend", "iat": now, "exp": now + 30,
        "method": "POST", "target": "/v1/auth/login", "request_id": "r1", "body_length": 1_000,
        "jti": "00000000-0000-7000-8000-000000000001",
    });
    let key = EncodingKey::from_secret(GATEWAY_TOKEN.as_bytes());
    let word = encode(&Header::default(), &claims, &key).unwrap();
    let head = format!(
        "POST /v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\
         X-Request-Id: r1\r\nX-Palisade-Assertion: {word}\r\n\r\n{{"
    );
    let mut stream = Client::of(backend.address).connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let trickle = async {
        // Until the other side closes.
        while writing.write_all(b" ").await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await; // a client that is slow by intent
        }
        std::future::pending::<()>().await;
    };
    let mut said = Vec::new();
    tokio::select! {
        () = trickle => {}
        _ = tokio::time::timeout(tests::PATIENCE, reading.read_to_end(&mut said)) => {}
    }
    is_a_408(&String::from_utf8_lossy(&said));
}

#[tokio::test]
async fn one_connection_too_many_gets_503_and_the_others_continue() {
    const ASK: &[u8] = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n";
    let environment = [("PALISADE_BACKEND__SERVER__MAX_CONNECTIONS", "3")];
    let backend = Backend::start(&environment).await;
    let client = Client::of(backend.address);
    let mut three = Vec::new();
    for _ in 0..3 {
        let mut stream = client.connect().await;
        assert_eq!(ask_on(&mut stream, ASK).await.unwrap().0, 200);
        three.push(stream);
    }
    let mut fourth = client.connect().await;
    let said = read_until(&mut fourth, "}").await;
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("retry-after: 1\r\n"), "{said}");
    assert!(said.contains("\"code\":\"too_many_connections\"") && closes(&mut fourth).await, "{said}");
    for stream in &mut three {
        assert_eq!(ask_on(stream, ASK).await.unwrap().0, 200);
    }
    drop(three.pop());
    eventually("there is room again", || async {
        let mut stream = client.connect().await;
        ask_on(&mut stream, ASK).await.is_ok_and(|(status, _)| status == 200)
    })
    .await;
    let said = || {
        let of_it = |event: &&serde_json::Value| {
            event["message"].as_str().is_some_and(|message| message.contains("server.max_connections"))
        };
        backend.program.events().iter().filter(of_it).count()
    };
    eventually("it is logged", || async { said() > 0 }).await;
    assert_eq!(said(), 1, "once");
}
