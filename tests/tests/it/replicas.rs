//! Several gateways on one Redis, and a Redis that becomes unavailable.

use std::time::{Duration, Instant};

use tests::eventually;
use tests::fault::FaultProxy;
use tests::redis::Redis;
use tests::stack::{Backend, Gateway, POLICY};

async fn gateway(backend: &Backend, redis_url: &str) -> Gateway {
    let gateway =
        Gateway::start(backend.address, POLICY, &[("PALISADE_GATEWAY__REDIS__URL", redis_url)]).await;
    eventually("redis is there", || async { gateway.metric("palisade_redis_up").await > 0.5 }).await;
    gateway
}

#[tokio::test]
async fn a_small_rate_is_exact_to_the_request_over_two_gateways() {
    let (redis, backend) = (Redis::start().await, Backend::start(&[]).await);
    let gateways = [gateway(&backend, &redis.url()).await, gateway(&backend, &redis.url()).await];
    let mut statuses = Vec::new();
    for turn in 0..6 {
        statuses.push(gateways[turn % 2].client().get("/health/ready", None).await.status());
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
}

#[tokio::test]
async fn a_ban_on_one_holds_on_the_other_and_so_does_its_end() {
    let (redis, backend) = (Redis::start().await, Backend::start(&[]).await);
    let (one, other) = (gateway(&backend, &redis.url()).await, gateway(&backend, &redis.url()).await);
    let client = other.client().at([127, 0, 5, 1]);
    let path = "/admin/ip-blocks/127.0.5.0/24";
    assert_eq!(one.operator().ask("PUT", path, &[], "{\"duration\":\"1h\"}").await.status(), 204);
    let begun = Instant::now();
    eventually("the ban holds", || async {
        client.get("/.well-known/jwks.json", None).await.status() == 403
    })
    .await;
    println!("a ban reached the other gateway in {:?}", begun.elapsed());
    let path = "/admin/ip-blocks/127.0.5.0%2F24";
    assert_eq!(one.operator().ask("DELETE", path, &[], "").await.status(), 204);
    eventually("it ends", || async { client.get("/.well-known/jwks.json", None).await.status() == 200 })
        .await;
}

#[tokio::test]
async fn redis_killed_costs_no_request_and_limits_still_hold() {
    let (redis, backend) = (Redis::start().await, Backend::start(&[]).await);
    let gateway = gateway(&backend, &redis.url()).await;
    let client = gateway.client();
    assert_eq!(client.get("/health/live", None).await.status(), 200);
    redis.program.signal("KILL");
    let (mut admitted, mut slowest) = (0, Duration::ZERO);
    let begun = Instant::now();
    for _ in 0..200 {
        let asked = Instant::now();
        match client.get("/health/live", None).await.status() {
            200 => admitted += 1,
            status => assert_eq!(status, 429, "no request fails because Redis went away"),
        }
        slowest = slowest.max(asked.elapsed());
    }
    let bound = 20.0 + 10.0 * begun.elapsed().as_secs_f64() + 1.0;
    println!("alone: admitted {admitted} of at most {bound:.1}, slowest {slowest:?}");
    assert!(f64::from(admitted) <= bound, "{admitted} of {bound}");
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_forgets_no_ban() {
    let (redis, backend) = (Redis::start().await, Backend::start(&[]).await);
    let one = gateway(&backend, &redis.url()).await;
    let port = redis.address.port();
    let client = one.client().at([127, 0, 0, 3]);
    assert_eq!(one.operator().ask("PUT", "/admin/ip-blocks/127.0.0.3", &[], "").await.status(), 204);
    let mut program = redis.program;
    program.signal("KILL");
    program.ended().await;
    let redis = Redis::start_at(port).await;
    eventually("redis is there again", || async { one.metric("palisade_redis_up").await > 0.5 }).await;
    assert_eq!(client.get("/.well-known/jwks.json", None).await.status(), 403);
    let newcomer = gateway(&backend, &redis.url()).await;
    let client = newcomer.client().at([127, 0, 0, 3]);
    eventually("a newcomer receives it", || async {
        client.get("/.well-known/jwks.json", None).await.status() == 403
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_was_cut_off_catches_up() {
    let (redis, backend) = (Redis::start().await, Backend::start(&[]).await);
    let wire = FaultProxy::to(redis.address).await;
    let one = gateway(&backend, &redis.url()).await;
    let cut = gateway(&backend, &format!("redis://{}", wire.address())).await;
    wire.cut();
    eventually("it is cut off", || async { cut.metric("palisade_redis_up").await < 0.5 }).await;
    assert_eq!(one.operator().ask("PUT", "/admin/ip-blocks/127.0.0.4", &[], "").await.status(), 204);
    assert_eq!(cut.operator().ask("PUT", "/admin/ip-blocks/127.0.0.5", &[], "").await.status(), 204);
    assert_eq!(cut.client().at([127, 0, 0, 4]).get("/.well-known/jwks.json", None).await.status(), 200);
    // By then it pauses between two tries for as long as it ever does.
    eventually("it has tried to connect again and again", || async { wire.refused() >= 10 }).await;
    wire.mend();
    let mended = Instant::now();
    let blocked = async |gateway: &Gateway, address| {
        gateway.client().at(address).get("/.well-known/jwks.json", None).await.status() == 403
    };
    eventually("it receives theirs", || blocked(&cut, [127, 0, 0, 4])).await;
    eventually("they hear of its own", || blocked(&one, [127, 0, 0, 5])).await;
    println!("after a cut both sides agree in {:?}", mended.elapsed());
    assert!(mended.elapsed() < Duration::from_secs(1));
}
