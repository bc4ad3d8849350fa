//! API keys: shown once, good for their scope, until they or their owners end.

use serde_json::{Value, json};
use tests::accounts::{RECORD, lenient, lenient_stack, post, reader};
use tests::eventually;
use tests::stack::Stack;

#[tokio::test]
async fn an_api_key_is_shown_once_and_good_for_its_scope_until_it_or_its_owner_ends() {
    let stack = lenient_stack().await;
    let (admin, ann) = reader(&stack).await;
    let client = stack.gateway.client();
    let make = async |body: Value| {
        let made = post(&client, "/v1/api-keys", Some(&ann.token), &body).await;
        assert_eq!(made.status(), 201, "{:?}", made.body);
        let made = made.json();
        (made["id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned())
    };
    let unlimited = json!({"name": "robot", "scopes": []});
    let refused = post(&client, "/v1/api-keys", Some(&ann.token), &unlimited).await;
    assert_eq!((refused.status(), &refused.json()["code"]), (422, &json!("invalid_scopes")));
    let (id, key) = make(json!({"name": "robot"})).await;
    let (_, scoped) =
        make(json!({"name": "scoped", "scopes": [{"permission": "records:read", "resource": "other-*"}]}))
            .await;
    let (_, short) = make(json!({"name": "short", "expires_in": "1s"})).await;
    let with = async |field: &str, value: &str| client.ask("GET", RECORD, &[(field, value)], "").await;
    for (field, value) in [
        ("x-api-key", key.clone()),
        ("authorization", format!("ApiKey {key}")),
        ("authorization", format!("Bearer {key}")),
    ] {
        assert_eq!(with(field, &value).await.status(), 200, "{field}");
    }
    let both = [("x-api-key", key.as_str()), ("authorization", &format!("Bearer {}", ann.token))];
    assert_eq!(client.ask("GET", RECORD, &both, "").await.code(), "token_invalid", "one proof, not two");
    assert_eq!(with("x-api-key", &format!("{key}A")).await.code(), "api_key_invalid");
    assert_eq!(with("x-api-key", &scoped).await.code(), "scope_missing");
    let other = client.ask("GET", "/v1/collections/other-1/records/a", &[("x-api-key", &scoped)], "").await;
    assert_eq!(other.code(), "permission_denied", "a scope gives nothing that its owner has not");
    let written = client.ask("PUT", RECORD, &[("x-api-key", &key)], "2").await;
    assert_eq!(written.code(), "permission_denied");
    let users = client.ask("GET", "/v1/users", &[("x-api-key", &key)], "").await;
    assert_eq!(users.code(), "token_missing", "a route that takes no keys");
    eventually("the short one ends", || async { with("x-api-key", &short).await.status() == 401 }).await;

    let listed = client.get("/v1/api-keys", Some(&ann.token)).await;
    assert_eq!(listed.json()["items"].as_array().unwrap().len(), 3);
    assert!(!String::from_utf8_lossy(&listed.body).contains(&key), "shown once");
    let path = format!("/v1/api-keys/{id}");
    assert_eq!(
        client.json("DELETE", &path, Some(&admin.token), &json!({})).await.status(),
        404,
        "somebody else's"
    );
    assert_eq!(client.json("DELETE", &path, Some(&ann.token), &json!({})).await.status(), 204);
    assert_eq!(with("x-api-key", &key).await.code(), "api_key_invalid", "at once");

    let (_, last) = make(json!({"name": "last"})).await;
    assert_eq!(with("x-api-key", &last).await.status(), 200);
    post(&client, &format!("/v1/users/{}/deactivate", ann.id), Some(&admin.token), &json!({})).await;
    assert_eq!(with("x-api-key", &last).await.code(), "api_key_invalid", "a deactivated owner's");
    post(&client, &format!("/v1/users/{}/activate", ann.id), Some(&admin.token), &json!({})).await;
    assert_eq!(with("x-api-key", &last).await.status(), 200);
}

#[tokio::test]
async fn a_limit_counts_each_api_key_by_itself() {
    let policy = lenient().set("routes.read-record.limits", vec!["key"])
        + "[limits.key]\nkey = \"api_key\"\nrate = \"3/min\"\n";
    let stack = Stack::with(&policy, &[]).await;
    let (_, ann) = reader(&stack).await;
    let client = stack.gateway.client();
    let mut keys = Vec::new();
    for name in ["one", "other"] {
        let made = post(&client, "/v1/api-keys", Some(&ann.token), &json!({"name": name})).await.json();
        keys.push((made["id"].clone(), made["key"].as_str().unwrap().to_owned()));
    }
    for (_, key) in &keys {
        let mut statuses = Vec::new();
        for _ in 0..4 {
            statuses.push(client.ask("GET", RECORD, &[("x-api-key", key)], "").await.status());
        }
        assert_eq!(statuses, [200, 200, 200, 429]);
    }
    let top = stack.gateway.operator().get("/admin/top?by=api_key&window=60s", None).await.json();
    let listed: Vec<_> = top["items"].as_array().unwrap().iter().map(|item| item["key"].clone()).collect();
    assert!(keys.iter().all(|(id, _)| listed.contains(id)), "{top}");
}
