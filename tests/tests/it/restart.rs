//! What was acknowledged is there after a restart: over a full disk, a damaged file, and with the database file alone.

use serde_json::json;
use tests::accounts::{lenient, login, post};
use tests::eventually;
use tests::policy_text::PolicyText;
use tests::program::{Program, command};
use tests::stack::{Backend, Gateway, PASSWORD, POLICY, Stack};

const KEYS: &str = "/.well-known/jwks.json";

async fn status(gateway: &Gateway, address: [u8; 4]) -> u16 {
    gateway.client().at(address).get(KEYS, None).await.status()
}

async fn ban(gateway: &Gateway, address: &str) -> (u16, String) {
    let answer = gateway.operator().ask("PUT", &format!("/admin/ip-blocks/{address}"), &[], "").await;
    let code = if answer.status() == 204 {
        String::new()
    } else {
        answer.json()["code"].as_str().unwrap().to_owned()
    };
    (answer.status(), code)
}

#[tokio::test]
async fn a_full_state_disk_acknowledges_no_ban_and_loses_none() {
    let stack = Stack::start().await;
    let Stack { backend: _backend, gateway } = stack;
    assert_eq!(ban(&gateway, "127.0.0.71").await.0, 204);
    gateway.program.limit_files("0");
    assert_eq!(ban(&gateway, "127.0.0.72").await, (500, "not_kept".to_owned()));
    assert_eq!(
        status(&gateway, [127, 0, 0, 72]).await,
        403,
        "it is in force, and the answer says what it is not"
    );
    let detailed = async || gateway.operator().get("/health/detailed", None).await.json();
    let state = detailed().await["state"].clone();
    assert_eq!(state["status"], "failed");
    assert!(state["faults"][0].as_str().unwrap().contains("changes.json"), "{state}");
    assert!(gateway.metric("palisade_state_files_late").await > 0.5);
    let kept = std::fs::read_to_string(gateway.state_file("changes.json")).unwrap();
    assert!(kept.contains("127.0.0.71") && !kept.contains("127.0.0.72"), "{kept}");
    // What is learnt now is stored as well: a policy edit.
    gateway.edit_policy(|text| text.replacen("rate = \"5/min\"", "rate = \"6/min\"", 1));
    let in_force =
        || async { gateway.operator().get("/admin/policy", None).await.json()["last_refusal"].is_null() };
    eventually("the edit is late", || async { gateway.metric("palisade_state_files_late").await > 1.5 })
        .await;
    assert!(in_force().await, "a full disk refuses no edit");
    let said = |text: &str| gateway.program.log().iter().filter(|line| line.contains(text)).count();
    assert_eq!(said("cannot be written"), 2, "once for each file");

    gateway.program.limit_files("unlimited");
    eventually("it is written by itself", || async { detailed().await["state"]["status"] == "ok" }).await;
    assert_eq!(said("written again"), 2);
    let gateway = gateway.restart(&[]).await;
    for address in [[127, 0, 0, 71], [127, 0, 0, 72]] {
        assert_eq!(status(&gateway, address).await, 403, "{address:?}");
    }
    let last_good = std::fs::read_to_string(gateway.state_file("policy.last-good.toml")).unwrap();
    assert!(last_good.contains("rate = \"6/min\""));
}

#[tokio::test]
async fn a_damaged_state_file_is_set_aside_and_redis_gives_back_what_it_knows() {
    let redis = tests::redis::Redis::start().await;
    let backend = Backend::start(&[]).await;
    let url = redis.url();
    let environment = [("PALISADE_GATEWAY__REDIS__URL", url.as_str())];
    let gateway = Gateway::start(backend.address, POLICY, &environment).await;
    eventually("Redis is there", || async { gateway.metric("palisade_redis_up").await > 0.5 }).await;
    assert_eq!(ban(&gateway, "127.0.0.73").await.0, 204);
    for damaged in ["", "[{\"topic\":", "\0\0\0\0"] {
        std::fs::write(gateway.state_file("changes.json"), damaged).unwrap();
    }
    let gateway = gateway.restart(&environment).await;
    let said = gateway.program.log().iter().find(|line| line.contains("state file is damaged")).cloned();
    let said = said.expect("a line in the log");
    assert!(said.contains("changes.json.damaged") && said.contains("\"ERROR\""), "{said}");
    assert_eq!(std::fs::read(gateway.state_file("changes.json.damaged")).unwrap(), b"\0\0\0\0");
    eventually("the ban is back", || async { status(&gateway, [127, 0, 0, 73]).await == 403 }).await;
}

