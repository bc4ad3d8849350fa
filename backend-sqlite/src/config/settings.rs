//! The settings of the process, section by section, and what each of them may be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use service::level::Level;
use service::settings::{check_listen, check_path};
use service::telemetry::{LogFormat, TelemetrySettings};
use url::Url;

/// The longest duration that may be set: ten years. Now and several of them is still a time that can be counted.
const LONGEST_DURATION: Duration = Duration::from_hours(10 * 8_766);

/// The most connections of the pool, and the most beyond it.
const MOST_CONNECTIONS: u32 = 1_000;

/// The longest that a password may be asked to be, in characters.
const LONGEST_MINIMUM: usize = 128;

/// The role that may do everything; it stays as it is.
pub(crate) const ADMIN: &str = "admin";

/// Where the program runs; it changes defaults and what must be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// On a developer's machine: text logs, a signing key of its own making.
    #[default]
    Development,
    /// In tests: like development, quieter.
    Testing,
    /// For real: JSON logs, secrets required.
    Production,
}

impl Profile {
    /// The name on the command line.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Testing => "testing",
            Self::Production => "production",
        }
    }
}

/// `config/backend.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) server: ServerConfig,
    pub(crate) database: DatabaseConfig,
    pub(crate) accounts: AccountsConfig,
    pub(crate) mail: MailConfig,
    pub(crate) telemetry: TelemetrySettings,
    pub(crate) log: LogConfig,
    pub(crate) secrets: SecretsConfig,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ServerConfig {
    /// `HOST:PORT` or `unix:PATH`.
    pub(crate) listen: String,
    /// After SIGTERM: not ready, still accepting, until clients and load balancers have noticed.
    #[serde(deserialize_with = "duration")]
    pub(crate) drain_delay: Duration,
    /// For requests in flight after that.
    #[serde(deserialize_with = "duration")]
    pub(crate) drain_timeout: Duration,
    /// Connections at a time; a further one is answered 503 and closed.
    pub(crate) max_connections: usize,
    /// For a whole header.
    #[serde(deserialize_with = "duration")]
    pub(crate) header_timeout: Duration,
    /// For a whole body.
    #[serde(deserialize_with = "duration")]
    pub(crate) request_timeout: Duration,
    /// Between requests; longer than gateways hold an idle connection (1m), so that the gateway closes it.
    #[serde(deserialize_with = "duration")]
    pub(crate) idle_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8090".to_owned(),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
            max_connections: 16_384,
            header_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
        }
    }
}

impl ServerConfig {
    fn check(&self) -> anyhow::Result<()> {
        if !(1..=1_000_000).contains(&self.max_connections) {
            bail!("server.max_connections: expected 1 to 1000000, got {}", self.max_connections);
        }
        let times = [
            ("header_timeout", self.header_timeout),
            ("request_timeout", self.request_timeout),
            ("idle_timeout", self.idle_timeout),
        ];
        for (key, time) in times {
            if time.is_zero() || time > Duration::from_hours(24) {
                bail!("server.{key}: expected 1ms to 24h, got {}", humantime::format_duration(time));
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DatabaseConfig {
    pub(crate) path: PathBuf,
    pub(crate) synchronous: Synchronous,
    pub(crate) pool_size: u32,
    pub(crate) pool_overflow: u32,
    #[serde(deserialize_with = "duration")]
    pub(crate) pool_wait: Duration,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            path: "data/backend/palisade.db".into(),
            synchronous: Synchronous::Full,
            pool_size: 20,
            pool_overflow: 10,
            pool_wait: Duration::from_secs(30),
        }
    }
}

/// When a commit is on the disk.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Synchronous {
    /// Before it is acknowledged.
    Full,
    /// At the next checkpoint: a power cut may lose what was acknowledged last.
    Normal,
}

impl Synchronous {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Normal => "normal",
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AccountsConfig {
    pub(crate) password_min_length: usize,
    /// `0s`: never; `None`: the profile's.
    #[serde(deserialize_with = "some_duration")]
    pub(crate) password_expiry: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    pub(crate) access_token: Duration,
    #[serde(deserialize_with = "duration")]
    pub(crate) refresh_token: Duration,
    /// Roles that count only for accounts with a second factor; `None`: the profile's.
    pub(crate) require_totp_for: Option<Vec<String>>,
    pub(crate) lockout: Lockout,
}

impl Default for AccountsConfig {
    fn default() -> Self {
        Self {
            password_min_length: 12,
            password_expiry: None,
            access_token: Duration::from_mins(30),
            refresh_token: Duration::from_hours(7 * 24),
            require_totp_for: None,
            lockout: Lockout::default(),
        }
    }
}

/// So many failed logins at one name within a time lock it for a time.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Lockout {
    pub(crate) failures: u32,
    #[serde(deserialize_with = "duration")]
    pub(crate) window: Duration,
    #[serde(deserialize_with = "duration")]
    pub(crate) duration: Duration,
}

impl Default for Lockout {
    fn default() -> Self {
        let quarter = Duration::from_mins(15);
        Self { failures: 5, window: quarter, duration: quarter }
    }
}

/// What a password must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PasswordRule {
    /// In characters.
    pub(crate) min_length: usize,
    /// Whether it has to be hard to guess as well.
    pub(crate) strong: bool,
}

