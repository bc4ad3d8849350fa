//! Guessing passwords: a crowd gets nowhere, and holds nobody up who has the right one.

use serde_json::{Value, json};
use tests::accounts::{code, lenient, login};
use tests::client::{Answer, Client};
use tests::policy_text::PolicyText;
use tests::stack::{PASSWORD, Stack};

/// An address of its own for each number, below a network of the test's.
fn address(network: u8, number: usize) -> [u8; 4] {
    let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
    [127, network, high, low]
}

fn problem(answer: &Answer) -> (u16, Value) {
    let mut problem = answer.json();
    (problem["request_id"], problem["retry_after"]) = (Value::Null, Value::Null);
    (answer.status(), problem)
}

/// Guesses from many addresses at once, until a new one is throttled.
async fn flood(client: &Client, name: &str, network: u8) -> Answer {
    let mut number = 0;
    loop {
        let batch: Vec<_> = (0..20)
            .map(|_| {
                number += 1;
                let (from, name) = (client.at(address(network, number)), name.to_owned());
                tokio::spawn(async move { login(&from, &name, "wrong").await })
            })
            .collect();
        let mut last = None;
        for guess in batch {
            last = Some(guess.await.unwrap());
        }
        let last = last.unwrap();
        if last.status() == 429 {
            return last;
        }
        assert!(number < 2_000, "never refused");
    }
}

#[tokio::test]
async fn an_owner_gets_in_from_a_known_address_or_device_whatever_others_do() {
    let policy = PolicyText::usual().set("limits.login.rate", "1000/s"); // three failures ban an address
    let stack = Stack::with(&policy, &[]).await;
    stack.backend.add_user("ann", &[]).await;
    let client = stack.gateway.client();
    let home = client.at([127, 0, 7, 1]);
    let first = login(&home, "ann", PASSWORD).await;
    let cookie = first.field("set-cookie").to_owned();
    assert!(cookie.starts_with("palisade_device="), "{cookie}");
    assert!(cookie.ends_with("; HttpOnly; SameSite=Strict"), "{cookie}");
    let device = cookie.split(';').next().unwrap().to_owned();

    let Stack { backend, gateway } = stack;
    let backend = backend.restart().await; // what is known outlives it
    let (known, made_up) = (flood(&client, "ann", 31).await, flood(&client, "nobody", 32).await);
    assert_eq!(known.json()["code"], "login_throttled");
    assert_eq!(known.field("retry-after"), known.json()["retry_after"].to_string());
    assert_eq!(problem(&known), problem(&made_up), "nobody learns who has an account");

    // A flood is over after two seconds: where the machine is busy, it is begun anew.
    let with_device = async |from: &Client, name: &str| {
        let body = json!({"username": name, "password": PASSWORD}).to_string();
        let fields = [("content-type", "application/json"), ("cookie", device.as_str())];
        from.ask("POST", "/v1/auth/login", &fields, body).await
    };
    let (mut strangers, mut refused) = (0, 0);
    while refused == 0 {
        strangers += 1;
        assert!(strangers < 20, "a stranger always gets in");
        flood(&client, "ann", 40 + strangers).await;
        let stranger = client.at([127, 0, 8, strangers]);
        refused += u32::from(login(&stranger, "ann", PASSWORD).await.status() == 429);
        let (home, moved) = (
            login(&home, "ann", PASSWORD).await,
            with_device(&client.at([127, 0, 9, strangers]), "ann").await,
        );
        assert_eq!((home.status(), moved.status()), (200, 200), "{:?} {:?}", home.body, moved.body);
        assert!(moved.field("set-cookie").starts_with(&device), "the device is still the same");
    }

    let mut guesser = 0;
    loop {
        guesser += 1;
        assert!(guesser < 20, "nobody is told to wait");
        flood(&client, "nobody", 70 + guesser).await;
        let stranger = client.at([127, 0, 10, guesser]);
        let mut statuses = vec![with_device(&stranger, "nobody").await.status()]; // it is ann's device
        for _ in 0..9 {
            statuses.push(login(&stranger, "nobody", "wrong").await.status());
        }
        if statuses == [429; 10] {
            let answer = stranger.get("/.well-known/jwks.json", None).await;
            assert_eq!(answer.status(), 200, "being told to wait bans nobody");
            break;
        }
    }
    let told = Client::of(backend.address).get("/metrics", None).await;
    let told = String::from_utf8_lossy(&told.body).into_owned();
    assert!(told.contains("palisade_logins_throttled_total{limit="), "{told}");
    let said = |event: &Value| {
        event["message"].as_str().is_some_and(|text| text.starts_with("logins are refused: too many fail"))
    };
    assert_eq!(backend.program.events().iter().filter(|event| said(event)).count(), 1, "said once");
    drop(gateway);
}

