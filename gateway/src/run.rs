//! `gateway run`: puts the parts together, serves, and shuts down without dropping a request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use policy::Policy;
use policy::rules::authenticate::issuer::KeySource;
use policy::rules::permissions::PermissionRule;
use service::startup::Summary;
use service::telemetry;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::admin::{self, Admin};
use crate::clock;
use crate::config::redis_address::RedisAddress;
use crate::config::secrets::{REDIS_PASSWORD, Secrets};
use crate::config::settings::{Profile, RedisSettings, ServerSettings, Settings};
use crate::engine::Gateway;
use crate::identity::assertion::Signer;
use crate::identity::keys::Keys;
use crate::live_policy::files::{self, folder_of};
use crate::live_policy::in_force::PolicyInForce;
use crate::live_policy::reload::Reloader;
use crate::observe::access::AccessLog;
use crate::observe::audit::AuditLog;
use crate::observe::clock_steps;
use crate::observe::metrics::Metrics;
use crate::permissions::Permissions;
use crate::request::Proxy;
use crate::request::websockets;
use crate::server::accept::{Acceptor, ConnectionSetup};
use crate::state::directory::StateDir;
use crate::state::redis::RedisStore;
use crate::state::replicated_state::ReplicatedState;
use crate::tls::server::Tls;
use crate::upstream::Upstreams;
use crate::upstream::connection::Pool;

/// The most unused connections to upstreams, all together.
const KEPT_CONNECTIONS: usize = 1024;

/// The largest file of certificates for Redis, in bytes.
const LARGEST_AUTHORITY: u64 = 1 << 20;

/// Serves until SIGTERM or Ctrl-C.
pub async fn run(
    settings: Settings,
    policy: Option<PathBuf>,
    profile: Profile,
    environment: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    // Each connection needs a descriptor, and each request another one; the usual soft limit is 1024.
    let descriptors =
        rlimit::increase_nofile_limit(u64::MAX).context("the limit of open files cannot be read")?;
    say_what_is_on(&settings, profile, environment);
    let metrics = Metrics::new()?;
    let secrets = Secrets::new(&settings.secrets.dir, environment)?;
    let policy_file = policy.unwrap_or_else(|| settings.policy.file.clone());
    secrets.require_all(&needed_secrets(&settings, profile, &policy_file))?;
    let upstreams = Upstreams::new(&settings.upstreams, &metrics)?;
    let keys = Arc::new(Keys::new(secrets.clone(), folder_of(&policy_file), metrics.clone()));
    let state = StateDir::new(settings.state.dir, metrics.clone());
    let replicated_state =
        Arc::new(ReplicatedState::open(Arc::clone(&state), clock::wall()).context("state.dir")?);
    let reloader = Reloader::new(
        policy_file,
        Arc::clone(&state),
        upstreams.names(),
        Arc::clone(&keys),
        Arc::clone(&replicated_state),
        metrics.clone(),
    );
    let first = reloader.first()?;
    let gateway_token = secrets.get("GATEWAY_TOKEN")?;
    if gateway_token.is_none() && profile == Profile::Production {
        if first.rules.permission_service.is_some() {
            secrets.require("GATEWAY_TOKEN", "the service of `[permissions]` trusts the gateway for it")?;
        }
        keys.note_missing_gateway_token();
    }
    let signer = || gateway_token.as_ref().map(Signer::new);
    let shared = match settings.redis.url.as_str() {
        "" => None,
        _ => Some(RedisStore::new(redis_places(&settings.redis, &secrets)?, metrics.clone())),
    };
    let permissions = Arc::new(Permissions::new(upstreams.clone(), signer(), metrics.clone()));
    let audit = AuditLog::open(&settings.log.audit)?;
    let gateway = Gateway::new(
        PolicyInForce::new(first, audit.clone()),
        shared.clone(),
        replicated_state,
        Arc::clone(&keys),
        Arc::clone(&permissions),
        metrics.clone(),
        audit,
    );
    let access = AccessLog::open(&settings.log.access)?;

    let mut listeners = Vec::new();
    for address in &settings.server.listen {
        let listener = TcpListener::bind(address).await;
        listeners.push(listener.with_context(|| format!("server.listen: cannot listen on `{address}`"))?);
    }
    let admin_token = secrets.get("ADMIN_TOKEN")?;
    let admin_listener = admin::bind(&settings.admin.listen, admin_token.is_some()).await?;

    let (shutdown, stopping) = watch::channel(false);
    let (stop_admin, admin_stops) = watch::channel(false);
    let draining = Arc::new(AtomicBool::new(false));
    reloader.watch(Arc::clone(gateway.live())).context("policy.file: its directory cannot be watched")?;
    tokio::spawn(Arc::clone(&reloader).follow_overrides(Arc::clone(gateway.live())));
    tokio::spawn(Arc::clone(&reloader).watch_trials(Arc::clone(gateway.live())));
    let admin = Admin {
        gateway: Arc::clone(&gateway),
        reloader,
        state,
        upstreams: upstreams.clone(),
        admin_token,
        metrics_token: secrets.get("METRICS_TOKEN")?,
        draining: Arc::clone(&draining),
        changing: Arc::default(),
        judging: Admin::judging(),
    };
    info!(listen = %admin_listener.local_addr()?, open_files_limit = descriptors, "admin plane");
    let admin_task = tokio::spawn(admin::serve(admin, admin_listener, admin_stops));
    tokio::spawn(upstreams.clone().keep_checking());
    start_background(&gateway, shared.clone(), &keys, &permissions);

    let proxy = Arc::new(Proxy {
        gateway: Arc::clone(&gateway),
        upstreams,
        pool: Pool::new(KEPT_CONNECTIONS),
        signer: signer(),
        access: access.clone(),
        draining: Arc::clone(&draining),
        production: profile == Profile::Production,
    });
    let setup = ConnectionSetup {
        proxy_protocol: settings.server.proxy_protocol,
        tls: Tls::load(&settings.server.tls, gateway.metrics.clone())?,
        access: access.clone(),
    };
    let (acceptor, mut all_done) = Acceptor::new(gateway, proxy, setup, stopping);
    for listener in listeners {
        info!(listen = %listener.local_addr()?, "data plane");
        tokio::spawn(acceptor.clone().listen(listener));
    }
    drop(acceptor);

    drain(&mut signals, &settings.server, &draining, &shutdown, &mut all_done).await;
    stop_admin.send_replace(true);
    let _ = tokio::time::timeout(Duration::from_secs(1), admin_task).await;
    leave_nothing_behind(shared).await
}

