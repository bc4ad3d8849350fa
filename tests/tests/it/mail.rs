//! Mail, as its receiver sees it.

use std::path::Path;

use serde_json::{Value, json};
use tests::accounts::{lenient, login, post};
use tests::authority::Authority;
use tests::peers::{python, smtp_server};
use tests::program::Program;
use tests::stack::{Backend, Gateway, PASSWORD};
use tests::{eventually, free_port};

fn mails(dir: &Path) -> Vec<String> {
    tests::mails(dir).iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

#[tokio::test]
async fn mail_reaches_the_account_whose_address_is_verified_however_many_others_name_it() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::start(&[("PALISADE_BACKEND__MAIL__DIR", dir.path().to_str().unwrap())]).await;
    let gateway = Gateway::start(backend.address, &lenient(), &[]).await;
    backend.add_user("root", &["admin"]).await;
    let client = gateway.client();
    // Ten at a time are mailed: twelve that came before would leave nothing for her.
    for number in 0..12 {
        let body = json!({"username": format!("squatter-{number}"), "password": PASSWORD, "email": "ann@example.org"});
        assert_eq!(post(&client, "/v1/auth/register", None, &body).await.status(), 201);
    }
    let tokens = login(&client, "root", PASSWORD).await.json();
    let admin = tokens["access_token"].as_str();
    let ann = json!({"username": "ann", "password": PASSWORD, "email": "Ann@Example.org"});
    assert_eq!(post(&client, "/v1/users", admin, &ann).await.status(), 201);
    let forgot = json!({"email": "ann@EXAMPLE.org"});
    assert_eq!(post(&client, "/v1/auth/forgot-password", None, &forgot).await.status(), 202);
    eventually("the mails are written", || async { mails(dir.path()).len() == 10 }).await;
    assert!(
        mails(dir.path()).iter().any(|mail| mail.contains("for the account ann.")),
        "{:?}",
        mails(dir.path())
    );
}

fn mails_of(server: &Program) -> Vec<Value> {
    server.events().into_iter().filter(|event| event["message"] == "mail").collect()
}

async fn ask(gateway: &Gateway, name: &str) {
    let answer = post(&gateway.client(), "/v1/auth/forgot-password", None, &json!({"username": name})).await;
    assert_eq!(answer.status(), 202);
}

/// A backend that sends its mail to `port`, with its gateway.
async fn mailing_to(port: u16) -> (Backend, Gateway) {
    let url = mail_url(port);
    let backend = Backend::start(&[("PALISADE_BACKEND__MAIL__URL", url.as_str())]).await;
    let gateway = Gateway::start(backend.address, &lenient(), &[]).await;
    (backend, gateway)
}

fn mail_url(port: u16) -> String {
    format!("smtp://127.0.0.1:{port}")
}

async fn register(gateway: &Gateway, name: &str) {
    let body = json!({"username": name, "password": PASSWORD, "email": format!("{name}@example.org")});
    assert_eq!(post(&gateway.client(), "/v1/auth/register", None, &body).await.status(), 201);
}

#[tokio::test]
async fn a_mail_is_what_its_receiver_expects_and_its_token_resets_the_password() {
    let Some(python) = python() else { return eprintln!("PEERS_PYTHON is not set: not tried") };
    let (authority, port) = (Authority::new().await, free_port());
    authority.sign("mail").await;
    let (certificate, key) = (authority.path("mail.pem"), authority.path("mail.key"));
    let user =
        ["--user", "ann@mail.test", "--password", "s3cret%", "--certificate", &certificate, "--key", &key];
    let server = smtp_server(&python, port, &user).await;
    let long = format!("https://app.example/{}?token={{token}}", "a-long-path/".repeat(20));
    let url = format!("smtp://ann%40mail.test@127.0.0.1:{port}?tls=required");
    let backend = Backend::start(&[
        ("PALISADE_BACKEND__MAIL__URL", url.as_str()),
        ("PALISADE_BACKEND__MAIL__FROM", "Shop <shop@mail.test>"),
        ("PALISADE_BACKEND__MAIL__RESET_URL", &long),
        ("SMTP_PASSWORD", "s3cret%"),
        ("SSL_CERT_FILE", &authority.path("ca.pem")),
    ])
    .await;
    let gateway = Gateway::start(backend.address, &lenient(), &[]).await;
    register(&gateway, "ann").await;
    ask(&gateway, "ann").await;
    ask(&gateway, "nobody").await;
    eventually("the mail is there", || async { mails_of(&server).len() == 1 }).await;
    assert!(server.events().iter().any(|event| event["user"] == "ann@mail.test" && event["right"] == true));
    let mail = mails_of(&server).remove(0);
    assert_eq!((&mail["sender"], &mail["to"]), (&json!("shop@mail.test"), &json!(["ann@example.org"])));
    assert_eq!((&mail["tls"], &mail["defects"]), (&json!(true), &json!([])));
    let header = |name: &str| mail["headers"][name].as_str().unwrap_or_default();
    assert!(header("Message-ID").ends_with("@mail.test>") && !header("Date").is_empty(), "{mail}");
    assert_eq!((header("MIME-Version"), header("From")), ("1.0", "Shop <shop@mail.test>"));
    assert!(mail["longest_line"].as_u64().unwrap() <= 998, "RFC 5322, 2.1.1");
    let body = mail["body"].as_str().unwrap();
    let link = body
        .lines()
        .find(|line| line.starts_with("https://app.example/"))
        .expect("the whole link on one line");
    let (before, token) = link.split_once("?token=").unwrap();
    assert_eq!(before, long.split_once('?').unwrap().0);
    let reset = json!({"token": token, "password": "another horse battery"});
    assert_eq!(post(&gateway.client(), "/v1/auth/reset-password", None, &reset).await.status(), 204);
    assert_eq!(login(&gateway.client(), "ann", "another horse battery").await.status(), 200);
}

