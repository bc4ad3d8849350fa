//! The store in Redis: tokens on lease, the clock of Redis, and no waiting for a Redis that is unavailable.
//!
//! A background task connects and reconnects. A call without a connection fails at once; a call that takes longer than
//! [`ANSWER`] fails and drops the connection, so that the requests after it do not wait either. What was spent during
//! an outage is reported to Redis before requests use it again.

mod commands;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::StreamExt as _;
use policy::rules::limits::bucket::Bucket;
use policy::rules::limits::gcra::LONGEST_REFILL;
use policy::rules::limits::lease::{Grant, LEASE};
use policy::rules::limits::spend::StoreUnavailable;
use policy::rules::limits::{Charge, Readings};
use policy::values::backoff::Backoff;
use policy::values::time::Timestamp;
use redis::{Client, RedisResult, Script};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tracing::{Instrument as _, info, info_span, warn};

use crate::clock;
use crate::config::redis_address::RedisAddress;
use crate::observe::clock_steps::STEP;
use crate::observe::metrics::Metrics;
use crate::state::leases::{LeasedBuckets, PendingQuestion, Question};
use crate::state::redis_connection::{Connected, RedisConnection};
use crate::state::store::{Change, Topic};

/// The longest wait for one answer of Redis.
const ANSWER: Duration = Duration::from_millis(40);

/// The longest that a request waits for Redis in total.
const PATIENCE: Duration = Duration::from_millis(50);

/// The timeout for subscribing, and for the report to Redis after an outage.
const UNHURRIED: Duration = Duration::from_secs(1);

/// How often a replica announces itself, and how long the announcement counts.
const HEARTBEAT: Duration = Duration::from_secs(2);
const PRESENCE: Duration = Duration::from_secs(10);

/// The longest wait for the other replicas after an outage: two heartbeats, because replicas that kept their connection
/// announce themselves within that time.
const OTHERS: Duration = Duration::from_secs(4);

/// How often leases are searched for unused tokens.
const LOOK_THROUGH: Duration = Duration::from_millis(100);

/// The most questions in flight for which no request waits.
const AT_ONCE: usize = 64;

const RECONNECT: Backoff = Backoff { base: Duration::from_millis(50), max: Duration::from_millis(500) };

/// Marks that the time of Redis is not known yet.
const UNKNOWN: i64 = i64::MIN;

/// Every key begins with this.
const PREFIX: &str = "palisade:";
const CHANGES: &str = "palisade:changes";
const REFILLS: &str = "palisade:refills";
const REPLICAS: &str = "palisade:replicas";

/// What Redis notifies us of.
#[derive(Debug)]
pub enum News {
    /// A replica changed something.
    Changed(Change),
    /// Changes may have been missed: all of them should be read.
    Missed,
}

/// Limits, failures and changes in Redis.
pub struct RedisStore {
    address: RedisAddress,
    connection: ArcSwapOption<RedisConnection>,
    lost: Notify,
    leased_buckets: LeasedBuckets,
    scripts: Scripts,
    /// The number of replicas that is used, and the number at the last count.
    replicas: AtomicU32,
    seen: AtomicU32,
    unavailable_since: AtomicU64,
    was_up: AtomicBool,
    /// How many milliseconds the clock of Redis is ahead of the steady clock.
    clock_ahead_ms: AtomicI64,
    replica_id: String,
    metrics: Metrics,
}

struct Scripts {
    take: Script,
    count_failure: Script,
    put: Script,
    forget: Script,
    hello: Script,
}

