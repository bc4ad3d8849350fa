//! The main job: what a client sees of each stage.

use serde_json::json;
use tests::eventually;
use tests::stack::Stack;

const RECORD: &str = "/v1/collections/notes/records/first";

/// A stack with an administrator and a collection.
async fn stack() -> (Stack, String) {
    let stack = Stack::start().await;
    let admin = stack.user("root", &["admin"]).await.token;
    let client = stack.gateway.client();
    assert_eq!(client.json("PUT", "/v1/collections/notes", Some(&admin), &json!({})).await.status(), 201);
    (stack, admin)
}

#[tokio::test]
async fn a_record_is_written_and_read_back_with_its_etag() {
    let (stack, admin) = stack().await;
    let client = stack.gateway.client();
    let written = client.json("PUT", RECORD, Some(&admin), &json!({"n": 1})).await;
    assert_eq!(written.status(), 201);
    let read = client.get(RECORD, Some(&admin)).await;
    assert_eq!((read.status(), read.json()), (200, json!({"n": 1})));
    assert_eq!(read.field("etag"), written.field("etag"));
    let bearer = format!("Bearer {admin}");
    let known = [("authorization", bearer.as_str()), ("if-none-match", read.field("etag"))];
    assert_eq!(client.ask("GET", RECORD, &known, "").await.status(), 304);
    let stale = [("authorization", bearer.as_str()), ("if-match", "\"0\"")];
    assert_eq!(client.ask("PUT", RECORD, &stale, "{}").await.status(), 412);
    for name in ["x-content-type-options", "x-frame-options", "content-security-policy", "x-request-id"] {
        assert!(!read.field(name).is_empty(), "{name}");
    }
}

#[tokio::test]
async fn no_token_is_401_no_grant_is_403_and_a_grant_is_200() {
    let (stack, admin) = stack().await;
    let client = stack.gateway.client();
    client.json("PUT", RECORD, Some(&admin), &json!(1)).await;
    let ann = stack.user("ann", &[]).await;
    let refused = client.get(RECORD, None).await;
    assert_eq!((refused.status(), refused.code().as_str()), (401, "token_missing"));
    assert!(refused.field("www-authenticate").starts_with("Bearer"));
    let refused = client.get(RECORD, Some(&ann.token)).await;
    assert_eq!((refused.status(), refused.code().as_str()), (403, "permission_denied"));

    let grants = json!({"permissions": [{"permission": "records:read", "resource": "no*"}]});
    assert_eq!(client.json("PUT", "/v1/roles/reader/permissions", Some(&admin), &grants).await.status(), 200);
    let roles = format!("/v1/users/{}/roles", ann.id);
    assert_eq!(client.json("PUT", &roles, Some(&admin), &json!({"roles": ["reader"]})).await.status(), 200);
    eventually("the grant is known", || async { client.get(RECORD, Some(&ann.token)).await.status() == 200 })
        .await;
    assert_eq!(client.json("PUT", &roles, Some(&admin), &json!({"roles": []})).await.status(), 200);
    eventually("so is its end", || async { client.get(RECORD, Some(&ann.token)).await.status() == 403 })
        .await;
    let refused = client.json("PUT", &roles, Some(&ann.token), &json!({"roles": ["admin"]})).await;
    assert_eq!((refused.status(), refused.code().as_str()), (403, "role_missing"));
}

#[tokio::test]
async fn the_sixth_login_in_a_minute_is_429_with_the_limit_in_its_fields() {
    let stack = Stack::start().await;
    stack.backend.add_user("root", &["admin"]).await;
    let client = stack.gateway.client().at([127, 0, 0, 6]);
    let login = json!({"username": "root", "password": tests::stack::PASSWORD});
    for left in (0..5).rev() {
        let answer = client.json("POST", "/v1/auth/login", None, &login).await;
        assert_eq!(answer.status(), 200);
        assert!(
            answer.field("ratelimit").starts_with(&format!("\"login\";r={left};t=")),
            "{}",
            answer.field("ratelimit")
        );
    }
    let refused = client.json("POST", "/v1/auth/login", None, &login).await;
    assert_eq!((refused.status(), refused.code().as_str()), (429, "rate_limited"));
    assert_eq!(refused.field("ratelimit-policy"), "\"login\";q=5;w=60");
    let wait: u64 = refused.field("retry-after").parse().unwrap();
    assert!((1..=12).contains(&wait), "{wait}");
    assert_eq!(refused.field("ratelimit"), format!("\"login\";r=0;t={wait}"));
    let other = stack.gateway.client().at([127, 0, 0, 7]);
    assert_eq!(other.json("POST", "/v1/auth/login", None, &login).await.status(), 200, "another address");
}