#[tokio::test]
async fn failures_lock_the_place_that_they_come_from_and_not_the_owner() {
    let stack = Stack::with(&lenient(), &[]).await;
    stack.backend.add_user("ann", &[]).await;
    let client = stack.gateway.client();
    let (home, attacker) = (client.at([127, 0, 7, 11]), client.at([127, 0, 7, 12]));
    for _ in 0..5 {
        assert_eq!(login(&attacker, "ann", "wrong").await.status(), 401);
    }
    assert_eq!(login(&attacker, "ann", PASSWORD).await.status(), 401, "locked, and not told so");
    let first = login(&home, "ann", PASSWORD).await;
    assert_eq!(first.status(), 200, "{:?}", first.body);
    assert_eq!(login(&attacker, "ann", PASSWORD).await.status(), 401, "still");
}

#[tokio::test]
async fn the_right_password_without_its_code_is_no_failure_and_a_code_is_taken_as_apps_show_it() {
    let policy = PolicyText::usual().set("limits.login.rate", "1000/s"); // three failures ban an address
    let stack = Stack::with(&policy, &[]).await;
    let user = stack.user("ann", &[]).await;
    let client = stack.gateway.client().at([127, 0, 7, 21]);
    let post = async |path: &str, body: Value| client.json("POST", path, Some(&user.token), &body).await;
    let enrolled = post("/v1/auth/totp/enroll", json!({})).await.json();
    let secret = enrolled["secret"].as_str().unwrap();
    assert_eq!(post("/v1/auth/totp/confirm", json!({"code": code(secret, 0)})).await.status(), 200);
    for _ in 0..8 {
        let step = login(&client, "ann", PASSWORD).await;
        assert_eq!((step.status(), &step.json()["code"]), (403, &json!("totp_required")));
    }
    let shown = code(secret, 1);
    let shown = format!("{} {}", &shown[..3], &shown[3..]);
    let body = json!({"username": "ann", "password": PASSWORD, "totp": shown});
    let answer = client.json("POST", "/v1/auth/login", None, &body).await;
    assert_eq!(answer.status(), 200, "neither banned nor locked: {:?}", answer.body);
    let told = Client::of(stack.backend.address).get("/metrics", None).await;
    assert!(String::from_utf8_lossy(&told.body).contains("palisade_failed_logins_total 0"));
}

#[tokio::test]
async fn a_new_password_is_judged_only_for_whoever_has_the_old_one() {
    let stack = Stack::with(&lenient(), &[]).await;
    stack.backend.add_user("ann", &[]).await;
    let client = stack.gateway.client();
    let change = async |password: &str, new: &str| {
        let body = json!({"username": "ann", "password": password, "new_password": new});
        let answer = client.json("POST", "/v1/auth/change-password", None, &body).await;
        (answer.status(), answer.json()["code"].clone())
    };
    assert_eq!(change("wrong", "weak").await, (401, json!("login_failed")), "and nothing about the new one");
    assert_eq!(change(PASSWORD, "weak").await, (422, json!("weak_password")));
    let told = Client::of(stack.backend.address).get("/metrics", None).await;
    let told = String::from_utf8_lossy(&told.body).into_owned();
    assert!(told.contains("palisade_failed_logins_total 1"), "a wrong one is a failed login: {told}");
}
