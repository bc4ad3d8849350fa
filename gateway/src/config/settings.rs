//! Settings of the process: command line > environment > secret files > TOML file > defaults.
//!
//! An unknown key, in the file or in the environment, is an error that names the nearest known one. What changes
//! live is not here but in the policy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use service::level::Level;
use service::overlay::{self, Source};
use service::settings::{check_listen, check_log, check_path};
use service::telemetry::{LogFormat, TelemetrySettings};

use crate::config::address::Address;
use crate::config::health::Health;
use crate::config::redis_address::RedisAddress;

/// What begins an environment variable of ours.
const PREFIX: &str = "PALISADE_GATEWAY__";

/// The most worker threads.
const MOST_THREADS: usize = 1_024;

/// Where the program runs; it changes defaults and what must be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// On a developer's machine: listens on loopback, text logs.
    #[default]
    Development,
    /// In tests: like development, with JSON logs.
    Testing,
    /// For real: listens everywhere, JSON logs, secrets required, time for balancers to notice that it leaves.
    Production,
}

impl Profile {
    /// The name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Testing => "testing",
            Self::Production => "production",
        }
    }
}

/// `config/gateway.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The data plane.
    pub server: ServerSettings,
    /// The admin plane.
    pub admin: AdminSettings,
    /// Where requests go, by name.
    pub upstreams: BTreeMap<String, UpstreamSettings>,
    /// Shared state.
    pub redis: RedisSettings,
    /// The policy.
    pub policy: PolicySettings,
    /// What outlives a restart.
    pub state: StateSettings,
    /// Traces.
    pub telemetry: TelemetrySettings,
    /// Logs.
    pub log: LogSettings,
    /// Secret files.
    pub secrets: SecretsSettings,
}

/// `[server]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// `HOST:PORT`s; the profile's when empty.
    pub listen: Vec<String>,
    /// TLS towards clients.
    pub tls: TlsSettings,
    /// Whether trusted proxies say with the PROXY protocol whose connection it is.
    pub proxy_protocol: bool,
    /// Worker threads; 0: one a core.
    pub threads: usize,
    /// After SIGTERM: not ready, still accepting.
    #[serde(deserialize_with = "some_duration")]
    pub drain_delay: Option<Duration>,
    /// For requests in flight.
    #[serde(deserialize_with = "some_duration")]
    pub drain_timeout: Option<Duration>,
}

/// `server.tls`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// A chain in PEM; empty: no TLS.
    pub certificate: String,
    /// Its private key in PEM.
    pub key: String,
    /// Authorities in PEM whose certificates clients have to show; empty: they need none.
    pub client_ca: String,
}

/// `[admin]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// `HOST:PORT`; anything but loopback needs `ADMIN_TOKEN`.
    pub listen: String,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8081".to_owned() }
    }
}

/// `[upstreams.NAME]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamSettings {
    /// `HOST:PORT` or `unix:PATH`; several are taken in turn.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// What is asked of it now and then: a path that is answered with a 2xx, or `grpc` or `grpc:SERVICE`
    /// (grpc.health.v1); empty: nothing.
    #[serde(default)]
    pub health: String,
    /// Which HTTP it speaks.
    #[serde(default)]
    pub protocol: UpstreamProtocol,
    /// TLS towards it; `None`: none.
    #[serde(default)]
    pub tls: Option<UpstreamTlsSettings>,
}

/// Which HTTP an upstream speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamProtocol {
    /// With TLS what both agree on, HTTP/2 first; without TLS HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/2 alone; without TLS with prior knowledge (h2c).
    Http2,
}

/// `upstreams.NAME.tls`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamTlsSettings {
    /// Whose certificate is expected; empty: the address's host.
    pub server_name: String,
    /// Authorities in PEM to believe; empty: the machine's.
    pub ca: String,
    /// Our own chain in PEM, where the upstream asks for it.
    pub certificate: String,
    /// Its private key in PEM.
    pub key: String,
}

/// `[redis]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisSettings {
    /// `redis://…` or `rediss://…`, any node of a single server, of Sentinels or of a Cluster; empty: in process.
    pub url: String,
    /// A PEM file with the authority to believe, instead of the machine's.
    pub certificate_authority: Option<PathBuf>,
}

/// `[policy]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySettings {
    /// The file; it and its directory are watched.
    pub file: PathBuf,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self { file: "config/policy.toml".into() }
    }
}

/// `[state]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StateSettings {
    /// Holds the last good policy.
    pub dir: PathBuf,
}

impl Default for StateSettings {
    fn default() -> Self {
        Self { dir: "data/gateway".into() }
    }
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// error, warn, info, debug or trace.
    pub level: Level,
    /// `None`: text in development, JSON otherwise.
    pub format: Option<LogFormat>,
    /// Of requests: `stdout`, `off` or a file.
    pub access: String,
    /// Of changes: likewise.
    pub audit: String,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            level: Level::default(),
            format: None,
            access: "stdout".to_owned(),
            audit: "stdout".to_owned(),
        }
    }
}

impl LogSettings {
    /// How lines are written.
    pub fn format(&self, profile: Profile) -> LogFormat {
        let in_profile = if profile == Profile::Development { LogFormat::Text } else { LogFormat::Json };
        self.format.unwrap_or(in_profile)
    }
}

/// `[secrets]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecretsSettings {
    /// One file for each secret, by its name.
    pub dir: PathBuf,
}

impl Default for SecretsSettings {
    fn default() -> Self {
        Self { dir: "/run/secrets".into() }
    }
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let span = text.parse::<policy::document::units::Span>();
    span.map(|span| Some(span.0)).map_err(|allowed| D::Error::custom(format!("{allowed} (got {text:?})")))
}

