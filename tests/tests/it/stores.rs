//! One suite over both stores.

use std::sync::Arc;
use std::time::Duration;

use gateway::clock;
use gateway::config::redis_address::RedisAddress;
use gateway::observe::metrics::Metrics;
use gateway::state::local::LocalStore;
use gateway::state::redis::RedisStore;
use gateway::state::store::{Change, Failures, Store, Topic};
use policy::Policy;
use policy::rules::blocks::AutoBlock;
use policy::rules::limits::{Charge, Charges};
use tests::eventually;
use tests::redis::{Redis, valkey};
use tokio::sync::mpsc;

const LIMITS: &str = r#"
version = 1
[limits.small]
key = "header:who"
rate = "3/min"
[limits.large]
key = "header:who"
rate = "100/min"
[limits.fast]
key = "header:who"
rate = "50/s"
burst = 1
[limits.shadow]
key = "header:who"
rate = "1/day"
mode = "shadow"
[[routes]]
name = "a"
path = "/"
upstream = "b"
"#;

fn charge(limit: &str, bucket: &str) -> Charge {
    charge_by(LIMITS, limit, bucket)
}

fn charge_by(limits: &str, limit: &str, bucket: &str) -> Charge {
    let policy = Policy::parse("limits", limits, None).unwrap();
    let rule = policy.limits.iter().find(|rule| &*rule.name == limit).unwrap();
    Charge { rule: Arc::clone(rule), bucket: rule.bucket_of(bucket, &policy.client).unwrap() }
}

async fn conforms(store: &impl Store, charges: &[Charge]) -> bool {
    store.spend(charges, clock::steady()).await.unwrap().iter().all(|reading| reading.conforms)
}

async fn suite(store: &impl Store) {
    a_burst_is_exact(store).await;
    what_one_limit_refuses_is_charged_to_none(store).await;
    a_refund_gives_back(store).await;
    a_token_comes_back_in_its_time(store).await;
    a_rule_that_changes_holds_nobody_by_what_the_old_one_meant(store).await;
    a_shadow_limit_does_not_hold_back_the_others(store).await;
    a_bucket_can_be_refilled(store).await;
    failures_are_counted_and_cleared_and_offences_remembered(store).await;
    the_newest_change_is_kept(store).await;
}

async fn a_burst_is_exact(store: &impl Store) {
    let charges = [charge("small", "burst")];
    for left in [2, 1, 0] {
        let reading = store.spend(&charges, clock::steady()).await.unwrap()[0];
        assert!(reading.conforms);
        assert_eq!(reading.remaining, left);
    }
    let reading = store.spend(&charges, clock::steady()).await.unwrap()[0];
    assert!(
        !reading.conforms
            && reading.next > Duration::from_secs(18)
            && reading.next <= Duration::from_secs(20)
    );
}

async fn what_one_limit_refuses_is_charged_to_none(store: &impl Store) {
    let both = [charge("small", "both"), charge("large", "both")];
    for _ in 0..3 {
        assert!(conforms(store, &both).await);
    }
    for _ in 0..5 {
        assert!(!conforms(store, &both).await);
    }
    let reading = store.spend(&both[1..], clock::steady()).await.unwrap()[0];
    assert_eq!(reading.remaining, 96, "three and this one");
}

async fn a_refund_gives_back(store: &impl Store) {
    let charges = [charge("small", "refund")];
    for _ in 0..3 {
        assert!(conforms(store, &charges).await);
    }
    store.refund(Charges::from_vec(charges.to_vec()), clock::steady()).await.unwrap();
    assert!(conforms(store, &charges).await);
    assert!(!conforms(store, &charges).await);
}

async fn a_token_comes_back_in_its_time(store: &impl Store) {
    let charges = [charge("fast", "wait")];
    assert!(conforms(store, &charges).await);
    eventually("20 ms later there is one more", || conforms(store, &charges)).await;
}

