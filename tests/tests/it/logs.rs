//! Logs hold nothing up: not when nobody reads them, not when the disk is full; and they come back by themselves.

use std::path::Path;

use serde_json::json;
use tests::eventually;
use tests::stack::{Backend, Gateway, POLICY};

const KEYS: &str = "/.well-known/jwks.json";

/// A policy that lets many requests of one address pass.
fn roomy() -> String {
    "version = 1\n[[routes]]\nname = \"all\"\npath = \"/{*rest}\"\nupstream = \"backend\"\n".to_owned()
}

async fn dropped(gateway: &Gateway, log: &str) -> f64 {
    gateway.metric(&format!("palisade_log_lines_dropped_total{{log=\"{log}\"}}")).await
}

#[tokio::test]
async fn a_standard_output_that_nobody_reads_costs_lines_and_nothing_else() {
    let backend = Backend::start(&[]).await;
    let gateway = Gateway::start(backend.address, &roomy(), &[]).await;
    assert_eq!(gateway.client().get(KEYS, None).await.status(), 200);
    gateway.program.is_read(false);
    let long = format!("/{}", "x".repeat(60_000)); // the upstream has no such page, but the log has its name
    let before = gateway.memory();
    while dropped(&gateway, "access").await < 1.0 {
        assert_eq!(gateway.client().get(&long, None).await.status(), 404);
    }
    let full = gateway.memory();
    for _ in 0..200 {
        assert_eq!(gateway.client().get(&long, None).await.status(), 404);
    }
    assert_eq!(gateway.operator().get("/health/live", None).await.status(), 200);
    let grown = gateway.memory().saturating_sub(full);
    println!("{before} KiB before, {full} KiB with a full queue, {grown} KiB more after 200 requests");
    assert!(grown < 8 << 10, "a full queue grows no more: {grown} KiB");

    gateway.program.is_read(true);
    let said = || async {
        let said =
            |event: &serde_json::Value| event["message"] == "log lines were dropped: their writer was late";
        gateway.program.events().iter().any(|event| said(event) && event["log"] == "access")
    };
    eventually("it is said how many were dropped", said).await;
    assert_eq!(gateway.client().get("/afterwards", None).await.status(), 404);
    eventually("lines are written again", || async {
        gateway.program.events().iter().any(|event| event["path"] == "/afterwards")
    })
    .await;
    assert!(gateway.program.log().iter().all(|line| line.starts_with('{')), "no line is torn");
}

#[tokio::test]
async fn a_change_that_the_audit_log_cannot_take_is_refused_and_made_once_it_can() {
    let backend = Backend::start(&[]).await;
    let gateway =
        Gateway::start(backend.address, POLICY, &[("PALISADE_GATEWAY__LOG__AUDIT", "stdout")]).await;
    gateway.program.is_read(false);
    // Nothing is read, so that each of these lines waits: long ones first, and ever shorter ones for the room that is left.
    let (mut length, mut written) = (60_000, 0);
    while length > 0 {
        let forget = format!("/admin/permissions?user={}", "x".repeat(length));
        if gateway.operator().ask("DELETE", &forget, &[("x-request-id", "i")], "").await.status() == 200 {
            written += 1;
            assert!(written < 200, "the queue of the audit log has a bound");
        } else {
            length /= 2;
        }
    }
    let block = "/admin/ip-blocks/192.0.2.1";
    // Longer than any room that is left: the id of the request is in the line.
    let id = [("x-request-id", "i".repeat(100))];
    let id = id.each_ref().map(|(name, value)| (*name, value.as_str()));
    for (method, path, body) in [
        ("PUT", block, ""),
        ("PUT", "/admin/revocations/sub/ann", ""),
        ("PATCH", "/admin/overrides", "{\"limits.login.rate\":\"9/min\"}"),
        ("POST", "/admin/readonly", ""),
        ("POST", "/admin/policy/reload", ""),
        ("POST", "/admin/breakers/backend/reset", ""),
        ("DELETE", "/admin/permissions", ""),
    ] {
        let refused = gateway.operator().ask(method, path, &id, body).await;
        let said =
            (refused.status(), refused.json()["code"].clone(), refused.field("retry-after").to_owned());
        assert_eq!(said, (503, json!("audit_unavailable"), "1".to_owned()), "{method} {path}");
    }
    assert_eq!(gateway.client().get(KEYS, None).await.status(), 200, "requests go on");
    gateway.program.is_read(true);
    eventually("changes are made again", || async {
        gateway.operator().ask("PUT", block, &[], "").await.status() == 204
    })
    .await;
    eventually("and written down", || async {
        gateway.program.events().iter().any(|event| event["target"] == "192.0.2.1/32")
    })
    .await;
}

#[tokio::test]
async fn lines_come_back_after_a_full_disk() {
    let backend = Backend::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let (access, audit) = (dir.path().join("access.log"), dir.path().join("audit.log"));
    for file in [&access, &audit] {
        std::os::unix::fs::symlink("/dev/full", file).unwrap();
    }
    let environment = [
        ("PALISADE_GATEWAY__LOG__ACCESS", access.to_str().unwrap()),
        ("PALISADE_GATEWAY__LOG__AUDIT", audit.to_str().unwrap()),
    ];
    let gateway = Gateway::start(backend.address, POLICY, &environment).await;
    let client = gateway.client();
    assert_eq!(client.get(KEYS, None).await.status(), 200);
    let block = "/admin/ip-blocks/192.0.2.1";
    assert_eq!(gateway.operator().ask("PUT", block, &[], "").await.status(), 204, "its line waits");
    for file in [&access, &audit] {
        std::fs::remove_file(file).unwrap();
        std::fs::write(file, "").unwrap();
    }
    let holds = |file: &Path, text: &str| std::fs::read_to_string(file).unwrap().contains(text);
    eventually("what waited is written", || async { holds(&access, KEYS) && holds(&audit, "192.0.2.1/32") })
        .await;
    assert_eq!(client.get("/nowhere", None).await.status(), 404);
    eventually("and what comes after it", || async { holds(&access, "/nowhere") }).await;
}

#[tokio::test]
async fn the_backend_answers_though_nobody_reads_its_log() {
    let backend = Backend::start(&[]).await;
    backend.program.is_read(false);
    let client = tests::client::Client::of(backend.address);
    let none_dropped = || async {
        let told = client.get("/metrics", None).await.body;
        let told = String::from_utf8(told.to_vec()).unwrap();
        let line = "palisade_log_lines_dropped_total{log=\"general\"} ";
        told.lines().find_map(|told| told.strip_prefix(line)).expect("it is counted") == "0"
    };
    assert!(none_dropped().await);
    let long = "M".repeat(6_000); // a method that no page has, but the log has its name
    while none_dropped().await {
        for _ in 0..20 {
            assert_eq!(client.ask(&long, "/health/live", &[], "").await.status(), 405);
        }
        assert_eq!(client.get("/health/live", None).await.status(), 200);
    }
    backend.program.is_read(true);
    assert_eq!(client.get("/health/ready", None).await.status(), 200);
    eventually("lines are written again", || async {
        backend.program.events().iter().any(|event| event["message"] == "answered")
    })
    .await;
}