fn say_what_is_on(settings: &Settings, profile: Profile, environment: &BTreeMap<String, String>) {
    let is_on = |setting: &str| !setting.is_empty();
    Summary::new(&settings.secrets.dir, environment)
        .secret("ADMIN_TOKEN")
        .secret("GATEWAY_TOKEN")
        .secret("METRICS_TOKEN")
        .secret(REDIS_PASSWORD)
        .part("redis.url", is_on(&settings.redis.url))
        .part("server.tls", is_on(&settings.server.tls.certificate))
        .part("server.proxy_protocol", settings.server.proxy_protocol)
        .part("telemetry.otlp_endpoint", is_on(&settings.telemetry.otlp_endpoint))
        .part("log.access", settings.log.access != "off")
        .part("log.audit", settings.log.audit != "off")
        .log(profile.as_str(), env!("CARGO_PKG_VERSION"));
}

/// The secrets that the settings and the policy need, each with the reason. They are checked together, so that an
/// operator sees all missing ones at once.
fn needed_secrets(settings: &Settings, profile: Profile, policy: &Path) -> Vec<(String, String)> {
    let mut needed = Vec::new();
    let listen = &settings.admin.listen;
    let is_loopback = match listen.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => listen.split(':').next().is_some_and(|host| host.eq_ignore_ascii_case("localhost")),
    };
    if !is_loopback {
        needed.push(("ADMIN_TOKEN".to_owned(), format!("admin.listen `{listen}` is not loopback")));
    }
    // A policy that cannot be read is another fault, which is reported when it is read.
    let rules = || Policy::parse("", &files::read(policy).ok()?, None).ok();
    let Some(rules) = Some(profile).filter(|profile| *profile == Profile::Production).and_then(|_| rules())
    else {
        return needed;
    };
    if let Some(service) = &rules.permission_service {
        needed.push((
            "GATEWAY_TOKEN".to_owned(),
            format!("`{service}`, which `[permissions]` names, trusts the gateway by it"),
        ));
    }
    for issuer in &rules.issuers {
        if let KeySource::Secret(name) = &issuer.keys {
            needed
                .push((name.clone(), format!("the policy verifies the tokens of `{}` with it", issuer.name)));
        }
    }
    needed
}

