//! The values of settings that no other test switches on, each with what it changes.

use std::collections::BTreeSet;
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tests::accounts::{lenient, login, post};
use tests::authority::Authority;
use tests::client::Client;
use tests::peers::{python, smtp_server};
use tests::policy_text::PolicyText;
use tests::program::{Program, command};
use tests::redis::Redis;
use tests::stack::{Backend, Gateway, PASSWORD, POLICY};
use tests::upstream::RawUpstream;
use tests::{eventually, free_port};

const KEYS: &str = "/.well-known/jwks.json";

pub(crate) const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace"];

/// Runs a program at `level` until `told` has made it say something, and returns its lines.
async fn lines_at(level: &str, format: &str, program: &str) -> Vec<String> {
    let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
    let listen = format!("127.0.0.1:{port}");
    let mut run = command(program);
    if program == "gateway" {
        std::fs::write(
            dir.path().join("policy.toml"),
            POLICY.replace("{jwks}", "http://127.0.0.1:9/jwks.json"),
        )
        .unwrap();
        run.args(["run", "--policy"]).arg(dir.path().join("policy.toml"));
        run.env("PALISADE_GATEWAY__SERVER__LISTEN", &listen)
            .env("PALISADE_GATEWAY__ADMIN__LISTEN", "127.0.0.1:0");
        run.env("PALISADE_GATEWAY__UPSTREAMS__BACKEND__ADDRESSES", "127.0.0.1:9");
        run.env("PALISADE_GATEWAY__STATE__DIR", dir.path().join("state"));
        run.env("PALISADE_GATEWAY__LOG__LEVEL", level).env("PALISADE_GATEWAY__LOG__FORMAT", format);
        run.env("PALISADE_GATEWAY__LOG__ACCESS", "off");
    } else {
        run.arg("serve").env("PALISADE_BACKEND__SERVER__LISTEN", &listen);
        run.env("PALISADE_BACKEND__DATABASE__PATH", dir.path().join("palisade.db"));
        run.env("PALISADE_BACKEND__LOG__LEVEL", level).env("PALISADE_BACKEND__LOG__FORMAT", format);
    }
    run.env("PALISADE_PROFILE", "testing");
    let mut program = Program::start(program, run);
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    eventually("it listens", || async { tokio::net::TcpStream::connect(&listen).await.is_ok() }).await;
    Client::of(address).get("/health/live", None).await;
    program.signal("TERM");
    program.ended().await;
    program.log()
}

#[tokio::test]
async fn each_level_and_format_of_the_log_shows_what_it_should() {
    for program in ["gateway", "backend-sqlite"] {
        for (at, level) in LEVELS.iter().enumerate() {
            let lines = lines_at(level, "json", program).await;
            let shown: BTreeSet<String> = lines
                .iter()
                .map(|line| serde_json::from_str::<Value>(line).expect("each line is JSON"))
                .map(|event| event["level"].as_str().unwrap().to_lowercase())
                .collect();
            let allowed: BTreeSet<String> = LEVELS[..=at].iter().map(|level| (*level).to_owned()).collect();
            assert!(shown.is_subset(&allowed), "{program} at {level}: {shown:?}");
            // Both have something to warn of: no collector of keys, no GATEWAY_TOKEN.
            for wanted in ["warn", "info"].iter().filter(|wanted| allowed.contains(**wanted)) {
                assert!(shown.contains(*wanted), "{program} at {level}: {shown:?}");
            }
        }
        let text = lines_at("info", "text", program).await;
        assert!(text.iter().all(|line| serde_json::from_str::<Value>(line).is_err()), "{text:?}");
        assert!(text.iter().any(|line| line.contains("INFO")), "{text:?}");
    }
}

#[tokio::test]
async fn a_log_that_is_off_writes_nothing() {
    let backend = Backend::start(&[]).await;
    let off = [("PALISADE_GATEWAY__LOG__ACCESS", "off"), ("PALISADE_GATEWAY__LOG__AUDIT", "off")];
    let gateway = Gateway::start(backend.address, POLICY, &off).await;
    assert_eq!(gateway.client().get(KEYS, None).await.status(), 200);
    assert_eq!(gateway.operator().ask("PUT", "/admin/ip-blocks/127.0.0.98", &[], "").await.status(), 204);
    let mut gateway = gateway;
    gateway.program.signal("TERM");
    gateway.program.ended().await;
    let of_a_log = |event: &Value| event["log"] == "audit" || event["request_id"].is_string();
    assert!(!gateway.program.events().iter().any(of_a_log), "{:?}", gateway.program.log());
}