impl Settings {
    /// Reads `file`, if there is one, lays the environment over it, and fills in what depends on the profile.
    pub fn load(
        file: Option<&Path>,
        environment: &BTreeMap<String, String>,
        profile: Profile,
    ) -> anyhow::Result<Self> {
        // Lists of addresses.
        let is_list = |path: &[String]| {
            path.last().is_some_and(|key| key == "addresses") || path == ["server", "listen"]
        };
        let settings: Self = overlay::read(Source { file, environment, prefix: PREFIX, is_list })?;
        settings.in_profile(profile).check()
    }

    fn in_profile(mut self, profile: Profile) -> Self {
        let production = profile == Profile::Production;
        if self.server.listen.is_empty() {
            let listen = if production { "0.0.0.0:8080" } else { "127.0.0.1:8080" };
            self.server.listen = vec![listen.to_owned()];
        }
        self.server.drain_delay.get_or_insert(Duration::from_secs(if production { 5 } else { 0 }));
        self.server.drain_timeout.get_or_insert(Duration::from_secs(30));
        if self.upstreams.is_empty() {
            let backend = UpstreamSettings {
                addresses: vec!["127.0.0.1:8090".to_owned()],
                health: String::new(),
                protocol: UpstreamProtocol::default(),
                tls: None,
            };
            self.upstreams.insert("backend".to_owned(), backend);
        }
        self
    }

    fn check(self) -> anyhow::Result<Self> {
        self.telemetry.check()?;
        for listen in &self.server.listen {
            check_listen("server.listen", listen)?;
        }
        check_listen("admin.listen", &self.admin.listen)?;
        check_path("policy.file", &self.policy.file)?;
        check_path("state.dir", &self.state.dir)?;
        check_path("secrets.dir", &self.secrets.dir)?;
        check_log("log.access", &self.log.access)?;
        check_log("log.audit", &self.log.audit)?;
        if !self.redis.url.is_empty() {
            RedisAddress::parse(&self.redis.url, None, None).context("redis.url")?;
        }
        if self.server.threads > MOST_THREADS {
            bail!("server.threads: at most {MOST_THREADS} (got {})", self.server.threads);
        }
        let TlsSettings { certificate, key, client_ca } = &self.server.tls;
        if certificate.is_empty() != key.is_empty() {
            bail!("server.tls: certificate and key, both or none");
        }
        if certificate.is_empty() && !client_ca.is_empty() {
            bail!("server.tls.client_ca: needs certificate and key");
        }
        for (name, upstream) in &self.upstreams {
            if upstream.addresses.is_empty() {
                bail!("upstreams.{name}.addresses: at least one HOST:PORT or unix:PATH");
            }
            for address in &upstream.addresses {
                Address::parse(address).with_context(|| format!("upstreams.{name}.addresses"))?;
            }
            Health::parse(&upstream.health).with_context(|| format!("upstreams.{name}.health"))?;
            let tls = upstream.tls.as_ref();
            if tls.is_some_and(|tls| tls.certificate.is_empty() != tls.key.is_empty()) {
                bail!("upstreams.{name}.tls: certificate and key, both or none");
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_shipped_file_parses_and_the_environment_overrides_it() {
        let shipped = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/gateway.toml"));
        let over = environment(&[
            ("PALISADE_GATEWAY__SERVER__LISTEN", "127.0.0.1:1, 127.0.0.1:2"),
            ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__ADDRESSES", "127.0.0.1:3"),
            ("PALISADE_GATEWAY__REDIS__URL", "redis://127.0.0.1:4"),
        ]);
        let settings = Settings::load(Some(shipped), &over, Profile::Development).unwrap();
        assert_eq!(settings.server.listen, ["127.0.0.1:1", "127.0.0.1:2"]);
        assert_eq!(settings.upstreams["backend"].addresses, ["127.0.0.1:3"]);
        assert_eq!(settings.redis.url, "redis://127.0.0.1:4");
    }

    #[test]
    fn an_empty_address_is_an_error_and_no_default() {
        for text in ["", "127.0.0.1:1,"] {
            let over = environment(&[("PALISADE_GATEWAY__SERVER__LISTEN", text)]);
            let error = Settings::load(None, &over, Profile::Production).unwrap_err().to_string();
            assert!(error.starts_with("server.listen: expected HOST:PORT"), "{text:?}: {error}");
        }
    }

    #[test]
    fn no_file_at_all_is_fine_and_the_profile_counts() {
        let load = |profile| Settings::load(None, &environment(&[]), profile).unwrap();
        assert_eq!(load(Profile::Development).server.listen, ["127.0.0.1:8080"]);
        assert_eq!(load(Profile::Production).server.listen, ["0.0.0.0:8080"]);
        assert_eq!(load(Profile::Production).server.drain_delay, Some(Duration::from_secs(5)));
    }

    #[test]
    fn an_unknown_key_names_the_nearest_one() {
        let over = environment(&[("PALISADE_GATEWAY__REDIS__URI", "x")]);
        let error = Settings::load(None, &over, Profile::Testing).unwrap_err().to_string();
        assert!(error.starts_with("PALISADE_GATEWAY__REDIS__URI: unknown field `uri`"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "[server]\nlisen = [\"a\"]\n").unwrap();
        let error =
            Settings::load(Some(file.path()), &environment(&[]), Profile::Testing).unwrap_err().to_string();
        assert!(
            error.contains(":2:1: unknown field `lisen`") && error.ends_with("did you mean `listen`?"),
            "{error}"
        );
    }
}