#[tokio::test]
async fn failed_logins_ban_their_address() {
    let stack = Stack::start().await;
    stack.backend.add_user("root", &["admin"]).await;
    let client = stack.gateway.client().at([127, 0, 0, 8]);
    let wrong = json!({"username": "root", "password": "wrong"});
    let unknown = json!({"username": "nobody", "password": "wrong"});
    let first = client.json("POST", "/v1/auth/login", None, &wrong).await;
    let second = client.json("POST", "/v1/auth/login", None, &unknown).await;
    let same = |answer: &tests::client::Answer| {
        (answer.status(), answer.json()["code"].clone(), answer.json()["detail"].clone())
    };
    assert_eq!(same(&first), same(&second), "wrong and unknown are one answer");
    client.json("POST", "/v1/auth/login", None, &wrong).await;
    eventually("the ban", || async { client.get("/.well-known/jwks.json", None).await.status() == 403 })
        .await;
    let refused = client.get("/.well-known/jwks.json", None).await;
    assert_eq!(refused.code(), "client_blocked");
    assert!(refused.field("retry-after").parse::<u64>().unwrap() > 3_500);
    assert!(
        stack.gateway.program.events().iter().any(|event| event["action"] == "block"),
        "the audit log has it"
    );
    let path = format!("/admin/ip-blocks/{}", client.address());
    assert_eq!(stack.gateway.operator().ask("DELETE", &path, &[], "").await.status(), 204);
    assert_eq!(client.get("/.well-known/jwks.json", None).await.status(), 200);
}

