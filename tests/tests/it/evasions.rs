//! A narrow rule is not evaded by another spelling: of a path, of a body's member, of a target over either protocol.

use std::time::Duration;

use tests::client::Client;
use tests::stack::Gateway;
use tests::upstream::RawUpstream;
use tokio::process::Command;

const POLICY: &str = r#"
version = 1
[jwt.any]
algorithms = ["HS256"]
secret = "JWT_SECRET"
[limits.name]
key = "field:username"
rate = "1/h"
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
[[routes]]
name = "private"
path = "/private"
upstream = "backend"
auth = ["jwt:any"]
[[routes]]
name = "action"
path = "/items:purge"
upstream = "backend"
auth = ["jwt:any"]
[[routes]]
name = "login"
path = "/login"
methods = ["POST"]
upstream = "backend"
limits = ["name"]
"#;

async fn start() -> (RawUpstream, Gateway) {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    let upstream = RawUpstream::start(vec![(Duration::ZERO, answer)], false).await;
    let secret = [("JWT_SECRET", "a secret of a test, which is long enough")];
    let gateway = Gateway::start(upstream.address, POLICY, &secret).await;
    (upstream, gateway)
}

/// The status that curl gets for a target as it stands.
async fn status(gateway: &Gateway, protocol: &str, target: &str) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", protocol, "--request-target", target]);
    let output = curl.arg(format!("http://{}/", gateway.address)).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_guarded_path_is_guarded_however_it_is_spelt() {
    let (upstream, gateway) = start().await;
    let spellings = [
        "/private",
        "/private/",
        "//private",
        "/private//",
        "/private/.",
        "/./private",
        "/x/../private",
        "/x/%2e%2E/private/",
        "/%70rivate",
        "/private?x=/y",
        "/items:purge",
        "/items%3Apurge",
        "/items%3apurge/",
    ];
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        for target in spellings {
            assert_eq!(status(&gateway, protocol, target).await, "401", "{protocol} {target}");
        }
        assert_eq!(status(&gateway, protocol, "/private%2F").await, "400", "{protocol}");
        assert!(upstream.received().is_empty(), "{:?}", upstream.received());
    }
    assert_eq!(status(&gateway, "--http1.1", "/privat").await, "200", "and nothing else is");
    let whole = gateway.client().raw(b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(whole.starts_with("HTTP/1.1 404 "), "the server as a whole is no path: {whole}");
}

#[tokio::test]
async fn a_member_of_a_body_has_one_bucket_however_it_is_spelt() {
    let (_upstream, gateway) = start().await;
    let login = async |client: Client, body: &'static str| {
        client.ask("POST", "/login", &[("content-type", "application/json")], body).await.status()
    };
    let client = gateway.client();
    for twice in [
        r#"{"username":"ann","username":"bob"}"#,
        r#"{"username":"ann","Username":"bob"}"#,
        r#"{"USERNAME":"ann","usern\u0061me":"ann"}"#,
    ] {
        assert_eq!(login(client, twice).await, 400, "{twice}");
    }
    assert_eq!(login(client, r#"{"username":"ann"}"#).await, 200);
    for again in [r#"{"username":"ann"}"#, r#"{"Username":"ann"}"#, r#"{"usern\u0061me":"ANN"}"#] {
        assert_eq!(login(client.at([127, 0, 0, 2]), again).await, 429, "{again}");
    }
    assert_eq!(login(client, r#"{"username":"bob"}"#).await, 200);
}
