//! The wall clock is set, back and forth, where the programs compare it with each other or with an authenticator.

use serde_json::json;
use tests::accounts::{code, enroll, lenient, login, post};
use tests::fake_clock::{FakeClock, borrowed};
use tests::stack::{Backend, Gateway, PASSWORD, POLICY};

#[tokio::test]
async fn the_backend_trusts_its_gateway_after_the_clock_of_both_was_set_back() {
    let Some(clock) = FakeClock::new() else { return eprintln!("libfaketime is not installed: not tried") };
    let environment = clock.environment();
    let backend = Backend::start(&borrowed(&environment)).await;
    let gateway = Gateway::start(backend.address, POLICY, &borrowed(&environment)).await;
    let client = gateway.client();
    backend.add_user("ann", &[]).await;
    assert_eq!(login(&client, "ann", PASSWORD).await.status(), 200);
    clock.set("-1h");
    let tokens = login(&client, "ann", PASSWORD).await;
    assert_eq!(tokens.status(), 200);
    let token = tokens.json()["access_token"].as_str().unwrap().to_owned();
    let answer = client.get("/v1/collections/notes/records/a", Some(&token)).await;
    assert_eq!(answer.code(), "permission_denied", "she is known, and what she may do is asked");
}

#[tokio::test]
async fn a_code_of_the_second_factor_is_good_once_however_the_clock_is_set() {
    let Some(clock) = FakeClock::new() else { return eprintln!("libfaketime is not installed: not tried") };
    let environment = clock.environment();
    let backend = Backend::start(&borrowed(&environment)).await;
    let gateway = Gateway::start(backend.address, &lenient(), &borrowed(&environment)).await;
    let client = gateway.client();
    backend.add_user("ann", &[]).await;
    let tokens = login(&client, "ann", PASSWORD).await.json();
    let (secret, _) = enroll(&client, tokens["access_token"].as_str().unwrap()).await;
    let with = async |code: &str| {
        let body = json!({"username": "ann", "password": PASSWORD, "totp": code});
        post(&client, "/v1/auth/login", None, &body).await.status()
    };
    let used = code(&secret, 1);
    assert_eq!((with(&used).await, with(&used).await), (200, 401));
    clock.set("+1h");
    assert_eq!(with(&code(&secret, 120)).await, 200, "an hour ahead");
    clock.set("+0s");
    assert_eq!(with(&used).await, 401, "it is used up");
    clock.set("-1h");
    assert_eq!(with(&code(&secret, -120)).await, 200, "an hour behind nobody is held");
    clock.set("+0s");
    assert_eq!(with(&used).await, 401, "it is used up all the same");
}
