//! `backend-sqlite user`, on the database of a service that runs.

use std::process::{Output, Stdio};

use serde_json::json;
use tests::accounts::{RECORD, lenient_stack, login, post, reader};
use tests::program::command;
use tests::stack::{Backend, PASSWORD};
use tokio::io::AsyncWriteExt as _;

/// Runs `backend-sqlite user ARGUMENTS` on the database of `backend`, with this on its standard input.
async fn user(backend: &Backend, arguments: &[&str], input: &str) -> Output {
    let mut command = command("backend-sqlite");
    command.arg("user").args(arguments).arg("--database").arg(backend.database());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    child.wait_with_output().await.unwrap()
}

/// What it prints where it succeeds.
async fn said(backend: &Backend, arguments: &[&str], input: &str) -> String {
    let output = user(backend, arguments, input).await;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it prints where it fails: one line.
async fn refused(backend: &Backend, arguments: &[&str], input: &str) -> String {
    let output = user(backend, arguments, input).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[tokio::test]
async fn passwd_sets_a_password_and_ends_what_the_old_one_opened() {
    let stack = lenient_stack().await;
    let (_, ann) = reader(&stack).await;
    let client = stack.gateway.client();
    let session = login(&client, "ann", PASSWORD).await.json();
    let made = post(&client, "/v1/api-keys", Some(&ann.token), &json!({"name": "robot"})).await.json();
    let key = made["key"].as_str().unwrap();
    assert_eq!(client.ask("GET", RECORD, &[("x-api-key", key)], "").await.status(), 200);

    let new = "a new password of an operator's";
    assert_eq!(said(&stack.backend, &["passwd", "ann", "--password-stdin"], &format!("{new}\n")).await, "");
    assert_eq!(login(&client, "ann", PASSWORD).await.status(), 401);
    assert_eq!(login(&client, "ann", new).await.status(), 200);
    let refresh = json!({"refresh_token": session["refresh_token"]});
    assert_eq!(post(&client, "/v1/auth/refresh", None, &refresh).await.status(), 401, "its sessions end");
    tests::eventually("its tokens and keys end as well", || async {
        let token = client.get("/v1/auth/sessions", session["access_token"].as_str()).await;
        let key = client.ask("GET", RECORD, &[("x-api-key", key)], "").await;
        (token.status(), key.status()) == (401, 401)
    })
    .await;
}

#[tokio::test]
async fn passwd_makes_a_password_where_none_is_given_and_refuses_a_bad_one() {
    let stack = lenient_stack().await;
    stack.backend.add_user("ann", &[]).await;
    let client = stack.gateway.client();
    let printed = said(&stack.backend, &["passwd", "ann"], "").await;
    let made = printed.trim();
    assert!(made.len() >= 32 && printed.lines().count() == 1, "{} characters", made.len());
    assert_eq!(login(&client, "ann", made).await.status(), 200);
    assert_eq!(login(&client, "ann", PASSWORD).await.status(), 401);
    let short = refused(&stack.backend, &["passwd", "ann", "--password-stdin"], "short").await;
    assert!(short.contains("a password is") && !short.contains("short\""), "{short}");
    let unknown = refused(&stack.backend, &["passwd", "nobody", "--password-stdin"], PASSWORD).await;
    assert!(unknown.contains("there is no user `nobody`"), "{unknown}");
    assert_eq!(login(&client, "ann", made).await.status(), 200, "nothing was changed");
}

#[tokio::test]
async fn list_prints_each_account_with_its_state_and_roles() {
    let stack = lenient_stack().await;
    let root = stack.user("root", &["admin"]).await;
    let ann = stack.backend.add_user("ann", &[]).await;
    let path = format!("/v1/users/{ann}/deactivate");
    let answer = post(&stack.gateway.client(), &path, Some(&root.token), &json!({})).await;
    assert_eq!(answer.status(), 200, "{:?}", answer.body);
    let listed = said(&stack.backend, &["list"], "").await;
    let mut lines: Vec<_> = listed.lines().collect();
    lines.sort_unstable_by_key(|line| line.split('\t').nth(1));
    assert_eq!(lines, [format!("{ann}\tann\tinactive\t"), format!("{}\troot\tactive\tadmin", root.id)]);
    assert!(!listed.contains("$argon2"), "{listed}");
}

#[tokio::test]
async fn add_refuses_a_name_that_is_taken_or_none_and_a_role_that_is_not_there() {
    let backend = Backend::start(&[]).await;
    backend.add_user("ann", &[]).await;
    for (arguments, wanted) in [
        (&["add", "ann", "--password-stdin"][..], "the username `ann` is taken"),
        (&["add", "a b", "--password-stdin"], "a username is"),
        (&["add", "bob", "--role", "none", "--password-stdin"], "there is no role `none`"),
    ] {
        let error = refused(&backend, arguments, PASSWORD).await;
        assert!(error.contains(wanted), "{error}");
    }
    let hash = refused(&backend, &["add", "bob", "--hash-stdin"], "no hash").await;
    assert!(hash.contains("expected a hash of argon2"), "{hash}");
    assert_eq!(said(&backend, &["list"], "").await.lines().count(), 1);
}
