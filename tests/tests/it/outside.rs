//! What the admin plane is asked to read, judge or take back: bounded, only what the policy file names, and never a success
//! for nothing.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::client::Client;
use tests::eventually;
use tests::policy_text::PolicyText;
use tests::redis::Redis;
use tests::stack::{Backend, Gateway, POLICY, Stack};

const KEYS: &str = "/.well-known/jwks.json";

async fn check(gateway: &Gateway, policy: &str) -> (u16, String) {
    let answer = gateway.operator().ask("POST", "/admin/policy/check", &[], policy.to_owned()).await;
    (answer.status(), String::from_utf8_lossy(&answer.body).into_owned())
}

#[tokio::test]
async fn check_and_overrides_name_no_file_and_no_address_that_the_policy_file_does_not() {
    let stack = Stack::start().await;
    let (gateway, dir) = (&stack.gateway, tempfile::tempdir().unwrap());
    let (secret, pipe) = (dir.path().join("GATEWAY_TOKEN"), dir.path().join("pipe"));
    std::fs::write(&secret, "hush-hush-hush-hush\n").unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::fs::write(gateway.policy_file().with_file_name("beside.txt"), "hush-hush-hush-hush\n").unwrap();
    let text = PolicyText::of(std::fs::read_to_string(gateway.policy_file()).unwrap());
    for file in [secret.to_str().unwrap(), pipe.to_str().unwrap(), "/dev/zero", "../x", "beside.txt"] {
        let (status, said) = check(gateway, &text.clone().set("blocks.deny_files", vec![file])).await;
        assert_eq!(status, 422, "{file}: {said}");
        assert!(said.contains("only the policy file names files") && !said.contains("hush"), "{said}");
        let over = json!({"blocks.deny_files": [file]}).to_string();
        let answer = gateway.operator().ask("PATCH", "/admin/overrides", &[], over).await;
        let said = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status(), 422, "{file}: {said}");
        assert!(said.contains("only the policy file names files") && !said.contains("hush"), "{said}");
    }
    for (key, value) in [("jwks", "http://user:hush@169.254.169.254/"), ("jwks", "http://127.0.0.1:1/keys")] {
        let over = json!({ format!("jwt.accounts.{key}"): value }).to_string();
        let answer = gateway.operator().ask("PATCH", "/admin/overrides", &[], over).await;
        let said = String::from_utf8_lossy(&answer.body);
        assert!(answer.status() == 422 && !said.contains("hush"), "{said}");
    }
    assert_eq!(check(gateway, &text).await.0, 200, "what the file itself names is no news");
}

#[tokio::test]
async fn a_deny_file_of_the_policy_lies_below_its_folder_and_no_fault_quotes_it() {
    let stack = Stack::start().await;
    let (gateway, dir) = (&stack.gateway, tempfile::tempdir().unwrap());
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "hush-hush-hush-hush\n").unwrap();
    let folder = gateway.policy_file().parent().unwrap().to_owned();
    std::fs::write(folder.join("words.txt"), "hush-hush-hush-hush\n").unwrap();
    // As the kubelet mounts a list: links within the folder.
    std::fs::create_dir(folder.join("..v1")).unwrap();
    std::fs::write(folder.join("..v1/list.txt"), "::ffff:127.88.0.0/112\n").unwrap();
    std::os::unix::fs::symlink("..v1", folder.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/list.txt", folder.join("list.txt")).unwrap();
    std::os::unix::fs::symlink(&secret, folder.join("link.txt")).unwrap();
    let text = PolicyText::of(std::fs::read_to_string(gateway.policy_file()).unwrap());
    for (file, wanted) in [
        (secret.to_str().unwrap(), "is not below the policy's folder"),
        ("link.txt", "is not below the policy's folder"),
        ("/dev/zero", "is not below the policy's folder"),
        ("words.txt", "an address or a CIDR like 192.0.2.0/24"),
        ("..v1", "it is no regular file"),
    ] {
        std::fs::write(gateway.policy_file(), &*text.clone().set("blocks.deny_files", vec![file])).unwrap();
        let answer = gateway.operator().ask("POST", "/admin/policy/reload", &[], "").await;
        let said = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status(), 422, "{file}: {said}");
        assert!(said.contains(wanted) && !said.contains("hush"), "{file}: {said}");
    }
    std::fs::write(gateway.policy_file(), &*text.set("blocks.deny_files", vec!["list.txt"])).unwrap();
    assert_eq!(gateway.operator().ask("POST", "/admin/policy/reload", &[], "").await.status(), 200);
    assert_eq!(
        gateway.client().at([127, 88, 1, 1]).get(KEYS, None).await.status(),
        403,
        "an IPv4 network in IPv6"
    );
}

