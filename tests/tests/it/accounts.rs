//! Tokens: which are accepted and which are not, and requests that bypass the gateway.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tests::client::Client;
use tests::policy_text::PolicyText;
use tests::stack::{GATEWAY_TOKEN, PASSWORD, Stack};

/// A gateway that trusts a key of the test's own, read from a file, and the key.
async fn stack_with_key() -> (Stack, EncodingKey) {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
    let key = EncodingKey::from_ed_der(pkcs8.as_ref());
    let public = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, Algorithm::EdDSA).unwrap();
    let file = std::env::temp_dir().join(format!("palisade-test-keys-{}.json", std::process::id()));
    std::fs::write(&file, json!({"keys": [public]}).to_string()).unwrap();
    let policy =
        PolicyText::usual().remove("jwt.accounts.jwks").set("jwt.accounts.key_file", file.to_str().unwrap());
    (Stack::with(&policy, &[]).await, key)
}

fn claims() -> Value {
    let now = jsonwebtoken::get_current_timestamp();
    json!({"iss": "palisade", "aud": "palisade", "sub": "ann", "roles": ["admin"], "iat": now, "exp": now + 600})
}

fn sign(key: &EncodingKey, edit: impl FnOnce(&mut Value)) -> String {
    let mut claims = claims();
    edit(&mut claims);
    encode(&Header::new(Algorithm::EdDSA), &claims, key).unwrap()
}

/// What is wrong with a token, and how it is made so.
type Edit = (&'static str, fn(&mut Value));

async fn code(client: &Client, token: &str) -> String {
    let answer = client.get("/v1/users", Some(token)).await;
    if answer.status() == 200 { "ok".to_owned() } else { answer.code() }
}

#[tokio::test]
async fn only_a_token_that_is_right_in_every_way_is_accepted() {
    let (stack, key) = stack_with_key().await;
    let client = stack.gateway.client();
    assert_eq!(code(&client, &sign(&key, |_| {})).await, "ok");
    let now = jsonwebtoken::get_current_timestamp();
    assert_eq!(code(&client, &sign(&key, |claims| claims["exp"] = json!(now - 60))).await, "token_expired");
    let edits: [Edit; 8] = [
        ("another issuer", |claims| claims["iss"] = json!("evil")),
        ("another audience", |claims| claims["aud"] = json!(["evil"])),
        ("no audience", |claims| drop(claims.as_object_mut().unwrap().remove("aud"))),
        ("no subject", |claims| drop(claims.as_object_mut().unwrap().remove("sub"))),
        ("no expiry", |claims| drop(claims.as_object_mut().unwrap().remove("exp"))),
        ("not yet valid", |claims| claims["nbf"] = json!(claims["exp"])),
        ("issued in the future", |claims| claims["iat"] = json!(claims["exp"])),
        ("a role that would be two", |claims| claims["roles"] = json!(["a,admin"])),
    ];
    for (what, edit) in edits {
        assert_eq!(code(&client, &sign(&key, edit)).await, "token_invalid", "{what}");
    }
    let pkcs8 = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
    let stranger = EncodingKey::from_ed_der(pkcs8.as_ref());
    assert_eq!(code(&client, &sign(&stranger, |_| {})).await, "token_invalid", "another key");
    let payload = URL_SAFE_NO_PAD.encode(claims().to_string());
    for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS256"}"#, r#"{"alg":"EdDSA","crit":["x"]}"#] {
        let token = format!("{}.{payload}.", URL_SAFE_NO_PAD.encode(header));
        assert_eq!(code(&client, &token).await, "token_invalid", "{header}");
    }
    let fine = sign(&key, |_| {});
    for token in [format!("{fine}A"), format!("{fine}."), fine.replace('.', ". "), "a.b.c".to_owned()] {
        assert_eq!(code(&client, &token).await, "token_invalid", "{token}");
    }
    assert_eq!(client.get(&format!("/v1/users?access_token={fine}"), None).await.code(), "token_missing");
}

#[tokio::test]
async fn a_request_that_bypasses_the_gateway_gets_nothing() {
    let stack = Stack::start().await;
    let backend = Client::of(stack.backend.address);
    for (method, target) in [
        ("POST", "/v1/auth/login"),
        ("GET", "/v1/users"),
        ("POST", "/internal/permissions"),
        ("GET", "/internal/changes?revision=0"),
    ] {
        let fields =
            [("x-auth-user", "root"), ("x-auth-roles", "admin"), ("x-palisade-assertion", "e30.e30.c2ln")];
        assert_eq!(backend.ask(method, target, &fields, "{}").await.status(), 401, "{target}");
    }
    assert_eq!(backend.get("/health/ready", None).await.status(), 200);
}

