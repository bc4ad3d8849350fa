//! The service, from its start to SIGTERM.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use service::listener::{self, Limits};
use service::startup::Summary;
use service::telemetry;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::api::routes::router;
use crate::config::secrets::{SMTP_PASSWORD, Secrets};
use crate::config::{Config, Profile, ServerConfig};
use crate::http::app::App;
use crate::http::assertion::Verifier;
use crate::mail::{self, Mail};
use crate::maintenance;
use crate::model::access_tokens::Signer;
use crate::model::login_guard::LoginGuard;
use crate::model::places::HashKey;
use crate::observe::metrics::Metrics;
use crate::outbox::Outbox;
use crate::storage::{Database, wal};

/// Serves until SIGTERM or Ctrl-C, then lets requests in flight finish.
pub(crate) async fn serve(
    config: Config,
    profile: Profile,
    environment: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    log_start(&config, profile, environment);
    let app = build(&config, profile, environment).await?;
    let rules = Arc::clone(&app.rules);
    // A failure is logged, and the rules are applied at the next start.
    let _ = app.database.write(move |transaction| maintenance::apply_rules(transaction, &rules)).await;
    tokio::spawn(maintenance::sweep(app.database.clone()));
    tokio::spawn(app.database.clone().leave_read_only());
    tokio::spawn(wal::watch(app.database.clone()));
    let outbox = Outbox {
        database: app.database.clone(),
        mail: Arc::clone(&app.mail),
        metrics: app.metrics.clone(),
        requested: Arc::clone(&app.reset_requested),
        trouble: parking_lot::Mutex::default(),
    };
    let (stop_mails, mails_stop) = watch::channel(false);
    let mails = tokio::spawn(outbox.run(mails_stop));
    let (draining, mut drain) = watch::channel(());
    let stop = StopSignal::new()?;
    let asked = wait_for_stop(stop, app.clone(), config.server.drain_delay, stop_mails, draining);
    let served = listen_and_serve(&config.server, &app, asked);
    let too_late = async {
        let _ = drain.changed().await;
        tokio::time::sleep(config.server.drain_timeout).await;
    };
    tokio::select! {
        result = served => result?,
        () = too_late => warn!("requests in flight did not finish in time"),
    }
    if !mails.is_finished() {
        info!("mails that are on their way are waited for");
    }
    // A mail that is cut off here is sent again after the next start.
    if timeout(mail::SEND_TIMEOUT, mails).await.is_err() {
        warn!("a mail is still being sent: it is sent again after the next start");
    }
    wal::close(&app.database).await;
    info!("stopped");
    telemetry::flush();
    Ok(())
}

fn log_start(config: &Config, profile: Profile, environment: &BTreeMap<String, String>) {
    Summary::new(&config.secrets.dir, environment)
        .secret("GATEWAY_TOKEN")
        .secret("JWT_KEY")
        .secret("JWT_SECRET")
        .secret("METRICS_TOKEN")
        .secret(SMTP_PASSWORD)
        .part("mail.url", !config.mail.url.is_empty())
        .part("telemetry.otlp_endpoint", !config.telemetry.otlp_endpoint.is_empty())
        .log(profile.as_str(), env!("CARGO_PKG_VERSION"));
}

/// Opens the database and makes what the handlers share.
async fn build(
    config: &Config,
    profile: Profile,
    environment: &BTreeMap<String, String>,
) -> anyhow::Result<App> {
    let secrets = Secrets::load(&config.secrets.dir, environment, profile)?;
    if secrets.gateway_token.is_none() {
        warn!(
            "GATEWAY_TOKEN is not set: no request can come from the gateway, and only health, metrics and keys answer"
        );
    }
    let metrics = Metrics::new()?;
    let database = Database::open(&config.database, metrics.clone())?;
    let signer = Signer::load(&secrets, &database, config.accounts.access_token).await?;
    let key = database.read(HashKey::load).await?;
    let login_guard = LoginGuard::new(key, &config.accounts.lockout, metrics.clone());
    let mail = Mail::new(&config.mail, secrets.smtp_password.as_ref(), profile)?;
    let verifier = secrets.gateway_token.as_ref().map(|token| Verifier::new(token.expose()));
    Ok(App {
        signer: Arc::new(signer),
        mail: Arc::new(mail),
        reset_requested: Arc::default(),
        verifier: Arc::new(verifier),
        secrets: Arc::new(secrets),
        metrics,
        draining: Arc::default(),
        rules: Arc::new(config.accounts.rules(profile)),
        login_guard,
        pool_slots: usize::try_from(config.database.pool_size + config.database.pool_overflow)?,
        database,
    })
}

/// Returns when no new connections are to be accepted: `drain_delay` after the signal. `draining` is dropped then.
async fn wait_for_stop(
    mut stop: StopSignal,
    app: App,
    drain_delay: Duration,
    stop_mails: watch::Sender<bool>,
    draining: watch::Sender<()>,
) {
    let name = stop.wait().await;
    info!(signal = name, drain_delay_ms = drain_delay.as_millis(), "leaving: not ready, still accepting");
    app.draining.store(true, Ordering::Relaxed);
    stop_mails.send_replace(true);
    tokio::spawn(async move {
        stop.wait().await;
        warn!("second signal: leaving at once");
        service::lines::flush(service::lines::FLUSH_PATIENCE);
        std::process::exit(1);
    });
    tokio::time::sleep(drain_delay).await;
    info!("no new connections, requests in flight finish");
    drop(draining);
}

async fn listen_and_serve(
    config: &ServerConfig,
    app: &App,
    asked_to_stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let listen = config.listen.as_str();
    let cannot = || format!("server.listen: cannot listen on `{listen}`");
    let limits = Limits {
        bound: "server.max_connections",
        max_connections: affordable(config.max_connections),
        header_timeout: config.header_timeout,
        request_timeout: config.request_timeout,
        idle_timeout: config.idle_timeout,
    };
    let (router, counters) = (router(app.clone())?, app.metrics.connections.clone());
    if let Some(path) = listen.strip_prefix("unix:") {
        remove_stale_socket(Path::new(path));
        let socket = UnixListener::bind(path).with_context(cannot)?;
        info!(listen, "serving");
        listener::serve(socket, router, limits, counters, asked_to_stop).await;
    } else {
        let socket = TcpListener::bind(listen).await.with_context(cannot)?;
        info!(listen = %socket.local_addr()?, "serving");
        listener::serve(socket, router, limits, counters, asked_to_stop).await;
    }
    Ok(())
}

/// As many connections as there may be open files for, the database's and the log's left out.
fn affordable(max_connections: usize) -> usize {
    const OTHERS: u64 = 256;
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1_024);
    let most = usize::try_from(files.saturating_sub(OTHERS).max(1)).unwrap_or(usize::MAX);
    if most < max_connections {
        warn!(
            open_files_limit = files,
            connections = most,
            "server.max_connections is more than the limit of open files (ulimit -n) allows: the limit applies"
        );
    }
    max_connections.min(most)
}

/// A socket file that nobody listens on is left over from a killed process.
fn remove_stale_socket(path: &Path) {
    if std::os::unix::net::UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
}

/// SIGTERM or SIGINT.
struct StopSignal {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignal {
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
