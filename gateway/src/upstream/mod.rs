//! Upstreams: the addresses of each one, balanced and checked.
//!
//! A name may have several addresses. Each is treated like an address in the settings: balanced, checked and ejected by
//! itself.

pub mod address_pool;
pub mod connection;
pub mod fault;
pub mod http_client;
pub mod probe;
pub mod resolver;
pub mod transport;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use parking_lot::Mutex;
use pingora_core::upstreams::peer::HttpPeer;
use smallvec::SmallVec;
use tracing::{debug, warn};

use crate::clock;
use crate::config::address::Address;
use crate::config::health::Health;
use crate::config::settings::UpstreamSettings;
use crate::observe::metrics::Metrics;
use crate::upstream::address_pool::{AddressPool, Member};
use crate::upstream::http_client::{Destination, HttpClient, is_unreachable};
use crate::upstream::resolver::{LookUp, Name};
use crate::upstream::transport::Transport;

/// The timeout for making a connection to an upstream.
const CONNECT: Duration = Duration::from_secs(3);

/// How long an unused connection to an upstream stays open.
const KEEP: Duration = Duration::from_mins(1);

/// How often the health of addresses is checked, and the timeout of one check.
const CHECK_EVERY: Duration = Duration::from_secs(2);
const CHECK: Duration = Duration::from_secs(1);

/// The addresses that one request has tried.
pub type TriedAddresses = SmallVec<[Member; 4]>;

/// An address of an upstream that was selected for a request.
pub type Selection = address_pool::Selection<Arc<Endpoint>>;

/// Every upstream by name; cheap to clone.
#[derive(Clone)]
pub struct Upstreams {
    all: Arc<BTreeMap<String, Upstream>>,
    metrics: Metrics,
}

/// One address: where to connect, and its name in the settings.
pub struct Endpoint {
    destination: Destination,
    named: Arc<str>,
    http_client: HttpClient,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.destination.fmt(f)
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        self.destination == other.destination && self.named == other.named
    }
}

struct Upstream {
    /// Addresses that the settings give directly, not by name.
    fixed: Vec<Arc<Endpoint>>,
    names: Vec<Arc<Name>>,
    /// The addresses of the names when the pool was last set.
    meant: Mutex<Vec<Arc<[std::net::SocketAddr]>>>,
    pool: Arc<AddressPool<Arc<Endpoint>>>,
    health: Health,
    transport: Arc<Transport>,
}

impl Upstream {
    fn new(
        name: &str,
        settings: &UpstreamSettings,
        metrics: &Metrics,
        look_up: &LookUp,
    ) -> anyhow::Result<Self> {
        let transport = Transport::load(name, settings, metrics)?;
        let setting = || format!("upstreams.{name}.addresses");
        let (mut fixed, mut names) = (Vec::new(), Vec::new());
        for text in &settings.addresses {
            let endpoint = |destination: Destination, host: &str| {
                let http_client = HttpClient::at(destination.clone(), host, Arc::clone(&transport));
                Arc::new(Endpoint { destination, named: text.as_str().into(), http_client })
            };
            match Address::parse(text).with_context(setting)? {
                Address::Unix(path) => fixed.push(endpoint(Destination::Unix(path), "localhost")),
                Address::Tcp(host) => {
                    transport.check_name(&host).with_context(setting)?;
                    match host.parse() {
                        Ok(address) => fixed.push(endpoint(Destination::Tcp(address), &host)),
                        Err(_) => names.push(Name::new(host, Arc::clone(look_up))),
                    }
                }
            }
        }
        let health = Health::parse(&settings.health).with_context(|| format!("upstreams.{name}.health"))?;
        let pool = AddressPool::new();
        pool.set(&fixed);
        Ok(Self { fixed, names, meant: Mutex::default(), pool, health, transport })
    }