async fn a_rule_that_changes_holds_nobody_by_what_the_old_one_meant(store: &impl Store) {
    let with = |rate: &str| charge_by(&LIMITS.replace("100/min", rate), "large", "changed");
    let (hourly, fast) = (with("60/h"), with("10000/s"));
    for _ in 0..60 {
        assert!(conforms(store, std::slice::from_ref(&hourly)).await);
    }
    assert!(!conforms(store, std::slice::from_ref(&hourly)).await);
    for _ in 0..200 {
        assert!(
            conforms(store, std::slice::from_ref(&fast)).await,
            "as many tokens are gone, not as much time"
        );
    }
    let lowered = store.spend(std::slice::from_ref(&hourly), clock::steady()).await.unwrap()[0];
    assert!(lowered.next <= Duration::from_mins(2), "{lowered:?}: never longer than one token takes");
}

async fn a_shadow_limit_does_not_hold_back_the_others(store: &impl Store) {
    let both = [charge("shadow", "s"), charge("large", "s")];
    assert!(conforms(store, &both).await);
    let readings = store.spend(&both, clock::steady()).await.unwrap();
    assert!(!readings[0].conforms && readings[1].conforms);
    assert_eq!(readings[1].remaining, 98);
}

async fn a_bucket_can_be_refilled(store: &impl Store) {
    let charges = [charge("small", "refill")];
    for _ in 0..3 {
        assert!(conforms(store, &charges).await);
    }
    assert!(!conforms(store, &charges).await);
    store.refill(&charges[0].bucket).await.unwrap();
    assert!(conforms(store, &charges).await);
}

async fn failures_are_counted_and_cleared_and_offences_remembered(store: &impl Store) {
    let minute = Duration::from_mins(1);
    let rule =
        AutoBlock { failures: 3, window: minute, duration: minute, escalation: 2, max_duration: minute };
    let client = "192.0.2.1/32".parse().unwrap();
    for (count, offences) in [(1, 0), (2, 0), (3, 1), (4, 1)] {
        let failures = store.count_failure(client, rule, clock::steady()).await.unwrap();
        assert_eq!(failures, Failures { count, offences });
    }
    store.clear_failures(client).await.unwrap();
    for (count, offences) in [(1, 1), (2, 1), (3, 2)] {
        let failures = store.count_failure(client, rule, clock::steady()).await.unwrap();
        assert_eq!(failures, Failures { count, offences });
    }
}

async fn the_newest_change_is_kept(store: &impl Store) {
    let now = clock::steady().as_nanos();
    let change = |value: Option<&str>, changed_at| Change {
        topic: Topic::Bans,
        key: "192.0.2.0/24".to_owned(),
        value: value.map(Into::into),
        until: None,
        changed_at,
    };
    store.put(&change(Some("test"), now)).await.unwrap();
    store.put(&change(None, now - 1)).await.unwrap();
    assert_eq!(store.all(Topic::Bans).await.unwrap(), [change(Some("test"), now)]);
    store.put(&change(None, now + 1)).await.unwrap();
    assert_eq!(store.all(Topic::Bans).await.unwrap(), [change(None, now + 1)]);
    assert!(store.all(Topic::Overrides).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_store_in_process_passes() {
    suite(&LocalStore::default()).await;
}

/// How often the suite is begun anew, on another server, because the one before did not answer in time.
const MOST_TIMES: usize = 5;

/// Redis has 40 ms for an answer, which a busy machine may exceed: the store is right to count without it then, and the
/// suite has to see what it counts with it. A server that answers wrongly fails each time.
async fn suite_on(start: impl AsyncFn() -> Redis) {
    for time in 1.. {
        let server = start().await;
        let (places, metrics) =
            (RedisAddress::parse(&server.url(), None, None).unwrap(), Metrics::new().unwrap());
        let store = RedisStore::new(places, metrics.clone());
        let (sender, _news) = mpsc::channel(1024);
        tokio::spawn(Arc::clone(&store).run(sender));
        eventually("the server is there", || async { store.is_up() }).await;
        let Err(fault) = tokio::spawn(async move { suite(&*store).await }).await else { return };
        let late = metrics.redis_errors.get();
        println!("the suite failed with {late} answers that did not come in time");
        if late == 0 || time == MOST_TIMES {
            std::panic::resume_unwind(fault.into_panic());
        }
    }
}

#[tokio::test]
async fn the_store_in_redis_passes() {
    suite_on(Redis::start).await;
}

#[tokio::test]
async fn the_store_in_valkey_passes() {
    let Some(valkey) = valkey() else { return };
    suite_on(async || Redis::start_as(&valkey).await).await;
}
