//! The admin plane: whom it answers, and what the audit log says of each change.

use serde_json::{Value, json};
use tests::accounts::lenient;
use tests::client::{Answer, Client};
use tests::eventually;
use tests::program::command;
use tests::stack::{Backend, Gateway, POLICY, Stack};

const ADMIN_TOKEN: &str = "an-admin-token-that-is-long-enough";
const METRICS_TOKEN: &str = "a-metrics-token-that-is-long-enough";

/// What `/admin` answers without changing anything.
const READ: [&str; 8] = [
    "/admin/ip-blocks",
    "/admin/limits",
    "/admin/overrides",
    "/admin/permissions",
    "/admin/revocations",
    "/admin/top",
    "/admin/breakers",
    "/admin/policy",
];

const WATCHED: [&str; 2] = ["/metrics", "/health/detailed"];

/// What an answer to somebody who shows `token` is: its status, its code, and how it asks for one.
async fn shown(client: &Client, path: &str, token: Option<&str>) -> (u16, Value, String) {
    let answer = client.get(path, token).await;
    let code = if answer.status() == 200 { Value::Null } else { answer.json()["code"].clone() };
    (answer.status(), code, answer.field("www-authenticate").to_owned())
}

/// Only `right` opens `path`.
async fn is_guarded(client: &Client, path: &str, right: &str, others: &[&str]) {
    let refused = (401, json!("token_missing"), "Bearer realm=\"palisade\"".to_owned());
    let cut = &right[..right.len() - 1];
    for wrong in others.iter().copied().chain(["", cut]).map(Some).chain([None]) {
        assert_eq!(shown(client, path, wrong).await, refused, "{path} with {wrong:?}");
    }
    let basic = format!("Basic {right}");
    assert_eq!(client.ask("GET", path, &[("authorization", &basic)], "").await.status(), 401, "{path}");
    assert_eq!(shown(client, path, Some(right)).await.0, 200, "{path}");
}

#[tokio::test]
async fn the_admin_plane_wants_its_token_and_the_metrics_want_theirs() {
    let backend = Backend::start(&[("METRICS_TOKEN", METRICS_TOKEN)]).await;
    let tokens = [("ADMIN_TOKEN", ADMIN_TOKEN), ("METRICS_TOKEN", METRICS_TOKEN)];
    let gateway = Gateway::start(backend.address, POLICY, &tokens).await;
    let operator = Client::of(gateway.admin);
    for path in READ {
        is_guarded(&operator, path, ADMIN_TOKEN, &[METRICS_TOKEN]).await;
    }
    for path in WATCHED {
        is_guarded(&operator, path, METRICS_TOKEN, &[ADMIN_TOKEN]).await;
    }
    for (method, path) in [
        ("PUT", "/admin/ip-blocks/192.0.2.1"),
        ("DELETE", "/admin/ip-blocks/192.0.2.1"),
        ("DELETE", "/admin/limits/login/192.0.2.1"),
        ("PATCH", "/admin/overrides"),
        ("DELETE", "/admin/overrides/read_only"),
        ("DELETE", "/admin/permissions"),
        ("PUT", "/admin/revocations/sub/ann"),
        ("DELETE", "/admin/revocations/sub/ann"),
        ("POST", "/admin/readonly"),
        ("POST", "/admin/readwrite"),
        ("POST", "/admin/breakers/backend/reset"),
        ("POST", "/admin/policy/reload"),
        ("POST", "/admin/policy/check"),
    ] {
        for fields in [&[][..], &[("authorization", "Bearer wrong")]] {
            let answer = operator.ask(method, path, fields, "{}").await;
            let said = (answer.status(), answer.json()["code"].clone());
            assert_eq!(said, (401, json!("token_missing")), "{method} {path}");
        }
    }
    for path in ["/health", "/health/live", "/health/ready", "/health/startup"] {
        assert_eq!(operator.get(path, None).await.status(), 200, "{path}: probes have no token");
    }
    let blocked = operator.get("/admin/ip-blocks", Some(ADMIN_TOKEN)).await.json();
    assert_eq!(blocked["items"], json!([]), "nothing was changed");
    // The backend has no realm to ask for.
    let metrics = Client::of(backend.address);
    for wrong in [None, Some(""), Some(ADMIN_TOKEN)] {
        let answer = metrics.get("/metrics", wrong).await;
        assert_eq!((answer.status(), &answer.json()["code"]), (401, &json!("token_missing")), "{wrong:?}");
    }
    assert_eq!(metrics.get("/metrics", Some(METRICS_TOKEN)).await.status(), 200);
}

