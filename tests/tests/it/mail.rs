//! Mail, as its receiver sees it.

use std::path::Path;

use serde_json::json;
use tests::eventually;
use tests::stack::{Backend, Gateway, PASSWORD};

use crate::identity::{lenient, login, post};

/// The mails in the order in which they were sent.
fn mails(dir: &Path) -> Vec<String> {
    let mut files: Vec<_> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

#[tokio::test]
async fn mail_goes_first_to_the_account_whose_address_is_verified_however_many_others_name_it() {
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
    let first = &mails(dir.path())[0];
    assert!(first.contains("for the account ann."), "{first}");
    for field in [
        "To: Ann@Example.org\r\n",
        "Message-ID: <",
        "MIME-Version: 1.0\r\n",
        "Date: ",
        "Content-Type: text/plain",
    ] {
        assert!(first.contains(field), "{field}: {first}");
    }
}