    /// Looks up names whose addresses are too old to be used. An error when no address is left.
    async fn refresh(&self) -> anyhow::Result<()> {
        if self.names.is_empty() {
            return Ok(());
        }
        let mut fault = None;
        let mut meant = Vec::with_capacity(self.names.len());
        for addresses in join_all(self.names.iter().map(Name::addresses)).await {
            meant.push(addresses.unwrap_or_else(|error| {
                fault = Some(error);
                Arc::default()
            }));
        }
        let mut before = self.meant.lock();
        if *before != meant {
            let named = self.names.iter().zip(&meant).flat_map(|(name, addresses)| {
                addresses.iter().map(|address| {
                    let (destination, named) = (Destination::Tcp(*address), Arc::<str>::from(name.as_str()));
                    let http_client =
                        HttpClient::at(destination.clone(), &named, Arc::clone(&self.transport));
                    Arc::new(Endpoint { destination, named, http_client })
                })
            });
            self.pool.set(&self.fixed.iter().cloned().chain(named).collect::<Vec<_>>());
            *before = meant;
        }
        let nothing_is_left = self.fixed.is_empty() && before.iter().all(|addresses| addresses.is_empty());
        drop(before);
        fault.filter(|_| nothing_is_left).map_or(Ok(()), Err)
    }

    fn peer(&self, endpoint: &Endpoint, patience: Duration) -> anyhow::Result<HttpPeer> {
        let mut peer = match &endpoint.destination {
            Destination::Unix(path) => self.transport.unix_peer(path)?,
            Destination::Tcp(address) => self.transport.peer(*address, &endpoint.named),
        };
        peer.options.connection_timeout = Some(CONNECT.min(patience));
        peer.options.total_connection_timeout = Some(CONNECT.min(patience));
        peer.options.idle_timeout = Some(KEEP);
        Ok(peer)
    }
}

/// One address of an upstream, for an operator.
#[derive(Debug, serde::Serialize)]
pub struct AddressState {
    upstream: String,
    /// Its name in the settings.
    address: String,
    /// The address that it resolves to now.
    resolved: String,
    /// Requests to it that are not finished yet.
    in_flight: u32,
    /// Whether it is ejected: it failed too often, cannot be reached, or its health checks fail.
    left_alone: bool,
}

fn chance() -> [usize; 2] {
    rand::random::<[u16; 2]>().map(usize::from)
}

impl Upstreams {
    /// The upstreams of the settings.
    pub fn new(settings: &BTreeMap<String, UpstreamSettings>, metrics: &Metrics) -> anyhow::Result<Self> {
        Self::looking_up(settings, metrics, &resolver::system())
    }

    fn looking_up(
        settings: &BTreeMap<String, UpstreamSettings>,
        metrics: &Metrics,
        look_up: &LookUp,
    ) -> anyhow::Result<Self> {
        let mut upstreams = BTreeMap::new();
        for (name, upstream) in settings {
            upstreams.insert(name.clone(), Upstream::new(name, upstream, metrics, look_up)?);
        }
        Ok(Self { all: Arc::new(upstreams), metrics: metrics.clone() })
    }

    /// The names, for the policy to refer to.
    pub fn names(&self) -> Vec<String> {
        self.all.keys().cloned().collect()
    }

    fn find(&self, name: &str) -> anyhow::Result<&Upstream> {
        self.all.get(name).ok_or_else(|| anyhow!("no upstream is called `{name}`"))
    }

