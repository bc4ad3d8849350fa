//! Many requests on keep-alive connections: what was answered, and how long the slowest took.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};

use crate::client::ask_on;

/// What came of hammering.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answers by status; 0: no answer.
    pub statuses: BTreeMap<u16, u64>,
    /// The slowest answer.
    pub slowest: Duration,
}

impl Tally {
    /// Answers with `status`.
    pub fn of(&self, status: u16) -> u64 {
        self.statuses.get(&status).copied().unwrap_or(0)
    }

    fn add(&mut self, status: u16, took: Duration) {
        *self.statuses.entry(status).or_default() += 1;
        self.slowest = self.slowest.max(took);
    }

    /// Both together.
    pub fn merge(&mut self, other: &Self) {
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Asks each of `gateways` for `path` on `connections` connections, one request after the other, for `time`.
pub async fn hammer(gateways: &[SocketAddr], connections: usize, path: &str, time: Duration) -> Tally {
    let until = Instant::now() + time;
    let tasks: Vec<_> = gateways
        .iter()
        .flat_map(|gateway| std::iter::repeat_n(*gateway, connections))
        .map(|gateway| {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            tokio::spawn(async move {
                let (mut tally, mut stream) = (Tally::default(), None);
                while Instant::now() < until {
                    let asked = Instant::now();
                    let status = ask(&mut stream, gateway, request.as_bytes()).await.unwrap_or(0);
                    if status == 0 {
                        stream = None;
                    }
                    tally.add(status, asked.elapsed());
                }
                tally
            })
        })
        .collect();
    let mut all = Tally::default();
    for task in tasks {
        all.merge(&task.await.unwrap());
    }
    all
}

async fn ask(stream: &mut Option<TcpStream>, gateway: SocketAddr, request: &[u8]) -> anyhow::Result<u16> {
    let stream = match stream {
        Some(stream) => stream,
        None => stream.insert(TcpSocket::new_v4()?.connect(gateway).await?),
    };
    Ok(ask_on(stream, request).await?.0)
}
