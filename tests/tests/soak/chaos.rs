//! A steady load while everything around it is killed, edited and replaced.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tests::load::{Load, Sample, count, quantile};
use tests::redis::Redis;
use tests::stack::{Backend, Gateway};
use tests::{eventually, free_port};
use tokio::sync::watch;

const PATH: &str = "/.well-known/jwks.json";

const POLICY: &str = r#"
version = 1

[requests]
max_connections = 1000

[limits.api]
key = "ip"
rate = "100000/s"

[breakers.backend]
failures = 5
cooldown = "500ms"

[[routes]]
name = "keys"
path = "/.well-known/jwks.json"
upstream = "backend"
limits = ["api"]
"#;

const CLIENTS: usize = 50;
const EACH_PER_SECOND: u64 = 20;

/// The gateways that say that they are ready, asked ten times a second.
fn balance(admins: Vec<(SocketAddr, SocketAddr)>) -> watch::Receiver<Vec<SocketAddr>> {
    let (ready, gateways) = watch::channel(admins.iter().map(|(data, _)| *data).collect());
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(Duration::from_millis(100));
        while !ready.is_closed() {
            beat.tick().await;
            let mut found = Vec::new();
            for (data, admin) in &admins {
                let asked = http::Request::get("/health/ready").header("host", "localhost");
                let asked = asked.body(http_body_util::Full::default()).unwrap();
                let answer = tests::client::Client::of(*admin).send(asked).await;
                if answer.is_ok_and(|answer| answer.status() == 200) {
                    found.push(*data);
                }
            }
            ready.send_replace(found);
        }
    });
    gateways
}

fn report(what: &str, samples: &[Sample], begun: Instant) {
    println!(
        "{what}: {:?} in {:.1} s, p50 {:?}, p99 {:?}",
        count(samples),
        begun.elapsed().as_secs_f64(),
        quantile(samples, 0.5),
        quantile(samples, 0.99)
    );
}

async fn reload(gateways: &[&Gateway], number: u32) {
    for gateway in gateways {
        gateway.edit_policy(|text| {
            let kept = text.split("\n# edit").next().unwrap().to_owned();
            format!("{kept}\n# edit {number}\n")
        });
        assert_eq!(gateway.operator().ask("POST", "/admin/policy/reload", &[], "").await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_a_lost_redis_and_a_replaced_gateway_cost_no_request() {
    let backend = Backend::start(&[]).await;
    let redis_port = free_port();
    let mut redis = Redis::start_at(redis_port).await;
    let url = format!("redis://127.0.0.1:{redis_port}");
    let environment = [
        ("PALISADE_GATEWAY__REDIS__URL", url.as_str()),
        ("PALISADE_GATEWAY__SERVER__DRAIN_DELAY", "1s"),
        ("PALISADE_GATEWAY__LOG__ACCESS", "off"),
    ];
    let stays = Gateway::start(backend.address, POLICY, &environment).await;
    let mut leaves = Gateway::start(backend.address, POLICY, &environment).await;
    let comes = Gateway::start(backend.address, POLICY, &environment).await;
    let all = [&stays, &leaves, &comes].map(|gateway| (gateway.address, gateway.admin));
    let ready = balance(all.to_vec());
    let begun = Instant::now();
    let load = Load::start(&ready, PATH, CLIENTS, EACH_PER_SECOND);
    for number in 0..100 {
        reload(&[&stays, &comes], number).await;
        match number {
            10 | 30 | 50 | 70 | 90 => redis.program.signal("KILL"),
            15 | 35 | 55 | 75 | 95 => redis = Redis::start_at(redis_port).await,
            40 => leaves.program.signal("TERM"),
            _ => {}
        }
        load.continues(100).await; // at 1 000 a second, some ten seconds in all
    }
    assert!(leaves.program.ended().await.success());
    eventually("Redis counts again", || async { stays.metric("palisade_redis_up").await > 0.5 }).await;
    let samples = load.finish().await;
    report("100 reloads of 2 gateways, Redis killed 5 times, 1 gateway of 3 drained", &samples, begun);
    let counts = count(&samples);
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [200], "{counts:?}");
    assert!(stays.metric("palisade_policy_reloads_total{result=\"accepted\"}").await > 100.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_killed_costs_its_own_requests_alone_and_comes_back_by_itself() {
    let mut backend = Backend::start(&[]).await;
    let environment = [("PALISADE_GATEWAY__LOG__ACCESS", "off")];
    let gateway = Gateway::start(backend.address, POLICY, &environment).await;
    let (_keep, ready) = watch::channel(vec![gateway.address]);
    let begun = Instant::now();
    let load = Load::start(&ready, PATH, CLIENTS, EACH_PER_SECOND);
    let mut away = Vec::new();
    for _ in 0..5 {
        load.continues(1_000).await;
        let killed = Instant::now();
        backend = backend.restart().await;
        let back = Instant::now();
        let client = gateway.client().at([127, 0, 0, 9]);
        eventually("answers are given again", || async { client.get(PATH, None).await.status() == 200 })
            .await;
        println!("away {:?}, the first answer {:?} after it was back", back - killed, back.elapsed());
        // Until the breaker, which others are notified of, is closed for all of them.
        away.push((killed, Instant::now() + Duration::from_millis(100)));
    }
    load.continues(1_000).await;
    let samples = load.finish().await;
    report("the backend killed 5 times", &samples, begun);
    let outside: Vec<_> = samples
        .iter()
        .filter(|one| !away.iter().any(|(from, to)| one.at + one.took >= *from && one.at <= *to))
        .copied()
        .collect();
    assert_eq!(count(&outside).keys().copied().collect::<Vec<_>>(), [200], "outside: {:?}", count(&outside));
    let statuses: Vec<_> = count(&samples).into_keys().collect();
    assert!(statuses.iter().all(|status| [200, 502, 503].contains(status)), "{statuses:?}");
    let refused = gateway
        .metric("palisade_stage_denials_total{code=\"breaker_open\",rule=\"backend\",stage=\"break\"}")
        .await;
    assert!(refused > 0.0, "the breaker kept most of them from waiting");
}
