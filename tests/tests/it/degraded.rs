//! When not everything works: a disk that is full, a service that is to be left as it is.

use std::time::Duration;

use serde_json::json;
use tests::client::Answer;
use tests::eventually;
use tests::policy_text::PolicyText;
use tests::stack::{Gateway, Stack, User};
use tests::upstream::RawUpstream;

const RECORD: &str = "/v1/collections/notes/records/a";

async fn stack() -> (Stack, User) {
    let stack = Stack::start().await;
    let admin = stack.user("root", &["admin"]).await;
    let client = stack.gateway.client();
    assert_eq!(
        client.json("PUT", "/v1/collections/notes", Some(&admin.token), &json!({})).await.status(),
        201
    );
    assert_eq!(client.json("PUT", RECORD, Some(&admin.token), &json!(1)).await.status(), 201);
    (stack, admin)
}

#[tokio::test]
async fn a_full_disk_stops_writes_alone_and_they_resume_by_themselves() {
    let (stack, admin) = stack().await;
    let client = stack.gateway.client();
    let write = async || client.json("PUT", RECORD, Some(&admin.token), &json!("x".repeat(10_000))).await;
    let read = async || client.get(RECORD, Some(&admin.token)).await.status();
    stack.backend.program.limit_files("4096");
    eventually("writing is refused", || async {
        let answer = write().await;
        answer.status() == 503 && answer.json()["code"] == "read_only"
    })
    .await;
    for _ in 0..20 {
        let refused = write().await;
        assert_eq!(
            (refused.status(), &refused.json()["code"]),
            (503, &json!("read_only")),
            "not breaker_open"
        );
        assert!(!refused.field("retry-after").is_empty());
        assert!(refused.head.headers.get("x-palisade-read-only").is_none(), "that is between the two");
        assert_eq!(read().await, 200, "reading goes on");
    }
    stack.backend.program.limit_files("unlimited");
    eventually("writing works again", || async { write().await.status() == 200 }).await;
    assert_eq!(read().await, 200);
}

#[tokio::test]
async fn an_operator_stops_changes_and_allows_them_again() {
    let (stack, admin) = stack().await;
    let client = stack.gateway.client();
    let operator = stack.gateway.operator();
    let write = async || -> Answer { client.json("PUT", RECORD, Some(&admin.token), &json!(2)).await };
    assert_eq!(operator.ask("POST", "/admin/readonly", &[], "").await.status(), 200);
    let refused = write().await;
    assert_eq!((refused.status(), refused.code().as_str()), (503, "read_only"));
    assert_eq!(refused.json()["stage"], "break");
    assert!(!refused.field("retry-after").is_empty());
    assert_eq!(client.get(RECORD, Some(&admin.token)).await.status(), 200);
    assert_eq!(operator.ask("POST", "/admin/readwrite", &[], "").await.status(), 200);
    assert_eq!(write().await.status(), 200);
}

#[tokio::test]
async fn a_client_gets_its_own_last_good_answer_while_the_breaker_is_open() {
    let policy = PolicyText::usual()
        .set("routes.read-record.when_open", "stale")
        .set("permissions.on_failure", "stale")
        .set("limits.login.rate", "1000/s");
    let mut stack = Stack::with(&policy, &[]).await;
    let admin = stack.user("root", &["admin"]).await;
    let second = stack.user("second", &["admin"]).await;
    let client = stack.gateway.client();
    stack.gateway.follows_the_feed().await;
    client.json("PUT", "/v1/collections/notes", Some(&admin.token), &json!({})).await;
    client.json("PUT", RECORD, Some(&admin.token), &json!({"n": 1})).await;
    let good = client.get(RECORD, Some(&admin.token)).await;
    // Whether the other one may is known as well, but not what there is.
    assert_eq!(client.get("/v1/collections/notes/records/none", Some(&second.token)).await.status(), 404);
    assert_eq!(client.get("/v1/collections/notes/records/b", Some(&second.token)).await.status(), 404);
    stack.backend.program.signal("KILL");
    stack.backend.program.ended().await;
    eventually("the breaker is open", || async {
        let answer = client.get("/health/live", None).await;
        answer.status() == 503
            || (answer.status() == 429
                && stack.gateway.metric("palisade_circuit_breaker_state{breaker=\"backend\"}").await > 0.5)
    })
    .await;
    let stale = client.get(RECORD, Some(&admin.token)).await;
    assert_eq!((stale.status(), &stale.body), (200, &good.body));
    assert_eq!(
        (stale.field("etag"), stale.field("warning")),
        (good.field("etag"), "110 palisade \"response is stale\"")
    );
    assert!(stale.field("age").parse::<u64>().unwrap() < 30);
    let bearer = format!("Bearer {}", admin.token);
    let head = client.ask("HEAD", RECORD, &[("authorization", &bearer)], "").await;
    assert_eq!((head.status(), head.body.len()), (200, 0));
    let other = client.get("/v1/collections/notes/records/b", Some(&second.token)).await;
    assert_eq!(other.code(), "breaker_open", "nothing good was kept for them");
    let written = client.json("PUT", RECORD, Some(&admin.token), &json!(2)).await;
    assert_eq!(written.status(), 503, "nothing is written");
}

#[tokio::test]
async fn an_upstream_is_sent_no_more_than_it_can_take_and_what_matters_least_is_shed() {
    let slow = vec![(
        Duration::from_millis(600),
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"[..],
    )];
    let upstream = RawUpstream::start(slow, false).await;
    let policy = PolicyText::usual().set("routes.read-record.priority", "high")
        + "[concurrency.backend]\nmost = 1\nqueue = 1\nwait = \"2s\"\n[[routes]]\nname = \"low\"\npath = \"/low\"\nupstream = \"backend\"\npriority = \"low\"\n[[routes]]\nname = \"high\"\npath = \"/high\"\nupstream = \"backend\"\npriority = \"high\"\n";
    let gateway = Gateway::start(upstream.address, &policy, &[]).await;
    let client = gateway.client();
    let ask = |path: &'static str| tokio::spawn(async move { client.get(path, None).await });
    let first = ask("/low");
    eventually("the first is on its way", || async {
        upstream.received().iter().any(|one| one.starts_with("GET /low"))
    })
    .await;
    let more = [ask("/low"), ask("/low"), ask("/low")];
    // One of them waits, the others are too many; what matters more takes the place of the one that waits.
    eventually("the others are shed", || async { more.iter().filter(|one| one.is_finished()).count() == 2 })
        .await;
    let high = ask("/high");
    assert_eq!((first.await.unwrap().status(), high.await.unwrap().status()), (200, 200));
    for one in more {
        let answer = one.await.unwrap();
        assert_eq!((answer.code().as_str(), answer.field("retry-after")), ("overloaded", "1"));
    }
}

#[tokio::test]
async fn an_api_key_that_nobody_can_check_is_not_accepted() {
    let mut stack = Stack::start().await;
    stack.backend.program.signal("KILL");
    stack.backend.program.ended().await;
    let answer = stack.gateway.client().ask("GET", RECORD, &[("x-api-key", "pal_unknown")], "").await;
    assert_eq!((answer.status(), answer.code().as_str()), (503, "api_key_unavailable"));
}
