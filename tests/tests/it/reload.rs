//! A policy edit takes effect at once and costs no request; a broken one changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tests::eventually;
use tests::policy_text::PolicyText;
use tests::program::{Program, command};
use tests::stack::{Backend, Gateway, POLICY, Stack, policy_for};

#[tokio::test]
async fn an_edit_under_load_takes_effect_without_one_failed_request() {
    let stack = Stack::start().await;
    let client = stack.gateway.client();
    let (stop, served, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (stop, served, failed) = (Arc::clone(&stop), Arc::clone(&served), Arc::clone(&failed));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let status = client.get("/.well-known/jwks.json", None).await.status();
                    if status == 200 { &served } else { &failed }.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for round in 0..5 {
        let path = format!("/reloaded/{round}");
        assert_eq!(client.get(&path, None).await.status(), 404);
        let route = format!(
            "\n[[routes]]\nname = \"r{round}\"\npath = \"{path}\"\nupstream = \"backend\"\nauth = [\"jwt:accounts\"]\n"
        );
        stack.gateway.edit_policy(|text| text + &route);
        let begun = Instant::now();
        eventually("the edit is in force", || async { client.get(&path, None).await.status() == 401 }).await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        println!("edit {round} in force after {:?}", begun.elapsed());
        let sofar = served.load(Ordering::Relaxed);
        eventually("the load continues", || async { served.load(Ordering::Relaxed) > sofar + 20 }).await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
    println!("{} served while reloading", served.load(Ordering::Relaxed));
    assert!(served.load(Ordering::Relaxed) > 100);
    assert_eq!(failed.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_broken_edit_is_refused_with_its_line_and_the_old_policy_serves() {
    let stack = Stack::start().await;
    let before = stack.gateway.policy_in_force().await;
    let line = POLICY.lines().position(|line| line == "rate = \"5/min\"").unwrap() + 1;
    stack.gateway.edit_policy(|text| text.replacen("rate = \"5/min\"", "rate = \"5/minute\"", 1));
    let refusal =
        || async { stack.gateway.operator().get("/admin/policy", None).await.json()["last_refusal"].clone() };
    eventually("the refusal is reported", || async { !refusal().await.is_null() }).await;
    let fault = &refusal().await["faults"][0];
    assert_eq!(
        (fault["line"].as_u64(), fault["key"].as_str()),
        (Some(line as u64), Some("limits.login.rate"))
    );
    assert_eq!(stack.gateway.policy_in_force().await, before);
    assert_eq!(stack.gateway.client().get("/.well-known/jwks.json", None).await.status(), 200);
    assert!(stack.gateway.metric("palisade_policy_reloads_total{result=\"refused\"}").await > 0.5);
    stack.gateway.edit_policy(|text| text.replacen("5/minute", "6/min", 1));
    eventually("a good edit ends it", || async { refusal().await.is_null() }).await;
    assert_ne!(stack.gateway.policy_in_force().await, before);
}

#[tokio::test]
async fn an_empty_or_half_written_file_is_refused() {
    let stack = Stack::start().await;
    let before = stack.gateway.policy_in_force().await;
    for text in ["", "version = 1\n", "version = 1\n[[routes]]\nname = \"a"] {
        std::fs::write(stack.gateway.policy_file(), text).unwrap();
        let answer = stack.gateway.operator().ask("POST", "/admin/policy/reload", &[], "").await;
        assert_eq!(answer.status(), 422, "{text:?}");
        assert_eq!(stack.gateway.policy_in_force().await, before);
    }
}

#[tokio::test]
async fn a_restart_with_a_broken_file_serves_by_the_last_good_one() {
    let stack = Stack::start().await;
    let dir = stack.gateway.policy_file().parent().unwrap().to_owned();
    std::fs::write(dir.join("broken.toml"), "version = 7\n").unwrap();
    let run = || {
        let mut run = command("gateway");
        run.args(["run", "--profile", "testing", "--policy"]).arg(dir.join("broken.toml"));
        run.env("PALISADE_GATEWAY__SERVER__LISTEN", "127.0.0.1:0")
            .env("PALISADE_GATEWAY__ADMIN__LISTEN", "127.0.0.1:0");
        run.env("PALISADE_GATEWAY__UPSTREAMS__BACKEND__ADDRESSES", stack.backend.address.to_string());
        run.env("PALISADE_GATEWAY__STATE__DIR", dir.join("state"));
        run
    };
    let program = Program::start("gateway", run());
    let address = program.field_of("data plane", "listen").await.parse().unwrap();
    assert_eq!(tests::client::Client::of(address).get("/.well-known/jwks.json", None).await.status(), 200);
    assert!(program.log().iter().any(|line| line.contains("starting with the last good one")));
    let mut fresh = run();
    fresh.env("PALISADE_GATEWAY__STATE__DIR", dir.join("elsewhere"));
    let mut program = Program::start("gateway", fresh);
    assert!(!program.ended().await.success(), "without a last good one there is nothing to serve by");
}

#[tokio::test]
async fn a_configmap_swap_is_noticed() {
    let stack = Stack::start().await;
    // As the kubelet does it: policy.toml -> ..data/policy.toml, ..data -> ..v1, then ..data is renamed over.
    let dir = tempfile::tempdir().unwrap();
    let version = |name: &str, text: &str| {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("policy.toml"), text).unwrap();
    };
    let policy = policy_for(POLICY, stack.backend.address);
    version("..v1", &policy);
    std::os::unix::fs::symlink("..v1", dir.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/policy.toml", dir.path().join("policy.toml")).unwrap();
    let mut run = command("gateway");
    run.args(["run", "--profile", "testing", "--policy"]).arg(dir.path().join("policy.toml"));
    run.env("PALISADE_GATEWAY__SERVER__LISTEN", "127.0.0.1:0")
        .env("PALISADE_GATEWAY__ADMIN__LISTEN", "127.0.0.1:0");
    run.env("PALISADE_GATEWAY__UPSTREAMS__BACKEND__ADDRESSES", stack.backend.address.to_string());
    run.env("PALISADE_GATEWAY__STATE__DIR", dir.path().join("state"));
    let program = Program::start("gateway", run);
    let address = program.field_of("data plane", "listen").await.parse().unwrap();
    let client = tests::client::Client::of(address);
    assert_eq!(client.get("/swapped", None).await.status(), 404);
    version(
        "..v2",
        &(policy
            + "\n[[routes]]\nname = \"swapped\"\npath = \"/swapped\"\nupstream = \"backend\"\nauth = [\"jwt:accounts\"]\n"),
    );
    std::os::unix::fs::symlink("..v2", dir.path().join("..data_tmp")).unwrap();
    std::fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    eventually("the swap is noticed", || async { client.get("/swapped", None).await.status() == 401 }).await;
}

#[tokio::test]
async fn deny_files_are_watched_and_their_faults_named() {
    let stack = Stack::start().await;
    let list = stack.gateway.policy_file().with_file_name("blocklist.txt");
    std::fs::write(&list, "# known\n127.44.0.0/16\n").unwrap();
    let with_list = "deny_files = [\"blocklist.txt\"]\ndeny = [";
    stack.gateway.edit_policy(|text| text.replacen("deny = [", with_list, 1));
    let status =
        async |address| stack.gateway.client().at(address).get("/.well-known/jwks.json", None).await.status();
    eventually("the list is in force", || async { status([127, 44, 0, 1]).await == 403 }).await;
    assert_eq!(status([127, 45, 0, 1]).await, 200);
    std::fs::write(&list, "127.45.0.1\n").unwrap();
    eventually("the new list is in force", || async { status([127, 45, 0, 1]).await == 403 }).await;
    assert_eq!(status([127, 44, 0, 1]).await, 200);
    std::fs::write(&list, "127.45.0.1\n127.45.0.300\n").unwrap();
    let refusal =
        async || stack.gateway.operator().get("/admin/policy", None).await.json()["last_refusal"].clone();
    eventually("the fault is reported", || async { !refusal().await.is_null() }).await;
    let fault = refusal().await["faults"][0].clone();
    assert!(fault["file"].as_str().unwrap().ends_with("blocklist.txt"), "{fault}");
    assert_eq!((&fault["line"], &fault["column"]), (&2.into(), &1.into()), "{fault}");
    assert_eq!(status([127, 45, 0, 1]).await, 403, "the last good list holds");
}

#[tokio::test]
async fn a_policy_that_refuses_too_much_is_rolled_back_and_stays_so_over_a_restart() {
    const CANARY: &str = "[canary]\nwindow = \"1m\"\nmin_requests = 20\n";
    let backend = Backend::start(&[]).await;
    let policy_with_list = PolicyText::usual().set("blocks.deny_files", vec!["list.txt"]);
    let text = policy_with_list + CANARY;
    let gateway = Gateway::start_beside(&[("list.txt", "")], backend.address, &text, &[]).await;
    let ask = async |gateway: &Gateway| gateway.client().get("/.well-known/jwks.json", None).await.status();
    let policy = async |gateway: &Gateway| gateway.operator().get("/admin/policy", None).await.json();
    let before = gateway.policy_in_force().await;
    for _ in 0..30 {
        assert_eq!(ask(&gateway).await, 200);
    }
    // A slip of the hand: everybody is refused.
    gateway.edit_policy(|text| text.replace("127.66.0.0/16", "127.0.0.0/8"));
    eventually("the slip is in force", || async { gateway.policy_in_force().await != before }).await;
    let slip = gateway.policy_in_force().await;
    assert_eq!(gateway.operator().ask("POST", "/admin/readonly", &[], "").await.status(), 200);
    assert!(policy(&gateway).await["trial"]["until"].is_string(), "an override ends no trial");
    for _ in 0..20 {
        assert_eq!(ask(&gateway).await, 403); // one fewer says nothing
    }
    eventually("it is rolled back", || async { gateway.policy_in_force().await == before }).await;
    assert_eq!(ask(&gateway).await, 200);
    let written = gateway.client().ask("POST", "/v1/auth/logout", &[], "{}").await;
    assert_eq!(written.code(), "read_only", "what an operator said meanwhile holds");
    std::fs::write(gateway.policy_file().with_file_name("list.txt"), "127.0.0.77\n").unwrap();
    let denied = async || {
        gateway.client().at([127, 0, 0, 77]).get("/.well-known/jwks.json", None).await.status() == 403
    };
    eventually("deny files are read while the file is refused", denied).await;
    assert!(gateway.metric("palisade_policy_reloads_total{result=\"rolled_back\"}").await > 0.5);
    let state = policy(&gateway).await;
    let said = state["last_refusal"]["faults"][0]["message"].as_str().unwrap();
    assert!(said.starts_with("rolled back: it refused ") && said.ends_with("0.0 % before it"), "{said}");
    assert!(state["trial"].is_null(), "{state}");

    let gateway = gateway.restart(&[]).await;
    assert_eq!(gateway.policy_in_force().await, before, "the file still has the slip");
    let insisted = gateway.operator().ask("POST", "/admin/policy/reload", &[], "").await;
    assert_eq!((insisted.status(), insisted.json()["sha256"].as_str()), (200, Some(slip.as_str())));
    assert_eq!(ask(&gateway).await, 403, "an operator has the last word");
}

async fn a_rule_that_changes(environment: &[(&str, &str)]) {
    let backend = Backend::start(&[]).await;
    let limited = "[limits.all]\nkey = \"global\"\nrate = \"60/h\"\n[[routes]]\nname = \"all\"\npath = \"/all\"\n\
        upstream = \"backend\"\nlimits = [\"all\"]\n";
    let gateway = Gateway::start(backend.address, &(POLICY.to_owned() + limited), environment).await;
    eventually("the store is there", || async {
        environment.is_empty() || gateway.metric("palisade_redis_up").await > 0.5
    })
    .await;
    let client = gateway.client();
    let ask = async || client.get("/all", None).await;
    let over = async |rate: &str| {
        let body = serde_json::json!({"limits.all.rate": rate}).to_string();
        assert_eq!(gateway.operator().ask("PATCH", "/admin/overrides", &[], body).await.status(), 200);
    };
    for _ in 0..60 {
        assert_eq!(ask().await.status(), 404);
    }
    assert_eq!(ask().await.status(), 429);
    let before = gateway.policy_in_force().await;
    gateway.edit_policy(|text| text.replace("60/h", "10000/s"));
    eventually("the edit is in force", || async { gateway.policy_in_force().await != before }).await;
    for _ in 0..100 {
        assert_eq!(ask().await.status(), 404, "raised by the file: nobody is held by the hour that was");
    }
    over("60/h").await;
    // A hundred were taken within a second or two: of sixty an hour none is left, and one comes back in a minute.
    let answer = ask().await;
    if answer.status() == 429 {
        let wait: u64 = answer.field("retry-after").parse().unwrap();
        assert!(wait <= 60, "{wait} s");
    }
    let mut asked = 0;
    while ask().await.status() != 429 {
        asked += 1;
        assert!(asked <= 60, "sixty an hour are no more than sixty");
    }
    over("10000/s").await;
    assert_eq!(ask().await.status(), 404, "raised by an override");
}

#[tokio::test]
async fn a_client_that_a_limit_refused_is_served_once_the_limit_is_raised() {
    a_rule_that_changes(&[]).await;
    let redis = tests::redis::Redis::start().await;
    let url = redis.url();
    a_rule_that_changes(&[("PALISADE_GATEWAY__REDIS__URL", &url)]).await;
}