#[tokio::test]
async fn an_upstream_is_spoken_to_in_the_protocol_that_is_set() {
    let authority = Authority::new().await;
    authority.sign("far").await;
    let backend = Backend::start(&[]).await;
    let [certificate, key, ca] = ["far.pem", "far.key", "ca.pem"].map(|file| authority.path(file));
    let tls = [
        ("PALISADE_GATEWAY__SERVER__TLS__CERTIFICATE", certificate.as_str()),
        ("PALISADE_GATEWAY__SERVER__TLS__KEY", &key),
    ];
    let far = Gateway::start(backend.address, POLICY, &tls).await;
    for (protocol, spoken) in [("auto", "HTTP/2.0"), ("http1", "HTTP/1.1"), ("http2", "HTTP/2.0")] {
        let near = Gateway::start(
            far.address,
            &POLICY.replace("{jwks}", "http://127.0.0.1:9/"),
            &[
                ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__PROTOCOL", protocol),
                ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__TLS__CA", &ca),
            ],
        )
        .await;
        let answer = near.client().get(KEYS, None).await;
        assert_eq!(answer.status(), 200, "{protocol}");
        let id = answer.field("x-request-id").to_owned();
        let line = || far.program.events().into_iter().find(|event| event["request_id"] == id.as_str());
        eventually("it is logged there", || async { line().is_some() }).await;
        assert_eq!(line().unwrap()["protocol"], spoken, "{protocol}");
    }
}

#[tokio::test]
async fn a_token_of_each_algorithm_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let openssl = |arguments: &str| {
        let run =
            std::process::Command::new("openssl").args(arguments.split(' ')).current_dir(dir.path()).output();
        assert!(run.unwrap().status.success(), "{arguments}");
    };
    openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out RS256.key");
    openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ES256.key");
    openssl("genpkey -algorithm ED25519 -out EdDSA.key");
    let read = |name: &str| std::fs::read(file(name)).unwrap();
    let secret = "s".repeat(32);
    let backend = Backend::start(&[]).await;
    for (name, algorithm, key) in [
        ("HS256", Algorithm::HS256, EncodingKey::from_secret(secret.as_bytes())),
        ("RS256", Algorithm::RS256, EncodingKey::from_rsa_pem(&read("RS256.key")).unwrap()),
        ("ES256", Algorithm::ES256, EncodingKey::from_ec_pem(&read("ES256.key")).unwrap()),
        ("EdDSA", Algorithm::EdDSA, EncodingKey::from_ed_pem(&read("EdDSA.key")).unwrap()),
    ] {
        let keys = if name == "HS256" {
            "secret = \"A_SECRET\"".to_owned()
        } else {
            openssl(&format!("pkey -in {name}.key -pubout -out {name}.pem"));
            format!("key_file = {:?}", file(&format!("{name}.pem")))
        };
        let policy = PolicyText::usual().remove("jwt.accounts")
            + &format!("[jwt.accounts]\nalgorithms = [{name:?}]\n{keys}\n");
        let gateway = Gateway::start(backend.address, &policy, &[("A_SECRET", &secret)]).await;
        let exp = jsonwebtoken::get_current_timestamp() + 600;
        let token = encode(&Header::new(algorithm), &json!({"sub": "ann", "exp": exp}), &key).unwrap();
        let code = gateway.client().get("/v1/users", Some(&token)).await.code();
        assert_eq!(code, "role_missing", "{name}: she is known");
        let cut = &token[..token.len() - 4];
        assert_eq!(gateway.client().get("/v1/users", Some(cut)).await.code(), "token_invalid", "{name}");
    }
}

/// A route `/NAME` with a limit of its own, of three an hour.
fn limited(name: &str, rule: &str, more: &str) -> String {
    format!(
        "[limits.{name}]\nrate = \"3/h\"\n{rule}\n[[routes]]\nname = {name:?}\npath = \"/{name}\"\nupstream = \"backend\"\n\
         limits = [{name:?}]\n{more}\n"
    )
}

/// Path, address, a field `NAME=VALUE`, body.
type Ask<'a> = (&'a str, [u8; 4], &'a str, &'a str);

