//! Fields that every answer carries: what the service says of itself counts, unless the policy says otherwise.

use std::process::Stdio;
use std::time::Duration;

use tests::PATIENCE;
use tests::authority::Authority;
use tests::client::Answer;
use tests::stack::Gateway;
use tests::upstream::RawUpstream;
use tokio::process::Command;

const SERVICE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\nContent-Security-Policy: script-src 'none'\r\nX-Frame-Options: SAMEORIGIN\r\nPermissions-Policy: camera=(self)\r\nX-Own: mine\r\n\r\nok";

const HSTS: &str = "strict-transport-security";

const PRODUCTION: (&str, &str) = ("PALISADE_PROFILE", "production");

fn policy(headers: &str) -> String {
    format!(
        "version = 1\n[client]\ntrusted_proxies = [\"127.0.9.0/24\"]\n[[routes]]\nname = \"all\"\npath = \"/{{*rest}}\"\nmethods = [\"GET\"]\nupstream = \"backend\"\n[headers]\n{headers}\n"
    )
}

async fn answer(headers: &str) -> Answer {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, SERVICE)], false).await;
    let gateway = Gateway::start(upstream.address, &policy(headers), &[]).await;
    gateway.client().get("/a", None).await
}

#[tokio::test]
async fn defaults_fill_in_what_the_service_left_out() {
    let answer = answer("").await;
    for (name, value) in [
        ("content-security-policy", "script-src 'none'"),
        ("x-frame-options", "SAMEORIGIN"),
        ("permissions-policy", "camera=(self)"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ] {
        let values: Vec<_> = answer.head.headers.get_all(name).iter().collect();
        assert_eq!(values, [value], "{name}");
    }
}

#[tokio::test]
async fn a_field_of_the_policy_replaces_or_removes_or_only_fills_in() {
    let named = "content-security-policy = \"default-src 'none'\"\nx-frame-options = \"\"\nx-own = \"\"\nx-more = \"yes\"\nreferrer-policy = \"\"";
    let replaced = answer(named).await;
    assert_eq!(replaced.field("content-security-policy"), "default-src 'none'");
    for name in ["x-frame-options", "x-own", "referrer-policy"] {
        assert!(!replaced.head.headers.contains_key(name), "{name}");
    }
    assert_eq!((replaced.field("x-more"), replaced.field("permissions-policy")), ("yes", "camera=(self)"));
    let filled = answer(&format!("mode = \"fill\"\n{named}")).await;
    for (name, value) in [
        ("content-security-policy", "script-src 'none'"),
        ("x-frame-options", "SAMEORIGIN"),
        ("x-own", "mine"),
        ("x-more", "yes"),
        ("referrer-policy", ""),
    ] {
        assert_eq!(filled.field(name), value, "{name}");
    }
}

#[tokio::test]
async fn hsts_is_said_in_production_behind_a_trusted_proxy_that_says_https_and_nowhere_else() {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, SERVICE)], false).await;
    let production = Gateway::start(upstream.address, &policy(""), &[PRODUCTION]).await;
    let testing = Gateway::start(upstream.address, &policy(""), &[]).await;
    let balancer = [127, 0, 9, 1];
    for (gateway, from, scheme, method, said) in [
        (&production, balancer, "https", "GET", true),
        (&production, balancer, "HTTPS", "PUT", true),
        (&production, balancer, "http", "GET", false),
        (&production, [127, 0, 0, 1], "https", "GET", false),
        (&production, [127, 0, 0, 1], "https", "PUT", false),
        (&testing, balancer, "https", "GET", false),
    ] {
        let answer = gateway.client().at(from).ask(method, "/a", &[("x-forwarded-proto", scheme)], "").await;
        assert_eq!(answer.status(), if method == "GET" { 200 } else { 405 });
        let wanted = if said { "max-age=31536000; includeSubDomains" } else { "" };
        assert_eq!(answer.field(HSTS), wanted, "{from:?} {scheme} {method}");
    }
}

#[tokio::test]
async fn hsts_is_said_over_tls_in_both_protocols_on_answers_and_refusals() {
    let authority = Authority::new().await;
    authority.sign("gate").await;
    let [certificate, key] = ["gate.pem", "gate.key"].map(|file| authority.path(file));
    let settings = [
        PRODUCTION,
        ("PALISADE_GATEWAY__SERVER__TLS__CERTIFICATE", certificate.as_str()),
        ("PALISADE_GATEWAY__SERVER__TLS__KEY", &key),
    ];
    let upstream = RawUpstream::start(vec![(Duration::ZERO, SERVICE)], false).await;
    let gateway = Gateway::start(upstream.address, &policy(""), &settings).await;
    let url = format!("https://{}/a", gateway.address);
    for protocol in ["--http1.1", "--http2"] {
        for (method, status) in [("GET", "200"), ("PUT", "405")] {
            let mut curl = Command::new("curl");
            curl.args(["-sk", protocol, "-X", method, "-D", "-", "-o", "/dev/null", &url])
                .stdin(Stdio::null());
            let output =
                tokio::time::timeout(PATIENCE, curl.kill_on_drop(true).output()).await.unwrap().unwrap();
            let head = String::from_utf8_lossy(&output.stdout).to_ascii_lowercase();
            assert!(head.contains(&format!(" {status}")), "{protocol} {method}: {head}");
            assert!(
                head.contains("strict-transport-security: max-age=31536000"),
                "{protocol} {method}: {head}"
            );
        }
    }
}

#[tokio::test]
async fn a_refusal_may_not_be_stored() {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, SERVICE)], false).await;
    let gateway = Gateway::start(upstream.address, &policy("cache-control = \"max-age=60\""), &[]).await;
    assert_eq!(gateway.client().get("/a", None).await.field("cache-control"), "max-age=60");
    let refused = gateway.client().ask("PUT", "/a", &[], "").await;
    assert_eq!((refused.status(), refused.field("cache-control")), (405, "no-store"));
    let malformed = gateway.client().raw(b"GET /a HTTP/1.1\r\n\r\n").await.to_ascii_lowercase();
    assert!(
        malformed.starts_with("http/1.1 400 ") && malformed.contains("\r\ncache-control: no-store\r\n"),
        "{malformed}"
    );
    assert_eq!(malformed.matches("cache-control").count(), 1, "{malformed}");
}
