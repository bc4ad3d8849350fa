//! No secret is in any output of either program, at any level. The harness searches the output of every program of every
//! test; here it is as much as there can be.

use serde_json::json;
use tests::redis::Redis;
use tests::stack::{Backend, Gateway, PASSWORD, POLICY, Stack, User};
use tests::{eventually, free_port, secrets};

const REDIS_PASSWORD: &str = "redis-password-that-nobody-logs";
const USERINFO: &str = "jwks-userinfo-that-nobody-logs";
const BODY: &str = "a-body-that-is-nobodys-business";
const COOKIE: &str = "a-cookie-that-is-a-session";
const QUERY: &str = "a-token-in-a-query-string";
const ADMIN_TOKEN: &str = "an-admin-token-that-is-long-enough";

async fn started() -> (Redis, Stack) {
    let port = free_port();
    let arguments = ["--port", &port.to_string(), "--save", "", "--requirepass", REDIS_PASSWORD];
    let redis = Redis::start_with(port, &arguments).await;
    let trace = "trace";
    let backend = Backend::start(&[("PALISADE_BACKEND__LOG__LEVEL", trace)]).await;
    let url = format!("redis://:{REDIS_PASSWORD}@{}", redis.address);
    let other = format!(
        "\n[jwt.other]\nalgorithms = [\"ES256\"]\njwks = \"http://ann:{USERINFO}@127.0.0.1:{}/keys?k={QUERY}\"\nissuer = \"other\"\n",
        free_port()
    );
    let environment = [
        ("PALISADE_GATEWAY__REDIS__URL", url.as_str()),
        ("PALISADE_GATEWAY__LOG__LEVEL", trace),
        ("ADMIN_TOKEN", ADMIN_TOKEN),
    ];
    let gateway = Gateway::start(backend.address, &(POLICY.to_owned() + &other), &environment).await;
    (redis, Stack { backend, gateway })
}

#[tokio::test]
async fn nothing_that_is_secret_is_written_down_at_any_level() {
    for secret in [REDIS_PASSWORD, USERINFO, BODY, COOKIE, QUERY, ADMIN_TOKEN] {
        secrets::note(secret);
    }
    let (_redis, stack) = started().await;
    let User { token, .. } = stack.user("root", &["admin"]).await;
    let (client, operator) = (stack.gateway.client(), stack.gateway.operator());
    secrets::note(&token);
    let body = json!({"value": BODY});
    client.json("PUT", "/v1/collections/notes", Some(&token), &json!({})).await;
    let path = "/v1/collections/notes/records/a";
    assert_eq!(client.json("PUT", path, Some(&token), &body).await.status(), 201);
    let bearer = format!("Bearer {token}");
    let fields = [("authorization", bearer.as_str()), ("cookie", "session=a-cookie-that-is-a-session")];
    assert_eq!(client.ask("GET", &format!("{path}?t={QUERY}"), &fields, "").await.status(), 200);
    let keys = client.json("POST", "/v1/api-keys", Some(&token), &json!({"name": "k"})).await.json();
    secrets::note(keys["key"].as_str().unwrap_or_default());
    client.ask("GET", path, &[("x-api-key", keys["key"].as_str().unwrap_or_default())], "").await;
    // What is refused: wrong passwords, broken tokens, targets that are none, an operator with another token.
    client
        .json("POST", "/v1/auth/login", None, &json!({"username": BODY, "password": format!("{PASSWORD}!")}))
        .await;
    client.get(path, Some(&format!("{token}x"))).await;
    client.raw(format!("GET /a b?{QUERY} HTTP/1.1\r\nCookie: c={COOKIE}\r\n\r\n{BODY}").as_bytes()).await;
    client.raw(format!("GET /%00?{QUERY} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
    operator.get("/admin/policy", Some(BODY)).await;
    let over = json!({"jwt.other.jwks": format!("ftp://{USERINFO}@a/")}).to_string();
    let admin = [("authorization", "Bearer an-admin-token-that-is-long-enough")];
    let refused = operator.ask("PATCH", "/admin/overrides", &admin, over).await;
    assert_eq!(refused.status(), 422);
    assert!(!String::from_utf8_lossy(&refused.body).contains(USERINFO));
    eventually("the key set that cannot be fetched is in the log", || async {
        stack.gateway.program.log().iter().any(|line| line.contains("key set cannot be fetched"))
    })
    .await;
    for program in [&stack.gateway.program, &stack.backend.program] {
        let shown = secrets::shown_in(&program.log());
        assert!(shown.is_empty(), "{shown:?}");
        assert!(program.log().len() > 5);
    }
}