#[tokio::test]
async fn each_limit_counts_what_its_rule_says() {
    let backend = Backend::start(&[]).await;
    let policy = lenient()
        + &limited("of-ip", "key = \"ip\"\nmode = \"enforce\"\ncounts = \"requests\"", "")
        + &limited("of-all", "key = \"global\"", "")
        + &limited("of-route", "key = \"route\"", "")
        + &limited("of-header", "key = \"header:x-tenant\"", "")
        + &limited("of-field", "key = \"field:name\"", "")
        + &limited("of-user", "key = \"user\"", "auth = [\"jwt:accounts\"]")
        + &limited("in-shadow", "key = \"ip\"\nmode = \"shadow\"", "")
        + &limited("of-failures", "key = \"ip\"\ncounts = \"failures\"", "counts_failed_logins = [404]")
        + &limited("of-no-failures", "key = \"ip\"\ncounts = \"failures\"", "counts_failed_logins = [401]");
    let gateway = Gateway::start(backend.address, &policy, &[]).await;
    let client = gateway.client();
    backend.add_user("ann", &[]).await;
    backend.add_user("bob", &[]).await;
    let bearer = async |name: &str| {
        let tokens = login(&client, name, PASSWORD).await.json();
        format!("Bearer {}", tokens["access_token"].as_str().unwrap())
    };
    let (ann, bob) = (bearer("ann").await, bearer("bob").await);
    let ask = async |(path, from, field, body): Ask<'_>| {
        let (name, value) = field.split_once('=').unwrap_or(("x-none", "-"));
        let fields = [(name, value), ("content-type", "application/json")];
        let method = if body.is_empty() { "GET" } else { "POST" };
        client.at(from).ask(method, path, &fields, body.to_owned()).await.status()
    };
    // The status of the fourth request of one, and whether another is held by that.
    let fourth = async |one: Ask<'_>, other: Ask<'_>| {
        for _ in 0..3 {
            assert_ne!(ask(one).await, 429, "{one:?}");
        }
        (ask(one).await, ask(other).await == 429)
    };
    let (here, there) = ([127, 30, 0, 1], [127, 30, 0, 2]);
    let (ann, bob) = (format!("authorization={ann}"), format!("authorization={bob}"));
    assert_eq!(fourth(("/of-ip", here, "", ""), ("/of-ip", there, "", "")).await, (429, false));
    assert_eq!(fourth(("/of-all", here, "", ""), ("/of-all", there, "", "")).await, (429, true));
    assert_eq!(fourth(("/of-route", here, "", ""), ("/of-route", there, "", "")).await, (429, true));
    let (one, other) = (("/of-header", here, "x-tenant=a", ""), ("/of-header", here, "x-tenant=b", ""));
    assert_eq!(fourth(one, other).await, (429, false));
    let (one, other) =
        (("/of-field", here, "", "{\"name\":\"a\"}"), ("/of-field", here, "", "{\"name\":\"b\"}"));
    assert_eq!(fourth(one, other).await, (429, false));
    assert_eq!(fourth(("/of-user", here, &ann, ""), ("/of-user", there, &bob, "")).await, (429, false));
    assert_eq!(fourth(("/of-failures", here, "", ""), ("/of-failures", there, "", "")).await, (429, false));
    assert_eq!(
        fourth(("/of-no-failures", here, "", ""), ("/of-no-failures", here, "", "")).await,
        (404, false)
    );
    assert_eq!(fourth(("/in-shadow", here, "", ""), ("/in-shadow", here, "", "")).await, (404, false));
    eventually("but it is counted", || async {
        gateway.metric("palisade_rate_limit_exceeded_total{limit=\"in-shadow\"}").await > 1.5
    })
    .await;
}

#[tokio::test]
async fn a_shared_limit_without_redis_does_what_it_says() {
    let redis = Redis::start().await;
    let url = redis.url();
    let backend = Backend::start(&[]).await;
    let policy = lenient()
        + &limited("local", "key = \"ip\"\nscope = \"shared\"\non_store_failure = \"local\"", "")
        + &limited("allow", "key = \"ip\"\non_store_failure = \"allow\"", "")
        + &limited("deny", "key = \"ip\"\non_store_failure = \"deny\"", "")
        + &limited("alone", "key = \"ip\"\nscope = \"local\"\non_store_failure = \"deny\"", "");
    let environment = [("PALISADE_GATEWAY__REDIS__URL", url.as_str())];
    let one = Gateway::start(backend.address, &policy, &environment).await;
    let other = Gateway::start(backend.address, &policy, &environment).await;
    for gateway in [&one, &other] {
        eventually("Redis is there", || async { gateway.metric("palisade_redis_up").await > 0.5 }).await;
    }
    let status =
        async |gateway: &Gateway, name: &str| gateway.client().get(&format!("/{name}"), None).await.status();
    for name in ["local", "allow", "deny", "alone"] {
        for _ in 0..3 {
            assert_eq!(status(&one, name).await, 404, "{name}");
        }
        assert_eq!(status(&one, name).await, 429, "{name}");
    }
    for (name, there) in [("local", 429), ("allow", 429), ("deny", 429), ("alone", 404)] {
        assert_eq!(status(&other, name).await, there, "{name}: shared by both, or each its own");
    }
    redis.kill().await;
    eventually("Redis is away", || async { one.metric("palisade_redis_up").await < 0.5 }).await;
    for (name, away) in [("local", 429), ("allow", 404), ("deny", 503), ("alone", 429)] {
        assert_eq!(status(&one, name).await, away, "{name}");
    }
}

