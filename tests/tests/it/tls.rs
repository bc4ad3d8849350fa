//! TLS towards clients, and balancers that say whose connection it is.

use std::process::Output;

use tests::authority::Authority;
use tests::client::Client;
use tests::eventually;
use tests::stack::{Backend, Gateway, POLICY};
use tests::upstream::RawUpstream;
use tokio::process::Command;

/// What curl, which trusts `authority`, says of a request over TLS.
async fn curl(authority: &Authority, gateway: &Gateway, more: &[&str]) -> Output {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "5", "--cacert", &authority.path("ca.pem")]).args(more);
    curl.args(["-w", "%{http_code} %{http_version} %{certs}", "-o", "/dev/null"]);
    curl.arg(format!("https://{}/.well-known/jwks.json", gateway.address)).output().await.unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn a_certificate_serves_both_protocols_and_is_swapped_beside_requests() {
    let authority = Authority::new().await;
    authority.sign("first").await;
    for (from, to) in [("first.pem", "tls.pem"), ("first.key", "tls.key")] {
        std::fs::copy(authority.file(from), authority.file(to)).unwrap();
    }
    let backend = Backend::start(&[]).await;
    let tls = [
        ("PALISADE_GATEWAY__SERVER__TLS__CERTIFICATE", authority.path("tls.pem")),
        ("PALISADE_GATEWAY__SERVER__TLS__KEY", authority.path("tls.key")),
    ];
    let tls = tls.each_ref().map(|(name, value)| (*name, value.as_str()));
    let gateway = Gateway::start(backend.address, POLICY, &tls).await;
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let answer = text(&curl(&authority, &gateway, &[flag]).await);
        assert!(answer.starts_with(&format!("200 {version} ")), "{answer}");
        assert!(answer.contains("CN = first") || answer.contains("CN=first"), "{answer}");
    }
    authority.sign("second").await;
    // The certificate first: until its key is there the old pair serves.
    std::fs::copy(authority.file("second.pem"), authority.file("tls.pem")).unwrap();
    eventually("the half of a pair is refused", || async {
        gateway.metric("palisade_tls_reloads_total{result=\"refused\"}").await > 0.5
    })
    .await;
    assert!(text(&curl(&authority, &gateway, &[]).await).contains("first"));
    std::fs::copy(authority.file("second.key"), authority.file("tls.key")).unwrap();
    eventually("the new one serves", || async {
        text(&curl(&authority, &gateway, &[]).await).contains("second")
    })
    .await;
    let plain = gateway.client().raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!plain.contains("HTTP/1.1 200"), "what is not TLS is not answered: {plain:?}");
}

#[tokio::test]
async fn a_client_may_have_to_show_a_certificate_and_the_upstream_learns_of_tls() {
    let authority = Authority::new().await;
    authority.sign("gate").await;
    authority.sign("client").await;
    let other = Authority::new().await;
    other.sign("stranger").await;
    let upstream = RawUpstream::start(
        vec![(std::time::Duration::ZERO, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")],
        false,
    )
    .await;
    let tls = [
        ("PALISADE_GATEWAY__SERVER__TLS__CERTIFICATE", authority.path("gate.pem")),
        ("PALISADE_GATEWAY__SERVER__TLS__KEY", authority.path("gate.key")),
        ("PALISADE_GATEWAY__SERVER__TLS__CLIENT_CA", authority.path("ca.pem")),
    ];
    let tls = tls.each_ref().map(|(name, value)| (*name, value.as_str()));
    let gateway = Gateway::start(upstream.address, POLICY, &tls).await;
    let none = curl(&authority, &gateway, &[]).await;
    assert!(!none.status.success() && text(&none).starts_with("000"), "{}", text(&none));
    let shown = |authority: &Authority, name: &str| {
        [
            "--cert".to_owned(),
            authority.path(&format!("{name}.pem")),
            "--key".to_owned(),
            authority.path(&format!("{name}.key")),
        ]
    };
    let with = async |arguments: [String; 4]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        text(&curl(&authority, &gateway, &arguments).await)
    };
    assert!(with(shown(&other, "stranger")).await.starts_with("000"), "another authority's");
    let answer = with(shown(&authority, "client")).await;
    assert!(answer.starts_with("200 "), "{answer}");
    let received = upstream.received().join("").to_ascii_lowercase();
    assert!(received.contains("x-forwarded-proto: https\r\n"), "{received}");
}

#[tokio::test]
async fn a_trusted_balancer_names_the_client_and_nobody_else_does() {
    let backend = Backend::start(&[]).await;
    let policy = format!("{POLICY}\n[client]\ntrusted_proxies = [\"127.0.9.0/24\"]\n");
    let on = [("PALISADE_GATEWAY__SERVER__PROXY_PROTOCOL", "true")];
    let gateway = Gateway::start(backend.address, &policy, &on).await;
    let request = "GET /.well-known/jwks.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let send = async |client: Client, header: &[u8]| client.raw(&[header, request.as_bytes()].concat()).await;
    let balancer = gateway.client().at([127, 0, 9, 1]);
    let named = b"PROXY TCP4 127.66.0.1 127.0.0.1 4711 80\r\n";
    let refused = send(balancer, named).await;
    assert!(refused.starts_with("HTTP/1.1 403 "), "the policy denies 127.66.0.0/16: {refused}");
    let fine = send(balancer, b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n").await;
    assert!(fine.starts_with("HTTP/1.1 200 "), "{fine}");
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    binary.extend([127, 66, 0, 1, 127, 0, 0, 1, 0x12, 0x67, 0, 80]);
    assert!(send(balancer, &binary).await.starts_with("HTTP/1.1 403 "));
    assert_eq!(send(balancer, b"").await, "", "a balancer that does not say is not believed to be a client");
    let forged = send(gateway.client(), named).await;
    assert!(forged.starts_with("HTTP/1.1 400 "), "nobody else may say: {forged}");
    // Whoever asks for itself, as a health check does, is not trusted about others.
    let hearsay = "GET /.well-known/jwks.json HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 127.66.0.1\r\nConnection: close\r\n\r\n";
    let hear = async |header: &[u8]| balancer.raw(&[header, hearsay.as_bytes()].concat()).await;
    assert!(
        hear(b"PROXY TCP4 127.0.9.7 127.0.0.1 4711 80\r\n").await.starts_with("HTTP/1.1 403 "),
        "for a client it is"
    );
    for own in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let fine = hear(own).await;
        assert!(fine.starts_with("HTTP/1.1 200 "), "{own:?}: {fine}");
    }
    eventually("the access log has the client's address", || async {
        gateway.program.events().iter().any(|line| line["client"] == "192.0.2.7")
    })
    .await;
}