/// A policy of many routes with one thing wrong with each, somewhat below the bound of a body.
fn crowded() -> String {
    let mut text = "version = 1\n".to_owned();
    for number in 0.. {
        let route = format!(
            "[[routes]]\nname=\"r{number}\"\npath=\"/{number}\"\nupstream=\"backnd\"\nlimits=[\"l{number}\"]\n"
        );
        if text.len() + route.len() > 1_000_000 {
            break;
        }
        text += &route;
    }
    text
}

#[tokio::test]
async fn a_large_policy_is_judged_in_time_beside_requests_and_a_larger_one_is_refused() {
    let stack = Stack::start().await;
    let (policy, gateway) = (crowded(), &stack.gateway);
    let asked = async {
        let begun = Instant::now();
        let (status, said) = check(gateway, &policy).await;
        (status, said, begun.elapsed())
    };
    let meanwhile = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..100 {
            let begun = Instant::now();
            assert_eq!(gateway.client().get(KEYS, None).await.status(), 200);
            slowest = slowest.max(begun.elapsed());
        }
        slowest
    };
    let ((status, said, took), slowest) = tokio::join!(asked, meanwhile);
    println!("{} bytes judged in {took:?}, the slowest request meanwhile {slowest:?}", policy.len());
    assert_eq!(status, 422);
    assert!(said.contains("more faults are not listed") && said.len() < 100_000, "{} bytes", said.len());
    assert!(took < Duration::from_secs(15) && slowest < Duration::from_secs(5));
    let answer = gateway.operator().ask("POST", "/admin/policy/check", &[], " ".repeat((1 << 20) + 1)).await;
    assert_eq!((answer.status(), answer.json()["code"].as_str()), (413, Some("body_too_large")));
    assert_eq!(answer.field("content-type"), "application/problem+json");
}

#[tokio::test]
async fn numbers_and_depths_beyond_all_measure_are_refused_and_end_nothing() {
    let stack = Stack::start().await;
    let gateway = &stack.gateway;
    let deep = format!("{{\"{}\":1}}", vec!["a"; 10_000].join("."));
    let nested = format!("{}1{}", "{\"a\":".repeat(100), "}".repeat(100));
    for over in [
        deep.as_str(),
        &nested,
        r#"{"requests.request_timeout":"300000000000y"}"#,
        r#"{"limits.login.rate":"1/day","limits.login.burst":220000}"#,
        r#"{"requests.max_body":"99999999999999999999"}"#,
    ] {
        let answer = gateway.operator().ask("PATCH", "/admin/overrides", &[], over.to_owned()).await;
        assert_eq!(answer.status(), 422, "{over:.80}");
    }
    let endless = "[".repeat(200_000);
    let answer = gateway.operator().ask("PATCH", "/admin/overrides", &[], endless).await;
    assert_eq!(answer.status(), 400);
    let before = gateway.policy_in_force().await;
    gateway.edit_policy(|text| text + "\n[breakers.backend]\ncooldown = \"300000000000y\"\n");
    let answer = gateway.operator().ask("POST", "/admin/policy/reload", &[], "").await;
    assert_eq!(answer.status(), 422);
    assert_eq!(gateway.policy_in_force().await, before);
    for (body, status) in [
        ("{\"duration\":\"300000000000y\"}", 400),
        ("{\"duration\":\"0s\"}", 400),
        ("{\"duration\":\"10y\"}", 204),
    ] {
        let answer = gateway.operator().ask("PUT", "/admin/ip-blocks/192.0.2.1", &[], body).await;
        assert_eq!(answer.status(), status, "{body}");
    }
    assert_eq!(gateway.client().get(KEYS, None).await.status(), 200);
}

#[tokio::test]
async fn a_last_good_policy_that_is_good_no_more_stops_no_start() {
    let backend = Backend::start(&[]).await;
    let gateway = Gateway::start(backend.address, POLICY, &[]).await;
    let kept = gateway.policy_file().with_file_name("state").join("policy.last-good.toml");
    let text = std::fs::read_to_string(&kept).unwrap();
    for broken in [text.clone() + "\n[breakers.backend]\ncooldown = \"300000000000y\"\n", "[".repeat(100_000)]
    {
        std::fs::write(&kept, broken).unwrap();
    }
    let gateway = gateway.restart(&[]).await;
    assert_eq!(gateway.client().get(KEYS, None).await.status(), 200);
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), text, "the good one has taken its place");
}