/// A body's SHA-256 as an assertion holds it.
fn digest(body: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body))
}

/// What a gateway asserts of `GET /v1/roles` by an administrator.
fn asserted(now: u64) -> Value {
    json!({
        "iss": "palisade-gateway", "aud": "palisade-backend", "iat": now, "exp": now + 30,
        "method": "GET", "target": "/v1/roles", "request_id": "r1", "sub": "somebody", "roles": ["admin"],
        "body_sha256": digest(b""),
    })
}

#[tokio::test]
async fn an_assertion_is_good_for_its_request_alone_and_soon_for_none() {
    let stack = Stack::start().await;
    let backend = Client::of(stack.backend.address);
    let key = EncodingKey::from_secret(GATEWAY_TOKEN.as_bytes());
    let now = jsonwebtoken::get_current_timestamp();
    let fine = asserted(now);
    let asked = std::cell::Cell::new(0);
    let ask = async |claims: &Value, header: Header| {
        asked.set(asked.get() + 1);
        let mut claims = claims.clone();
        if claims["jti"].is_null() {
            claims["jti"] = json!(format!("00000000-0000-7000-8000-{:012x}", asked.get()));
        }
        let word = encode(&header, &claims, &key).unwrap();
        let fields = [("x-palisade-assertion", word.as_str()), ("x-request-id", "r1")];
        backend.ask("GET", "/v1/roles", &fields, "").await.status()
    };
    assert_eq!(ask(&fine, Header::new(Algorithm::HS256)).await, 200);
    let mut once = fine.clone();
    once["jti"] = json!("00000000-0000-7000-8000-ffffffffffff");
    assert_eq!(ask(&once, Header::new(Algorithm::HS256)).await, 200);
    assert_eq!(ask(&once, Header::new(Algorithm::HS256)).await, 401, "the same one again");
    let others: [(&str, Value); 11] = [
        ("body_sha256", json!(digest(b"another"))),
        ("body_sha256", Value::Null),
        ("jti", json!("no id")),
        ("iat", json!(now - 3_600)),
        ("method", json!("PUT")),
        ("target", json!("/v1/roles?x")),
        ("request_id", json!("r2")),
        ("exp", json!(now - 10)),
        ("aud", json!("somebody-else")),
        ("iss", json!("somebody-else")),
        ("sub", Value::Null),
    ];
    for (name, value) in others {
        let mut claims = fine.clone();
        claims[name] = value;
        // A body of which nothing is asserted is one that is sent as it comes, and here there is none.
        let fine_without = name == "body_sha256" && claims[name].is_null();
        let status = ask(&claims, Header::new(Algorithm::HS256)).await;
        let expected = if fine_without {
            200
        } else if name == "sub" {
            403
        } else {
            401
        };
        assert_eq!(status, expected, "{name}");
    }
    assert_eq!(ask(&fine, Header::new(Algorithm::HS384)).await, 401, "another algorithm");
}

#[tokio::test]
async fn a_client_s_request_opens_nothing_internal() {
    let stack = Stack::start().await;
    let backend = Client::of(stack.backend.address);
    let key = EncodingKey::from_secret(GATEWAY_TOKEN.as_bytes());
    let own = ["/internal/permissions", "/internal/api-keys", "/internal/roles"];
    for (number, target) in own.into_iter().enumerate() {
        let mut claims = asserted(jsonwebtoken::get_current_timestamp());
        (claims["method"], claims["target"]) = (json!("POST"), json!(target));
        (claims["body_sha256"], claims["jti"]) =
            (json!(digest(b"{}")), json!(format!("00000000-0000-7000-9000-{number:012x}")));
        let word = encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
        let fields = [("x-palisade-assertion", word.as_str()), ("x-request-id", "r1")];
        assert_eq!(
            backend.ask("POST", target, &fields, "{}").await.status(),
            403,
            "{target}: a client's request"
        );
    }
}

