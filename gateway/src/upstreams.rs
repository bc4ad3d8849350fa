//! Where requests go: each upstream's addresses, taken in turn.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use pingora_core::upstreams::peer::HttpPeer;

use crate::fetch::{Address, Fetch};
use crate::settings::UpstreamSettings;

/// For making a connection to an upstream.
const CONNECT: Duration = Duration::from_secs(3);

/// An unused connection to an upstream is kept for so long.
const KEEP: Duration = Duration::from_mins(1);

/// Every upstream by name; cheap to clone.
#[derive(Clone)]
pub struct Upstreams(Arc<BTreeMap<String, Upstream>>);

struct Upstream {
    addresses: Vec<(Address, Fetch)>,
    health: String,
    next: AtomicUsize,
}

impl Upstreams {
    /// The upstreams of the settings.
    pub fn new(settings: &BTreeMap<String, UpstreamSettings>) -> anyhow::Result<Self> {
        let mut upstreams = BTreeMap::new();
        for (name, upstream) in settings {
            let parse =
                |text: &String| Address::parse(text).map(|address| (address.clone(), Fetch::of(&address)));
            let addresses = upstream.addresses.iter().map(parse).collect::<anyhow::Result<Vec<_>>>();
            let addresses = addresses.with_context(|| format!("upstreams.{name}.addresses"))?;
            let upstream = Upstream { addresses, health: upstream.health.clone(), next: AtomicUsize::new(0) };
            upstreams.insert(name.clone(), upstream);
        }
        Ok(Self(Arc::new(upstreams)))
    }

    /// The names, for the policy to refer to.
    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn pick(&self, name: &str) -> anyhow::Result<&(Address, Fetch)> {
        let upstream = self.0.get(name).ok_or_else(|| anyhow!("no upstream is called `{name}`"))?;
        let turn = upstream.next.fetch_add(1, Ordering::Relaxed);
        Ok(&upstream.addresses[turn % upstream.addresses.len()])
    }

    /// A client of the next address.
    pub fn fetch(&self, name: &str) -> anyhow::Result<&Fetch> {
        self.pick(name).map(|(_, fetch)| fetch)
    }

    /// The next address, for pingora; it must answer within `patience`.
    pub async fn peer(&self, name: &str, patience: Duration) -> anyhow::Result<HttpPeer> {
        let mut peer = match &self.pick(name)?.0 {
            Address::Unix(path) => {
                let path = path.to_str().context("a socket's path is UTF-8")?;
                HttpPeer::new_uds(path, false, String::new()).map_err(|error| anyhow!("{error}"))?
            }
            Address::Tcp(address) => {
                // Numbers need no look-up; a name is looked up each time, as its address may change.
                let address = match address.parse() {
                    Ok(address) => address,
                    Err(_) => resolve(address.clone()).await?,
                };
                HttpPeer::new(address, false, String::new())
            }
        };
        peer.options.connection_timeout = Some(CONNECT.min(patience));
        peer.options.total_connection_timeout = Some(CONNECT.min(patience));
        peer.options.read_timeout = Some(patience);
        peer.options.write_timeout = Some(patience);
        peer.options.idle_timeout = Some(KEEP);
        Ok(peer)
    }

    /// What each upstream says of its health, and how long it took to say so.
    pub async fn health(&self) -> Vec<(&str, Result<(), String>, Duration)> {
        let mut checks = Vec::new();
        for (name, upstream) in self.0.iter() {
            let started = std::time::Instant::now();
            let asked = upstream.addresses[0].1.get(&upstream.health, Duration::from_secs(1)).await;
            checks.push((
                name.as_str(),
                asked.map(drop).map_err(|error| format!("{error:#}")),
                started.elapsed(),
            ));
        }
        checks
    }
}

async fn resolve(address: String) -> anyhow::Result<std::net::SocketAddr> {
    let looked_up =
        tokio::task::spawn_blocking(move || address.to_socket_addrs().map(|mut all| all.next())).await??;
    looked_up.context("the upstream's name has no address")
}