impl RedisStore {
    /// A store. It connects when [`RedisStore::run`] runs.
    pub fn new(address: RedisAddress, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            address,
            connection: ArcSwapOption::empty(),
            lost: Notify::new(),
            leased_buckets: LeasedBuckets::default(),
            scripts: Scripts {
                take: Script::new(include_str!("lua/take.lua")),
                count_failure: Script::new(include_str!("lua/count_failure.lua")),
                put: Script::new(include_str!("lua/put.lua")),
                forget: Script::new(include_str!("lua/forget.lua")),
                hello: Script::new(include_str!("lua/hello.lua")),
            },
            replicas: AtomicU32::new(1),
            seen: AtomicU32::new(1),
            unavailable_since: AtomicU64::new(clock::steady().as_nanos()),
            was_up: AtomicBool::new(false),
            clock_ahead_ms: AtomicI64::new(UNKNOWN),
            replica_id: uuid::Uuid::now_v7().simple().to_string(),
            metrics,
        })
    }

    /// The number of replicas when Redis last answered.
    pub fn replicas(&self) -> u32 {
        self.replicas.load(Ordering::Relaxed)
    }

    /// Whether Redis answers.
    pub fn is_up(&self) -> bool {
        self.connection.load().is_some()
    }

    /// Buckets that are known here.
    pub fn buckets(&self) -> usize {
        self.leased_buckets.len()
    }

    /// Takes a token from this replica's share of every bucket, while Redis is unavailable.
    pub fn spend_alone(&self, charges: &[Charge], now: Timestamp) -> Readings {
        self.leased_buckets.spend_alone(charges, self.replicas(), self.unavailable_since(), now)
    }

    /// Gives back tokens that were taken.
    pub fn refund_now(&self, charges: &[Charge]) {
        self.leased_buckets.put_back(charges);
    }

    /// Gives back tokens that were taken from this replica's share.
    pub fn refund_alone(&self, charges: &[Charge], now: Timestamp) {
        self.leased_buckets.put_back_alone(charges, self.replicas(), now);
    }

    /// Drops the buckets of which nothing is known any more.
    pub fn sweep(&self, now: Timestamp) {
        self.leased_buckets.sweep(now);
    }

    /// Gives back every token on lease; used when this replica shuts down.
    pub async fn return_leases(&self) {
        let _ = timeout(UNHURRIED, self.ask_all(self.leased_buckets.returns(true, clock::steady()))).await;
    }

    /// Holds a connection, counts the replicas, gives back unused tokens, and passes on the changes of other replicas.
    /// Runs forever.
    pub async fn run(self: Arc<Self>, news: mpsc::Sender<News>) {
        let (mut failures, mut said) = (0, String::new());
        loop {
            match self.connect().await {
                Ok(node) => {
                    info!(replicas = self.replicas(), "redis is there");
                    failures = 0;
                    said.clear();
                    let _ = news.send(News::Missed).await;
                    tokio::select! {
                        () = self.lost() => {}
                        () = self.count_replicas() => {}
                        () = self.return_unused() => {}
                        () = self.listen(&node, &news) => {}
                    }
                    self.drop_connection();
                    warn!("redis is unavailable: limits do what their `on_store_failure` says");
                }
                Err(error) => {
                    self.metrics.redis_errors.inc();
                    failures += 1;
                    let error = format!("{error:#}");
                    if said != error {
                        warn!(error, "redis.url: no server that takes writes is reached; it is tried again");
                        said = error;
                    }
                }
            }
            let wait = if failures == 0 { RECONNECT.base } else { RECONNECT.wait(failures, rand::random()) };
            tokio::time::sleep(wait).await;
        }
    }

    /// Waits until the connection is dropped. Connections that were dropped before do not count.
    async fn lost(&self) {
        while self.is_up() {
            self.lost.notified().await;
        }
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let Connected { mut connection, node } = self.address.connect().await?;
        let Scripts { take, count_failure, put, forget, hello } = &self.scripts;
        for script in [take, count_failure, put, forget, hello] {
            script.load_async(&mut connection).await?;
        }
        if self.was_up.swap(true, Ordering::Relaxed) {
            self.wait_for_others(&mut connection, self.unavailable_since()).await?;
        } else {
            self.say_hello(&mut connection, None).await?;
        }
        self.report(&connection).await?;
        self.connection.store(Some(Arc::new(connection)));
        self.metrics.redis_up.set(1);
        Ok(node)
    }

    /// Reports to Redis what is known here and what was spent during the outage. Requests use Redis only after that.
    async fn report(&self, connection: &RedisConnection) -> anyhow::Result<()> {
        let reported = futures_util::stream::iter(self.leased_buckets.reports(clock::steady()))
            .map(|question| async move {
                let pending = PendingQuestion::new(&self.leased_buckets, question);
                let grant = self.take(connection.clone(), pending.question()).await?;
                pending.answer(grant);
                RedisResult::Ok(())
            })
            .buffer_unordered(AT_ONCE);
        reported.fold(Ok(()), async |all: RedisResult<()>, one| all.and(one)).await?;
        Ok(())
    }

    /// When the connection to Redis was lost, or this program began.
    fn unavailable_since(&self) -> Timestamp {
        Timestamp::from_nanos(self.unavailable_since.load(Ordering::Acquire))
    }

    fn drop_connection(&self) {
        if self.is_up() {
            // Set first, because a request that finds no connection asks since when.
            self.unavailable_since.store(clock::steady().as_nanos(), Ordering::Release);
            self.connection.store(None);
        }
        self.metrics.redis_up.set(0);
    }

    /// Drops `connection`, unless another one has replaced it already.
    fn lose(&self, connection: &Arc<RedisConnection>) {
        if self.connection.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            self.drop_connection();
            self.lost.notify_one();
        }
    }

    /// Announces this replica at intervals and counts the replicas. The count falls only after a whole presence time
    /// with Redis, because a Redis that comes back empty has not received the announcements of the others yet.
    async fn count_replicas(&self) {
        let connected = Instant::now();
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            let Some(connection) = self.connection.load_full() else { return };
            let hello =
                timeout(UNHURRIED, self.say_hello(&mut RedisConnection::clone(&connection), None)).await;
            let Ok(Ok(_)) = hello else { return };
            if connected.elapsed() > PRESENCE {
                self.set_replicas(self.seen.load(Ordering::Relaxed));
            }
        }
    }

    fn set_replicas(&self, replicas: u32) {
        self.replicas.store(replicas.max(1), Ordering::Relaxed);
        self.metrics.replicas.set(i64::from(replicas.max(1)));
    }

    /// Announces this replica. After an outage, returns how long to wait before requests use Redis again, if all
    /// replicas are back.
    async fn say_hello(
        &self,
        connection: &mut RedisConnection,
        unavailable: Option<Duration>,
    ) -> RedisResult<Option<Duration>> {
        let mut call = self.scripts.hello.prepare_invoke();
        let unavailable =
            unavailable.map_or(-1, |unavailable| i64::try_from(unavailable.as_millis()).unwrap_or(i64::MAX));
        call.key(REPLICAS).arg(&self.replica_id).arg(PRESENCE.as_millis().to_string());
        call.arg(unavailable).arg(self.replicas());
        let asked = Instant::now();
        let (seen, wait, time_ms): (u32, i64, i64) = call.invoke_async(connection).await?;
        self.note_clock(time_ms, asked.elapsed());
        self.seen.store(seen, Ordering::Relaxed);
        self.set_replicas(seen.max(self.replicas()));
        // Whatever Redis answers, the wait has an upper bound.
        Ok(u64::try_from(wait).ok().map(|wait| Duration::from_millis(wait).min(OTHERS)))
    }

    /// Logs and counts a step of the clock of Redis. It was at `time_ms` in an answer that took `took`.
    fn note_clock(&self, time_ms: i64, took: Duration) {
        let ours = i64::try_from(clock::steady().as_nanos() / 1_000_000).unwrap_or(i64::MAX);
        let ahead = time_ms.saturating_sub(ours);
        let before = self.clock_ahead_ms.swap(ahead, Ordering::Relaxed);
        let step = ahead.saturating_sub(before);
        if before != UNKNOWN && u128::from(step.unsigned_abs()) > (STEP + took).as_millis() {
            self.metrics.clock_steps.with_label_values(&["redis"]).inc();
            warn!(
                step_ms = step,
                "the clock of Redis was set: a shared limit that was in use continues; one not used in the meantime may \
                 refill late, or early after a step forward"
            );
        }
    }

    /// Waits for a bounded time until the other replicas are back as well.
    async fn wait_for_others(
        &self,
        connection: &mut RedisConnection,
        unavailable_since: Timestamp,
    ) -> RedisResult<()> {
        let begun = Instant::now();
        while begun.elapsed() < OTHERS {
            match self.say_hello(connection, Some(clock::steady().since(unavailable_since))).await? {
                Some(wait) => {
                    tokio::time::sleep(wait).await;
                    return Ok(());
                }
                None => tokio::time::sleep(OTHERS / 40).await,
            }
        }
        Ok(())
    }

    /// Gives back unused tokens until the connection is lost.
    async fn return_unused(&self) {
        loop {
            let _ = timeout(LOOK_THROUGH, self.leased_buckets.unused()).await;
            self.ask_all(self.leased_buckets.returns(false, clock::steady())).await;
        }
    }

    async fn ask_all(&self, questions: Vec<Question>) {
        let asked = futures_util::stream::iter(questions).for_each_concurrent(AT_ONCE, async |question| {
            let _ = self.ask(question).await;
        });
        asked.await;
    }

    /// Passes on the changes of other replicas until the subscription ends.
    async fn listen(&self, node: &Client, news: &mpsc::Sender<News>) {
        let Ok(Ok(mut subscription)) = timeout(UNHURRIED, node.get_async_pubsub()).await else { return };
        if subscription.subscribe(&[CHANGES, REFILLS]).await.is_err() {
            return;
        }
        // Changes that were published between the connection and the subscription are in the hashes.
        if news.send(News::Missed).await.is_err() {
            return;
        }
        let mut messages = subscription.on_message();
        while let Some(message) = messages.next().await {
            if message.get_channel_name() == REFILLS {
                self.leased_buckets
                    .refilled_by_name(&String::from_utf8_lossy(message.get_payload_bytes()), clock::steady());
                continue;
            }
            let change = serde_json::from_slice(message.get_payload_bytes());
            if news.send(change.map_or(News::Missed, News::Changed)).await.is_err() {
                return;
            }
        }
    }

    /// Asks about one bucket and notes the answer.
    async fn ask(&self, question: Question) -> Result<(), StoreUnavailable> {
        let pending = PendingQuestion::new(&self.leased_buckets, question);
        let span = info_span!(
            "redis",
            otel.name = "EVALSHA take",
            otel.kind = "client",
            db.system.name = "redis",
            palisade.stage = "limit"
        );
        let taking = self.call(async |connection| self.take(connection, pending.question()).await);
        let grant = taking.instrument(span).await?;
        pending.answer(grant);
        Ok(())
    }

    async fn take(&self, mut connection: RedisConnection, question: &Question) -> RedisResult<Grant> {
        let Question { bucket, gcra, ask, .. } = question;
        let mut call = self.scripts.take.prepare_invoke();
        call.key(limit_key(bucket));
        call.arg(gcra.interval().as_secs_f64() * 1e6).arg(gcra.burst());
        call.arg(ask.need).arg(ask.ahead).arg(ask.returned);
        call.arg(ask.known_debt.as_secs_f64() * 1e6).arg(u8::from(ask.after_outage)).arg(&self.replica_id);
        call.arg(LEASE.as_micros().to_string()).arg(gcra.most_on_lease());
        let (tokens, debt): (u32, u64) = call.invoke_async(&mut connection).await?;
        // Never more tokens than were asked for, and no debt larger than a bucket can have.
        let tokens = tokens.min(ask.need.saturating_add(ask.ahead));
        Ok(Grant { tokens, debt: Duration::from_micros(debt).min(LONGEST_REFILL) })
    }

    /// One exchange with Redis within [`ANSWER`].
    async fn call<T>(
        &self,
        exchange: impl AsyncFnOnce(RedisConnection) -> RedisResult<T>,
    ) -> Result<T, StoreUnavailable> {
        let connection = self.connection.load_full().ok_or(StoreUnavailable)?;
        let started = Instant::now();
        let result = timeout(ANSWER, exchange(RedisConnection::clone(&connection))).await;
        self.metrics.redis_round_trip.observe(started.elapsed().as_secs_f64());
        match result {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => warn!(%error, "redis refused"),
            Err(_) => warn!(after_ms = ANSWER.as_millis(), "redis did not answer"),
        }
        self.metrics.redis_errors.inc();
        self.lose(&connection);
        Err(StoreUnavailable)
    }

    async fn read_all(&self, topic: Topic) -> Result<Vec<String>, StoreUnavailable> {
        let connection = self.connection.load_full().ok_or(StoreUnavailable)?;
        let command = redis::cmd("HVALS").arg(topic_key(topic)).to_owned();
        let read = timeout(UNHURRIED, command.query_async(&mut RedisConnection::clone(&connection))).await;
        read.map_err(|_| StoreUnavailable)?.map_err(|_| StoreUnavailable)
    }
}

fn limit_key(bucket: &Bucket) -> String {
    format!("{PREFIX}bucket:{bucket}")
}

fn topic_key(topic: Topic) -> String {
    format!("{PREFIX}{}", topic.as_str())
}
