//! What outlives an access token needs more than an access token: second factors, API keys, and what a reset ends.

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tests::accounts::{code, lenient, lenient_stack, login, post, shared_secret};
use tests::client::Client;
use tests::stack::{Backend, Gateway, PASSWORD, Stack};

const SECRET: &str = "a secret for tests that is long enough";

/// A stack whose tokens a test can sign.
async fn stack() -> Stack {
    let backend = Backend::start(&[("JWT_SECRET", SECRET)]).await;
    let policy = shared_secret();
    let gateway = Gateway::start(backend.address, &policy, &[("JWT_SECRET", SECRET)]).await;
    Stack { backend, gateway }
}

/// A token of `user`, who logged in so many seconds ago.
fn token(user: &str, seconds: u64) -> String {
    let now = jsonwebtoken::get_current_timestamp();
    let claims = json!({
        "iss": "palisade", "aud": "palisade", "sub": user, "roles": [], "iat": now, "exp": now + 600,
        "jti": format!("{user}-{seconds}"), "auth_time": now - seconds,
    });
    encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

async fn asked(client: &Client, path: &str, token: &str, body: Value) -> (u16, Value) {
    let answer = post(client, path, Some(token), &body).await;
    let body = if answer.body.is_empty() { Value::Null } else { answer.json()["code"].clone() };
    (answer.status(), body)
}

#[tokio::test]
async fn a_token_that_is_not_from_a_fresh_login_makes_no_key_and_no_second_factor_without_the_password() {
    let stack = stack().await;
    let id = stack.backend.add_user("ann", &[]).await;
    let client = stack.gateway.client();
    let (fresh, stolen) = (token(&id, 10), token(&id, 600));
    let again = (403, json!("reauthentication_required"));
    let key = |more: Value| {
        let mut body = json!({"name": "robot"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let (keys, enroll) = ("/v1/api-keys", "/v1/auth/totp/enroll");
    assert_eq!(asked(&client, keys, &stolen, key(json!({}))).await, again);
    assert_eq!(asked(&client, enroll, &stolen, json!({})).await, again);
    let wrong = json!({"password": "wrong"});
    assert_eq!(asked(&client, keys, &stolen, key(wrong.clone())).await, (401, json!("login_failed")));
    assert_eq!(asked(&client, enroll, &stolen, wrong).await, (401, json!("login_failed")));
    let bearer = format!("Bearer {stolen}");
    let listed = client.ask("POST", enroll, &[("authorization", &bearer)], "").await;
    assert_eq!(listed.json()["code"], "reauthentication_required", "nor without any body");

    assert_eq!(asked(&client, keys, &fresh, key(json!({}))).await.0, 201);
    assert_eq!(asked(&client, keys, &stolen, key(json!({"password": PASSWORD}))).await.0, 201);
    let enrolled = post(&client, enroll, Some(&stolen), &json!({"password": PASSWORD})).await;
    assert_eq!(enrolled.status(), 200, "{:?}", enrolled.body);
    let enrolled = enrolled.json();
    let secret = enrolled["secret"].as_str().unwrap();
    let confirm = json!({"code": code(secret, 0)});
    let confirmed = post(&client, "/v1/auth/totp/confirm", Some(&stolen), &confirm).await;
    assert_eq!(confirmed.status(), 200, "{:?}", confirmed.body);
    let recovery = confirmed.json()["recovery_codes"][0].as_str().unwrap().to_owned();

    assert_eq!(
        asked(&client, keys, &stolen, key(json!({"password": PASSWORD}))).await,
        (403, json!("totp_required")),
        "the whole of it"
    );
    let disable = "/v1/auth/totp/disable";
    assert_eq!(asked(&client, disable, &stolen, json!({"code": recovery})).await, again);
    let body = json!({"code": recovery, "password": PASSWORD});
    assert_eq!(asked(&client, disable, &stolen, body).await.0, 204);
}

#[tokio::test]
async fn a_login_and_its_refreshes_are_fresh_for_as_long_as_the_login_is() {
    let stack = lenient_stack().await;
    stack.backend.add_user("ann", &[]).await;
    let client = stack.gateway.client();
    let tokens = login(&client, "ann", PASSWORD).await.json();
    let body = json!({"refresh_token": tokens["refresh_token"]});
    let refreshed = post(&client, "/v1/auth/refresh", None, &body).await.json();
    for tokens in [&tokens, &refreshed] {
        let token = tokens["access_token"].as_str().unwrap();
        assert_eq!(asked(&client, "/v1/api-keys", token, json!({"name": "robot"})).await.0, 201);
    }
}

/// An account with a key, through a mail that resets its password: the token in the mail.
async fn reset_token(client: &Client, mail: &std::path::Path) -> String {
    assert_eq!(
        post(client, "/v1/auth/forgot-password", None, &json!({"username": "ann"})).await.status(),
        202
    );
    let mails = || tests::mails(mail);
    tests::eventually("the mail is written", || async { mails().len() == 1 }).await;
    let text = std::fs::read_to_string(&mails()[0]).unwrap();
    text.lines().rev().find(|line| line.len() == 43 && !line.contains(' ')).unwrap().to_owned()
}

#[tokio::test]
async fn a_reset_ends_api_keys_and_a_change_of_the_password_does_where_it_is_asked_to() {
    let mail = tempfile::tempdir().unwrap();
    let backend = Backend::start(&[("PALISADE_BACKEND__MAIL__DIR", mail.path().to_str().unwrap())]).await;
    let gateway = Gateway::start(backend.address, &lenient(), &[]).await;
    let client = gateway.client();
    let ann = json!({"username": "ann", "password": PASSWORD, "email": "ann@example.org"});
    assert_eq!(post(&client, "/v1/auth/register", None, &ann).await.status(), 201);
    let mut password = PASSWORD.to_owned();
    let make_key = async |password: &str| {
        let tokens = login(&client, "ann", password).await.json();
        let token = tokens["access_token"].as_str().unwrap();
        let made = post(&client, "/v1/api-keys", Some(token), &json!({"name": "robot"})).await;
        made.json()["key"].as_str().unwrap().to_owned()
    };
    // A key that is good is refused for lack of a permission, not for being no key.
    let works = async |key: &str| {
        let answer = client.ask("GET", "/v1/collections/a/records/b", &[("x-api-key", key)], "").await;
        answer.code() == "permission_denied"
    };
    let mut change = async |new: &str, revoke: bool| {
        let body =
            json!({"username": "ann", "password": password, "new_password": new, "revoke_api_keys": revoke});
        assert_eq!(post(&client, "/v1/auth/change-password", None, &body).await.status(), 204);
        new.clone_into(&mut password);
    };
    let key = make_key(PASSWORD).await;
    assert!(works(&key).await);
    change("a second good password", false).await;
    assert!(works(&key).await, "a change that is due every so often leaves robots alone");
    change("a third good password", true).await;
    assert!(!works(&key).await, "unless it is asked not to");

    let key = make_key("a third good password").await;
    assert!(works(&key).await);
    let reset =
        json!({"token": reset_token(&client, mail.path()).await, "password": "a fourth good password"});
    assert_eq!(post(&client, "/v1/auth/reset-password", None, &reset).await.status(), 204);
    assert!(!works(&key).await, "whoever had the account has no key left");
    assert!(works(&make_key("a fourth good password").await).await);
}
