//! Accepts connections, reads the header of each request, hands the request over, and enforces the deadlines in
//! between.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use pingora_core::apps::HttpServerApp as _;
use pingora_core::protocols::Ssl as _;
use pingora_core::protocols::http::ServerSession;
use policy::rules::requests::RequestRule;
use policy::rules::response_headers::Channel;
use policy::values::refusal::{Code, Refusal};
use policy::values::stage::Stage;
use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::downstream::connection::Connection;
use crate::downstream::head::{self, Framing, Head};
use crate::downstream::proxy_protocol;
use crate::downstream::socket::Socket;
use crate::engine::Gateway;
use crate::http::problem;
use crate::observe::access::{AccessLog, Line};
use crate::request::Proxy;
use crate::server::connection_counts::ConnectionCounts;
use crate::server::http2::{self, Ended};
use crate::tls::server::Tls;

/// RFC 9113, 3.4: how a client says that it speaks HTTP/2.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// So many new bytes of a header are parsed even if no line ends among them.
const WORTH_A_LOOK: usize = 1024;

/// The most bytes of an answer that the system buffers before it has sent them. Without this bound it would buffer
/// megabytes for each client that does not read, and this memory counts as ours.
const UNSENT: u32 = 128 * 1024;

/// The `Retry-After` for a client with too many connections.
const WHEN_SOME_HAVE_ENDED: Duration = Duration::from_secs(1);

/// How long connections and bytes that the system has received already are still read at shutdown.
const LAST_LOOK: Duration = Duration::from_millis(50);

/// Everything that a connection's task needs.
#[derive(Clone)]
pub struct Acceptor {
    gateway: Arc<Gateway>,
    proxy: Arc<Proxy>,
    connection_counts: ConnectionCounts,
    setup: Arc<ConnectionSetup>,
    shutdown: watch::Receiver<bool>,
    /// Held by every connection; when the last one is dropped, all are done.
    #[expect(dead_code, reason = "it is there to be dropped")]
    open: mpsc::Sender<()>,
}

/// The steps before the first request of a connection.
pub struct ConnectionSetup {
    /// Whether trusted proxies name the client with the PROXY protocol.
    pub proxy_protocol: bool,
    /// TLS, if there is a certificate.
    pub tls: Option<Tls>,
    /// The log of refusals that come before there is a request.
    pub access: AccessLog,
}

/// Who made a connection.
struct Origin {
    peer: SocketAddr,
    /// Whether a balancer made it for its own requests, for example health checks. Such a request has no other client,
    /// whatever its fields say.
    is_balancers_own: bool,
}

impl ConnectionSetup {
    /// Finds out who made the connection: a trusted balancer may name the client.
    async fn name(&self, socket: &mut TcpStream, peer: SocketAddr, trusted: bool) -> io::Result<Origin> {
        if !(self.proxy_protocol && trusted) {
            return Ok(Origin { peer, is_balancers_own: false });
        }
        let named = proxy_protocol::read(socket).await?;
        Ok(Origin { peer: named.unwrap_or(peer), is_balancers_own: named.is_none() })
    }

    async fn secure(&self, socket: TcpStream) -> io::Result<Socket> {
        Ok(match &self.tls {
            None => Socket::Plain(socket),
            Some(tls) => Socket::Tls(Box::new(tls.accept(socket).await?)),
        })
    }
}

impl Acceptor {
    /// An acceptor for `proxy`. The receiver ends when the acceptor and all its connections are gone.
    pub fn new(
        gateway: Arc<Gateway>,
        proxy: Arc<Proxy>,
        setup: ConnectionSetup,
        shutdown: watch::Receiver<bool>,
    ) -> (Self, mpsc::Receiver<()>) {
        let (open, all_done) = mpsc::channel(1);
        (
            Self {
                gateway,
                proxy,
                connection_counts: ConnectionCounts::default(),
                setup: Arc::new(setup),
                shutdown,
                open,
            },
            all_done,
        )
    }

