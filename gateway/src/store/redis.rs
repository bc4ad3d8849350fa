//! The store in Redis: one Lua call a request, Redis's own clock, and never a wait for a Redis that is away.
//!
//! A background task connects and reconnects. A call without a connection fails at once; a call that takes longer
//! than [`PATIENCE`] fails and drops the connection, so that the requests after it do not wait either.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::StreamExt as _;
use ipnet::IpNet;
use policy::backoff::Backoff;
use policy::blocks::AutoBlock;
use policy::limits::{Charge, Charges, Mode};
use policy::time::Timestamp;
use policy::world::StoreAway;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, RedisResult, Script};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::{BanChange, Readings, Store};
use crate::observe::metrics::Metrics;

/// The longest that a request waits for Redis.
pub const PATIENCE: Duration = Duration::from_millis(50);

/// For connecting, which no request waits for.
const CONNECT: Duration = Duration::from_secs(1);

/// How often a replica says that it is there, and for how long it is believed.
const HEARTBEAT: Duration = Duration::from_secs(2);
const PRESENCE: Duration = Duration::from_secs(10);

const RECONNECT: Backoff = Backoff { base: Duration::from_millis(50), max: Duration::from_secs(2) };

/// Every key begins with this.
const PREFIX: &str = "palisade:";
const BANS: &str = "palisade:bans";
const REPLICAS: &str = "palisade:replicas";

/// Limits, failures and bans in Redis.
pub struct RedisStore {
    client: Client,
    connection: ArcSwapOption<MultiplexedConnection>,
    lost: Notify,
    scripts: Scripts,
    replicas: AtomicU32,
    replica_id: String,
    metrics: Metrics,
}

struct Scripts {
    spend: Script,
    refund: Script,
    count_failure: Script,
}

impl RedisStore {
    /// A store at `url` (`redis://…`) that connects once [`RedisStore::run`] runs.
    pub fn new(url: &str, metrics: Metrics) -> RedisResult<Arc<Self>> {
        Ok(Arc::new(Self {
            client: Client::open(url)?,
            connection: ArcSwapOption::empty(),
            lost: Notify::new(),
            scripts: Scripts {
                spend: Script::new(include_str!("spend.lua")),
                refund: Script::new(include_str!("refund.lua")),
                count_failure: Script::new(include_str!("count_failure.lua")),
            },
            replicas: AtomicU32::new(1),
            replica_id: uuid::Uuid::now_v7().to_string(),
            metrics,
        }))
    }

    /// Replicas that were there when Redis last answered.
    pub fn replicas(&self) -> u32 {
        self.replicas.load(Ordering::Relaxed)
    }

    /// Whether Redis answers.
    pub fn is_up(&self) -> bool {
        self.connection.load().is_some()
    }

    /// Keeps a connection, counts the replicas, and hands changes to bans to `news`; `None` means that changes may
    /// have been missed, and that all of them should be read.
    pub async fn run(self: Arc<Self>, news: mpsc::Sender<Option<BanChange>>) {
        let mut failures = 0;
        loop {
            match self.connect().await {
                Ok(()) => {
                    info!("redis is there");
                    failures = 0;
                    let _ = news.send(None).await;
                    tokio::select! {
                        () = self.lost.notified() => {}
                        () = self.count_replicas() => {}
                        () = self.listen(&news) => {}
                    }
                    self.drop_connection();
                    warn!("redis is away: limits do what their `on_store_failure` says");
                }
                Err(error) => {
                    self.metrics.redis_errors.inc();
                    failures += 1;
                    if failures == 1 {
                        warn!(%error, "redis cannot be reached");
                    }
                }
            }
            let wait = if failures == 0 { RECONNECT.base } else { RECONNECT.wait(failures, rand::random()) };
            tokio::time::sleep(wait).await;
        }
    }

