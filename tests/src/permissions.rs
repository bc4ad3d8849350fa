//! An administrator who grants and takes back, and what a gateway decides.

use serde_json::Value;

use crate::accounts;
use crate::client::Client;
use crate::stack::PASSWORD;

/// Somebody who may change everybody's permissions, by way of one gateway.
pub struct Administrator {
    /// A client of the gateway.
    pub client: Client,
    /// The administrator's access token.
    pub token: String,
}

impl Administrator {
    /// Logs in as `root`.
    pub async fn log_in(client: Client) -> Self {
        Self { client, token: access_token(&session(&client, "root").await) }
    }

    /// Replaces what is at `path`.
    pub async fn put(&self, path: &str, body: Value) {
        let answer = self.client.json("PUT", path, Some(&self.token), &body).await;
        assert_eq!(answer.status(), 200, "PUT {path}: {:?}", answer.body);
    }
}

/// The tokens of a new session.
pub async fn session(client: &Client, name: &str) -> Value {
    accounts::login(client, name, PASSWORD).await.json()
}

/// The access token of a session.
pub fn access_token(session: &Value) -> String {
    session["access_token"].as_str().unwrap().to_owned()
}

/// What a gateway decides; whether there is such a record is another matter.
pub async fn allows(client: &Client, token: &str, permission: &str, resource: &str) -> bool {
    let path = format!("/v1/collections/{resource}/records/none");
    let method = if permission == "records:read" { "GET" } else { "DELETE" };
    let answer = client.ask(method, &path, &[("authorization", &format!("Bearer {token}"))], "").await;
    match answer.status() {
        404 => true,
        403 => false,
        status => panic!("{method} {path}: {status} {:?}", answer.body),
    }
}