    /// Accepts until shutdown.
    pub async fn listen(self, listener: TcpListener) {
        let mut shutdown = self.shutdown.clone();
        let mut fails = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = shutdown.wait_for(|draining| *draining) => break,
            };
            match accepted {
                Ok((socket, peer)) => {
                    if std::mem::take(&mut fails) {
                        info!("connections are accepted again");
                    }
                    tokio::spawn(self.clone().serve(socket, peer));
                }
                Err(error) => {
                    // The descriptors are used up: accepting again at once would only spin.
                    if !std::mem::replace(&mut fails, true) {
                        warn!(%error, "no connection can be accepted: raise the limit of open files (ulimit -n)");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        // Connections that the system has accepted already are served as well.
        let end = Instant::now() + LAST_LOOK;
        while let Ok(Ok((socket, peer))) = timeout_at(end, listener.accept()).await {
            tokio::spawn(self.clone().serve(socket, peer));
        }
    }

    async fn serve(self, mut socket: TcpStream, peer: SocketAddr) {
        let _ = socket.set_nodelay(true);
        let _ = SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT);
        let policy = self.gateway.policy();
        let requests = policy.rules.requests;
        // The steps before the first header have the deadline of that header.
        let deadline = Instant::now() + requests.header_timeout;
        let trusted = policy.rules.client.trusts(peer.ip().to_canonical());
        let named = timeout_at(deadline, self.setup.name(&mut socket, peer, trusted)).await;
        let Ok(Ok(Origin { peer, is_balancers_own })) = named else {
            debug!(%peer, "a trusted proxy began its connection with no PROXY header");
            return;
        };
        let address = peer.ip().to_canonical();
        // A trusted proxy holds the connections of many clients, so it has no bound.
        let most = if policy.rules.client.trusts(address) { u32::MAX } else { requests.max_connections };
        let client = policy.rules.client.network(address);
        drop(policy);
        let permit = self.connection_counts.take(client, most);
        if permit.is_none() && self.setup.tls.is_some() {
            return; // the client could keep us busy with TLS handshakes
        }
        let Ok(Ok(socket)) = timeout_at(deadline, self.setup.secure(socket)).await else { return };
        let mut connection = Box::new(Connection::new(socket, peer));
        if is_balancers_own {
            connection.mark_as_balancers_own();
        }
        if permit.is_none() {
            let detail = format!("this address holds {most} connections already");
            let refusal = Refusal::new(Stage::Accept, Code::TooManyConnections, detail)
                .retry_after(Some(WHEN_SOME_HAVE_ENDED));
            refuse(&self, address, connection, &refusal).await;
            return;
        }
        self.gateway.metrics.connections.inc();
        if let Err(error) = self.requests(connection, address).await {
            debug!(%error, "connection ended");
        }
        self.gateway.metrics.connections.dec();
    }

    /// Serves one request after the other, until either side closes.
    async fn requests(&self, mut connection: Box<Connection>, peer: IpAddr) -> io::Result<()> {
        let mut first = true;
        loop {
            let rule = self.gateway.policy().rules.requests;
            connection.set_write_timeout(rule.write_timeout);
            let head = match self.read_head(&mut connection, &rule, first).await {
                Read::Head(head) => {
                    // If a body is malformed from its first bytes, the upstream does not even receive the header.
                    if head.framing == Framing::Chunked
                        && let Some(fault) = connection.foresee(&head, rule.header_bytes)
                    {
                        let refusal = Refusal::new(Stage::Accept, Code::MalformedRequest, fault.0);
                        refuse(self, peer, connection, &refusal).await;
                        return Ok(());
                    }
                    head
                }
                Read::Http2 => {
                    let ended = http2::serve(connection, &self.proxy, &rule, &self.shutdown).await;
                    if let Some(Ended { reason, why }) = ended {
                        self.gateway.metrics.http2_ended.with_label_values(&[reason]).inc();
                        info!(target: "access", client = %peer, why, "an HTTP/2 connection was ended");
                    }
                    return Ok(());
                }
                Read::Nothing => {
                    return Ok(());
                }
                Read::Refused(refusal) => {
                    refuse(self, peer, connection, &refusal).await;
                    return Ok(());
                }
            };
            first = false;
            match self.one_request(connection, head, &rule).await {
                Some(next) if !head.upgrade => connection = next,
                _ => return Ok(()),
            }
        }
    }

    async fn one_request(
        &self,
        mut connection: Box<Connection>,
        head: Head,
        rule: &RequestRule,
    ) -> Option<Box<Connection>> {
        let mut bytes = connection.begin(head.length, head.framing, rule.header_bytes);
        if head.rewrite {
            bytes = head::plain_form(&bytes);
        }
        if head.upgrade {
            connection.open();
        } else {
            connection.set_body_deadline(Instant::now() + rule.request_timeout);
        }
        let mut session = ServerSession::new_http1(connection);
        session.set_pipelined_prefix(bytes);
        // pingora counts in whole seconds and only uses this to decide whether the connection stays open. The deadline
        // is enforced here.
        let draining = *self.shutdown.borrow();
        session.set_keepalive((!draining && !head.upgrade).then_some(rule.idle_timeout.as_secs().max(1)));
        session.set_write_timeout(Some(rule.write_timeout));
        let (stream, _) = self.proxy.process_new_http(session, &self.shutdown).await?.consume();
        let connection = stream.into_any().downcast::<Connection>().ok()?;
        connection.is_between_messages().then(|| connection.rested())
    }

    /// Waits for a whole header. An idle connection waits here, in a future of a few hundred bytes.
    async fn read_head(&self, connection: &mut Connection, rule: &RequestRule, first: bool) -> Read {
        let mut shutdown = self.shutdown.clone();
        let begun = !connection.inbox.is_empty();
        // Before the first byte, a new connection has the header timeout and a reused one the idle timeout.
        let wait = if first || begun { rule.header_timeout } else { rule.idle_timeout };
        let mut deadline = Instant::now() + wait;
        let mut started = begun;
        let mut examined = 0;
        loop {
            // If a large header arrives byte by byte, parsing it for each byte would be slow. So it is parsed when a
            // line ends.
            let news = &connection.inbox[examined..];
            let worth_it = examined == 0 || news.contains(&b'\n') || news.len() > WORTH_A_LOOK;
            if !news.is_empty() && (worth_it || connection.inbox.len() >= rule.header_bytes) {
                examined = connection.inbox.len();
                match examine(&connection.inbox, rule) {
                    Ok(Some(read)) => return read,
                    Ok(None) => {}
                    Err(refusal) => return Read::Refused(Box::new(refusal)),
                }
                if !started {
                    started = true;
                    if !first {
                        deadline = Instant::now() + rule.header_timeout;
                    }
                }
            }
            let read = tokio::select! {
                biased;
                read = timeout_at(deadline, connection.read_more()) => Some(read),
                () = shutdown_begins(&mut shutdown), if !started => None,
            };
            let read = match read {
                Some(read) => read,
                // A request that has been sent already is answered.
                None => match timeout(LAST_LOOK, connection.read_more()).await {
                    Err(_) => return Read::Nothing,
                    read => read,
                },
            };
            match read {
                Ok(Ok(0) | Err(_)) => return Read::Nothing,
                Ok(Ok(_)) => {}
                Err(_) if !started && !first => return Read::Nothing,
                Err(_) => {
                    let detail = "the request's header did not arrive in time";
                    return Read::Refused(Box::new(Refusal::new(Stage::Accept, Code::HeaderTimeout, detail)));
                }
            }
        }
    }
}

/// Waits until the shutdown begins.
async fn shutdown_begins(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|draining| *draining).await;
}

