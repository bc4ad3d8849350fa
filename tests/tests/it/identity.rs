//! Accounts whole: passwords, sessions, second factors, API keys, and what ends them.

use serde_json::{Value, json};
use tests::accounts::{RECORD, code, enroll, lenient, lenient_stack, login, post, reader, shared_secret};
use tests::client::Client;
use tests::eventually;
use tests::stack::{Backend, Gateway, PASSWORD, Stack};

#[tokio::test]
async fn an_account_is_registered_once_and_with_a_password_that_keeps_every_rule() {
    let stack = lenient_stack().await;
    let client = stack.gateway.client();
    let register = async |name: &str, password: &str| {
        post(&client, "/v1/auth/register", None, &json!({"username": name, "password": password})).await
    };
    let made = register("ann", PASSWORD).await;
    assert_eq!(made.status(), 201, "{:?}", made.body);
    assert_eq!(made.json()["username"], "ann");
    assert_eq!(
        (register("ann", PASSWORD).await.status(), register("ANN", PASSWORD).await.status()),
        (409, 409)
    );
    let weak = register("bob", "bob").await;
    assert_eq!((weak.status(), &weak.json()["code"]), (422, &json!("weak_password")));
    let rules: Vec<_> =
        weak.json()["violations"].as_array().unwrap().iter().map(|one| one["rule"].clone()).collect();
    assert_eq!(rules, ["min_length", "own_name"], "every rule that it breaks");
    assert_eq!(register("a b", PASSWORD).await.status(), 422);
    assert_eq!(login(&client, "ann", PASSWORD).await.status(), 200);
    let admin_only = stack.login("ann").await;
    assert_eq!(client.get("/v1/users", Some(&admin_only)).await.code(), "role_missing");
}

#[tokio::test]
async fn a_password_is_strong_and_an_administrator_has_a_second_factor_in_production() {
    let backend =
        Backend::start(&[("PALISADE_PROFILE", "production"), ("JWT_SECRET", &"j".repeat(32))]).await;
    backend.add_user("root", &["admin"]).await;
    let policy = shared_secret();
    let gateway = Gateway::start(backend.address, &policy, &[("JWT_SECRET", &"j".repeat(32))]).await;
    let client = gateway.client();
    let weak = json!({"username": "bob", "password": "passwordpassword"});
    assert_eq!(
        post(&client, "/v1/auth/register", None, &weak).await.json()["violations"][0]["rule"],
        "strength"
    );
    let tokens = login(&client, "root", PASSWORD).await.json();
    assert_eq!(tokens["totp_enrollment_required"], true);
    let token = tokens["access_token"].as_str().unwrap();
    assert_eq!(client.get("/v1/users", Some(token)).await.code(), "role_missing", "the role waits");
    let (secret, _) = enroll(&client, token).await;
    let with_code = json!({"username": "root", "password": PASSWORD, "totp": code(&secret, 1)});
    let tokens = post(&client, "/v1/auth/login", None, &with_code).await.json();
    assert_eq!(tokens["totp_enrollment_required"], Value::Null);
    let token = tokens["access_token"].as_str().unwrap();
    assert_eq!(client.get("/v1/users", Some(token)).await.status(), 200);
    let forgot = post(&client, "/v1/auth/forgot-password", None, &json!({"username": "root"})).await;
    assert_eq!((forgot.status(), forgot.json()["code"].as_str()), (501, Some("mail_not_configured")));
}

#[tokio::test]
async fn a_second_factor_is_asked_for_and_each_code_is_good_once() {
    let stack = lenient_stack().await;
    let user = stack.user("ann", &[]).await;
    let client = stack.gateway.client();
    let (secret, recovery) = enroll(&client, &user.token).await;
    assert_eq!(recovery.len(), 10);
    assert_eq!(login(&client, "ann", PASSWORD).await.json()["code"], "totp_required");
    assert_eq!(
        login(&client, "ann", "wrong").await.json()["code"],
        "login_failed",
        "not before the password is right"
    );
    let with = async |totp: &str| {
        let body = json!({"username": "ann", "password": PASSWORD, "totp": totp});
        post(&client, "/v1/auth/login", None, &body).await.status()
    };
    let next = code(&secret, 1);
    assert_eq!(with(&next).await, 200);
    assert_eq!(with(&next).await, 401, "used up");
    assert_eq!(with(&recovery[0].to_uppercase()).await, 200, "however it is typed");
    assert_eq!(with(&recovery[0]).await, 401, "used up");
    let again = post(&client, "/v1/auth/totp/enroll", Some(&user.token), &json!({})).await;
    assert_eq!(again.json()["code"], "totp_enrolled");
    let disable = json!({"code": recovery[1]});
    assert_eq!(post(&client, "/v1/auth/totp/disable", Some(&user.token), &disable).await.status(), 204);
    assert_eq!(login(&client, "ann", PASSWORD).await.status(), 200);
}

