//! Limits and bans of three gateways on one Redis: exact, cheap, and harmless when Redis is away.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tests::hammer::{Tally, hammer};
use tests::redis::{Cluster, Redis, Sentinel};
use tests::stack::{Backend, Gateway};
use tests::{eventually, free_port};

const POLICY: &str = r#"
version = 1
[limits.hot]
key = "route"
rate = "2000/s"
[limits.warm]
key = "route"
rate = "100/s"
[limits.each]
key = "ip"
rate = "3/min"
[blocks.auto]
failures = 3
[[routes]]
name = "hot"
path = "/health/live"
upstream = "backend"
limits = ["hot"]
[[routes]]
name = "warm"
path = "/health/ready"
upstream = "backend"
limits = ["warm"]
[[routes]]
name = "each"
path = "/.well-known/jwks.json"
upstream = "backend"
limits = ["each"]
[[routes]]
name = "open"
path = "/health"
upstream = "backend"
"#;

/// Three gateways before one backend.
struct Three {
    _backend: Backend,
    gateways: Vec<Gateway>,
}

impl Three {
    async fn on(redis_url: &str, environment: &[(&str, &str)]) -> Self {
        let backend = Backend::start(&[]).await;
        let mut gateways = Vec::new();
        let mut all =
            vec![("PALISADE_GATEWAY__REDIS__URL", redis_url), ("PALISADE_GATEWAY__LOG__ACCESS", "off")];
        all.extend(environment);
        for _ in 0..3 {
            gateways.push(Gateway::start(backend.address, POLICY, &all).await);
        }
        let three = Self { _backend: backend, gateways };
        three.all_on_redis().await;
        three
    }

    async fn all_on_redis(&self) {
        for gateway in &self.gateways {
            eventually("redis is there", || async { gateway.metric("palisade_redis_up").await > 0.5 }).await;
        }
        // Each counts the replicas when it comes: the first knows of the others with its next heartbeat.
        eventually("all know of all", || async {
            let mut known = true;
            for gateway in &self.gateways {
                known &= gateway.metric("palisade_replicas").await > 2.5;
            }
            known
        })
        .await;
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.gateways.iter().map(|gateway| gateway.address).collect()
    }

    async fn round_trips(&self) -> f64 {
        let mut all = 0.0;
        for gateway in &self.gateways {
            all += gateway.metric("palisade_redis_round_trip_seconds_count").await;
        }
        all
    }
}

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
        tokio::time::sleep(Duration::from_secs(7)).await;
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

/// The time that 99 of 100 stay below.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
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
    let (bans, ends) = (p99(bans), p99(ends));
    println!("a ban holds on the other two after {bans:?}, its end after {ends:?} (p99 of 200)");
    assert!(bans < Duration::from_millis(100) && ends < Duration::from_millis(100));
}

#[tokio::test]
async fn an_operator_refills_a_bucket_on_all() {
    let redis = Redis::start().await;
    let three = Three::on(&redis.url(), &[]).await;
    let keys = "/.well-known/jwks.json";
    let status = async |gateway: usize| {
        three.gateways[gateway].client().at([127, 0, 0, 8]).get(keys, None).await.status()
    };
    for gateway in 0..3 {
        assert_eq!(status(gateway).await, 200);
    }
    for gateway in 0..3 {
        assert_eq!(status(gateway).await, 429);
    }
    let refill = three.gateways[0].operator().ask("DELETE", "/admin/limits/each/127.0.0.8", &[], "").await;
    assert_eq!(refill.status(), 204);
    for gateway in [1, 2, 0] {
        eventually("it is full again", || async { status(gateway).await == 200 }).await;
    }
    let listed = three.gateways[0].operator().get("/admin/limits", None).await.json();
    let each = listed["items"].as_array().unwrap().iter().find(|item| item["name"] == "each").unwrap();
    assert_eq!(each["busiest"][0]["key"], "127.0.0.8");
    let top = three.gateways[0].operator().get("/admin/top?by=ip&window=60s", None).await.json();
    assert_eq!(top["items"][0]["key"], "127.0.0.8");
}