#[tokio::test]
async fn a_bad_deny_file_holds_nothing_else_up_and_its_last_good_one_outlives_a_restart() {
    let backend = Backend::start(&[]).await;
    let policy = PolicyText::usual().set("blocks.deny_files", vec!["drop.txt"]);
    let spamhaus = "\u{feff}; DROP list\r\n127.44.0.0/16 ; SBL1\r\n";
    let gateway = Gateway::start_beside(&[("drop.txt", spamhaus)], backend.address, &policy, &[]).await;
    assert_eq!(status(&gateway, [127, 44, 0, 1]).await, 403);
    let list = gateway.policy_file().with_file_name("drop.txt");
    std::fs::write(&list, "127.44.0.1/16\nno address\n".to_owned() + &"x\n".repeat(50_000)).unwrap();
    let refusal = async |gateway: &Gateway| {
        gateway.operator().get("/admin/policy", None).await.json()["last_refusal"]["faults"].clone()
    };
    eventually("the faults are reported", || async { !refusal(&gateway).await.is_null() }).await;
    let faults = refusal(&gateway).await;
    assert_eq!(faults.as_array().unwrap().len(), 11, "ten, and how many more");
    let message = |at: usize| faults[at]["message"].as_str().unwrap().to_owned();
    assert!(message(0).starts_with("the network 127.44.0.0/16 or the address 127.44.0.1"), "{faults}");
    assert_eq!(message(10), "49992 more faults are not listed");
    assert!(gateway.metric("palisade_policy_refused").await > 0.5);

    let operator = gateway.operator();
    assert_eq!(operator.ask("POST", "/admin/readonly", &[], "").await.status(), 200);
    assert_eq!(operator.ask("POST", "/admin/readwrite", &[], "").await.status(), 200);
    let over = json!({"limits.login.rate": "7/min"}).to_string();
    assert_eq!(operator.ask("PATCH", "/admin/overrides", &[], over).await.status(), 200);
    let before = gateway.policy_in_force().await;
    gateway.edit_policy(|text| text.replacen("rate = \"5/min\"", "rate = \"6/min\"", 1));
    eventually("a good edit is in force", || async { gateway.policy_in_force().await != before }).await;
    assert_eq!(status(&gateway, [127, 44, 0, 1]).await, 403, "with the last good list");
    assert_eq!(refusal(&gateway).await.as_array().unwrap().len(), 11, "which is still said");
    let said = |gateway: &Gateway| {
        gateway.program.log().iter().filter(|line| line.contains("a deny file is refused")).count()
    };
    assert_eq!(said(&gateway), 11, "each fault once, whatever is judged meanwhile");

    let gateway = gateway.restart(&[]).await;
    assert_eq!(status(&gateway, [127, 44, 0, 1]).await, 403, "after a restart as well");
    assert_eq!(said(&gateway), 11);
    std::fs::write(&list, "127.45.0.0/16\n").unwrap();
    eventually("a good list is in force", || async { status(&gateway, [127, 45, 0, 1]).await == 403 }).await;
    assert_eq!(status(&gateway, [127, 44, 0, 1]).await, 200);
    assert!(refusal(&gateway).await.is_null() && gateway.metric("palisade_policy_refused").await < 0.5);
}

async fn stopped(mut program: Program) -> Vec<String> {
    program.signal("TERM");
    assert!(program.ended().await.success());
    program.log()
}

#[tokio::test]
async fn the_database_file_alone_is_the_whole_database_after_a_clean_stop() {
    let Stack { backend, gateway } = Stack::start().await;
    let admin = backend.add_user("root", &["admin"]).await;
    let token =
        login(&gateway.client(), "root", PASSWORD).await.json()["access_token"].as_str().unwrap().to_owned();
    let client = gateway.client();
    assert_eq!(client.json("PUT", "/v1/collections/notes", Some(&token), &json!({})).await.status(), 201);
    let record = "/v1/collections/notes/records/a";
    assert_eq!(client.json("PUT", record, Some(&token), &json!({"n": 1})).await.status(), 201);
    eventually("the log is measured", || async { backend.metric("palisade_db_wal_bytes").await > 0.5 }).await;
    let database = backend.database();
    let (log, _dir) = backend.stop().await;
    assert!(log.iter().any(|line| line.contains("the database is closed\"")), "{log:?}");
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("palisade.db");
    std::fs::copy(&database, &copy).unwrap();
    let mut list = command("backend-sqlite");
    list.args(["user", "list", "--database"]).arg(&copy);
    let output = list.output().await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with(&admin), "{output:?}");
}