#[tokio::test]
async fn a_refresh_token_is_good_once_and_a_replayed_one_ends_its_family() {
    let stack = lenient_stack().await;
    stack.backend.add_user("ann", &[]).await;
    let client = stack.gateway.client();
    let tokens = login(&client, "ann", PASSWORD).await.json();
    assert_eq!((tokens["token_type"].as_str(), tokens["expires_in"].as_u64()), (Some("Bearer"), Some(1800)));
    let refresh =
        async |token: &Value| post(&client, "/v1/auth/refresh", None, &json!({"refresh_token": token})).await;
    let second = refresh(&tokens["refresh_token"]).await.json();
    let own = async |tokens: &Value| client.get("/v1/auth/sessions", tokens["access_token"].as_str()).await;
    assert_eq!((own(&tokens).await.status(), own(&second).await.status()), (200, 200));
    assert_eq!(own(&second).await.json()["items"].as_array().unwrap().len(), 1, "one session");
    let replayed = refresh(&tokens["refresh_token"]).await;
    assert_eq!((replayed.status(), &replayed.json()["code"]), (401, &json!("refresh_token_invalid")));
    assert_eq!(refresh(&second["refresh_token"]).await.status(), 401, "the family is ended");
    for tokens in [&tokens, &second] {
        assert_eq!(own(tokens).await.code(), "token_revoked", "and its access tokens are revoked");
    }
}

#[tokio::test]
async fn a_forgotten_password_is_reset_once_by_mail_and_nobody_learns_who_has_an_account() {
    let mail = tempfile::tempdir().unwrap();
    let backend = Backend::start(&[("PALISADE_BACKEND__MAIL__DIR", mail.path().to_str().unwrap())]).await;
    let gateway = Gateway::start(backend.address, &lenient(), &[]).await;
    let client = gateway.client();
    let ann = json!({"username": "ann", "password": PASSWORD, "email": "ann@example.org"});
    assert_eq!(post(&client, "/v1/auth/register", None, &ann).await.status(), 201);
    let session = login(&client, "ann", PASSWORD).await.json();
    let forgot = async |body: Value| {
        let answer = post(&client, "/v1/auth/forgot-password", None, &body).await;
        (answer.status(), answer.body.clone())
    };
    let known = forgot(json!({"username": "ann"})).await;
    assert_eq!(known, forgot(json!({"username": "nobody"})).await, "the same answer");
    assert_eq!(known.0, 202);
    assert_eq!(forgot(json!({"username": "ann", "email": "x@example.org"})).await.0, 400);
    let mails = || tests::mails(mail.path());
    eventually("the mail is written", || async { mails().len() == 1 }).await;
    let token_in = |file: &std::path::Path| {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.contains("To: ann@example.org"), "{text}");
        text.lines().rev().find(|line| line.len() == 43 && !line.contains(' ')).unwrap().to_owned()
    };
    let token = token_in(&mails()[0]);
    let reset = async |token: &str, password: &str| {
        post(&client, "/v1/auth/reset-password", None, &json!({"token": token, "password": password})).await
    };
    assert_eq!(reset(&token, "short").await.json()["code"], "weak_password", "the token is still good");
    assert_eq!(reset(&token, "another good password").await.status(), 204);
    assert_eq!(reset(&token, "yet another password").await.json()["code"], "reset_token_invalid");
    assert_eq!(login(&client, "ann", PASSWORD).await.status(), 401);
    assert_eq!(login(&client, "ann", "another good password").await.status(), 200);
    let old = session["access_token"].as_str();
    assert_eq!(client.get("/v1/auth/sessions", old).await.code(), "token_revoked");
    let change = json!({"username": "ann", "password": "another good password", "new_password": PASSWORD});
    assert_eq!(post(&client, "/v1/auth/change-password", None, &change).await.status(), 204);
    assert_eq!(post(&client, "/v1/auth/change-password", None, &change).await.status(), 401);
}

