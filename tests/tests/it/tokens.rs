//! Tokens: attacks on them, and issuers with keys that change.

use std::net::Ipv4Addr;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::sign;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tests::client::Client;
use tests::policy_text::PolicyText;
use tests::program::Program;
use tests::stack::{Backend, Gateway};
use tests::{eventually, free_port};
use tokio::process::Command;

/// A policy whose one issuer is `issuer`, a TOML table.
fn policy_with(issuer: &str) -> PolicyText {
    PolicyText::usual().remove("jwt.accounts") + issuer
}

fn claims() -> Value {
    let now = jsonwebtoken::get_current_timestamp();
    json!({"iss": "palisade", "aud": "palisade", "sub": "ann", "roles": ["admin"], "iat": now, "exp": now + 600})
}

async fn code(client: &Client, token: &str) -> String {
    let answer = client.get("/v1/users", Some(token)).await;
    if answer.status() == 200 { "ok".to_owned() } else { answer.code() }
}

fn openssl(arguments: &[&str]) {
    let output = std::process::Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A token with any header and payload, whose signature is right.
fn signed(header: &str, payload: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = sign(signed.as_bytes(), key, algorithm).unwrap();
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn forged_tokens_are_refused_however_they_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (private, public) = (file("private.pem"), file("public.pem"));
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &private]);
    openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
    let policy = policy_with(&format!(
        "[jwt.accounts]\nalgorithms = [\"RS256\"]\nkey_file = {public:?}\nissuer = \"palisade\"\naudience = [\"palisade\"]"
    ));
    let backend = Backend::start(&[]).await;
    let gateway = Gateway::start(backend.address, &policy, &[]).await;
    let client = gateway.client();
    let key = EncodingKey::from_rsa_pem(&std::fs::read(&private).unwrap()).unwrap();
    let payload = claims().to_string();
    let rs256 = |header: &str, payload: &str| signed(header, payload, &key, Algorithm::RS256);
    assert_eq!(code(&client, &rs256(r#"{"alg":"RS256"}"#, &payload)).await, "ok");

    // The public key as a shared secret.
    let secret = EncodingKey::from_secret(&std::fs::read(&public).unwrap());
    let confused = signed(r#"{"alg":"HS256"}"#, &payload, &secret, Algorithm::HS256);
    // A key of the attacker's own, brought along in every way that a token can.
    let pkcs8 = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
    let own = EncodingKey::from_ed_der(pkcs8.as_ref());
    let jwk = serde_json::to_value(Jwk::from_encoding_key(&own, Algorithm::EdDSA).unwrap()).unwrap();
    let bringing = |name: &str, value: Value| {
        let header = json!({"alg": "EdDSA", name: value}).to_string();
        signed(&header, &payload, &own, Algorithm::EdDSA)
    };
    let now = jsonwebtoken::get_current_timestamp();
    let exp = now + 600;
    let double = format!(
        "{{\"sub\":\"bob\",\"sub\":\"ann\",\"iss\":\"palisade\",\"aud\":\"palisade\",\"exp\":{exp}}}"
    );
    let long =
        json!({"iss": "palisade", "aud": "palisade", "sub": "ann", "exp": exp, "pad": "x".repeat(8_000)});
    let good = rs256(r#"{"alg":"RS256"}"#, &payload);
    let forged = [
        ("alg confusion", confused),
        (
            "none",
            format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(&payload)),
        ),
        (
            "NoNe",
            format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"NoNe"}"#), URL_SAFE_NO_PAD.encode(&payload)),
        ),
        ("jwk", bringing("jwk", jwk.clone())),
        ("jku", bringing("jku", json!("http://127.0.0.1:9/keys.json"))),
        ("x5u", bringing("x5u", json!("http://127.0.0.1:9/key.pem"))),
        ("x5c", bringing("x5c", json!(["MIIB"]))),
        ("crit", rs256(r#"{"alg":"RS256","crit":["exp"]}"#, &payload)),
        ("b64", rs256(r#"{"alg":"RS256","b64":false}"#, &payload)),
        ("a claim twice", rs256(r#"{"alg":"RS256"}"#, &double)),
        ("a header twice", rs256(r#"{"alg":"none","alg":"RS256"}"#, &payload)),
        ("too long", rs256(r#"{"alg":"RS256"}"#, &long.to_string())),
        ("not JSON", rs256(r#"{"alg":"RS256"}"#, "garbage")),
        ("padded", good.replace('.', "=.")),
        ("not base64", format!("{}!{}", &good[..9], &good[10..])),
        ("cut", good[..good.len() - 10].to_owned()),
    ];
    for (what, token) in forged {
        assert_eq!(code(&client, &token).await, "token_invalid", "{what}");
    }
    let padded = rs256("{\"alg\":\"RS256\",\"jwk\":{},\"jku\":\"http://127.0.0.1:9/\"}", &payload);
    assert_eq!(code(&client, &padded).await, "ok", "what points elsewhere is not followed, and does no harm");
    let twice = [("authorization", format!("Bearer {good}")), ("authorization", format!("Bearer {good}"))];
    let fields: Vec<_> = twice.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(client.ask("GET", "/v1/users", &fields, "").await.code(), "token_invalid", "two fields");
}

/// Keys on a web server, which says in its log what it is asked for.
struct KeyServer {
    program: Program,
    url: String,
    dir: tempfile::TempDir,
}

impl KeyServer {
    async fn start() -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut command = Command::new("python3");
        command.args(["-u", "-m", "http.server", &port.to_string(), "--bind", "127.0.0.1", "--directory"]);
        command.arg(dir.path());
        let program = Program::start("keys", command);
        eventually("the key server listens", || async {
            tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok()
        })
        .await;
        Self { program, url: format!("http://127.0.0.1:{port}/keys.json"), dir }
    }

    /// Serves the public keys of `keys`, each with its `kid`.
    fn publish(&self, keys: &[(&str, &EncodingKey)]) {
        let public = |(kid, key): &(&str, &EncodingKey)| {
            let mut public = Jwk::from_encoding_key(key, Algorithm::EdDSA).unwrap();
            public.common.key_id = Some((*kid).to_owned());
            public.common.public_key_use = Some(PublicKeyUse::Signature);
            public
        };
        let set = json!({"keys": keys.iter().map(public).collect::<Vec<_>>()});
        let (beside, file) = (self.dir.path().join("new"), self.dir.path().join("keys.json"));
        std::fs::write(&beside, set.to_string()).unwrap();
        std::fs::rename(beside, file).unwrap();
    }

    fn fetches(&self) -> usize {
        self.program.log().iter().filter(|line| line.contains("GET /keys.json")).count()
    }
}

fn new_key() -> EncodingKey {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
    EncodingKey::from_ed_der(pkcs8.as_ref())
}

fn token(kid: &str, key: &EncodingKey, edit: impl FnOnce(&mut Value)) -> String {
    let mut claims = claims();
    edit(&mut claims);
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::EdDSA) };
    encode(&header, &claims, key).unwrap()
}

#[tokio::test]
async fn keys_rotate_and_an_unknown_one_causes_one_fetch() {
    let server = KeyServer::start().await;
    let (old, new, stranger) = (new_key(), new_key(), new_key());
    server.publish(&[("old", &old)]);
    let policy = policy_with(&format!(
        "[jwt.accounts]\nalgorithms = [\"EdDSA\"]\njwks = {:?}\nrefresh = \"1h\"\nissuer = \"palisade\"\naudience = [\"palisade\"]",
        server.url
    ));
    let backend = Backend::start(&[]).await;
    let gateway = Gateway::start(backend.address, &policy, &[]).await;
    let client = gateway.client();
    let first = token("old", &old, |_| {});
    eventually("the keys are there", || async { code(&client, &first).await == "ok" }).await;
    let before = server.fetches();
    server.publish(&[("old", &old), ("new", &new)]);
    // Many at once name a key that is not known: one fetch for all of them, and then it is.
    let asked: Vec<_> = (0..50)
        .map(|number| {
            let token = token("new", &new, |claims| claims["jti"] = json!(number));
            tokio::spawn(async move { code(&client, &token).await })
        })
        .collect();
    for one in asked {
        assert_eq!(one.await.unwrap(), "ok");
    }
    assert_eq!(server.fetches() - before, 1, "one fetch");
    for _ in 0..20 {
        assert_eq!(code(&client, &token("other", &stranger, |_| {})).await, "token_invalid");
    }
    assert_eq!(server.fetches() - before, 1, "at most one in ten seconds");
    assert_eq!(code(&client, &token("old", &new, |_| {})).await, "token_invalid", "the wrong key's name");

    // A key that is taken out of the set is not trusted any more, remembered tokens included.
    server.publish(&[("new", &new)]);
    gateway.edit_policy(|text| text.replace("refresh = \"1h\"", "refresh = \"1s\""));
    eventually("the old key is gone", || async { code(&client, &first).await == "token_invalid" }).await;
    // The last good set serves while the source is unavailable.
    server.program.signal("KILL");
    let failed = "palisade_key_set_fetches_total{result=\"failed\"}";
    eventually("three refreshes fail", || async { gateway.metric(failed).await > 2.5 }).await;
    let said = "a key set cannot be fetched: the last good one serves";
    let count = gateway.program.events().iter().filter(|event| event["message"] == said).count();
    assert_eq!(count, 1, "it is said when it begins");
    assert_eq!(code(&client, &token("new", &new, |_| {})).await, "ok");
}

#[tokio::test]
async fn the_access_log_says_what_of_a_proof_did_not_do() {
    let server = KeyServer::start().await;
    let (ours, stranger) = (new_key(), new_key());
    server.publish(&[("ours", &ours)]);
    let issuer = format!(
        "[jwt.accounts]\nalgorithms = [\"EdDSA\"]\njwks = {:?}\nissuer = \"palisade\"\naudience = [\"palisade\"]\n\
         forward = {{ sub = \"x-auth-user\", roles = \"x-auth-roles\" }}\n",
        server.url
    );
    let backend = Backend::start(&[]).await;
    let gateway = Gateway::start(backend.address, &policy_with(&issuer), &[]).await;
    let client = gateway.client();
    eventually("the keys are there", || async { code(&client, &token("ours", &ours, |_| {})).await == "ok" })
        .await;
    let edited =
        |claim: &'static str, value: Value| token("ours", &ours, move |claims| claims[claim] = value);
    let cases = [
        ("signature", token("ours", &stranger, |_| {})),
        ("unknown_key", token("stranger", &stranger, |_| {})),
        ("malformed", "a.b".to_owned()),
        ("too_long", "x".repeat(9_000)),
        ("algorithm", signed(r#"{"alg":"none"}"#, "{}", &stranger, Algorithm::EdDSA)),
        ("extension", signed(r#"{"alg":"EdDSA","crit":["exp"]}"#, "{}", &stranger, Algorithm::EdDSA)),
        ("claims.iss", edited("iss", json!("another"))),
        ("claims.aud", edited("aud", json!("another"))),
        ("claims.exp", edited("exp", json!(1))),
        ("claims.nbf", edited("nbf", json!(99_999_999_999_u64))),
        ("claims.iat", edited("iat", json!(99_999_999_999_u64))),
        ("claims.sub", edited("sub", json!(7))),
        ("claims.roles", edited("roles", json!(["a,b"]))),
    ];
    for (reason, token) in cases {
        let answer = client.get("/v1/users", Some(&token)).await;
        assert_eq!(answer.status(), 401, "{reason}");
        let id = answer.field("x-request-id").to_owned();
        let line = || gateway.program.events().into_iter().find(|event| event["request_id"] == id.as_str());
        eventually("it is logged", || async { line().is_some() }).await;
        assert_eq!(line().unwrap()["reason"], reason, "{}", line().unwrap());
        assert!(answer.json().get("reason").is_none(), "the client is not told more than before");
    }
}

#[tokio::test]
async fn a_route_may_trust_several_issuers_and_each_has_its_rules() {
    let server = KeyServer::start().await;
    let (one, other) = (new_key(), new_key());
    server.publish(&[("one", &one), ("other", &other)]);
    let issuers = format!(
        "[jwt.accounts]\nalgorithms = [\"EdDSA\"]\njwks = {url:?}\nissuer = \"one\"\naudience = [\"palisade\"]\n\
         [jwt.partner]\nalgorithms = [\"EdDSA\"]\njwks = {url:?}\nissuer = \"other\"\nroles = \"groups\"\n",
        url = server.url
    );
    let policy = policy_with(&issuers).set("routes.admin.auth", vec!["jwt:accounts", "jwt:partner"]);
    let backend = Backend::start(&[]).await;
    let gateway = Gateway::start(backend.address, &policy, &[]).await;
    let client = gateway.client();
    let ours = token("one", &one, |claims| claims["iss"] = json!("one"));
    eventually("the keys are there", || async { code(&client, &ours).await == "ok" }).await;
    let partner = |edit: fn(&mut Value)| {
        token("other", &other, |claims| {
            claims["iss"] = json!("other");
            claims["groups"] = json!(["admin"]);
            edit(claims);
        })
    };
    assert_eq!(code(&client, &partner(|_| {})).await, "ok");
    assert_eq!(
        code(&client, &partner(|claims| claims["aud"] = json!("else"))).await,
        "ok",
        "it names no audience"
    );
    assert_eq!(code(&client, &partner(|claims| claims["groups"] = json!([]))).await, "role_missing");
    assert_eq!(code(&client, &partner(|claims| claims["iss"] = json!("third"))).await, "token_invalid");
    let narrow = client.get("/v1/auth/sessions", Some(&partner(|_| {}))).await;
    assert_eq!(
        narrow.code(),
        "token_invalid",
        "remembered as good, but not for a route that believes another issuer"
    );
}
