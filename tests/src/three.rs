//! Three gateways before one backend, on one Redis.

use std::net::SocketAddr;

use crate::eventually;
use crate::stack::{Backend, Gateway};

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
pub struct Three {
    _backend: Backend,
    /// The gateways.
    pub gateways: Vec<Gateway>,
}

impl Three {
    /// Starts all of them, and waits until they have found each other.
    pub async fn on(redis_url: &str, environment: &[(&str, &str)]) -> Self {
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

    /// Waits until each is connected to Redis and counts the others.
    pub async fn all_on_redis(&self) {
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

    /// Where requests go.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.gateways.iter().map(|gateway| gateway.address).collect()
    }

    /// How many round trips to Redis all of them have made.
    pub async fn round_trips(&self) -> f64 {
        let mut all = 0.0;
        for gateway in &self.gateways {
            all += gateway.metric("palisade_redis_round_trip_seconds_count").await;
        }
        all
    }
}

/// Uses up the three requests a minute of one address, over all gateways.
pub async fn use_up(three: &Three, address: [u8; 4]) {
    for gateway in &three.gateways {
        let answer = gateway.client().at(address).get("/.well-known/jwks.json", None).await;
        assert_eq!(answer.status(), 200);
    }
}

/// Whether this address is held by its limit on every gateway.
pub async fn limited(three: &Three, address: [u8; 4]) -> bool {
    let mut limited = true;
    for gateway in &three.gateways {
        let status = gateway.client().at(address).get("/.well-known/jwks.json", None).await.status();
        limited &= status == 429;
    }
    limited
}