#[tokio::test]
async fn only_names_of_this_machine_are_answered_without_a_token() {
    let stack = Stack::start().await;
    let admin = Client::of(stack.gateway.admin);
    for host in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]:8081"] {
        assert_eq!(admin.of_host(host).get("/admin/policy", None).await.status(), 200, "{host}");
    }
    for path in ["/admin/policy", "/metrics", "/health/live"] {
        let answer = admin.of_host("rebound.example").get(path, None).await;
        assert_eq!(
            (answer.status(), answer.json()["code"].as_str()),
            (421, Some("misdirected_request")),
            "{path}"
        );
        assert_eq!(answer.field("content-type"), "application/problem+json");
    }
}

#[tokio::test]
async fn removing_what_is_not_there_gets_404() {
    let stack = Stack::start().await;
    for path in [
        "/admin/ip-blocks/192.0.2.1",
        "/admin/overrides/limits.login.rate",
        "/admin/revocations/jti/none",
        "/admin/limits/login/192.0.2.1",
        "/admin/limits/none/192.0.2.1",
    ] {
        let answer = stack.gateway.operator().ask("DELETE", path, &[], "").await;
        assert_eq!((answer.status(), answer.json()["code"].as_str()), (404, Some("not_found")), "{path}");
        assert_eq!(answer.field("content-type"), "application/problem+json");
    }
}

#[tokio::test]
async fn a_change_of_a_replica_whose_clock_is_behind_counts_everywhere() {
    let (redis, backend) = (Redis::start().await, Backend::start(&[]).await);
    let url = redis.url();
    let environment = [("PALISADE_GATEWAY__REDIS__URL", url.as_str())];
    let one = Gateway::start(backend.address, POLICY, &environment).await;
    let other = Gateway::start(backend.address, POLICY, &environment).await;
    for gateway in [&one, &other] {
        eventually("redis is there", || async { gateway.metric("palisade_redis_up").await > 0.5 }).await;
    }
    // What a replica writes whose clock is an hour ahead.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap() + Duration::from_hours(1);
    let changed_at = now.as_nanos();
    let ban = json!({"topic": "bans", "key": "127.0.5.0/24", "value": {"reason": "scan"}, "until": null});
    let ban = ban.to_string().replacen('{', &format!("{{\"changed_at\":{changed_at},"), 1);
    redis.cli(&["HSET", "palisade:bans", "127.0.5.0/24", &format!("{changed_at:020}{ban}")]).await;
    redis.cli(&["PUBLISH", "palisade:changes", &ban]).await;
    let status = async |gateway: &Gateway| gateway.client().at([127, 0, 5, 1]).get(KEYS, None).await.status();
    for gateway in [&one, &other] {
        eventually("the ban holds", || async { status(gateway).await == 403 }).await;
    }
    let path = "/admin/ip-blocks/127.0.5.0%2F24";
    assert_eq!(one.operator().ask("DELETE", path, &[], "").await.status(), 204);
    assert_eq!(status(&one).await, 200, "at once here");
    eventually("and on the other", || async { status(&other).await == 200 }).await;
    // Likewise for what this replica does not know: only Redis does.
    let later = format!("{:020}{}", changed_at + 1_000_000_000, ban.replace("127.0.5.0", "127.0.6.0"));
    redis
        .cli(&[
            "HSET",
            "palisade:bans",
            "127.0.6.0/24",
            &later.replace(&changed_at.to_string(), &(changed_at + 1_000_000_000).to_string()),
        ])
        .await;
    assert_eq!(
        one.operator()
            .ask("PUT", "/admin/ip-blocks/127.0.6.0%2F24", &[], "{\"reason\":\"mine\"}")
            .await
            .status(),
        204
    );
    let reason = async |gateway: &Gateway| {
        let listed = gateway.operator().get("/admin/ip-blocks", None).await.json();
        let items = listed["items"].as_array().cloned().unwrap_or_default();
        items.iter().find(|item| item["network"] == "127.0.6.0/24").map(|item| item["reason"].clone())
    };
    eventually("the change counts on the other, too", || async {
        reason(&other).await == Some("mine".into())
    })
    .await;
    assert!(redis.cli(&["HGET", "palisade:bans", "127.0.6.0/24"]).await.contains("mine"));
}