    async fn connect(&self) -> RedisResult<()> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(CONNECT));
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        for script in [&self.scripts.spend, &self.scripts.refund, &self.scripts.count_failure] {
            script.load_async(&mut connection).await?;
        }
        self.connection.store(Some(Arc::new(connection)));
        self.metrics.redis_up.set(1);
        Ok(())
    }

    fn drop_connection(&self) {
        self.connection.store(None);
        self.metrics.redis_up.set(0);
    }

    /// Says that this replica is there and counts those that are. The count falls only after a whole presence time
    /// with Redis, for a Redis that comes back empty has not heard from the others yet.
    async fn count_replicas(&self) {
        let connected = Instant::now();
        loop {
            let heartbeat = self.call(async |mut connection| {
                let seconds = |past: Duration| {
                    let now = std::time::SystemTime::now()
                        .duration_since(std::time::UNIX_EPOCH)
                        .unwrap_or_default();
                    now.saturating_sub(past).as_secs_f64()
                };
                redis::pipe()
                    .atomic()
                    .zadd(REPLICAS, &self.replica_id, seconds(Duration::ZERO))
                    .ignore()
                    .zrembyscore(REPLICAS, "-inf", seconds(PRESENCE))
                    .ignore()
                    .zcard(REPLICAS)
                    .query_async::<(u32,)>(&mut connection)
                    .await
            });
            let Ok((seen,)) = heartbeat.await else { return };
            let known = self.replicas();
            if seen > known || connected.elapsed() > PRESENCE {
                self.replicas.store(seen.max(1), Ordering::Relaxed);
            }
            tokio::time::sleep(HEARTBEAT).await;
        }
    }

    /// Hands on changes to bans until the subscription ends.
    async fn listen(&self, news: &mpsc::Sender<Option<BanChange>>) {
        let Ok(Ok(mut subscription)) = timeout(CONNECT, self.client.get_async_pubsub()).await else { return };
        if subscription.subscribe(BANS).await.is_err() {
            return;
        }
        // What was published between the connection and the subscription is in the hash.
        if news.send(None).await.is_err() {
            return;
        }
        let mut messages = subscription.on_message();
        while let Some(message) = messages.next().await {
            let change = serde_json::from_slice(message.get_payload_bytes()).ok();
            if news.send(change).await.is_err() {
                return;
            }
        }
    }

    /// One exchange with Redis within [`PATIENCE`].
    async fn call<T: FromRedisValue>(
        &self,
        exchange: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, StoreAway> {
        let connection = self.connection.load_full().ok_or(StoreAway)?;
        let started = Instant::now();
        let result = timeout(PATIENCE, exchange(MultiplexedConnection::clone(&connection))).await;
        self.metrics.redis_round_trip.observe(started.elapsed().as_secs_f64());
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                self.metrics.redis_errors.inc();
                warn!(%error, "redis refused");
                self.lose();
                Err(StoreAway)
            }
            Err(_) => {
                self.metrics.redis_errors.inc();
                self.lose();
                Err(StoreAway)
            }
        }
    }

    fn lose(&self) {
        self.drop_connection();
        self.lost.notify_one();
    }
}

/// Microseconds in which one token comes back, with fractions.
fn interval_us(charge: &Charge) -> f64 {
    charge.rule.gcra.interval().as_secs_f64() * 1e6
}

fn key(charge: &Charge) -> String {
    format!("{PREFIX}limit:{}", charge.bucket)
}

impl Store for RedisStore {
    async fn spend(&self, charges: &[Charge], now: Timestamp) -> Result<Readings, StoreAway> {
        let mut call = self.scripts.spend.prepare_invoke();
        for charge in charges {
            call.key(key(charge)).arg(interval_us(charge)).arg(charge.rule.gcra.burst());
            call.arg(u8::from(charge.rule.mode == Mode::Enforce));
        }
        let reply: Vec<u64> =
            self.call(async |mut connection| call.invoke_async(&mut connection).await).await?;
        if reply.len() != charges.len() * 2 {
            return Err(StoreAway);
        }
        let reading = |(charge, pair): (&Charge, &[u64])| {
            let arrival = now + Duration::from_micros(pair[1]);
            charge.rule.gcra.describe(arrival, now, pair[0] == 1)
        };
        Ok(charges.iter().zip(reply.chunks_exact(2)).map(reading).collect())
    }

    async fn refund(&self, charges: Charges, _: Timestamp) -> Result<(), StoreAway> {
        let mut call = self.scripts.refund.prepare_invoke();
        for charge in &charges {
            call.key(key(charge)).arg(interval_us(charge));
        }
        self.call(async |mut connection| call.invoke_async(&mut connection).await).await
    }

    async fn count_failure(&self, client: IpNet, rule: AutoBlock, _: Timestamp) -> Result<u32, StoreAway> {
        let mut call = self.scripts.count_failure.prepare_invoke();
        call.key(failures_key(client)).arg(u64::try_from(rule.window.as_millis()).unwrap_or(u64::MAX));
        self.call(async |mut connection| call.invoke_async(&mut connection).await).await
    }

    async fn clear_failures(&self, client: IpNet) -> Result<(), StoreAway> {
        let command = redis::cmd("DEL").arg(failures_key(client)).to_owned();
        self.call(async |mut connection| command.query_async(&mut connection).await).await
    }

    async fn publish_ban(&self, change: &BanChange) -> Result<(), StoreAway> {
        let text = serde_json::to_string(change).map_err(|_| StoreAway)?;
        let mut pipe = redis::pipe();
        pipe.atomic().hset(BANS, change.network.to_string(), &text).ignore().publish(BANS, &text).ignore();
        self.call(async |mut connection| pipe.query_async(&mut connection).await).await
    }

    async fn bans(&self) -> Result<Vec<BanChange>, StoreAway> {
        let command = redis::cmd("HVALS").arg(BANS).to_owned();
        let texts: Vec<String> =
            self.call(async |mut connection| command.query_async(&mut connection).await).await?;
        Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }
}

fn failures_key(client: IpNet) -> String {
    format!("{PREFIX}failures:{client}")
}
