//! An upstream whose answers a test writes byte by byte, and a policy that lets everything through to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::PATIENCE;
use crate::stack::Gateway;

/// A policy that lets everything through.
pub const OPEN: &str = r#"
version = 1
[requests]
max_body = "1GB"
[[routes]]
name = "all"
path = "/{*rest}"
upstream = "backend"
"#;

/// The upstream is spoken to over HTTP/2.
pub const HTTP2: (&str, &str) = ("PALISADE_GATEWAY__UPSTREAMS__BACKEND__PROTOCOL", "http2");

/// With one thread a connection to the upstream is back in its pool before anybody can ask again.
pub const ONE_THREAD: (&str, &str) = ("PALISADE_GATEWAY__SERVER__THREADS", "1");

/// An upstream that answers `/N` with the N-th of these, `/N/apart` a byte a segment. An answer that ends with
/// [`CLOSE`] ends the connection; the others do not.
pub struct Answers {
    /// Where it listens.
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

/// The end of an answer that ends its connection.
pub const CLOSE: u8 = 0xff;

impl Answers {
    /// Starts one.
    pub async fn start(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, answers) = (listener.local_addr().unwrap(), Arc::new(answers));
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(Self::serve(stream, Arc::clone(&answers)));
            }
        });
        Self { address, connections }
    }

    async fn serve(stream: TcpStream, answers: Arc<Vec<Vec<u8>>>) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            while line.trim_end() != "" {
                line.clear();
                stream.read_line(&mut line).await?;
            }
            let number: usize = path.split('/').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0);
            let answer = &answers[number];
            let bytes = answer.strip_suffix(&[CLOSE]).unwrap_or(answer);
            for piece in bytes.chunks(if path.ends_with("apart") { 1 } else { bytes.len().max(1) }) {
                stream.get_mut().write_all(piece).await?;
            }
            if bytes.len() < answer.len() {
                return Ok(());
            }
        }
    }

    /// A gateway before it.
    pub async fn gateway(&self) -> Gateway {
        Gateway::start(self.address, OPEN, &[("PALISADE_GATEWAY__LOG__ACCESS", "off"), ONE_THREAD]).await
    }

    /// How many connections it has taken so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// All that a client gets for a request that ends its connection.
pub async fn ask(gateway: &Gateway, method: &str, path: &str) -> String {
    let mut stream = gateway.client().connect().await;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let _ = read.expect("it is closed"); // a reset is an end, too
    String::from_utf8_lossy(&bytes).into_owned()
}