#[tokio::test]
async fn a_name_at_which_too_many_guesses_failed_is_locked_and_no_answer_shows_it() {
    let backend = Backend::start(&[
        ("PALISADE_BACKEND__ACCOUNTS__LOCKOUT__FAILURES", "3"),
        ("PALISADE_BACKEND__ACCOUNTS__LOCKOUT__DURATION", "1h"),
    ])
    .await;
    let gateway = Gateway::start(backend.address, &lenient(), &[]).await;
    backend.add_user("root", &["admin"]).await;
    let ann = backend.add_user("ann", &[]).await;
    let client = gateway.client();
    let admin = login(&client, "root", PASSWORD).await.json()["access_token"].as_str().unwrap().to_owned();
    let body = async |name: &str, password: &str| {
        let answer = login(&client, name, password).await;
        let mut problem = answer.json();
        problem["request_id"] = Value::Null;
        (answer.status(), problem)
    };
    let wrong = body("ann", "wrong").await;
    for _ in 0..2 {
        assert_eq!(body("ANN", "wrong").await, wrong);
        assert_eq!(body("nobody", "wrong").await, wrong, "unknown is the same");
    }
    assert_eq!(body("ann", PASSWORD).await, wrong, "locked is the same, however right the password is");
    let change = json!({"username": "ann", "password": PASSWORD, "new_password": "a new good password"});
    let answer = post(&client, "/v1/auth/change-password", None, &change).await;
    assert_eq!(
        (answer.status(), &answer.json()["code"]),
        (401, &json!("login_failed")),
        "nor is there another way"
    );
    let shown = client.get(&format!("/v1/users/{ann}"), Some(&admin)).await.json();
    assert_eq!(shown["locked"], true);
    let path = format!("/v1/users/{ann}/unlock");
    assert_eq!(post(&client, &path, Some(&admin), &json!({})).await.status(), 200);
    assert_eq!(login(&client, "ann", PASSWORD).await.status(), 200);
}

#[tokio::test]
async fn a_password_hash_of_another_system_is_accepted_and_upgraded() {
    let stack = lenient_stack().await;
    // `htpasswd -bnBC 10 "" 'correct horse battery'`
    let bcrypt = "$2y$10$RE5tWKQtyWUNCw/P2MhDou4M2PVdsHirWTs7lCnaZXxq8ntovIb3S";
    let id = stack.backend.add_user_with_hash("old", bcrypt).await;
    let client = stack.gateway.client();
    assert_eq!(login(&client, "old", "wrong").await.status(), 401);
    assert_eq!(login(&client, "old", PASSWORD).await.status(), 200, "{id}");
    let bytes = std::fs::read(stack.backend.database().with_extension("db-wal")).unwrap();
    assert!(bytes.windows(10).any(|ten| ten == b"$argon2id$"), "upgraded");
    assert_eq!(login(&client, "old", PASSWORD).await.status(), 200);
}

#[tokio::test]
async fn a_login_with_the_beginning_of_a_long_password_does_not_set_it() {
    let stack = lenient_stack().await;
    let whole = "correct horse battery staple, and so on until it is longer than bcrypt looks at it";
    // crypt(3) of `whole`, which looks at 72 bytes.
    let bcrypt = "$2b$04$RE5tWKQtyWUNCw/P2MhDouRLxrV0bE5IRMhqu9w2zQd/UmqmE3pAO";
    stack.backend.add_user_with_hash("old", bcrypt).await;
    let client = stack.gateway.client();
    for typed in [&whole[..72], whole, &(whole[..72].to_owned() + "!"), whole] {
        assert_eq!(login(&client, "old", typed).await.status(), 200, "as in the other system: {typed}");
    }
    assert_eq!(login(&client, "old", &whole[..71]).await.status(), 401);
}

