//! Tokens: what is believed and what is not, and the going round of the gateway.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tests::client::Client;
use tests::stack::{PASSWORD, Stack};

/// A gateway that believes a key of the test's own, read from a file, and the key.
async fn stack_with_key() -> (Stack, EncodingKey) {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
    let key = EncodingKey::from_ed_der(pkcs8.as_ref());
    let public = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, Algorithm::EdDSA).unwrap();
    let file = std::env::temp_dir().join(format!("palisade-test-keys-{}.json", std::process::id()));
    std::fs::write(&file, json!({"keys": [public]}).to_string()).unwrap();
    let policy = tests::stack::POLICY
        .replace("jwks = \"{jwks}\"", &format!("key_file = {:?}", file.to_str().unwrap()));
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
async fn only_a_token_that_is_right_in_every_way_is_believed() {
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
async fn a_refresh_token_is_good_once_and_not_after_logout() {
    let stack = Stack::start().await;
    stack.backend.add_user("root", &["admin"]).await;
    stack.gateway.edit_policy(|text| {
        text.replace(
            "name = \"login\"\npath = \"/v1/auth/login\"",
            "name = \"login\"\npath = \"/v1/auth/{action}\"",
        )
        .replace("5/min", "100/min")
    });
    tests::eventually("the edit is in force", || async {
        stack.gateway.metric("palisade_policy_reloads_total{result=\"accepted\"}").await > 1.5
    })
    .await;
    let client = stack.gateway.client();
    let login = json!({"username": "root", "password": PASSWORD});
    let tokens = client.json("POST", "/v1/auth/login", None, &login).await.json();
    assert_eq!((tokens["token_type"].as_str(), tokens["expires_in"].as_u64()), (Some("Bearer"), Some(1800)));
    let first = json!({"refresh_token": tokens["refresh_token"]});
    let renewed = client.json("POST", "/v1/auth/refresh", None, &first).await;
    assert_eq!(renewed.status(), 200);
    assert_eq!(client.json("POST", "/v1/auth/refresh", None, &first).await.status(), 401, "used up");
    let second = json!({"refresh_token": renewed.json()["refresh_token"]});
    assert_eq!(client.json("POST", "/v1/auth/logout", None, &second).await.status(), 204);
    assert_eq!(client.json("POST", "/v1/auth/refresh", None, &second).await.status(), 401);
}

#[tokio::test]
async fn going_round_the_gateway_gives_nothing() {
    let stack = Stack::start().await;
    let backend = Client::of(stack.backend.address);
    for (method, target) in [
        ("POST", "/v1/auth/login"),
        ("GET", "/v1/users"),
        ("POST", "/internal/permissions"),
        ("GET", "/internal/changes?revision=0"),
    ] {
        let fields = [
            ("x-auth-user", "root"),
            ("x-auth-roles", "admin"),
            ("x-gateway-token", "a guess that is long enough, too"),
        ];
        assert_eq!(backend.ask(method, target, &fields, "{}").await.status(), 401, "{target}");
    }
    assert_eq!(backend.get("/health/ready", None).await.status(), 200);
}

#[tokio::test]
async fn what_the_backend_believes_is_the_gateways_to_write_whatever_the_policy_forwards() {
    let open = tests::stack::POLICY
        .replace("forward = { sub = \"x-auth-user\", roles = \"x-auth-roles\" }", "")
        .replace("roles = [\"admin\"]", "")
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
    let by_account = tests::stack::POLICY
        .replace("limits = [\"login\"]", "limits = [\"account\"]\nmax_body = \"1KB\"")
        .replace("failures = 3", "failures = 1000")
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
