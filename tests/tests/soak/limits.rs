//! Limits and bans of three gateways on one Redis, under load: exact, cheap, and harmless while Redis is unavailable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tests::eventually;
use tests::hammer::{Tally, hammer};
use tests::load::percentile;
use tests::redis::{Cluster, Redis, Sentinel};
use tests::stack::{Backend, Gateway, POLICY};
use tests::three::{Three, limited, use_up};

fn no_failure(tally: &Tally) {
    let refused_or_served = tally.of(200) + tally.of(429);
    assert_eq!(refused_or_served, tally.statuses.values().sum::<u64>(), "{tally:?}");
}

#[expect(clippy::cast_precision_loss, reason = "some thousand requests")]
fn share(tally: &Tally, burst: f64, rate: f64, took: Duration) -> f64 {
    tally.of(200) as f64 / (burst + rate * took.as_secs_f64())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_at_three_gateways_for_20_s_admits_what_it_may() {
    let redis = Redis::start().await;
    let three = Three::on(&redis.url(), &[]).await;
    let begun = Instant::now();
    let tally = hammer(&three.addresses(), 2, "/health/ready", Duration::from_secs(20)).await;
    let share = share(&tally, 100.0, 100.0, begun.elapsed());
    println!(
        "redis up: {share:.4} of burst + rate x T, slowest answer {:?}, {:?}",
        tally.slowest, tally.statuses
    );
    no_failure(&tally);
    assert!((0.98..=1.0).contains(&share), "{share}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bound_holds_while_redis_is_killed_and_comes_back_empty() {
    let redis = Redis::start().await;
    let three = Three::on(&redis.url(), &[]).await;
    let begun = Instant::now();
    let outage = async {
        tokio::time::sleep(Duration::from_secs(7)).await; // not a wait for a state: the outage has its time
        let port = redis.kill().await;
        tokio::time::sleep(Duration::from_secs(7)).await; // the load continues so long without Redis
        Redis::start_at(port).await
    };
    let addresses = three.addresses();
    let hammering = hammer(&addresses, 2, "/health/ready", Duration::from_secs(20));
    let (_redis, tally) = tokio::join!(outage, hammering);
    let share = share(&tally, 100.0, 100.0, begun.elapsed());
    println!("redis away 7 of 20 s: {share:.4}, slowest answer {:?}, {:?}", tally.slowest, tally.statuses);
    no_failure(&tally);
    assert!((0.9..=1.0).contains(&share), "{share}");
    three.all_on_redis().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_key_costs_few_round_trips() {
    let redis = Redis::start().await;
    let three = Three::on(&redis.url(), &[]).await;
    let before = three.round_trips().await;
    let tally = hammer(&three.addresses(), 4, "/health/live", Duration::from_secs(6)).await;
    let trips = three.round_trips().await - before;
    #[expect(clippy::cast_precision_loss, reason = "some thousand requests")]
    let each = trips / tally.of(200) as f64;
    println!("{each:.4} round trips a request, {:?}", tally.statuses);
    no_failure(&tally);
    assert!(each < 0.02, "{trips} for {tally:?}");
}

#[tokio::test]
async fn a_ban_reaches_all_and_so_does_its_end() {
    let redis = Redis::start().await;
    let three = Three::on(&redis.url(), &[]).await;
    let [one, others @ ..] = three.gateways.as_slice() else { unreachable!("three") };
    let reach = async |method: &str, number: u8, status: u16| {
        let path = format!("/admin/ip-blocks/127.7.0.{number}");
        assert_eq!(one.operator().ask(method, &path, &[], "").await.status(), 204);
        let begun = Instant::now();
        for other in others {
            let client = other.client().at([127, 7, 0, number]);
            eventually("the change reaches it", || async {
                client.get("/health", None).await.status() == status
            })
            .await;
        }
        begun.elapsed()
    };
    let (mut bans, mut ends) = (Vec::new(), Vec::new());
    for number in 0..200 {
        bans.push(reach("PUT", number, 403).await);
        ends.push(reach("DELETE", number, 200).await);
    }
    let (bans, ends) = (percentile(bans, 0.99), percentile(ends, 0.99));
    println!("a ban holds on the other two after {bans:?}, its end after {ends:?} (p99 of 200)");
    assert!(bans < Duration::from_millis(100) && ends < Duration::from_millis(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_of_sentinels_costs_no_request_and_forgets_nothing() {
    let redis = Sentinel::start().await;
    let three = Three::on(&redis.url(), &[]).await;
    use_up(&three, [127, 0, 0, 21]).await;
    let banned = three.gateways[0].operator().ask("PUT", "/admin/ip-blocks/127.0.0.22", &[], "").await;
    assert_eq!(banned.status(), 204);
    let addresses = three.addresses();
    let hammering = hammer(&addresses, 1, "/health/ready", Duration::from_secs(6));
    let failover = async {
        redis.master.program.signal("KILL");
        eventually("the replica is the master", || async {
            redis.replica.cli(&["role"]).await.starts_with("master")
        })
        .await;
    };
    let (tally, ()) = tokio::join!(hammering, failover);
    no_failure(&tally);
    three.all_on_redis().await;
    assert!(limited(&three, [127, 0, 0, 21]).await, "the limit is where it was");
    for gateway in &three.gateways {
        assert_eq!(gateway.client().at([127, 0, 0, 22]).get("/health", None).await.status(), 403);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_resharded_keeps_the_bound_and_costs_no_request() {
    let redis = Cluster::start().await;
    let three = Three::on(&redis.nodes[0].url(), &[]).await;
    use_up(&three, [127, 0, 0, 31]).await;
    let begun = Instant::now();
    let addresses = three.addresses();
    let hammering = hammer(&addresses, 1, "/health/ready", Duration::from_secs(6));
    let (tally, ()) = tokio::join!(hammering, redis.reshard(3_000));
    let share = share(&tally, 100.0, 100.0, begun.elapsed());
    println!("resharded: {share:.4} of burst + rate x T, {:?}", tally.statuses);
    no_failure(&tally);
    assert!(share <= 1.0, "{share}");
    three.all_on_redis().await;
    assert!(limited(&three, [127, 0, 0, 31]).await, "the limit is where it was");
    let banned = three.gateways[0].operator().ask("PUT", "/admin/ip-blocks/127.0.0.32", &[], "").await;
    assert_eq!(banned.status(), 204);
    let client = three.gateways[2].client().at([127, 0, 0, 32]);
    eventually("the ban holds", || async { client.get("/health", None).await.status() == 403 }).await;
}

#[tokio::test]
async fn one_key_at_two_gateways_admits_exactly_its_burst_and_rate() {
    let (redis, backend) = (Redis::start().await, Backend::start(&[]).await);
    let url = redis.url();
    let mut gateways = Vec::new();
    for _ in 0..2 {
        let environment = [("PALISADE_GATEWAY__REDIS__URL", url.as_str())];
        gateways.push(Gateway::start(backend.address, POLICY, &environment).await);
    }
    for gateway in &gateways {
        eventually("redis is there", || async { gateway.metric("palisade_redis_up").await > 0.5 }).await;
    }
    let admitted = Arc::new(AtomicU32::new(0));
    let begun = Instant::now();
    let until = begun + Duration::from_secs(4);
    let hammers: Vec<_> = gateways
        .iter()
        .flat_map(|gateway| [gateway.client(), gateway.client().at([127, 0, 0, 2])])
        .map(|client| {
            let admitted = Arc::clone(&admitted);
            tokio::spawn(async move {
                while Instant::now() < until {
                    match client.get("/health/live", None).await.status() {
                        200 => drop(admitted.fetch_add(1, Ordering::Relaxed)),
                        status => assert_eq!(status, 429),
                    }
                }
            })
        })
        .collect();
    for hammer in hammers {
        hammer.await.unwrap();
    }
    let bound = 20.0 + 10.0 * begun.elapsed().as_secs_f64();
    let admitted = f64::from(admitted.load(Ordering::Relaxed));
    println!("admitted {admitted} of at most {bound:.1}: {:.3}", admitted / bound);
    assert!(admitted <= bound && admitted / bound > 0.97, "{admitted} of {bound}");
}
