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
use crate::engine::{Components, Gateway};
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

/// The secret that guards the admin plane.
const ADMIN_TOKEN: &str = "ADMIN_TOKEN";

/// The secret that signs what the backend trusts us for.
const GATEWAY_TOKEN: &str = "GATEWAY_TOKEN";

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
    let open_files =
        rlimit::increase_nofile_limit(u64::MAX).context("the limit of open files cannot be read")?;
    say_what_is_on(&settings, profile, environment);
    let parts = Parts::build(&settings, policy, profile, environment)?;
    let listeners = Listeners::bind(&settings, &parts).await?;
    let draining = Arc::new(AtomicBool::new(false));
    parts.start_background()?;
    info!(listen = %listeners.admin.local_addr()?, open_files_limit = open_files, "admin plane");
    let (stop_admin, admin_stops) = watch::channel(false);
    let admin = parts.admin(Arc::clone(&draining))?;
    let admin_task = tokio::spawn(admin::serve(admin, listeners.admin, admin_stops));
    let (shutdown, stopping) = watch::channel(false);
    let proxy = parts.proxy(Arc::clone(&draining), profile)?;
    let mut all_done = parts.accept(&settings.server, listeners.data, proxy, stopping)?;

    drain(&mut signals, &settings.server, &draining, &shutdown, &mut all_done).await;
    stop_admin.send_replace(true);
    let _ = tokio::time::timeout(Duration::from_secs(1), admin_task).await;
    leave_nothing_behind(parts.shared).await
}

/// Everything that serves, put together.
struct Parts {
    secrets: Secrets,
    state: Arc<StateDir>,
    upstreams: Upstreams,
    keys: Arc<Keys>,
    shared: Option<Arc<RedisStore>>,
    permissions: Arc<Permissions>,
    reloader: Arc<Reloader>,
    gateway: Arc<Gateway>,
    access: AccessLog,
}

impl Parts {
    /// Reads all files that the settings name, and the policy.
    fn build(
        settings: &Settings,
        policy: Option<PathBuf>,
        profile: Profile,
        environment: &BTreeMap<String, String>,
    ) -> anyhow::Result<Self> {
        let metrics = Metrics::new()?;
        let secrets = Secrets::new(&settings.secrets.dir, environment)?;
        let policy_file = policy.unwrap_or_else(|| settings.policy.file.clone());
        secrets.require_all(&needed_secrets(settings, profile, &policy_file))?;
        let upstreams = Upstreams::new(&settings.upstreams, &metrics)?;
        let keys = Arc::new(Keys::new(secrets.clone(), folder_of(&policy_file), metrics.clone()));
        let state = StateDir::new(settings.state.dir.clone(), metrics.clone());
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
        let signer = signer(&secrets)?;
        if signer.is_none() && profile == Profile::Production {
            if first.rules.permission_service.is_some() {
                secrets.require(GATEWAY_TOKEN, "the service of `[permissions]` trusts the gateway for it")?;
            }
            keys.note_missing_gateway_token();
        }
        let shared = match settings.redis.url.as_str() {
            "" => None,
            _ => Some(RedisStore::new(redis_address(&settings.redis, &secrets)?, metrics.clone())),
        };
        let permissions = Arc::new(Permissions::new(upstreams.clone(), signer, metrics.clone()));
        let audit = AuditLog::open(&settings.log.audit)?;
        let gateway = Gateway::new(Components {
            live: PolicyInForce::new(first, audit.clone()),
            shared: shared.clone(),
            replicated_state,
            keys: Arc::clone(&keys),
            permissions: Arc::clone(&permissions),
            metrics,
            audit,
        });
        let access = AccessLog::open(&settings.log.access)?;
        Ok(Self { secrets, state, upstreams, keys, shared, permissions, reloader, gateway, access })
    }

    /// Starts what runs beside requests.
    fn start_background(&self) -> anyhow::Result<()> {
        let live = self.gateway.live();
        self.reloader.watch(Arc::clone(live)).context("policy.file: its directory cannot be watched")?;
        tokio::spawn(Arc::clone(&self.reloader).follow_overrides(Arc::clone(live)));
        tokio::spawn(Arc::clone(&self.reloader).watch_trials(Arc::clone(live)));
        tokio::spawn(self.upstreams.clone().keep_checking());
        start_background(&self.gateway, self.shared.clone(), &self.keys, &self.permissions);
        Ok(())
    }

    fn admin(&self, draining: Arc<AtomicBool>) -> anyhow::Result<Admin> {
        Ok(Admin {
            gateway: Arc::clone(&self.gateway),
            reloader: Arc::clone(&self.reloader),
            state: Arc::clone(&self.state),
            upstreams: self.upstreams.clone(),
            admin_token: self.secrets.get(ADMIN_TOKEN)?,
            metrics_token: self.secrets.get("METRICS_TOKEN")?,
            draining,
            changing: Arc::default(),
            judging: Admin::judging(),
        })
    }

    fn proxy(&self, draining: Arc<AtomicBool>, profile: Profile) -> anyhow::Result<Arc<Proxy>> {
        Ok(Arc::new(Proxy {
            gateway: Arc::clone(&self.gateway),
            upstreams: self.upstreams.clone(),
            pool: Pool::new(KEPT_CONNECTIONS),
            signer: signer(&self.secrets)?,
            access: self.access.clone(),
            draining,
            production: profile == Profile::Production,
        }))
    }

    /// Accepts connections until `stopping`. The receiver ends when all of them are done.
    fn accept(
        &self,
        settings: &ServerSettings,
        listeners: Vec<TcpListener>,
        proxy: Arc<Proxy>,
        stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<mpsc::Receiver<()>> {
        let setup = ConnectionSetup {
            proxy_protocol: settings.proxy_protocol,
            tls: Tls::load(&settings.tls, self.gateway.metrics.clone())?,
            access: self.access.clone(),
        };
        let (acceptor, all_done) = Acceptor::new(Arc::clone(&self.gateway), proxy, setup, stopping);
        for listener in listeners {
            info!(listen = %listener.local_addr()?, "data plane");
            tokio::spawn(acceptor.clone().listen(listener));
        }
        Ok(all_done)
    }
}

/// What signs assertions, where there is a secret for it.
fn signer(secrets: &Secrets) -> anyhow::Result<Option<Signer>> {
    Ok(secrets.get(GATEWAY_TOKEN)?.as_ref().map(Signer::new))
}

/// The sockets of both planes.
struct Listeners {
    data: Vec<TcpListener>,
    admin: TcpListener,
}

impl Listeners {
    async fn bind(settings: &Settings, parts: &Parts) -> anyhow::Result<Self> {
        let mut data = Vec::new();
        for address in &settings.server.listen {
            let listener = TcpListener::bind(address).await;
            data.push(listener.with_context(|| format!("server.listen: cannot listen on `{address}`"))?);
        }
        let has_token = parts.secrets.get(ADMIN_TOKEN)?.is_some();
        Ok(Self { data, admin: admin::bind(&settings.admin.listen, has_token).await? })
    }
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

fn redis_address(settings: &RedisSettings, secrets: &Secrets) -> anyhow::Result<RedisAddress> {
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