#[tokio::test]
async fn half_a_database_is_refused_and_a_new_one_is_said_to_be_new() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("palisade.db");
    let serve = || {
        let mut serve = command("backend-sqlite");
        serve.args(["serve", "--profile", "testing"]);
        serve
            .env("PALISADE_BACKEND__SERVER__LISTEN", "127.0.0.1:0")
            .env("PALISADE_BACKEND__DATABASE__PATH", &file);
        serve
    };
    let program = Program::start("backend", serve());
    program.field_of("serving", "listen").await;
    assert!(program.log().iter().any(|line| line.contains("a new database: it has no accounts")));
    stopped(program).await;
    // The log without its database: SQLite would take it for a new one, and delete the log.
    let log = dir.path().join("palisade.db-wal");
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&log, "data").unwrap();
    let mut program = Program::start("backend", serve());
    assert!(!program.ended().await.success());
    let refused = || program.log().iter().any(|line| line.contains("put the database back beside its log"));
    eventually("it says why", || async { refused() }).await;
    assert_eq!(std::fs::read(&log).unwrap(), b"data");
}

#[tokio::test]
async fn a_policy_that_waits_for_its_list_comes_into_force_with_it_and_a_restart_hides_no_fault() {
    let backend = Backend::start(&[]).await;
    let gateway = Gateway::start(backend.address, POLICY, &[]).await;
    let list = gateway.policy_file().with_file_name("late.txt");
    gateway.edit_policy(|text| text.replacen("deny = [", "deny_files = [\"late.txt\"]\ndeny = [", 1));
    let refused = async |gateway: &Gateway| {
        !gateway.operator().get("/admin/policy", None).await.json()["last_refusal"].is_null()
    };
    eventually("it is refused without its list", || async { refused(&gateway).await }).await;
    std::fs::write(&list, "127.46.0.0/16\n").unwrap();
    eventually("it is in force with it", || async { status(&gateway, [127, 46, 0, 1]).await == 403 }).await;
    assert!(!refused(&gateway).await);
    std::fs::write(&list, "no address\n").unwrap();
    let gateway = gateway.restart(&[]).await;
    assert_eq!(status(&gateway, [127, 46, 0, 1]).await, 403, "the last good list");
    assert!(refused(&gateway).await && gateway.metric("palisade_policy_refused").await > 0.5);
}

#[tokio::test]
async fn a_lock_and_a_session_last_no_longer_than_the_settings_say_after_a_restart() {
    let hour = [
        ("PALISADE_BACKEND__ACCOUNTS__LOCKOUT__FAILURES", "2"),
        ("PALISADE_BACKEND__ACCOUNTS__LOCKOUT__DURATION", "1h"),
    ];
    let backend = Backend::start(&hour).await;
    let gateway = Gateway::start(backend.address, &lenient(), &[]).await;
    let client = gateway.client();
    backend.add_user("ann", &[]).await;
    let refresh = login(&client, "ann", PASSWORD).await.json()["refresh_token"].clone();
    let elsewhere = client.at([127, 50, 0, 1]);
    for _ in 0..2 {
        assert_eq!(login(&elsewhere, "ann", "wrong").await.status(), 401);
    }
    assert_eq!(login(&elsewhere, "ann", PASSWORD).await.status(), 401, "locked for an hour");
    // Tries at a name that is locked count as failures.
    let short = [
        ("PALISADE_BACKEND__ACCOUNTS__LOCKOUT__FAILURES", "1000"),
        ("PALISADE_BACKEND__ACCOUNTS__LOCKOUT__DURATION", "1s"),
        ("PALISADE_BACKEND__ACCOUNTS__ACCESS_TOKEN", "1s"),
        ("PALISADE_BACKEND__ACCOUNTS__REFRESH_TOKEN", "1s"),
    ];
    let _backend = backend.stop_and_start(&short).await;
    eventually("the lock is over", || async { login(&elsewhere, "ann", PASSWORD).await.status() == 200 })
        .await;
    let body = json!({"refresh_token": refresh});
    eventually("the session is over", || async {
        post(&client, "/v1/auth/refresh", None, &body).await.status() == 401
    })
    .await;
}
