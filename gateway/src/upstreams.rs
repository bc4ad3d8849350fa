//! Where requests go: each upstream's addresses, balanced and checked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora_core::upstreams::peer::HttpPeer;
use tracing::warn;

use crate::balance::{Fleet, Turn};
use crate::clock;
use crate::fetch::{Address, Fetch};
use crate::observe::metrics::Metrics;
use crate::probe::Health;
use crate::settings::UpstreamSettings;
use crate::transport::Transport;

/// For making a connection to an upstream.
const CONNECT: Duration = Duration::from_secs(3);

/// An unused connection to an upstream is kept for so long.
const KEEP: Duration = Duration::from_mins(1);

/// A name is looked up anew after this time, in the background: its addresses may change.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);

/// For looking up a name that has no known address yet.
const LOOK_UP: Duration = Duration::from_secs(2);

/// How often addresses are asked how they are, and for how long each may think about it.
const CHECK_EVERY: Duration = Duration::from_secs(2);
const CHECK: Duration = Duration::from_secs(1);

/// Every upstream by name; cheap to clone.
#[derive(Clone)]
pub struct Upstreams(Arc<BTreeMap<String, Upstream>>);

struct Upstream {
    addresses: Vec<(Address, Fetch, Arc<Found>)>,
    fleet: Arc<Fleet>,
    health: Health,
    transport: Arc<Transport>,
}

/// What a name was found to mean, and when it was looked up.
#[derive(Default)]
struct Found {
    addresses: ArcSwap<Vec<SocketAddr>>,
    looked_up: Mutex<Option<Instant>>,
    next: AtomicUsize,
}

impl Found {
    /// The next address of `name`. Only the first request waits for a look-up.
    async fn next(self: &Arc<Self>, name: &str) -> anyhow::Result<SocketAddr> {
        let known = self.addresses.load_full();
        let stale = || self.looked_up.lock().is_none_or(|at| at.elapsed() > LOOK_UP_EVERY);
        let known = if known.is_empty() {
            tokio::time::timeout(LOOK_UP, self.look_up(name.to_owned()))
                .await
                .context("no answer in time")??;
            self.addresses.load_full()
        } else {
            if stale() {
                *self.looked_up.lock() = Some(Instant::now()); // one look-up at a time
                let (found, name) = (Arc::clone(self), name.to_owned());
                tokio::spawn(async move {
                    if let Err(error) = found.look_up(name.clone()).await {
                        warn!(
                            name,
                            error = format!("{error:#}"),
                            "cannot be looked up: its last addresses serve"
                        );
                    }
                });
            }
            known
        };
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        known.get(turn % known.len().max(1)).copied().context("the upstream's name has no address")
    }

    async fn look_up(&self, name: String) -> anyhow::Result<()> {
        let found: Vec<_> = tokio::net::lookup_host(name).await?.collect();
        *self.looked_up.lock() = Some(Instant::now());
        if !found.is_empty() {
            self.addresses.store(Arc::new(found));
        }
        Ok(())
    }
}

/// One address of an upstream, for an operator.
#[derive(Debug, serde::Serialize)]
pub struct AddressState {
    upstream: String,
    address: String,
    /// Requests to it that are not answered yet.
    in_flight: u32,
    /// Whether it has failed too often, or is not well.
    left_alone: bool,
}

fn chance() -> [usize; 2] {
    rand::random::<[u16; 2]>().map(usize::from)
}