#[tokio::test]
async fn a_batch_is_written_whole_or_not_at_all() {
    let stack = lenient_stack().await;
    let (admin, _) = reader(&stack).await;
    let client = stack.gateway.client();
    let batch = async |writes: Value| {
        post(&client, "/v1/collections/notes/batch", Some(&admin.token), &json!({"writes": writes})).await
    };
    let made =
        batch(json!([{"op": "put", "key": "b", "value": {"n": 1}}, {"op": "delete", "key": "a"}, {"op": "put", "key": "n", "value": null}])).await;
    assert_eq!(made.status(), 200, "{:?}", made.body);
    let tag = made.json()["results"][0]["etag"].clone();
    assert_eq!(client.get(RECORD, Some(&admin.token)).await.status(), 404);
    let refused = batch(json!([
        {"op": "put", "key": "c", "value": 1},
        {"op": "put", "key": "b", "value": 2, "if_match": tag},
        {"op": "put", "key": "b", "value": 3, "if_match": tag},
    ]))
    .await;
    assert_eq!((refused.status(), &refused.json()["write"]["index"]), (412, &json!(2)));
    let kept = client.get("/v1/collections/notes/records", Some(&admin.token)).await.json();
    assert_eq!(kept["items"].as_array().unwrap().len(), 2);
    assert_eq!(kept["items"][0]["value"], json!({"n": 1}), "nothing of it stays");
    let listed = client.get("/v1/collections", Some(&admin.token)).await.json();
    assert_eq!(listed["items"][0]["name"], "notes");
}

#[tokio::test]
async fn the_api_describes_itself_and_all_of_it_answers_the_gateway_alone() {
    let stack = lenient_stack().await;
    let backend = Client::of(stack.backend.address);
    let api = backend.get("/openapi.json", None).await.json();
    assert_eq!(api["openapi"].as_str().unwrap().split('.').next(), Some("3"));
    let mut operations = 0;
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters")
        {
            assert!(operation["summary"].is_string(), "{method} {path}");
            let target = path.replace(['{', '}'], "");
            let answer = backend.ask(&method.to_uppercase(), &target, &[], "").await;
            assert_eq!(
                (answer.status(), &answer.json()["code"]),
                (401, &json!("not_the_gateway")),
                "{method} {path}"
            );
            operations += 1;
        }
    }
    assert!(operations > 40, "{operations}");
    let login =
        &api["paths"]["/v1/auth/login"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(login["$ref"], "#/components/schemas/Login");
    let needed = &api["components"]["schemas"]["Login"]["required"];
    assert_eq!(needed, &json!(["username", "password"]));
}

#[tokio::test]
async fn a_denial_to_a_role_or_a_group_holds_as_long_as_it_stands() {
    let backend = Backend::start(&[("PALISADE_BACKEND__ACCOUNTS__REQUIRE_TOTP_FOR", "[\"reader\"]")]).await;
    let gateway = Gateway::start(backend.address, &lenient(), &[]).await;
    let stack = Stack { backend, gateway };
    let (admin, ann) = reader(&stack).await;
    let client = stack.gateway.client();
    let put = async |path: &str, body: Value| {
        assert_eq!(client.json("PUT", path, Some(&admin.token), &body).await.status(), 200, "{path}");
    };
    let deny = json!({"principal": "role:reader", "permission": "records:read", "resource": "notes", "effect": "deny"});
    assert_eq!(post(&client, "/v1/acl", Some(&admin.token), &deny).await.status(), 201);
    let allow = json!({"principal": format!("user:{}", ann.id), "permission": "records:read", "resource": "notes", "effect": "allow"});
    assert_eq!(post(&client, "/v1/acl", Some(&admin.token), &allow).await.status(), 201);
    let read = async || client.get(RECORD, Some(&ann.token)).await.status();
    assert_eq!(
        read().await,
        403,
        "a role that waits for a second factor grants nothing, and what is denied to it is denied"
    );
    put(&format!("/v1/users/{}/roles", ann.id), json!({"roles": []})).await;
    assert_eq!(read().await, 200);
    put("/v1/groups/staff/members", json!({"users": [ann.id]})).await;
    let deny = json!({"principal": "group:staff", "permission": "*", "resource": "*", "effect": "deny"});
    assert_eq!(post(&client, "/v1/acl", Some(&admin.token), &deny).await.status(), 201);
    assert_eq!(read().await, 403);
    assert_eq!(client.json("DELETE", "/v1/groups/staff", Some(&admin.token), &json!({})).await.status(), 200);
    assert_eq!(read().await, 200);
    put("/v1/groups/staff/members", json!({"users": [ann.id]})).await;
    assert_eq!(read().await, 200, "another group of that name");
}