#[tokio::test]
async fn a_page_of_a_browser_reads_and_changes_nothing_without_a_token() {
    let stack = Stack::start().await;
    let operator = stack.gateway.operator();
    for (method, path) in [("GET", "/admin/policy"), ("POST", "/admin/readonly")] {
        let answer = operator.ask(method, path, &[("origin", "http://localhost:3000")], "").await;
        assert_eq!(
            (answer.status(), &answer.json()["code"]),
            (403, &json!("cross_origin")),
            "{method} {path}"
        );
    }
    assert_eq!(operator.get("/admin/overrides", None).await.json()["items"], json!([]));
}

#[tokio::test]
async fn an_admin_plane_beyond_loopback_needs_a_token() {
    let everywhere = ("PALISADE_GATEWAY__ADMIN__LISTEN", "0.0.0.0:0");
    let dir = tempfile::tempdir().unwrap();
    let mut run = command("gateway");
    run.args(["run", "--profile", "testing", "--policy"])
        .arg(tests::stack::root().join("config/policy.toml"));
    run.envs([everywhere, ("PALISADE_GATEWAY__SERVER__LISTEN", "127.0.0.1:0")]);
    run.env("PALISADE_GATEWAY__STATE__DIR", dir.path());
    let refused = tokio::time::timeout(tests::PATIENCE, run.output()).await.expect("it ends").unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("ADMIN_TOKEN is missing"), "{said}");
    assert!(said.contains("0.0.0.0:0"), "{said}");

    let backend = Backend::start(&[]).await;
    let gateway = Gateway::start(backend.address, POLICY, &[everywhere, ("ADMIN_TOKEN", ADMIN_TOKEN)]).await;
    let here = format!("127.0.0.1:{}", gateway.admin.port()).parse().unwrap();
    is_guarded(&Client::of(here), "/admin/policy", ADMIN_TOKEN, &[]).await;
}