impl Upstreams {
    /// The upstreams of the settings.
    pub fn new(settings: &BTreeMap<String, UpstreamSettings>, metrics: &Metrics) -> anyhow::Result<Self> {
        let mut upstreams = BTreeMap::new();
        for (name, upstream) in settings {
            let transport = Transport::load(name, upstream, metrics)?;
            let parse = |text: &String| {
                let address = Address::parse(text)?;
                if let Address::Tcp(address) = &address {
                    transport.check_name(address)?;
                }
                Ok((address.clone(), Fetch::of(&address, Arc::clone(&transport)), Arc::default()))
            };
            let addresses = upstream.addresses.iter().map(parse).collect::<anyhow::Result<Vec<_>>>();
            let addresses = addresses.with_context(|| format!("upstreams.{name}.addresses"))?;
            let fleet = Fleet::new(addresses.len());
            let health =
                Health::parse(&upstream.health).with_context(|| format!("upstreams.{name}.health"))?;
            let upstream = Upstream { addresses, fleet, health, transport };
            upstreams.insert(name.clone(), upstream);
        }
        Ok(Self(Arc::new(upstreams)))
    }

    /// The names, for the policy to refer to.
    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn find(&self, name: &str) -> anyhow::Result<&Upstream> {
        self.0.get(name).ok_or_else(|| anyhow!("no upstream is called `{name}`"))
    }

    /// A client of one of the addresses.
    pub fn fetch(&self, name: &str) -> anyhow::Result<&Fetch> {
        let upstream = self.find(name)?;
        let turn = upstream.fleet.take(None, clock::now(), chance());
        Ok(&upstream.addresses[turn.member()].1)
    }

    /// An address for a request and the request's turn at it; it must be reached within `patience`. Not `last`, if there
    /// is another.
    pub async fn peer(
        &self,
        name: &str,
        patience: Duration,
        last: Option<usize>,
    ) -> anyhow::Result<(HttpPeer, Turn)> {
        let upstream = self.find(name)?;
        let turn = upstream.fleet.take(last, clock::now(), chance());
        let (address, _, found) = &upstream.addresses[turn.member()];
        let mut peer = match address {
            Address::Unix(path) => upstream.transport.unix_peer(path)?,
            Address::Tcp(host) => {
                // Numbers need no look-up.
                let address = match host.parse() {
                    Ok(address) => address,
                    Err(_) => found.next(host).await?,
                };
                upstream.transport.peer(address, host)
            }
        };
        peer.options.connection_timeout = Some(CONNECT.min(patience));
        peer.options.total_connection_timeout = Some(CONNECT.min(patience));
        peer.options.idle_timeout = Some(KEEP);
        Ok((peer, turn))
    }

    /// Asks the addresses of upstreams that have several how they are, forever.
    pub async fn keep_checking(self) {
        loop {
            tokio::time::sleep(CHECK_EVERY).await;
            for (name, upstream) in self.0.iter().filter(|(_, upstream)| upstream.addresses.len() > 1) {
                for (member, (address, fetch, _)) in upstream.addresses.iter().enumerate() {
                    let well = upstream.health.ask(fetch, CHECK).await.is_ok();
                    if upstream.fleet.checked(member, well, clock::now()) {
                        warn!(upstream = name, %address, well, "an address changed its health");
                    }
                }
            }
        }
    }

    /// The addresses of the upstreams.
    pub fn describe(&self) -> Vec<AddressState> {
        let now = clock::now();
        let mut all = Vec::new();
        for (name, upstream) in self.0.iter() {
            let states = upstream.fleet.describe(now);
            for ((address, ..), (in_flight, left_alone)) in upstream.addresses.iter().zip(states) {
                let (upstream, address) = (name.clone(), address.to_string());
                all.push(AddressState { upstream, address, in_flight, left_alone });
            }
        }
        all
    }

    /// What each upstream says of its health, the first of its addresses that is well, and how long that took.
    pub async fn health(&self) -> Vec<(&str, Result<(), String>, Duration)> {
        let mut checks = Vec::new();
        for (name, upstream) in self.0.iter() {
            let started = Instant::now();
            let mut health = Err("no address".to_owned());
            for (_, fetch, _) in &upstream.addresses {
                let asked = upstream.health.ask(fetch, CHECK).await;
                health = asked.map_err(|error| format!("{error:#}"));
                if health.is_ok() {
                    break;
                }
            }
            checks.push((name.as_str(), health, started.elapsed()));
        }
        checks
    }
}