/// Waits for a signal, then until every request is answered, or `drain_timeout` has passed.
async fn drain(
    signals: &mut Signals,
    settings: &ServerSettings,
    draining: &AtomicBool,
    shutdown: &watch::Sender<bool>,
    all_done: &mut mpsc::Receiver<()>,
) {
    let name = signals.wait().await;
    let (delay, timeout) =
        (settings.drain_delay.unwrap_or_default(), settings.drain_timeout.unwrap_or_default());
    info!(signal = name, drain_delay_ms = delay.as_millis(), "leaving: not ready, still accepting");
    draining.store(true, Ordering::Relaxed);
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        _ = signals.wait() => leave_at_once(),
    }
    info!(drain_timeout_ms = timeout.as_millis(), "no new connections, requests in flight finish");
    shutdown.send_replace(true);
    tokio::select! {
        _ = all_done.recv() => info!("all requests are answered"),
        () = tokio::time::sleep(timeout) => warn!("some requests did not finish in time"),
        _ = signals.wait() => leave_at_once(),
    }
}

/// Gives back the leased tokens and sends the last spans.
async fn leave_nothing_behind(shared: Option<Arc<RedisStore>>) -> anyhow::Result<()> {
    if let Some(shared) = shared {
        info!("giving back what is on lease");
        shared.return_leases().await;
    }
    info!("flushing traces");
    tokio::task::spawn_blocking(telemetry::flush).await?;
    info!("stopped");
    service::lines::flush(service::lines::FLUSH_PATIENCE);
    Ok(())
}

fn redis_places(settings: &RedisSettings, secrets: &Secrets) -> anyhow::Result<RedisAddress> {
    let password = secrets.get(REDIS_PASSWORD)?;
    let password = password.map(|password| String::from_utf8_lossy(password.expose()).into_owned());
    let authority = settings
        .certificate_authority
        .as_deref()
        .map(|file| service::files::read(file, LARGEST_AUTHORITY).context("redis.certificate_authority"));
    let address = RedisAddress::parse(&settings.url, password.as_deref(), authority.transpose()?)
        .context("redis.url")?;
    address.check_credentials().context("redis.url")?;
    Ok(address)
}

fn start_background(
    gateway: &Arc<Gateway>,
    shared: Option<Arc<RedisStore>>,
    keys: &Arc<Keys>,
    permissions: &Arc<Permissions>,
) {
    if let Some(shared) = shared {
        let (sender, news) = mpsc::channel(1024);
        tokio::spawn(shared.run(sender));
        let gateway = Arc::clone(gateway);
        tokio::spawn(async move { gateway.follow_changes(news).await });
    }
    let (sweeping, saving) = (Arc::clone(gateway), Arc::clone(gateway));
    tokio::spawn(async move { sweeping.sweep().await });
    tokio::spawn(clock_steps::watch(gateway.metrics.clone()));
    tokio::spawn(async move { saving.save_what_was_learnt().await });
    tokio::spawn(websockets::watch(Arc::clone(gateway)));
    let (fetching, asking, revoking) = (Arc::clone(gateway), Arc::clone(gateway), Arc::clone(gateway));
    let keys = Arc::clone(keys);
    tokio::spawn(async move { keys.keep_fresh(|| fetching.policy().rules.issuers.clone()).await });
    let permissions = Arc::clone(permissions);
    tokio::spawn(async move {
        let revoke = |tokens| revoking.revoke_for_backend(tokens);
        permissions.follow_changes(|| asks_permissions(&asking), revoke).await;
    });
}

/// The rule of the permission service, if a route of the policy in force needs its answers, or its revocations of
/// tokens.
fn asks_permissions(gateway: &Gateway) -> Option<PermissionRule> {
    let policy = gateway.policy();
    policy.rules.permission_service.as_ref()?;
    let asks =
        policy.rules.routes.iter().any(|route| route.access.permission.is_some() || route.auth.wants_proof());
    asks.then(|| policy.rules.permissions.clone())
}

#[expect(clippy::exit, reason = "an operator who asks twice means it")]
fn leave_at_once() -> ! {
    warn!("second signal: shutting down at once");
    service::lines::flush(service::lines::FLUSH_PATIENCE);
    std::process::exit(1)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