/// The audit log's line of the request `id`.
async fn audited(gateway: &Gateway, id: &str) -> Value {
    let of_it = |event: &Value| event["log"] == "audit" && event["request_id"] == id;
    let lines = || gateway.program.events().into_iter().filter(of_it).collect::<Vec<_>>();
    eventually("the line is written", || async { !lines().is_empty() }).await;
    let mut lines = lines();
    assert_eq!(lines.len(), 1, "one line for one change: {lines:?}");
    let mut line = lines.remove(0);
    assert!(line["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    line.as_object_mut().unwrap().remove("time");
    line
}

#[tokio::test]
async fn the_audit_log_says_who_changed_what_from_what_to_what_and_by_which_request() {
    let stack = Stack::start().await;
    let gateway = &stack.gateway;
    let operator = gateway.operator();
    let change = async |id: &str, method: &str, path: &str, body: &str| {
        let answer: Answer = operator.ask(method, path, &[("x-request-id", id)], body.to_owned()).await;
        assert!([200, 204].contains(&answer.status()), "{id}: {:?}", answer.body);
        audited(gateway, id).await
    };
    let line = |id: &str, action: &str, target: &str, before: Value, after: Value| {
        json!({
            "log": "audit", "action": action, "target": target, "actor": "operator",
            "before": before, "after": after, "request_id": id,
        })
    };
    let (net, scan, flood) = ("192.0.2.0/24", json!({"reason": "scan"}), json!({"reason": "flood"}));
    let path = "/admin/ip-blocks/192.0.2.0%2F24";
    let first = change("first", "PUT", path, "{\"reason\":\"scan\"}").await;
    assert_eq!(first, line("first", "block", net, Value::Null, scan.clone()));
    let second = change("second", "PUT", path, "{\"reason\":\"flood\",\"duration\":\"1h\"}").await;
    let until = second["after"]["until"].clone();
    assert!(until.as_str().is_some_and(|until| until.ends_with('Z')), "{second}");
    let with_end = json!({"value": flood, "until": until});
    assert_eq!(second, line("second", "block", net, scan, with_end.clone()));
    let third = change("third", "DELETE", path, "").await;
    assert_eq!(third, line("third", "unblock", net, with_end, Value::Null));

    let (rate, body) = ("limits.login.rate", "{\"limits.login.rate\":\"9/min\"}");
    let set = change("set", "PATCH", "/admin/overrides", body).await;
    assert_eq!(set, line("set", "override", rate, Value::Null, json!("9/min")));
    let set = change("again", "PATCH", "/admin/overrides", "{\"limits.login.rate\":\"8/min\"}").await;
    assert_eq!(set, line("again", "override", rate, json!("9/min"), json!("8/min")));
    let removed = change("removed", "DELETE", "/admin/overrides/limits.login.rate", "").await;
    assert_eq!(removed, line("removed", "remove_override", rate, json!("8/min"), Value::Null));

    let (key, lost) = ("/admin/revocations/sub/ann", json!({"reason": "lost"}));
    let revoked = change("revoked", "PUT", key, "{\"reason\":\"lost\"}").await;
    let target = revoked["target"].as_str().unwrap().to_owned();
    assert!(target.contains("sub") && target.ends_with("ann"), "{target}");
    assert_eq!(revoked, line("revoked", "revoke", &target, Value::Null, lost.clone()));
    let restored = change("restored", "DELETE", key, "").await;
    assert_eq!(restored, line("restored", "unrevoke", &target, lost, Value::Null));

    let closed = change("closed", "POST", "/admin/readonly", "").await;
    assert_eq!(closed, line("closed", "override", "read_only", Value::Null, json!(true)));
    let opened = change("opened", "POST", "/admin/readwrite", "").await;
    assert_eq!(opened, line("opened", "remove_override", "read_only", json!(true), Value::Null));

    let reset = change("reset", "POST", "/admin/breakers/backend/reset", "").await;
    assert_eq!(reset, line("reset", "reset_breaker", "backend", json!("closed"), json!("closed")));
    let forgotten = change("forgotten", "DELETE", "/admin/permissions?user=ann", "").await;
    assert_eq!(
        (&forgotten["action"], &forgotten["actor"]),
        (&json!("forget_permissions"), &json!("operator"))
    );
    assert!(forgotten["target"].as_str().unwrap().contains("ann"), "{forgotten}");
    assert_eq!(gateway.client().at([127, 3, 3, 3]).get("/health/ready", None).await.status(), 200);
    let filled = change("filled", "DELETE", "/admin/limits/each/127.3.3.3", "").await;
    assert_eq!(filled, line("filled", "refill", "each 127.3.3.3", Value::Null, json!("full")));
}

#[tokio::test]
async fn a_refused_change_is_not_in_the_audit_log() {
    let stack = Stack::start().await;
    let gateway = &stack.gateway;
    for (method, path, body, status) in [
        ("PUT", "/admin/ip-blocks/nowhere", "", 400),
        ("DELETE", "/admin/ip-blocks/192.0.2.9", "", 404),
        ("PATCH", "/admin/overrides", "{\"limits.login.rate\":\"much\"}", 422),
        ("PUT", "/admin/revocations/kid/1", "", 400),
        ("POST", "/admin/breakers/none/reset", "", 404),
    ] {
        let answer = gateway.operator().ask(method, path, &[("x-request-id", "refused")], body).await;
        assert_eq!(answer.status(), status, "{method} {path}");
    }
    // What comes later is written later.
    let fine = gateway.operator().ask("POST", "/admin/readonly", &[("x-request-id", "fine")], "").await;
    assert_eq!(fine.status(), 200);
    audited(gateway, "fine").await;
    assert!(!gateway.program.events().iter().any(|event| event["request_id"] == "refused"));
}

#[tokio::test]
async fn the_audit_log_tells_a_ban_and_a_reload_by_the_policy_from_those_by_a_person() {
    let backend = Backend::start(&[]).await;
    let gateway = Gateway::start(backend.address, &lenient().set("blocks.auto.failures", 2), &[]).await;
    let client = gateway.client().at([127, 0, 0, 81]);
    for _ in 0..2 {
        let wrong = json!({"username": "nobody", "password": "wrong"});
        assert_eq!(client.json("POST", "/v1/auth/login", None, &wrong).await.status(), 401);
    }
    let by_policy = |action: &str| {
        let of_it = |event: &Value| event["log"] == "audit" && event["action"] == action;
        gateway.program.events().into_iter().find(of_it)
    };
    eventually("the ban is written down", || async { by_policy("block").is_some() }).await;
    let ban = by_policy("block").unwrap();
    assert_eq!((&ban["actor"], &ban["target"]), (&json!("policy"), &json!("127.0.0.81/32")), "{ban}");
    assert!(ban["before"].is_null() && ban["after"]["until"].is_string(), "{ban}");

    let before = gateway.policy_in_force().await;
    gateway.edit_policy(|text| text.replace("\"1000/s\"", "\"999/s\""));
    eventually("the edit is in force", || async { gateway.policy_in_force().await != before }).await;
    let after = gateway.policy_in_force().await;
    let of_it = |event: &Value| event["log"] == "audit" && event["after"] == after.as_str();
    eventually("the reload is written down", || async { gateway.program.events().iter().any(of_it) }).await;
    let reload = gateway.program.events().into_iter().find(of_it).unwrap();
    assert_eq!((&reload["actor"], &reload["before"]), (&json!("policy"), &json!(before)), "{reload}");
}