/// What holds for accounts, settings and profile together.
#[derive(Clone, Debug)]
pub(crate) struct AccountRules {
    pub(crate) password: PasswordRule,
    pub(crate) password_expiry: Option<Duration>,
    pub(crate) refresh_token: Duration,
    pub(crate) require_totp_for: Vec<String>,
    pub(crate) lockout: Lockout,
}

impl AccountsConfig {
    /// Production asks for more: strong passwords that expire, and a second factor of administrators.
    pub(crate) fn rules(&self, profile: Profile) -> AccountRules {
        let production = profile == Profile::Production;
        let expiry = self.password_expiry.or(production.then_some(Duration::from_hours(90 * 24)));
        let admins = || if production { vec![ADMIN.to_owned()] } else { Vec::new() };
        AccountRules {
            password: PasswordRule { min_length: self.password_min_length, strong: production },
            password_expiry: expiry.filter(|expiry| !expiry.is_zero()),
            refresh_token: self.refresh_token,
            require_totp_for: self.require_totp_for.clone().unwrap_or_else(admins),
            lockout: self.lockout,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MailConfig {
    /// `smtp://…` or `smtps://…`; empty: files, and nothing in production.
    pub(crate) url: String,
    pub(crate) from: String,
    /// What a mail to reset a password points to, with `{token}` in it.
    pub(crate) reset_url: String,
    pub(crate) dir: PathBuf,
}

impl Default for MailConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            from: "Palisade <palisade@localhost>".to_owned(),
            reset_url: String::new(),
            dir: "data/backend/mail".into(),
        }
    }
}

#[derive(Default, Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogConfig {
    pub(crate) level: Level,
    /// `None`: text in development, JSON otherwise.
    pub(crate) format: Option<LogFormat>,
}

impl LogConfig {
    /// How lines are written.
    pub(crate) fn format(&self, profile: Profile) -> LogFormat {
        let in_profile = if profile == Profile::Development { LogFormat::Text } else { LogFormat::Json };
        self.format.unwrap_or(in_profile)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SecretsConfig {
    pub(crate) dir: PathBuf,
}

impl Default for SecretsConfig {
    fn default() -> Self {
        Self { dir: "/run/secrets".into() }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = humantime::parse_duration(&text).ok().filter(|duration| *duration <= LONGEST_DURATION);
    parsed.ok_or_else(|| {
        D::Error::custom(format!("a duration like \"30s\", \"5m\" or \"7d\", at most \"10y\" (got {text:?})"))
    })
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

impl Config {
    pub(super) fn check(self) -> anyhow::Result<Self> {
        self.server.check()?;
        self.telemetry.check()?;
        match self.server.listen.strip_prefix("unix:") {
            Some(path) => check_path("server.listen: unix:PATH", Path::new(path))?,
            None => check_listen("server.listen", &self.server.listen)?,
        }
        check_path("database.path", &self.database.path)?;
        check_path("mail.dir", &self.mail.dir)?;
        check_path("secrets.dir", &self.secrets.dir)?;
        if self.database.pool_wait.is_zero() {
            bail!("database.pool_wait: expected longer than 0s: nothing could wait for a connection");
        }
        let reset_url = &self.mail.reset_url;
        if !reset_url.is_empty() && (Url::parse(reset_url).is_err() || !reset_url.contains("{token}")) {
            bail!("mail.reset_url: expected an address with {{token}} in it, got {reset_url:?}");
        }
        let Lockout { failures, window, duration } = self.accounts.lockout;
        if window.is_zero() || duration.is_zero() {
            bail!("accounts.lockout: expected a window and a duration longer than 0s");
        }
        let AccountsConfig { access_token, refresh_token, .. } = self.accounts;
        if access_token.is_zero() {
            bail!("accounts.access_token: expected longer than 0s, got \"0s\"");
        }
        if refresh_token < access_token {
            bail!("accounts.refresh_token: expected at least as long as accounts.access_token");
        }
        let path = self.database.path.to_string_lossy();
        if path == ":memory:" || path.starts_with("file:") {
            bail!("database.path: expected the path of a file, got {path:?}");
        }
        if failures == 0 {
            bail!("accounts.lockout.failures: at least 1 (got 0)");
        }
        if window > Duration::from_hours(24) {
            bail!("accounts.lockout.window: at most 24h (got {})", humantime::format_duration(window));
        }
        let DatabaseConfig { pool_size, pool_overflow, .. } = self.database;
        if !(1..=MOST_CONNECTIONS).contains(&pool_size) {
            bail!("database.pool_size: from 1 to {MOST_CONNECTIONS} (got {pool_size})");
        }
        if pool_overflow > MOST_CONNECTIONS {
            bail!("database.pool_overflow: at most {MOST_CONNECTIONS} (got {pool_overflow})");
        }
        let min_length = self.accounts.password_min_length;
        if !(1..=LONGEST_MINIMUM).contains(&min_length) {
            bail!("accounts.password_min_length: from 1 to {LONGEST_MINIMUM} (got {min_length})");
        }
        Ok(self)
    }
}