    /// Sends a request of the gateway itself to an upstream. If an address cannot be reached, the next one is tried.
    pub async fn ask(
        &self,
        name: &str,
        request: http::request::Builder,
        target: &str,
        body: &[u8],
        patience: Duration,
    ) -> anyhow::Result<Response<Bytes>> {
        let upstream = self.find(name)?;
        upstream.refresh().await?;
        let (head, ()) = request.body(())?.into_parts();
        let mut tried = TriedAddresses::new();
        let mut fault = anyhow!("it has no address");
        while let Some(mut selection) = upstream.pool.take(&tried, None, clock::steady(), chance()) {
            let mut request = Request::builder().method(head.method.clone());
            for (name, value) in &head.headers {
                request = request.header(name, value);
            }
            match selection.address().http_client.send(request, target, body.to_vec(), patience).await {
                Ok(answer) => return Ok(answer),
                Err(error) if is_unreachable(&error) => {
                    self.note_unreachable(name, &mut selection, &error);
                    tried.push(selection.member());
                    fault = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(fault)
    }

    /// Selects an address for a request; it must be reached within `patience`. It is none of those that were `tried`,
    /// and not `last` if there is another. `None` when no address is left.
    pub async fn peer(
        &self,
        name: &str,
        patience: Duration,
        tried: &[Member],
        last: Option<Member>,
    ) -> anyhow::Result<Option<(HttpPeer, Selection)>> {
        let upstream = self.find(name)?;
        upstream.refresh().await?;
        let Some(selection) = upstream.pool.take(tried, last, clock::steady(), chance()) else {
            return Ok(None);
        };
        Ok(Some((upstream.peer(selection.address(), patience)?, selection)))
    }

    /// Checks the health of addresses, forever, for upstreams with several addresses and a health check in the
    /// settings.
    pub async fn keep_checking(self) {
        loop {
            tokio::time::sleep(CHECK_EVERY).await;
            for (name, upstream) in self.all.iter().filter(|(_, upstream)| upstream.health.asks()) {
                let _ = upstream.refresh().await; // it logs its faults itself
                let members = upstream.pool.members();
                for (member, endpoint) in members.iter().filter(|_| members.len() > 1) {
                    let well = probe::ask(&upstream.health, &endpoint.http_client, CHECK).await.is_ok();
                    if upstream.pool.checked(*member, well, clock::steady()) {
                        warn!(upstream = name, address = %endpoint, well, "an address changed its health");
                    }
                }
            }
        }
    }

    /// The addresses of the upstreams.
    pub fn describe(&self) -> Vec<AddressState> {
        let now = clock::steady();
        let mut all = Vec::new();
        for (name, upstream) in self.all.iter() {
            for (endpoint, in_flight, left_alone) in upstream.pool.describe(now) {
                let (address, resolved) = (endpoint.named.to_string(), endpoint.to_string());
                all.push(AddressState { upstream: name.clone(), address, resolved, in_flight, left_alone });
            }
        }
        all
    }

    /// The health of each upstream: that of its first healthy address, or the last error, and how long the check took.
    pub async fn health(&self) -> Vec<(&str, Result<(), String>, Duration)> {
        let mut checks = Vec::new();
        for (name, upstream) in self.all.iter() {
            let started = Instant::now();
            let refreshed = upstream.refresh().await;
            let mut health = refreshed.map_err(|error| format!("{error:#}"));
            for (_, endpoint) in upstream.pool.members() {
                let asked = probe::ask(&upstream.health, &endpoint.http_client, CHECK).await;
                health = asked.map_err(|error| format!("{error:#}"));
                if health.is_ok() {
                    break;
                }
            }
            checks.push((name.as_str(), health, started.elapsed()));
        }
        checks
    }

    /// Notes that no connection can be made to the address of `selection`. The log says when it is ejected because of
    /// that.
    pub fn note_unreachable(&self, name: &str, selection: &mut Selection, fault: &dyn std::fmt::Display) {
        self.metrics.connect_failures.with_label_values(&[name]).inc();
        let ejected = selection.unreachable(clock::steady());
        let address = Arc::clone(selection.address());
        if let Some(lasts) = ejected {
            let secs = lasts.as_secs();
            warn!(upstream = name, %address, %fault, ejected_for_secs = secs, "an address that cannot be reached is ejected");
        } else {
            debug!(upstream = name, %address, %fault, "an address cannot be reached");
        }
    }
}
