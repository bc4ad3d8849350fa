//! A steady load from many clients on keep-alive connections, spread over the gateways that say that they are ready, as
//! a balancer would.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::client::ask_on;
use crate::eventually;

/// One request: when it was sent, how long it took, and its answer's status; 0: none.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was sent.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// The status.
    pub status: u16,
}

/// A load that continues until [`Load::finish`].
pub struct Load {
    end: watch::Sender<bool>,
    clients: Vec<JoinHandle<Vec<Sample>>>,
    done: Arc<AtomicUsize>,
}

/// The address that the load comes from, which is nobody else's.
const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 8, 8)), 0);

/// Nobody waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

impl Load {
    /// GET of `path` from `clients` clients, each so often a second, at any of `gateways`.
    pub fn start(
        gateways: &watch::Receiver<Vec<SocketAddr>>,
        path: &str,
        clients: usize,
        per_second: u64,
    ) -> Self {
        let (end, ending) = watch::channel(false);
        let done = Arc::<AtomicUsize>::default();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let client = |number| {
            let (gateways, request, done) = (gateways.clone(), request.clone(), Arc::clone(&done));
            let client = Client { gateways, number, stream: None, request, done };
            tokio::spawn(client.go(per_second, ending.clone()))
        };
        Self { end, clients: (0..clients).map(client).collect(), done }
    }

    /// Waits until so many more requests are over.
    pub async fn continues(&self, requests: usize) {
        let until = self.done.load(Ordering::Relaxed) + requests;
        eventually(&format!("{requests} requests more"), || async {
            self.done.load(Ordering::Relaxed) >= until
        })
        .await;
    }

    /// Ends it; every request, by the time it was sent.
    pub async fn finish(self) -> Vec<Sample> {
        self.end.send_replace(true);
        let mut samples = Vec::new();
        for client in self.clients {
            samples.extend(client.await.unwrap());
        }
        samples.sort_by_key(|sample| sample.at);
        samples
    }
}

/// How many requests had which status.
pub fn count(samples: &[Sample]) -> BTreeMap<u16, usize> {
    samples.iter().fold(BTreeMap::new(), |mut counts, sample| {
        *counts.entry(sample.status).or_default() += 1;
        counts
    })
}

/// The time below which `share` of the requests stay; none: no time.
pub fn quantile(samples: &[Sample], share: f64) -> Duration {
    percentile(samples.iter().map(|sample| sample.took).collect(), share)
}

/// The time that no more than `share` of these are below.
pub fn percentile(mut times: Vec<Duration>, share: f64) -> Duration {
    times.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let place = (times.len().saturating_sub(1) as f64 * share).ceil() as usize;
    times.get(place).copied().unwrap_or_default()
}

struct Client {
    gateways: watch::Receiver<Vec<SocketAddr>>,
    number: usize,
    stream: Option<TcpStream>,
    request: String,
    done: Arc<AtomicUsize>,
}

impl Client {
    async fn go(mut self, per_second: u64, ending: watch::Receiver<bool>) -> Vec<Sample> {
        let mut samples = Vec::new();
        let mut beat = interval(Duration::from_nanos(1_000_000_000 / per_second));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*ending.borrow() {
            beat.tick().await;
            let at = Instant::now();
            let answer = tokio::time::timeout(PATIENCE, self.ask()).await;
            let status = answer.ok().and_then(Result::ok).unwrap_or(0);
            if status == 0 {
                self.stream = None;
            }
            samples.push(Sample { at, took: at.elapsed(), status });
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        samples
    }

    async fn ask(&mut self) -> anyhow::Result<u16> {
        if self.stream.is_none() {
            let gateway = {
                let gateways = self.gateways.borrow();
                self.number += 1;
                anyhow::ensure!(!gateways.is_empty(), "no gateway is ready");
                gateways[self.number % gateways.len()]
            };
            let socket = TcpSocket::new_v4()?;
            socket.bind(HERE)?;
            self.stream = Some(socket.connect(gateway).await?);
        }
        let Some(stream) = &mut self.stream else { unreachable!("connected above") };
        let (status, ends) = ask_on(stream, self.request.as_bytes()).await?;
        if ends {
            self.stream = None;
        }
        Ok(status)
    }
}
