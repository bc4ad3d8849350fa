//! What ends a session or a token ends it on every gateway, for good.

use serde_json::{Value, json};
use tests::accounts::{lenient, lenient_stack, login, post};
use tests::eventually;
use tests::stack::{Backend, Gateway, PASSWORD};

#[tokio::test]
async fn the_end_of_a_session_revokes_its_tokens_on_every_gateway_and_over_restarts() {
    let backend = Backend::start(&[]).await;
    let gateways = [
        Gateway::start(backend.address, &lenient(), &[]).await,
        Gateway::start(backend.address, &lenient(), &[]).await,
    ];
    backend.add_user("root", &["admin"]).await;
    let ann = backend.add_user("ann", &[]).await;
    let client = gateways[0].client();
    let tokens = async |name: &str| login(&client, name, PASSWORD).await.json();
    let word = |tokens: &Value, name: &str| tokens[name].as_str().unwrap().to_owned();
    let status = async |gateway: &Gateway, token: &str| {
        gateway.client().get("/v1/auth/sessions", Some(token)).await.status()
    };
    let admin = word(&tokens("root").await, "access_token");
    for gateway in &gateways {
        gateway.follows_the_feed().await;
    }
    let session = tokens("ann").await;
    let kept = word(&tokens("ann").await, "access_token");
    for gateway in &gateways {
        assert_eq!(status(gateway, &word(&session, "access_token")).await, 200);
    }
    let body = json!({"refresh_token": session["refresh_token"]});
    assert_eq!(post(&client, "/v1/auth/logout", None, &body).await.status(), 204);
    assert_eq!(post(&client, "/v1/auth/logout", None, &body).await.status(), 204, "no error");
    for gateway in &gateways {
        // No wait: the answer to the logout came when every gateway knew.
        assert_eq!(status(gateway, &word(&session, "access_token")).await, 401);
        assert_eq!(status(gateway, &kept).await, 200, "another session goes on");
    }
    let listed = client.get("/v1/auth/sessions", Some(&kept)).await.json();
    let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/auth/sessions/{id}");
    assert_eq!(client.json("DELETE", &path, Some(&admin), &json!({})).await.status(), 404, "somebody else's");
    assert_eq!(client.json("DELETE", &path, Some(&kept), &json!({})).await.status(), 204);
    assert_eq!(status(&gateways[1], &kept).await, 401);

    let deactivated = tokens("ann").await;
    let path = format!("/v1/users/{ann}/deactivate");
    assert_eq!(post(&client, &path, Some(&admin), &json!({})).await.status(), 200);
    assert_eq!(status(&gateways[1], &word(&deactivated, "access_token")).await, 401);
    assert_eq!(login(&client, "ann", PASSWORD).await.json()["code"], "login_failed");
    let refreshed = json!({"refresh_token": deactivated["refresh_token"]});
    assert_eq!(post(&client, "/v1/auth/refresh", None, &refreshed).await.status(), 401);

    // A gateway that starts receives what is revoked.
    let fresh = Gateway::start(backend.address, &lenient(), &[]).await;
    fresh.follows_the_feed().await;
    assert_eq!(status(&fresh, &word(&session, "access_token")).await, 401);
    let backend = backend.restart().await;
    assert_eq!(
        post(&fresh.client(), &format!("/v1/users/{ann}/activate"), Some(&admin), &json!({})).await.status(),
        200
    );
    assert_eq!(status(&fresh, &word(&deactivated, "access_token")).await, 401, "what was revoked stays so");
    drop(backend);
}

#[tokio::test]
async fn an_operator_revokes_tokens_by_id_subject_and_age_for_good() {
    let stack = lenient_stack().await;
    let ann = stack.user("ann", &[]).await;
    let bob = stack.user("bob", &[]).await;
    let client = stack.gateway.client();
    let operator = stack.gateway.operator();
    let code = async |token: &str| {
        let answer = client.get("/v1/auth/sessions", Some(token)).await;
        if answer.status() == 200 { "ok".to_owned() } else { answer.code() }
    };
    let set = async |method: &str, path: &str, body: &str| {
        operator.ask(method, &format!("/admin/revocations/{path}"), &[], body.to_owned()).await.status()
    };
    let jti = claim(&ann.token, "jti");
    assert_eq!(set("PUT", &format!("jti/{jti}"), "{\"duration\":\"1h\",\"reason\":\"lost\"}").await, 204);
    assert_eq!((code(&ann.token).await.as_str(), code(&bob.token).await.as_str()), ("token_revoked", "ok"));
    let listed = operator.get("/admin/revocations", None).await.json();
    assert_eq!((&listed["items"][0]["by"], &listed["items"][0]["reason"]), (&json!("jti"), &json!("lost")));
    assert_eq!(set("DELETE", &format!("jti/{jti}"), "").await, 204);
    assert_eq!(code(&ann.token).await, "ok");
    assert_eq!(set("PUT", &format!("sub/{}", bob.id), "").await, 204);
    assert_eq!((code(&ann.token).await.as_str(), code(&bob.token).await.as_str()), ("ok", "token_revoked"));
    let issued: u64 = claim(&ann.token, "iat").parse().unwrap();
    assert_eq!(set("PUT", &format!("iat/{issued}"), "").await, 204);
    assert_eq!(code(&ann.token).await, "ok", "issued in that second, not before it");
    assert_eq!(set("PUT", &format!("iat/{}", issued + 1), "").await, 204);
    assert_eq!(code(&ann.token).await, "token_revoked");
    for bad in ["iat/yesterday", "kid/1"] {
        assert_eq!(set("PUT", bad, "").await, 400, "{bad}");
    }
}

fn claim(token: &str, name: &str) -> String {
    use base64::Engine as _;
    let payload = token.split('.').nth(1).unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap();
    let claims: Value = serde_json::from_slice(&bytes).unwrap();
    claims[name].as_str().map_or_else(|| claims[name].to_string(), str::to_owned)
}

#[tokio::test]
async fn a_revoked_token_is_not_accepted_again_while_clocks_may_differ() {
    let backend = Backend::start(&[("PALISADE_BACKEND__ACCOUNTS__ACCESS_TOKEN", "1s")]).await;
    let policy = lenient().set("jwt.accounts.leeway", "1m");
    let gateway = Gateway::start(backend.address, &policy, &[]).await;
    backend.add_user("ann", &[]).await;
    let client = gateway.client();
    let session = login(&client, "ann", PASSWORD).await.json();
    let token = session["access_token"].as_str().unwrap();
    let expires: u64 = claim(token, "exp").parse().unwrap();
    eventually("it has expired, but for the leeway", || async {
        jsonwebtoken::get_current_timestamp() > expires
    })
    .await;
    assert_eq!(client.get("/v1/auth/sessions", Some(token)).await.status(), 200);
    let body = json!({"refresh_token": session["refresh_token"]});
    assert_eq!(post(&client, "/v1/auth/logout", None, &body).await.status(), 204);
    eventually("the gateway follows", || async {
        client.get("/v1/auth/sessions", Some(token)).await.status() == 401
    })
    .await;
}
