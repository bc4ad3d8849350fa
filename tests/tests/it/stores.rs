//! One suite over both stores.

use std::sync::Arc;
use std::time::Duration;

use gateway::clock;
use gateway::observe::metrics::Metrics;
use gateway::store::local::LocalStore;
use gateway::store::redis::RedisStore;
use gateway::store::{BanChange, Store};
use policy::Policy;
use policy::blocks::AutoBlock;
use policy::limits::{Charge, Charges};
use tests::eventually;
use tests::stack::Redis;
use tokio::sync::mpsc;

const LIMITS: &str = r#"
version = 1
[limits.small]
key = "ip"
rate = "3/min"
[limits.large]
key = "global"
rate = "100/min"
[limits.fast]
key = "ip"
rate = "50/s"
burst = 1
[limits.shadow]
key = "ip"
rate = "1/day"
mode = "shadow"
[[routes]]
name = "a"
path = "/"
upstream = "b"
"#;

fn charge(limit: &str, bucket: &str) -> Charge {
    let policy = Policy::parse("limits", LIMITS, None).unwrap();
    let rule = policy.limits.iter().find(|rule| &*rule.name == limit).unwrap();
    Charge { rule: Arc::clone(rule), bucket: format!("{limit}|{bucket}") }
}

async fn conforms(store: &impl Store, charges: &[Charge]) -> bool {
    store.spend(charges, clock::now()).await.unwrap().iter().all(|reading| reading.conforms)
}

async fn suite(store: &impl Store) {
    a_burst_is_exact(store).await;
    what_one_limit_refuses_is_charged_to_none(store).await;
    a_refund_gives_back(store).await;
    a_token_comes_back_in_its_time(store).await;
    a_shadow_limit_does_not_hold_back_the_others(store).await;
    failures_are_counted_and_cleared(store).await;
    bans_are_kept(store).await;
}

async fn a_burst_is_exact(store: &impl Store) {
    let charges = [charge("small", "burst")];
    for left in [2, 1, 0] {
        let reading = store.spend(&charges, clock::now()).await.unwrap()[0];
        assert!(reading.conforms);
        assert_eq!(reading.remaining, left);
    }
    let reading = store.spend(&charges, clock::now()).await.unwrap()[0];
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
    let reading = store.spend(&both[1..], clock::now()).await.unwrap()[0];
    assert_eq!(reading.remaining, 96, "three and this one");
}

async fn a_refund_gives_back(store: &impl Store) {
    let charges = [charge("small", "refund")];
    for _ in 0..3 {
        assert!(conforms(store, &charges).await);
    }
    store.refund(Charges::from_vec(charges.to_vec()), clock::now()).await.unwrap();
    assert!(conforms(store, &charges).await);
    assert!(!conforms(store, &charges).await);
}

async fn a_token_comes_back_in_its_time(store: &impl Store) {
    let charges = [charge("fast", "wait")];
    assert!(conforms(store, &charges).await);
    eventually("20 ms later there is one more", || conforms(store, &charges)).await;
}

async fn a_shadow_limit_does_not_hold_back_the_others(store: &impl Store) {
    let both = [charge("shadow", "s"), charge("large", "s")];
    assert!(conforms(store, &both).await);
    let readings = store.spend(&both, clock::now()).await.unwrap();
    assert!(!readings[0].conforms && readings[1].conforms);
    assert_eq!(readings[1].remaining, 98);
}

async fn failures_are_counted_and_cleared(store: &impl Store) {
    let rule = AutoBlock { failures: 3, window: Duration::from_mins(1), duration: Duration::from_mins(1) };
    let client = "192.0.2.1/32".parse().unwrap();
    for count in 1..=3 {
        assert_eq!(store.count_failure(client, rule, clock::now()).await.unwrap(), count);
    }
    store.clear_failures(client).await.unwrap();
    assert_eq!(store.count_failure(client, rule, clock::now()).await.unwrap(), 1);
}

async fn bans_are_kept(store: &impl Store) {
    let change = BanChange {
        network: "192.0.2.0/24".parse().unwrap(),
        until: None,
        lifted: false,
        reason: "test".to_owned(),
        changed_at: clock::now().as_nanos(),
    };
    store.publish_ban(&change).await.unwrap();
    assert_eq!(store.bans().await.unwrap(), [change]);
}

#[tokio::test]
async fn the_store_in_process_passes() {
    suite(&LocalStore::default()).await;
}

#[tokio::test]
async fn the_store_in_redis_passes() {
    let redis = Redis::start().await;
    let store = RedisStore::new(&redis.url(), Metrics::new().unwrap()).unwrap();
    let (sender, _news) = mpsc::channel(1024);
    tokio::spawn(Arc::clone(&store).run(sender));
    eventually("redis is there", || async { store.is_up() }).await;
    suite(&*store).await;
}