#[tokio::test]
async fn an_unavailable_mail_server_loses_no_mail_over_a_restart() {
    let Some(python) = python() else { return eprintln!("PEERS_PYTHON is not set: not tried") };
    let port = free_port();
    let (backend, gateway) = mailing_to(port).await;
    let url = mail_url(port);
    let environment = [("PALISADE_BACKEND__MAIL__URL", url.as_str())];
    register(&gateway, "ann").await;
    ask(&gateway, "ann").await;
    let late = "palisade_mails_total{result=\"late\"}";
    eventually("it is late", || async { backend.metric(late).await > 1.5 }).await;
    ask(&gateway, "ann").await;
    assert!(backend.metric("palisade_mails_waiting").await > 0.5);
    let said = backend.program.log().iter().filter(|line| line.contains("mail cannot be sent")).count();
    assert_eq!(said, 1, "{:?}", backend.program.log());
    let backend = backend.stop_and_start(&environment).await;
    let server = smtp_server(&python, port, &[]).await;
    eventually("it is sent after all", || async { mails_of(&server).len() == 1 }).await;
    eventually("it is counted", || async { backend.metric("palisade_mails_waiting").await < 0.5 }).await;
    ask(&gateway, "ann").await;
    register(&gateway, "bob").await;
    ask(&gateway, "bob").await;
    eventually("the other's is there", || async { mails_of(&server).len() == 2 }).await;
    assert_eq!(mails_of(&server)[1]["to"], json!(["bob@example.org"]), "one a minute for each");
}

#[tokio::test]
async fn a_stop_waits_for_the_mail_that_is_on_its_way() {
    let Some(python) = python() else { return eprintln!("PEERS_PYTHON is not set: not tried") };
    let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
    let pipe = dir.path().join("hold");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let server = smtp_server(&python, port, &["--hold", pipe.to_str().unwrap()]).await;
    let receiving = async |mails: usize| {
        let count = || server.events().iter().filter(|event| event["message"] == "receiving").count();
        eventually("a mail is on its way", || async { count() == mails }).await;
    };
    let let_go = async || {
        let pipe = pipe.clone();
        tokio::task::spawn_blocking(move || std::fs::write(pipe, "go").unwrap()).await.unwrap();
    };
    let (backend, gateway) = mailing_to(port).await;
    let url = mail_url(port);
    let environment = [("PALISADE_BACKEND__MAIL__URL", url.as_str())];
    register(&gateway, "ann").await;
    ask(&gateway, "ann").await;
    receiving(1).await;
    backend.program.signal("TERM");
    let waits = || {
        backend.program.log().iter().any(|line| line.contains("mails that are on their way are waited for"))
    };
    eventually("it waits for the mail", || async { waits() }).await;
    assert!(mails_of(&server).is_empty());
    let_go().await;
    let backend = backend.start_once_ended(&environment).await;
    assert_eq!(mails_of(&server).len(), 1);
    register(&gateway, "bob").await;
    ask(&gateway, "bob").await;
    receiving(2).await;
    let waiting = backend.metric("palisade_mails_waiting").await;
    assert!((waiting - 1.0).abs() < 0.1, "the first is known to be sent, and only this one waits: {waiting}");
    let_go().await;
    eventually("the next one is there", || async { mails_of(&server).len() == 2 }).await;
    assert_eq!(mails_of(&server)[1]["to"], json!(["bob@example.org"]), "the first is not sent twice");
}

#[tokio::test]
async fn a_mailbox_that_is_refused_is_given_up_and_said() {
    let Some(python) = python() else { return eprintln!("PEERS_PYTHON is not set: not tried") };
    let port = free_port();
    let _server = smtp_server(&python, port, &["--refuse", "550"]).await;
    let (backend, gateway) = mailing_to(port).await;
    register(&gateway, "ann").await;
    ask(&gateway, "ann").await;
    let failed = "palisade_mails_total{result=\"failed\"}";
    eventually("it is given up", || async { backend.metric(failed).await > 0.5 }).await;
    let line = backend.program.log().into_iter().find(|line| line.contains("is given up")).unwrap();
    assert!(line.contains("no such mailbox") && !line.contains("example.org"), "{line}");
}