#[tokio::test]
async fn a_client_cannot_write_what_the_backend_trusts_whatever_the_policy_forwards() {
    let open = PolicyText::usual().remove("jwt.accounts.forward").remove_from_routes("roles")
        + "[[routes]]\nname = \"all\"\npath = \"/{*rest}\"\nupstream = \"backend\"\n";
    let stack = Stack::with(&open, &[]).await;
    let user = stack.user("ann", &[]).await;
    let client = stack.gateway.client();
    for name in ["X-Auth-Roles", "x_auth_roles", "X.Auth~Roles"] {
        let bearer = format!("Bearer {}", user.token);
        let answer = client.ask("GET", "/v1/users", &[("authorization", &bearer), (name, "admin")], "").await;
        assert_eq!((answer.status(), &answer.json()["code"]), (403, &json!("role_missing")), "{name}");
    }
    let question = "{\"user\":\"a\",\"permission\":\"b\",\"resource\":\"c\"}";
    let answer =
        client.ask("POST", "/internal/permissions", &[("content-type", "application/json")], question).await;
    assert_eq!((answer.status(), answer.code().as_str()), (404, "route_not_found"));
}

#[tokio::test]
async fn a_record_can_be_read_back_by_everybody_or_is_not_taken() {
    let stack = Stack::start().await;
    let admin = stack.user("root", &["admin"]).await;
    let client = stack.gateway.client();
    let bearer = format!("Bearer {}", admin.token);
    let put = async |path: &str, field: (&str, &str), body: &str| {
        client.ask("PUT", path, &[("authorization", bearer.as_str()), field], body.to_owned()).await
    };
    let none = ("x-none", "");
    assert_eq!(put("/v1/collections/notes", none, "").await.status(), 201);
    let record = "/v1/collections/notes/records/one";
    for bad in ["1e999".to_owned(), format!("{}{}", "[".repeat(200), "]".repeat(200))] {
        let answer = put(record, none, &bad).await;
        assert_eq!((answer.status(), &answer.json()["code"]), (400, &json!("malformed_request")), "{bad}");
    }
    let kept = "{\"b\":12345678901234567890123,\"a\":1.10}";
    let made = put(record, none, kept).await;
    assert_eq!(made.status(), 201);
    let listed = client.get("/v1/collections/notes/records", Some(&admin.token)).await;
    assert!(String::from_utf8_lossy(&listed.body).contains(kept), "as it came: {:?}", listed.body);
    let weak = format!("W/{}", made.field("etag"));
    assert_eq!(put(record, ("if-none-match", &weak), "1").await.status(), 412, "weak comparison");
    assert_eq!(put(record, ("if-match", &weak), "1").await.status(), 412, "strong comparison");
    let answer = client.get("/v1/collections/notes/records?limit=abc", Some(&admin.token)).await;
    assert_eq!((answer.status(), &answer.json()["code"]), (400, &json!("malformed_request")));
}

#[tokio::test]
async fn a_field_of_the_body_can_be_what_is_limited_and_the_body_still_arrives() {
    let by_account = PolicyText::usual()
        .set("routes.login.limits", vec!["account"])
        .set("routes.login.max_body", "1KB")
        .set("blocks.auto.failures", 1_000)
        + "[limits.account]\nkey = \"field:username\"\nrate = \"2/min\"\n";
    let stack = Stack::with(&by_account, &[]).await;
    stack.backend.add_user("ann", &[]).await;
    let login = async |name: &str, password: &str| {
        let body = json!({"username": name, "password": password});
        stack.gateway.client().json("POST", "/v1/auth/login", None, &body).await.status()
    };
    assert_eq!(login("ann", PASSWORD).await, 200, "the backend got the body");
    assert_eq!(login("bob", "wrong").await, 401);
    assert_eq!(login("ann", "wrong").await, 401);
    assert_eq!(login("ann", PASSWORD).await, 429);
    assert_eq!(login("bob", "wrong").await, 401, "another account has another bucket");
    let none = stack.gateway.client().ask("POST", "/v1/auth/login", &[], "no JSON").await;
    assert_eq!(none.status(), 415, "what is no JSON is the service's business");
    let large = format!("{{\"username\":\"{}\"}}", "x".repeat(2_000));
    let refused = stack.gateway.client().ask("POST", "/v1/auth/login", &[], large.clone()).await;
    assert_eq!((refused.status(), refused.code().as_str()), (413, "body_too_large"));
    let chunked = format!(
        "POST /v1/auth/login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    let refused = stack.gateway.client().raw(chunked.as_bytes()).await;
    assert!(refused.starts_with("HTTP/1.1 413 ") && refused.contains("at most 1000 bytes"), "{refused}");
}