#[tokio::test]
async fn every_refusal_is_a_problem_with_code_stage_and_request_id() {
    let (stack, admin) = stack().await;
    let client = stack.gateway.client();
    let blocked = client.at([127, 66, 0, 1]).get("/.well-known/jwks.json", None).await;
    assert_eq!((blocked.status(), blocked.code().as_str()), (403, "client_blocked"));
    let unknown = client.get("/nowhere", None).await;
    assert_eq!((unknown.status(), unknown.code().as_str()), (404, "route_not_found"));
    let method = client.ask("DELETE", "/v1/auth/login", &[], "").await;
    assert_eq!(
        (method.status(), method.code().as_str(), method.field("allow")),
        (405, "method_not_allowed", "POST")
    );
    let target = client.get("/v1/%2e%2e/%2e%2e/x", None).await;
    assert_eq!((target.status(), target.code().as_str()), (400, "malformed_target"));
    let big = vec![b'1'; 2_000_000];
    let bearer = format!("Bearer {admin}");
    let large = client.ask("PUT", RECORD, &[("authorization", &bearer)], big.clone()).await;
    assert_eq!((large.status(), large.code().as_str()), (413, "body_too_large"));
    let mut chunked = format!(
        "PUT {RECORD} HTTP/1.1\r\nHost: a\r\nAuthorization: {bearer}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
        big.len()
    )
    .into_bytes();
    chunked.extend_from_slice(&big);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    let answer = client.raw(&chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");
    let id = client.ask("GET", "/nowhere", &[("x-request-id", "my.id-1_2")], "").await;
    assert_eq!(id.field("x-request-id"), "my.id-1_2");
    let id = client.ask("GET", "/nowhere", &[("x-request-id", "not an id")], "").await;
    assert_eq!(id.field("x-request-id").len(), 36);
}

#[tokio::test]
async fn a_dead_backend_is_502_and_then_503_while_the_breaker_is_open() {
    let Stack { backend, gateway } = Stack::start().await;
    let client = gateway.client();
    assert_eq!(client.get("/.well-known/jwks.json", None).await.status(), 200);
    backend.program.signal("KILL");
    for _ in 0..5 {
        let answer = client.get("/.well-known/jwks.json", None).await;
        assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream_unreachable"));
    }
    let answer = client.get("/.well-known/jwks.json", None).await;
    assert_eq!((answer.status(), answer.code().as_str()), (503, "breaker_open"));
    assert!(answer.field("retry-after").parse::<u64>().unwrap() <= 30);
    assert!((gateway.metric("palisade_circuit_breaker_state{breaker=\"backend\"}").await - 1.0).abs() < 0.1);
    let _backend = backend.restart().await;
    assert_eq!(gateway.operator().ask("POST", "/admin/breakers/backend/reset", &[], "").await.status(), 204);
    eventually("it serves again", || async {
        client.get("/.well-known/jwks.json", None).await.status() == 200
    })
    .await;
}

#[tokio::test]
async fn identity_cannot_be_spoofed_in_any_spelling() {
    let (stack, _) = stack().await;
    let ann = stack.user("ann", &[]).await;
    let client = stack.gateway.client();
    let bearer = format!("Bearer {}", ann.token);
    // The policy of the backend's own: whoever is an administrator may ask. Ann says that she is, in every spelling.
    stack.gateway.edit_policy(|text| text.replace("roles = [\"admin\"]", ""));
    eventually("the edit is in force", || async {
        stack.gateway.metric("palisade_policy_reloads_total{result=\"accepted\"}").await > 1.5
    })
    .await;
    for name in ["X-Auth-Roles", "x_auth_roles", "X.Auth.Roles", "x-auth_roles", "X~Auth~Roles"] {
        let answer = client.ask("GET", "/v1/users", &[("authorization", &bearer), (name, "admin")], "").await;
        assert_eq!(answer.status(), 403, "{name}");
    }
}

#[tokio::test]
async fn the_access_log_has_what_happened_and_no_secret() {
    let (stack, admin) = stack().await;
    let client = stack.gateway.client();
    let bearer = format!("Bearer {admin}");
    client
        .ask(
            "GET",
            "/v1/users?username=secret-query",
            &[("authorization", &bearer), ("x-request-id", "find-me")],
            "",
        )
        .await;
    let line = || stack.gateway.program.events().into_iter().find(|event| event["request_id"] == "find-me");
    eventually("the line", || async { line().is_some() }).await;
    let line = line().unwrap();
    assert_eq!((line["route"].as_str(), line["status"].as_u64()), (Some("admin"), Some(200)));
    assert_eq!(line["path"], "/v1/users");
    for program in [&stack.gateway.program, &stack.backend.program] {
        let log = program.log().join("\n");
        for secret in [&admin, tests::stack::PASSWORD, tests::stack::GATEWAY_TOKEN, "secret-query"] {
            assert!(!log.contains(secret), "{secret}");
        }
    }
}

#[tokio::test]
async fn metrics_are_in_the_exposition_format_with_bounded_labels() {
    let (stack, _) = stack().await;
    let client = stack.gateway.client();
    client.get("/nowhere/127.0.0.1", None).await;
    // A request is counted once its answer is sent, so the client may be ahead of the count.
    let counted =
        || stack.gateway.metric("palisade_requests_total{method=\"GET\",route=\"none\",status=\"404\"}");
    eventually("the request is counted", || async { (counted().await - 1.0).abs() < 0.1 }).await;
    let text = stack.gateway.operator().get("/metrics", None).await.body;
    let text = String::from_utf8(text.to_vec()).unwrap();
    let names = [
        "requests_total",
        "gateway_overhead_seconds",
        "stage_denials_total",
        "policy_info",
        "ip_blocks_active",
    ];
    for name in names {
        assert!(text.contains(&format!("# HELP palisade_{name} ")), "{name}");
    }
    assert!(!text.contains("/nowhere") && !text.contains("127.0.0.1"), "no path or address is a label");
}
