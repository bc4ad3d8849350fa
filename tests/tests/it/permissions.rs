//! How long a permission counts when its changes cannot be received, and what is closed when it is taken back.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::client::{closes, read_for};
use tests::eventually;
use tests::fault::FaultProxy;
use tests::permissions::{Administrator, access_token, allows, session};
use tests::policy_text::PolicyText;
use tests::stack::{Backend, Gateway};
use tests::upstream::RawUpstream;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

fn lenient() -> PolicyText {
    PolicyText::usual().set("limits.login.rate", "1000/s")
}

#[tokio::test]
async fn a_permission_answer_counts_no_longer_than_max_staleness_without_the_feed() {
    const MOST: Duration = Duration::from_secs(2);
    let policy = lenient().set("permissions.max_staleness", "2s").set("breakers.backend.failures", 1_000_000);
    let backend = Backend::start(&[]).await;
    let near = Gateway::start(backend.address, &policy, &[]).await;
    let way = FaultProxy::to(backend.address).await;
    let cut = Gateway::start(way.address(), &policy, &[]).await;
    backend.add_user("root", &["admin"]).await;
    let ann = backend.add_user("ann", &[]).await;
    let client = near.client();
    let admin = Administrator::log_in(client).await;
    let grants = json!({"permissions": [{"permission": "records:read", "resource": "notes"}]});
    admin.put("/v1/roles/reader/permissions", grants).await;
    let roles = format!("/v1/users/{ann}/roles");
    admin.put(&roles, json!({"roles": ["reader"]})).await;
    let ann = access_token(&session(&client, "ann").await);
    cut.follows_the_feed().await;
    assert!(allows(&cut.client(), &ann, "records:read", "notes").await);

    way.cut();
    let begun = Instant::now();
    admin.put(&roles, json!({"roles": []})).await;
    println!("a change took {:?} with one of two gateways cut off", begun.elapsed());
    let revoked = Instant::now();
    let read = async || {
        let bearer = format!("Bearer {ann}");
        cut.client().ask("GET", "/v1/collections/notes/records/none", &[("authorization", &bearer)], "").await
    };
    let mut last_believed = Duration::ZERO;
    while revoked.elapsed() < MOST * 2 {
        let answer = read().await;
        match (answer.status(), answer.code().as_str()) {
            (502, "upstream_unreachable") => last_believed = revoked.elapsed(),
            (503, "permission_unavailable") => {}
            other => panic!("{other:?}"),
        }
    }
    println!("the old answer was believed for {last_believed:?} of at most {MOST:?}");
    assert!(last_believed < MOST, "{last_believed:?}");
    way.mend();
    eventually("it is refused once the way is free", || async { read().await.status() == 403 }).await;
}

#[tokio::test]
async fn a_websocket_is_closed_when_its_permission_or_its_token_is_revoked() {
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let rooms = RawUpstream::start(vec![(Duration::ZERO, switch)], true).await;
    let policy = lenient()
        + "[[routes]]\nname = \"room\"\npath = \"/rooms/{room}\"\nmethods = [\"GET\"]\nupstream = \"rooms\"\nauth = [\"jwt:accounts\"]\npermission = \"rooms:join\"\nresource = \"{room}\"\n";
    let backend = Backend::start(&[]).await;
    let places = [("PALISADE_GATEWAY__UPSTREAMS__ROOMS__ADDRESSES", rooms.address.to_string())];
    let places = places.each_ref().map(|(name, value)| (*name, value.as_str()));
    let gateway = Gateway::start(backend.address, &policy, &places).await;
    backend.add_user("root", &["admin"]).await;
    let (ann, bob) = (backend.add_user("ann", &[]).await, backend.add_user("bob", &[]).await);
    let client = gateway.client();
    let admin = Administrator::log_in(client).await;
    let grants = json!({"permissions": [{"permission": "rooms:join", "resource": "*"}]});
    admin.put("/v1/roles/talker/permissions", grants).await;
    for id in [&ann, &bob] {
        admin.put(&format!("/v1/users/{id}/roles"), json!({"roles": ["talker"]})).await;
    }
    gateway.follows_the_feed().await;
    let join = async |name: &str| {
        let session = session(&client, name).await;
        let head = format!(
            "GET /rooms/1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            access_token(&session)
        );
        let mut stream = client.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = read_for(&mut stream, Duration::from_millis(500)).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        (stream, session)
    };
    let echoes = async |stream: &mut TcpStream| {
        stream.write_all(b"hello").await.unwrap();
        read_for(stream, Duration::from_millis(300)).await == "hello"
    };
    let ((mut anns, _), (mut bobs, session)) = (join("ann").await, join("bob").await);
    assert!(echoes(&mut anns).await && echoes(&mut bobs).await);
    admin.put(&format!("/v1/users/{ann}/roles"), json!({"roles": []})).await;
    assert!(closes(&mut anns).await, "the permission is taken back");
    assert!(echoes(&mut bobs).await, "the other one goes on");
    let body = json!({"refresh_token": session["refresh_token"]});
    assert_eq!(client.json("POST", "/v1/auth/logout", None, &body).await.status(), 204);
    assert!(closes(&mut bobs).await, "the token is revoked");
}
