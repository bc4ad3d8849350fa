//! The gateway's own questions over HTTP: key sets, permissions, changes, health. Over TCP or a Unix socket, with a
//! bound on time and size.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
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
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The largest answer that is read.
const LARGEST: usize = 1 << 20;

/// For making a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`
    Tcp(String),
    /// `unix:PATH`
    Unix(PathBuf),
}

impl Address {
    /// Reads `HOST:PORT` or `unix:PATH`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        match port {
            Some(_) => Ok(Self::Tcp(text.to_owned())),
            None => bail!("HOST:PORT or unix:PATH (got {text:?})"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A client with connections to one place.
#[derive(Clone)]
pub struct Fetch {
    client: Client<Dial, Full<Bytes>>,
    base: String,
}

impl Fetch {
    /// A client of the service at `address`.
    pub fn of(address: &Address) -> Self {
        let (dial, host) = match address {
            Address::Tcp(host) => (Dial { unix: None }, host.clone()),
            Address::Unix(path) => (Dial { unix: Some(path.clone()) }, "localhost".to_owned()),
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(dial);
        Self { client, base: format!("http://{host}") }
    }

    /// A client of whatever `http://…` addresses it is asked for.
    pub fn anywhere() -> Self {
        Self { base: String::new(), ..Self::of(&Address::Tcp(String::new())) }
    }

    /// Asks; `target` is a path, or an address for a client of anywhere.
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
            let (parts, body) = self.client.request(request).await?.into_parts();
            let body = Limited::new(body, LARGEST).collect().await.map_err(|error| anyhow::anyhow!(error))?;
            anyhow::Ok(Response::from_parts(parts, body.to_bytes()))
        };
        tokio::time::timeout(patience, exchange).await.context("no answer in time")?
    }

    /// The body of a 200.
    pub async fn get(&self, target: &str, patience: Duration) -> anyhow::Result<Bytes> {
        let answer = self.send(Request::builder().method("GET"), target, Vec::new(), patience).await?;
        if answer.status() != http::StatusCode::OK {
            bail!("status {}", answer.status().as_u16());
        }
        Ok(answer.into_body())
    }
}

/// TLS with the machine's certificate authorities, read when it is first needed.
fn tls() -> io::Result<&'static Arc<ClientConfig>> {
    static TLS: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = TLS.get() {
        return Ok(config);
    }
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(io::Error::other("this machine has no certificate authorities: install ca-certificates"));
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(TLS.get_or_init(|| Arc::new(config)))
}

/// Makes connections.
#[derive(Clone)]
struct Dial {
    unix: Option<PathBuf>,
}

impl tower_service::Service<Uri> for Dial {
    type Response = Socket;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Socket>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let unix = self.unix.clone();
        let connect = async move {
            if let Some(path) = unix {
                return Ok(Socket(TokioIo::new(Box::new(UnixStream::connect(path).await?))));
            }
            let host = uri.host().ok_or(io::ErrorKind::InvalidInput)?.trim_matches(['[', ']']);
            let secure = match uri.scheme_str() {
                Some("http") => false,
                Some("https") => true,
                _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "an http or https address")),
            };
            let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
            let socket = TcpStream::connect((host, port)).await?;
            socket.set_nodelay(true)?;
            if !secure {
                return Ok(Socket(TokioIo::new(Box::new(socket))));
            }
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let connector = TlsConnector::from(Arc::clone(tls()?));
            Ok(Socket(TokioIo::new(Box::new(connector.connect(name, socket).await?))))
        };
        Box::pin(async move {
            tokio::time::timeout(CONNECT, connect)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        })
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// TCP or Unix, for hyper.
struct Socket(TokioIo<Box<dyn Duplex>>);

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
