//! The HTTP client for the gateway's own requests: key sets, permissions, changes, health. It connects over TCP or a
//! Unix socket, and bounds time and size.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::config::address::Address;
use crate::upstream::transport::{PING, Transport};

/// The largest answer that is read.
const LARGEST: usize = 1 << 20;

/// The timeout for making a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// Where connections are made to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// An address over TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A client with connections to one destination.
#[derive(Clone)]
pub struct HttpClient {
    dial: Dial,
    base: String,
    /// The client with its connections, and the group of the transport with which they were made.
    pool: Arc<ArcSwap<Pool>>,
}

type Pool = (u64, Client<Dial, Full<Bytes>>);

impl HttpClient {
    /// A client of the service at `address`, whose name is looked up for each connection.
    pub fn of(address: &Address, transport: Arc<Transport>) -> Self {
        match address {
            Address::Tcp(host) => Self::dialling(None, host, transport),
            Address::Unix(path) => Self::at(Destination::Unix(path.clone()), "localhost", transport),
        }
    }

    /// A client of the service at `destination`, whose name is `host`.
    pub fn at(destination: Destination, host: &str, transport: Arc<Transport>) -> Self {
        Self::dialling(Some(destination), host, transport)
    }

    fn dialling(destination: Option<Destination>, host: &str, transport: Arc<Transport>) -> Self {
        let base = format!("{}://{host}", transport.scheme());
        let dial = Dial { destination, transport };
        Self { base, pool: Arc::new(ArcSwap::from_pointee(dial.pool())), dial }
    }

    /// Makes a connection and sends nothing.
    pub async fn connect(&self, patience: Duration) -> anyhow::Result<()> {
        let connect = self.dial.clone().dial(self.base.parse()?);
        tokio::time::timeout(patience, connect).await.context("no connection in time")??;
        Ok(())
    }

    /// The client. All its connections were made with the certificate files in force.
    fn client(&self) -> Client<Dial, Full<Bytes>> {
        if self.pool.load().0 != self.dial.transport.group() {
            self.pool.store(Arc::new(self.dial.pool()));
        }
        self.pool.load().1.clone()
    }

    /// A client of any `http://…` and `https://…` address.
    pub fn anywhere() -> Self {
        Self { base: String::new(), ..Self::of(&Address::Tcp(String::new()), Arc::default()) }
    }

    /// Sends a request. `target` is a path, or a whole address for a client made by [`HttpClient::anywhere`].
    pub async fn send(
        &self,
        request: http::request::Builder,
        target: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> anyhow::Result<Response<Bytes>> {
        let request: Request<Full<Bytes>> =
            request.uri(format!("{}{target}", self.base)).body(body.into())?;
        let exchange = async {
            let (parts, body) = self.client().request(request).await?.into_parts();
            let body = Limited::new(body, LARGEST).collect().await.map_err(|error| anyhow::anyhow!(error))?;
            anyhow::Ok(Response::from_parts(parts, body.to_bytes()))
        };
        tokio::time::timeout(patience, exchange).await.context("no answer in time")?
    }

    /// The body of a 200. Any other status is an error.
    pub async fn get(&self, target: &str, patience: Duration) -> anyhow::Result<Bytes> {
        let answer = self.send(Request::builder().method("GET"), target, Vec::new(), patience).await?;
        if answer.status() != http::StatusCode::OK {
            bail!("status {}", answer.status().as_u16());
        }
        Ok(answer.into_body())
    }
}

/// Whether `error` means that no connection could be made, so nothing was sent.
pub fn is_unreachable(error: &anyhow::Error) -> bool {
    let client = error.downcast_ref::<hyper_util::client::legacy::Error>();
    client.is_some_and(hyper_util::client::legacy::Error::is_connect)
}

/// Makes connections.
#[derive(Clone)]
struct Dial {
    /// `None`: the destination is in the address of each request.
    destination: Option<Destination>,
    transport: Arc<Transport>,
}

impl Dial {
    fn pool(&self) -> Pool {
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .http2_only(self.transport.speaks_http2_alone())
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(CONNECT)
            .http2_keep_alive_while_idle(true)
            .build(self.clone());
        (self.transport.group(), client)
    }

    async fn dial(self, uri: Uri) -> io::Result<Socket> {
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "an http or https address")),
        };
        let host = uri.host().ok_or(io::ErrorKind::InvalidInput)?.trim_matches(['[', ']']);
        let over_tcp = |socket: TcpStream| {
            socket.set_nodelay(true)?;
            io::Result::Ok(Box::new(socket) as Box<dyn Duplex>)
        };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let socket: Box<dyn Duplex> = match self.destination {
            Some(Destination::Unix(path)) => Box::new(UnixStream::connect(path).await?),
            Some(Destination::Tcp(address)) => over_tcp(TcpStream::connect(address).await?)?,
            None => over_tcp(TcpStream::connect((host, port)).await?)?,
        };
        if !secure {
            return Ok(Socket { stream: TokioIo::new(socket), is_http2: false });
        }
        let (config, name) = self.transport.tls_to(host)?;
        let stream = TlsConnector::from(config).connect(name, socket).await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Socket { stream: TokioIo::new(Box::new(stream)), is_http2 })
    }
}

impl tower_service::Service<Uri> for Dial {
    type Response = Socket;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Socket>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connect = self.clone().dial(uri);
        Box::pin(async move {
            tokio::time::timeout(CONNECT, connect)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        })
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// TCP or Unix, with TLS or without, for hyper.
struct Socket {
    stream: TokioIo<Box<dyn Duplex>>,
    is_http2: bool,
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        if self.is_http2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
