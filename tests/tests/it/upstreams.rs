//! How upstreams are spoken to: HTTP/2 and TLS. The upstream is a gateway before a backend, which speaks both.

use tests::authority::Authority;
use tests::client::read_until;
use tests::eventually;
use tests::stack::{Backend, Gateway, POLICY};
use tests::upstream::RawUpstream;
use tokio::io::AsyncWriteExt as _;

const KEYS: &str = "/.well-known/jwks.json";

/// Passes everything on, as in a chain of two gateways.
const PASS: &str = r#"
version = 1
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
"#;

/// A gateway with a certificate, which clients have to answer with one of their own, before `upstream`.
async fn far_gateway(authority: &Authority, upstream: std::net::SocketAddr, policy: &str) -> Gateway {
    let [certificate, key, ca] = ["far.pem", "far.key", "ca.pem"].map(|file| authority.path(file));
    let tls = [
        ("PALISADE_GATEWAY__SERVER__TLS__CERTIFICATE", certificate.as_str()),
        ("PALISADE_GATEWAY__SERVER__TLS__KEY", &key),
        ("PALISADE_GATEWAY__SERVER__TLS__CLIENT_CA", &ca),
    ];
    Gateway::start(upstream, policy, &tls).await
}

/// A gateway before one that is spoken to over TLS; what it trusts and shows is in `ca.mine`, `cert.mine`, `key.mine`.
async fn near_gateway(authority: &Authority, far: &Gateway) -> Gateway {
    for (from, to) in [("ca.pem", "ca.mine"), ("near.pem", "cert.mine"), ("near.key", "key.mine")] {
        std::fs::copy(authority.file(from), authority.file(to)).unwrap();
    }
    let [ca, certificate, key] = ["ca.mine", "cert.mine", "key.mine"].map(|file| authority.path(file));
    let tls = [
        ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__TLS__CA", ca.as_str()),
        ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__TLS__CERTIFICATE", &certificate),
        ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__TLS__KEY", &key),
        ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__HEALTH", KEYS),
    ];
    Gateway::start(far.address, PASS, &tls).await
}

async fn authority() -> Authority {
    let authority = Authority::new().await;
    authority.sign("far").await;
    authority.sign("near").await;
    authority
}

#[tokio::test]
async fn an_upstream_is_spoken_to_over_tls_in_what_both_agree_on() {
    let authority = authority().await;
    let backend = Backend::start(&[]).await;
    let far = far_gateway(&authority, backend.address, POLICY).await;
    let near = near_gateway(&authority, &far).await;
    assert_eq!(near.client().get(KEYS, None).await.status(), 200);
    eventually("the far one was asked over HTTP/2", || async {
        let asked = far.program.events().into_iter().filter(|line| line["path"] == KEYS);
        let protocols: Vec<_> = asked.map(|line| line["protocol"].clone()).collect();
        !protocols.is_empty() && protocols.iter().all(|protocol| protocol == "HTTP/2.0")
    })
    .await;
    let health = near.operator().get("/health/detailed", None).await.json();
    assert_eq!(health["checks"][0]["status"], "ok", "our own questions go the same way: {health}");
    let old = near.client().raw(format!("GET {KEYS} HTTP/1.0\r\n\r\n").as_bytes()).await;
    assert!(old.starts_with("HTTP/1.1 200 "), "a client that names no host: {old}");
    let missing = near.client().get("/nothing", None).await;
    assert_eq!((missing.status(), missing.code().as_str()), (404, "route_not_found"));
}

#[tokio::test]
async fn certificates_towards_an_upstream_are_swapped_and_checked() {
    let authority = authority().await;
    let other = self::authority().await;
    let backend = Backend::start(&[]).await;
    let far = far_gateway(&authority, backend.address, POLICY).await;
    let near = near_gateway(&authority, &far).await;
    let status = async || near.client().get(KEYS, None).await.status();
    let health = async || {
        let state = near.operator().get("/health/detailed", None).await.json();
        state["checks"][0]["status"].as_str().unwrap().to_owned()
    };
    assert_eq!((status().await, health().await.as_str()), (200, "ok"));
    let swap = |from: &Authority, files: &[(&str, &str)]| {
        for (file, to) in files {
            std::fs::copy(from.file(file), authority.file(to)).unwrap();
        }
    };
    swap(&other, &[("ca.pem", "ca.mine")]);
    eventually("the upstream is not believed any more", || async { status().await == 502 }).await;
    assert_ne!(health().await, "ok", "nor are our own questions asked over what was made before");
    eventually("the log says why, the client is not told", || async {
        let faults = near.program.events().into_iter().filter(|line| line["status"] == 502);
        let faults: Vec<_> = faults.map(|line| line["upstream_fault"].to_string()).collect();
        faults.iter().any(|fault| fault.contains("invalid peer certificate"))
    })
    .await;
    let refused = near.client().get(KEYS, None).await;
    assert!(!String::from_utf8_lossy(&refused.body).contains("certificate"), "{:?}", refused.body);
    swap(&authority, &[("ca.pem", "ca.mine")]);
    eventually("it is believed again", || async { status().await == 200 }).await;
    assert_eq!(health().await, "ok");
    swap(&other, &[("near.pem", "cert.mine"), ("near.key", "key.mine")]);
    eventually("it does not believe us any more", || async { status().await == 502 }).await;
    swap(&authority, &[("near.pem", "cert.mine"), ("near.key", "key.mine")]);
    eventually("it does again", || async { status().await == 200 }).await;
}

#[tokio::test]
async fn a_websocket_passes_an_upstream_that_would_speak_http2() {
    let authority = authority().await;
    let handshake: &[u8] =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let upstream = RawUpstream::start(vec![(std::time::Duration::ZERO, handshake)], true).await;
    let far = far_gateway(&authority, upstream.address, PASS).await;
    let near = near_gateway(&authority, &far).await;
    let mut socket = near.client().connect().await;
    let request = "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut socket, "\r\n\r\n").await;
    socket.write_all(b"whatever follows").await.unwrap();
    read_until(&mut socket, "whatever follows").await;
}