#[tokio::test]
async fn overrides_are_judged_and_hold_on_all_and_over_a_restart_of_redis() {
    let redis = Redis::start().await;
    let three = Three::on(&redis.url(), &[]).await;
    let patch = async |body: &'static str| {
        three.gateways[0].operator().ask("PATCH", "/admin/overrides", &[], body).await
    };
    let bad = patch("{\"limits\":{\"each\":{\"rate\":\"5/minute\",\"brust\":1}}}").await;
    assert_eq!(bad.status(), 422);
    let faults = bad.json()["faults"].to_string();
    assert!(faults.contains("limits.each.rate") && faults.contains("did you mean `burst`"), "{faults}");
    let answer = patch("{\"limits.each.rate\":\"5/min\",\"blocks.deny\":[\"127.8.0.0/16\"]}").await;
    assert_eq!((answer.status(), answer.json()["items"].as_array().map(Vec::len)), (200, Some(2)));
    for gateway in &three.gateways {
        let denied = gateway.client().at([127, 8, 0, 1]);
        eventually("the override holds", || async { denied.get("/health", None).await.status() == 403 })
            .await;
        let limited = gateway.client().at([127, 0, 0, 9]).get("/.well-known/jwks.json", None).await;
        assert_eq!(limited.field("ratelimit-policy"), "\"each\";q=5;w=60");
    }
    let port = redis.kill().await;
    let _redis = Redis::start_at(port).await;
    three.all_on_redis().await;
    let removed = three.gateways[1].operator().ask("DELETE", "/admin/overrides/blocks.deny", &[], "").await;
    assert_eq!(removed.status(), 200);
    for gateway in &three.gateways {
        let denied = gateway.client().at([127, 8, 0, 1]);
        eventually("it is gone", || async { denied.get("/health", None).await.status() == 200 }).await;
        let left = gateway.operator().get("/admin/overrides", None).await.json();
        assert_eq!(left["items"][0]["path"], "limits.each.rate", "{left}");
    }
}

/// Uses up the three requests a minute of one address, over all gateways.
async fn use_up(three: &Three, address: [u8; 4]) {
    for gateway in &three.gateways {
        let answer = gateway.client().at(address).get("/.well-known/jwks.json", None).await;
        assert_eq!(answer.status(), 200);
    }
}

async fn limited(three: &Three, address: [u8; 4]) -> bool {
    let mut limited = true;
    for gateway in &three.gateways {
        let status = gateway.client().at(address).get("/.well-known/jwks.json", None).await.status();
        limited &= status == 429;
    }
    limited
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
async fn redis_may_want_tls_and_a_user_with_few_rights() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (file("key.pem"), file("certificate.pem"));
    let mut openssl = tokio::process::Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.args(["-keyout", &key, "-out", &certificate]);
    assert!(openssl.output().await.unwrap().status.success());
    let rights =
        "~palisade:* &palisade:* +@hash +@scripting +@pubsub +@connection +del +pexpire +info +role +time";
    let user = format!("user gate on >s3cret {rights}\nuser default off\n");
    let config = format!(
        "port 0\ntls-port {port}\ntls-cert-file {certificate}\ntls-key-file {key}\ntls-auth-clients no\nsave \"\"\n{user}"
    );
    std::fs::write(file("redis.conf"), config).unwrap();
    let _redis = Redis::start_with(port, &[&file("redis.conf")]).await;
    let environment = [
        ("PALISADE_GATEWAY__REDIS__CERTIFICATE_AUTHORITY", certificate.as_str()),
        ("REDIS_PASSWORD", "s3cret"),
    ];
    let three = Three::on(&format!("rediss://gate@127.0.0.1:{port}"), &environment).await;
    use_up(&three, [127, 0, 0, 41]).await;
    assert!(limited(&three, [127, 0, 0, 41]).await);
    for gateway in &three.gateways {
        assert!(!gateway.program.log().iter().any(|line| line.contains("s3cret")));
    }
}
