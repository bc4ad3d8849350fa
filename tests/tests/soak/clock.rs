//! The wall clock is set under load, back and forth: limits continue, tokens and bans end by the new time.

use serde_json::json;
use tests::accounts::login;
use tests::eventually;
use tests::fake_clock::{FakeClock, borrowed};
use tests::load::{Load, count};
use tests::redis::{Redis, valkey};
use tests::stack::{Backend, Gateway, PASSWORD, POLICY};
use tokio::sync::watch;

/// What the load asks for: no more than it may.
const LIMITED: &str = "[limits.load]\nkey = \"ip\"\nrate = \"200/s\"\nburst = 200\n[limits.few]\nkey = \"ip\"\nrate = \"5/min\"\n\
    [[routes]]\nname = \"load\"\npath = \"/load\"\nupstream = \"backend\"\nlimits = [\"load\"]\n\
    [[routes]]\nname = \"few\"\npath = \"/few\"\nupstream = \"backend\"\nlimits = [\"few\"]\n";

/// The steps that are made, one after the other: 20 s back, an hour back, an hour forward of the true time.
const STEPS: [&str; 3] = ["-20s", "-1h", "+1h"];

async fn steps_under_load(clock: &FakeClock, gateway: &Gateway) {
    let few = async |address: [u8; 4]| gateway.client().at(address).get("/few", None).await;
    let (_ready, addresses) = watch::channel(vec![gateway.address]);
    let load = Load::start(&addresses, "/load", 10, 10);
    load.continues(100).await;
    for (step, number) in STEPS.into_iter().zip(1..) {
        let half_used = [127, 20, number, 1];
        let used_up = [127, 20, number, 2];
        for _ in 0..3 {
            assert_eq!(few(half_used).await.status(), 404);
        }
        for _ in 0..5 {
            assert_eq!(few(used_up).await.status(), 404);
        }
        clock.set(step);
        load.continues(200).await;
        for _ in 0..2 {
            assert_eq!(few(half_used).await.status(), 404, "{step}: what was left is left");
        }
        let refused = few(used_up).await;
        if step != "+1h" || gateway.metric("palisade_redis_up").await < 0.5 {
            assert_eq!(refused.status(), 429, "{step}: what was used up is used up");
            let wait: u64 = refused.field("retry-after").parse().unwrap();
            assert!(wait <= 12, "{step}: {wait} s");
        }
        let steps = "palisade_clock_steps_total{clock=\"gateway\"}";
        eventually("the step is counted", || async { gateway.metric(steps).await > f64::from(number) - 0.5 })
            .await;
    }
    let samples = load.finish().await;
    println!("{:?}", count(&samples));
    assert!(samples.iter().all(|sample| sample.status == 404), "{:?}", count(&samples));
    let said = gateway.program.log().iter().filter(|line| line.contains("the wall clock was set")).count();
    assert_eq!(said, STEPS.len());
}

#[tokio::test]
async fn a_wall_clock_that_is_set_holds_nobody_and_bans_and_tokens_end_by_it() {
    let Some(clock) = FakeClock::new() else { return eprintln!("libfaketime is not installed: not tried") };
    let backend = Backend::start(&[]).await;
    let environment = clock.environment();
    let gateway =
        Gateway::start(backend.address, &(POLICY.to_owned() + LIMITED), &borrowed(&environment)).await;
    backend.add_user("ann", &[]).await;
    let token =
        login(&gateway.client(), "ann", PASSWORD).await.json()["access_token"].as_str().unwrap().to_owned();
    let operator = gateway.operator();
    let ten_minutes = json!({"duration": "10m"}).to_string();
    assert_eq!(operator.ask("PUT", "/admin/ip-blocks/127.20.9.9", &[], ten_minutes).await.status(), 204);
    let banned = async || gateway.client().at([127, 20, 9, 9]).get("/load", None).await.status() == 403;
    assert!(banned().await);
    let record = "/v1/collections/notes/records/a";
    steps_under_load(&clock, &gateway).await;
    let answer = gateway.client().get(record, Some(&token)).await;
    assert_eq!(answer.code(), "token_expired", "an hour later");
    assert!(!banned().await, "an hour later");
    clock.set("+0s");
    assert!(banned().await, "it is not an hour later");
    assert_ne!(gateway.client().get(record, Some(&token)).await.status(), 401);
}

#[tokio::test]
async fn the_clock_of_redis_is_set_with_it() {
    let Some(clock) = FakeClock::new() else { return eprintln!("libfaketime is not installed: not tried") };
    let environment = clock.environment();
    // Debian's redis-server does not start under libfaketime: its allocator asks for the time too early.
    let Some(server) = valkey() else { return eprintln!("VALKEY_SERVER is not set: not tried") };
    let redis = Redis::start_in(&server, &borrowed(&environment)).await;
    let backend = Backend::start(&[]).await;
    let url = redis.url();
    let mut environment = borrowed(&environment);
    environment.push(("PALISADE_GATEWAY__REDIS__URL", &url));
    let gateway = Gateway::start(backend.address, &(POLICY.to_owned() + LIMITED), &environment).await;
    eventually("Redis is there", || async { gateway.metric("palisade_redis_up").await > 0.5 }).await;
    steps_under_load(&clock, &gateway).await;
    let steps = "palisade_clock_steps_total{clock=\"redis\"}";
    eventually("its steps are counted", || async { gateway.metric(steps).await > 0.5 }).await;
}
