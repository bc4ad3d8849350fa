//! Last good answers on a route where the gateway does not know who asks: nobody gets what was made for somebody else.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tests::PATIENCE;
use tests::stack::Gateway;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;

const POLICY: &str = r#"
version = 1
[breakers.backend]
failures = 1
cooldown = "1h"
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
when_open = "stale"
"#;

/// A service that greets whoever its `Authorization`, cookie or host names, as the path says, until it fails.
struct Greeter {
    address: SocketAddr,
    fails: Arc<AtomicBool>,
}

impl Greeter {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, fails) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let fail = Arc::clone(&fails);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                    if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                        break;
                    }
                }
                let answer = if fail.load(Ordering::Relaxed) { FAILURE.to_owned() } else { greet(&head) };
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { address, fails }
    }
}

const FAILURE: &str = "HTTP/1.1 500 Bad\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn greet(head: &[u8]) -> String {
    let head = String::from_utf8_lossy(head);
    let field = |wanted: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map_or("nobody", |(_, value)| value)
            .to_owned()
    };
    let (name, says) = match head.split(' ').nth(1).unwrap_or_default() {
        "/public" => (field("authorization"), "Cache-Control: public, max-age=60\r\n"),
        "/cookie" => (field("cookie"), ""),
        "/host" => (field("host"), ""),
        "/language" => (field("accept-language"), "Vary: Accept-Language\r\n"),
        _ => (field("authorization"), ""),
    };
    let body = format!("hello {name}");
    format!("HTTP/1.1 200 OK\r\n{says}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// Asks each path with each field, lets the service fail, and asks again with all of them.
#[tokio::test]
async fn a_client_gets_its_own_stored_answer_or_a_public_one_and_no_other() {
    let ann = ("authorization", "Basic YW5uOng=");
    let bob = ("authorization", "Basic Ym9iOng=");
    let (session, other) = (("cookie", "session=ann"), ("cookie", "session=bob"));
    let nobody = ("x-nothing", "");
    let (german, french) = (("accept-language", "de"), ("accept-language", "fr"));
    let good = |body: &'static str| Some(body);
    let cases = [
        // path, who had it, who asks while the breaker is open, what they get
        ("/token", ann, bob, None),
        ("/token", ann, ann, None),
        ("/token", ann, nobody, None),
        ("/public", ann, bob, good("hello Basic YW5uOng=")),
        ("/cookie", session, other, None),
        ("/cookie", session, session, None),
        ("/cookie", session, nobody, None),
        ("/language", german, german, good("hello de")),
        ("/language", german, french, None),
        ("/language", german, nobody, None),
        ("/host", nobody, nobody, good("hello palisade.test")),
        ("/host", nobody, ann, None),
        ("/host", nobody, ("cache-control", "no-store"), None),
        ("/host", nobody, ("range", "bytes=0-1"), None),
    ];
    let greeter = Greeter::start().await;
    let gateway = Gateway::start(greeter.address, POLICY, &[]).await;
    let client = gateway.client();
    for (path, had, ..) in cases {
        assert_eq!(client.ask("GET", path, &[had], "").await.status(), 200, "{path}");
    }
    greeter.fails.store(true, Ordering::Relaxed);
    assert_eq!(client.get("/none", None).await.status(), 500);
    for (path, had, asks, wanted) in cases {
        let answer = client.ask("GET", path, &[asks], "").await;
        match wanted {
            Some(body) => {
                assert_eq!(
                    (answer.status(), &answer.body[..]),
                    (200, body.as_bytes()),
                    "{path} {had:?} {asks:?}"
                );
                assert_eq!(answer.field("warning"), "110 palisade \"response is stale\"");
                assert!(!answer.field("age").is_empty() && !answer.field("x-frame-options").is_empty());
            }
            None => assert_eq!(answer.code(), "breaker_open", "{path} {had:?} {asks:?}"),
        }
    }
}

#[tokio::test]
async fn a_stored_answer_of_another_host_is_not_given_over_http2_either() {
    let greeter = Greeter::start().await;
    let gateway = Gateway::start(greeter.address, POLICY, &[]).await;
    let ask = async |host: &str| {
        let mut curl = Command::new("curl");
        let port = gateway.address.port();
        let to = format!("{host}:{port}:127.0.0.1");
        curl.args(["-s", "--http2-prior-knowledge", "--resolve", &to, "-w", " %{http_code}"]);
        curl.arg(format!("http://{host}:{port}/host")).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, curl.output()).await.unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let good = ask("a.test").await;
    assert!(good.starts_with("hello a.test") && good.ends_with(" 200"), "{good}");
    greeter.fails.store(true, Ordering::Relaxed);
    assert!(ask("c.test").await.ends_with(" 500"));
    assert_eq!(ask("a.test").await, good);
    assert!(ask("b.test").await.ends_with(" 503"), "it had nothing of its own");
}
