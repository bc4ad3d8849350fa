//! Accounts: what tests of tokens, sessions, second factors and permissions begin with.

use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::policy_text::PolicyText;
use crate::stack::{Stack, User};

/// A record that [`reader`] makes.
pub const RECORD: &str = "/v1/collections/notes/records/a";

/// The tests' policy, under which a test may log in as often as it likes, rightly or not.
pub fn lenient() -> PolicyText {
    PolicyText::usual().set("limits.login.rate", "1000/s").set("blocks.auto.failures", 1000)
}

/// The same, with tokens that are signed by the secret `JWT_SECRET`: so a test can sign some itself.
pub fn shared_secret() -> PolicyText {
    lenient()
        .set("jwt.accounts.algorithms", vec!["HS256"])
        .remove("jwt.accounts.jwks")
        .set("jwt.accounts.secret", "JWT_SECRET")
}

/// A stack with [`lenient`].
pub async fn lenient_stack() -> Stack {
    Stack::with(&lenient(), &[]).await
}

/// POST of a JSON body.
pub async fn post(client: &Client, target: &str, token: Option<&str>, body: &Value) -> Answer {
    client.json("POST", target, token, body).await
}

/// The answer to a login.
pub async fn login(client: &Client, name: &str, password: &str) -> Answer {
    post(client, "/v1/auth/login", None, &json!({"username": name, "password": password})).await
}

/// A collection with a record, an administrator, and a user who may read it.
pub async fn reader(stack: &Stack) -> (User, User) {
    let admin = stack.user("root", &["admin"]).await;
    let reader = stack.user("ann", &[]).await;
    let client = stack.gateway.client();
    client.json("PUT", "/v1/collections/notes", Some(&admin.token), &json!({})).await;
    client.json("PUT", RECORD, Some(&admin.token), &json!(1)).await;
    let grants = json!({"permissions": [{"permission": "records:read", "resource": "notes"}]});
    client.json("PUT", "/v1/roles/reader/permissions", Some(&admin.token), &grants).await;
    let path = format!("/v1/users/{}/roles", reader.id);
    let answer = client.json("PUT", &path, Some(&admin.token), &json!({"roles": ["reader"]})).await;
    assert_eq!(answer.status(), 200);
    (admin, reader)
}

/// The code of `steps` steps from now, as an authenticator app shows it.
pub fn code(secret: &str, steps: i64) -> String {
    let output = std::process::Command::new("oathtool")
        .args(["--totp", "--base32", secret, "--now", &format!("{} seconds", steps * 30)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Enrolls and confirms a second factor: its secret and the recovery codes.
pub async fn enroll(client: &Client, token: &str) -> (String, Vec<String>) {
    let enrolled = post(client, "/v1/auth/totp/enroll", Some(token), &json!({})).await.json();
    let secret = enrolled["secret"].as_str().unwrap().to_owned();
    assert!(enrolled["otpauth_url"].as_str().unwrap().starts_with("otpauth://totp/Palisade:"));
    let wrong = post(client, "/v1/auth/totp/confirm", Some(token), &json!({"code": "000000"})).await;
    assert_eq!(wrong.json()["code"], "totp_invalid");
    let confirmed =
        post(client, "/v1/auth/totp/confirm", Some(token), &json!({"code": code(&secret, 0)})).await;
    assert_eq!(confirmed.status(), 200, "{:?}", confirmed.body);
    let codes = confirmed.json()["recovery_codes"].as_array().unwrap().clone();
    (secret, codes.iter().map(|code| code.as_str().unwrap().to_owned()).collect())
}