/// The result of waiting for a header.
enum Read {
    Head(Head),
    Http2,
    Nothing,
    Refused(Box<Refusal>),
}

/// Parses the bytes so far: a header, the preface of HTTP/2, not enough yet, or a fault.
fn examine(bytes: &BytesMut, rule: &RequestRule) -> Result<Option<Read>, Refusal> {
    if bytes.starts_with(H2_PREFACE) {
        return Ok(Some(Read::Http2));
    }
    if H2_PREFACE.starts_with(bytes) {
        return Ok(None);
    }
    let too_large = || {
        let detail = format!("the request's header has more than {} bytes", rule.header_bytes);
        Refusal::new(Stage::Accept, Code::HeaderTooLarge, detail)
    };
    match head::parse(&bytes[..bytes.len().min(rule.header_bytes)], rule.max_headers) {
        Ok(Some(head)) => Ok(Some(Read::Head(head))),
        Ok(None) if bytes.len() >= rule.header_bytes => Err(too_large()),
        Ok(None) => Ok(None),
        Err(fault) => Err(Refusal::new(Stage::Accept, fault.code, fault.detail)),
    }
}

/// Answers before there is a session, and closes.
async fn refuse(acceptor: &Acceptor, peer: IpAddr, mut connection: Box<Connection>, refusal: &Refusal) {
    let request_id = problem::new_request_id();
    acceptor.gateway.metrics.refused(refusal);
    acceptor
        .gateway
        .metrics
        .requests
        .with_label_values(&["none", "none", &refusal.status().to_string()])
        .inc();
    acceptor.setup.access.log(&Line {
        time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        request_id: &request_id,
        client: &peer.to_string(),
        protocol: "HTTP/1.1",
        status: refusal.status(),
        stage: Some(refusal.stage.as_str()),
        code: Some(refusal.code.as_str()),
        ..Line::default()
    });
    let policy = acceptor.gateway.policy();
    let channel =
        Channel { encrypted: connection.get_ssl_digest().is_some(), production: acceptor.proxy.production };
    let bytes = problem::as_http1(refusal, &request_id, &policy.rules.headers, channel);
    // All bytes that still arrive belong to the refused request. `Connection` reads and drops them before it closes.
    connection.open();
    let _ = connection.write_all(&bytes).await;
}
