//! When not everything works: a disk that is full, a service that is to be left as it is.

use serde_json::json;
use tests::client::Answer;
use tests::eventually;
use tests::stack::{Stack, User};

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

/// The largest size of a file that the process may write.
fn limit_files(id: u32, size: &str) {
    let limit = ["--pid", &id.to_string(), &format!("--fsize={size}")];
    let set = std::process::Command::new("prlimit").args(limit).status().unwrap();
    assert!(set.success());
}

#[tokio::test]
async fn a_full_disk_stops_writing_alone_and_it_goes_on_by_itself() {
    let (stack, admin) = stack().await;
    let client = stack.gateway.client();
    let write = async || client.json("PUT", RECORD, Some(&admin.token), &json!("x".repeat(10_000))).await;
    let read = async || client.get(RECORD, Some(&admin.token)).await.status();
    limit_files(stack.backend.program.id(), "4096:unlimited");
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
    limit_files(stack.backend.program.id(), "unlimited:unlimited");
    eventually("writing works again", || async { write().await.status() == 200 }).await;
    assert_eq!(read().await, 200);
}

#[tokio::test]
async fn an_operator_stops_changes_and_lets_them_go_on() {
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