#[tokio::test]
async fn an_encoded_slash_is_refused_or_kept() {
    for (word, status) in [("refuse", 400), ("keep", 200)] {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
        let upstream = RawUpstream::start(vec![(Duration::ZERO, &answer[..])], false).await;
        let policy = format!(
            "version = 1\n[requests]\nencoded_slash = {word:?}\n[[routes]]\nname = \"all\"\npath = \"/{{*rest}}\"\n\
             upstream = \"backend\"\n"
        );
        let gateway = Gateway::start(upstream.address, &policy, &[]).await;
        assert_eq!(gateway.client().get("/a%2fb", None).await.status(), status, "{word}");
        let received = upstream.received();
        assert_eq!(received.iter().any(|one| one.starts_with("GET /a%2Fb ")), word == "keep", "{received:?}");
    }
}

#[tokio::test]
async fn pauses_between_tries_grow_as_the_policy_says() {
    const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy";
    for (word, pauses) in [("fixed", [20, 20, 20]), ("linear", [20, 40, 60]), ("exponential", [20, 40, 80])] {
        let upstream = RawUpstream::start(vec![(Duration::ZERO, BUSY)], false).await;
        let policy = format!(
            "version = 1\n[retries.default]\nattempts = 4\nbackoff = {word:?}\nbase = \"20ms\"\njitter = false\n\
             [[routes]]\nname = \"all\"\npath = \"/{{*rest}}\"\nupstream = \"backend\"\nretry = \"default\"\n"
        );
        let debug = [("PALISADE_GATEWAY__LOG__LEVEL", "debug")];
        let gateway = Gateway::start(upstream.address, &policy, &debug).await;
        assert_eq!(gateway.client().get("/", None).await.status(), 503);
        let waited = || -> Vec<u64> {
            let events = gateway.program.events();
            events
                .iter()
                .filter(|event| event["message"] == "sent again")
                .filter_map(|event| event["wait_ms"].as_str()?.parse().ok())
                .collect()
        };
        eventually("all tries are logged", || async { waited().len() == 3 }).await;
        assert_eq!(waited(), pauses, "{word}");
    }
}

#[tokio::test]
async fn an_acknowledged_write_outlives_a_kill_however_the_disk_is_written() {
    for word in ["full", "normal"] {
        let environment = [("PALISADE_BACKEND__DATABASE__SYNCHRONOUS", word)];
        let backend = Backend::start(&environment).await;
        let gateway = Gateway::start(backend.address, &lenient(), &[]).await;
        let body = json!({"username": "ann", "password": PASSWORD});
        assert_eq!(post(&gateway.client(), "/v1/auth/register", None, &body).await.status(), 201, "{word}");
        let _backend = backend.restart().await;
        eventually("she is there", || async {
            login(&gateway.client(), "ann", PASSWORD).await.status() == 200
        })
        .await;
    }
}

#[tokio::test]
async fn mail_goes_out_by_each_kind_of_address() {
    let Some(python) = python() else { return eprintln!("PEERS_PYTHON is not set: not tried") };
    let authority = Authority::new().await;
    authority.sign("mail").await;
    let [certificate, key, ca] = ["mail.pem", "mail.key", "ca.pem"].map(|file| authority.path(file));
    let with_tls = ["--certificate", &certificate, "--key", &key];
    let user = ["--user", "ann", "--password", "s3cret"];
    for (word, scheme, query, server_tls) in [
        ("none", "smtp", "?tls=none", &[][..]),
        ("opportunistic", "smtp", "?tls=opportunistic", &with_tls[..]),
        ("required", "smtp", "?tls=required", &with_tls[..]),
        ("smtps", "smtps", "", &with_tls[..]),
    ] {
        let port = free_port();
        let mut arguments = [&user[..], server_tls].concat();
        if word == "smtps" {
            arguments.push("--wrapped");
        }
        let server = smtp_server(&python, port, &arguments).await;
        let url = format!("{scheme}://ann@127.0.0.1:{port}{query}");
        let backend = Backend::start(&[
            ("PALISADE_BACKEND__MAIL__URL", url.as_str()),
            ("SMTP_PASSWORD", "s3cret"),
            ("SSL_CERT_FILE", &ca),
        ])
        .await;
        let gateway = Gateway::start(backend.address, &lenient(), &[]).await;
        let body = json!({"username": "bob", "password": PASSWORD, "email": "bob@example.org"});
        assert_eq!(post(&gateway.client(), "/v1/auth/register", None, &body).await.status(), 201);
        post(&gateway.client(), "/v1/auth/forgot-password", None, &json!({"username": "bob"})).await;
        let mail = || server.events().into_iter().find(|event| event["message"] == "mail");
        eventually(&format!("{word}: the mail is there"), || async { mail().is_some() }).await;
        assert_eq!(mail().unwrap()["tls"], word != "none", "{word}");
    }
}
