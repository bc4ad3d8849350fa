//! HTTP/2 towards clients (RFC 9113). The `h2` crate manages streams, windows and settings. Headers are read by
//! `downstream`, as strictly as those of HTTP/1.1 and by the same rules. A stream of `h2` becomes a session like any
//! other.

mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use http::Request;
use pingora_core::apps::HttpServerApp as _;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::{Digest, GetProxyDigest as _, GetSocketDigest as _, Ssl as _};
use policy::rules::requests::RequestRule;
use tokio::sync::{Notify, watch};

use crate::downstream::connection::Connection;
use crate::downstream::http2::excess::Excess;
use crate::downstream::http2::{HeadBounds, Inbound, Waiting};
use crate::request::Proxy;
use stream::Stream;

/// The most requests of one connection at a time.
const STREAMS: u32 = 100;

/// The most bytes of an answer that wait for a slow client, for each stream.
const SEND_BUFFER: usize = 64 * 1024;

/// The most bytes of request bodies that a connection holds while upstreams read none: four times the bound of one
/// stream, so that one stalled upload does not block the others.
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// The budget for small pieces of bodies that wait for the upstream. Each piece costs 256 bytes less its own length, so
/// a stream's whole window may hold messages of one byte.
const SMALL_PIECES: usize = 4 * 1024 * 1024;

/// How long the connection stays open after GOAWAY was sent and all requests are answered, for a client that is silent.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a connection was ended.
pub(crate) struct Ended {
    /// The word in metrics.
    pub(crate) reason: &'static str,
    /// The sentence in the log.
    pub(crate) why: String,
}

impl From<Excess> for Ended {
    fn from(excess: Excess) -> Self {
        Self { reason: excess.as_str(), why: excess.to_string() }
    }
}

impl Ended {
    /// The fault that `h2` found, if there was one.
    fn by(error: &h2::Error) -> Option<Self> {
        let reason = match error.reason().filter(|_| error.is_library())? {
            h2::Reason::PROTOCOL_ERROR => "protocol",
            h2::Reason::COMPRESSION_ERROR => "compression",
            h2::Reason::FRAME_SIZE_ERROR => "frame_size",
            h2::Reason::FLOW_CONTROL_ERROR => "flow_control",
            h2::Reason::STREAM_CLOSED => "stream_closed",
            h2::Reason::ENHANCE_YOUR_CALM => "resets",
            _ => "other",
        };
        Some(Self { reason, why: error.to_string() })
    }
}

/// Serves a connection whose preface has arrived, until it ends. `Some` says why, if the client broke the protocol or
/// misused the connection.
pub(crate) async fn serve(
    mut connection: Box<Connection>,
    proxy: &Arc<Proxy>,
    rule: &RequestRule,
    shutdown: &watch::Receiver<bool>,
) -> Option<Ended> {
    let waiting = Arc::<Waiting>::default();
    let bounds = HeadBounds { fields: rule.max_headers, bytes: rule.header_bytes };
    let inbound = Inbound::new(bounds, Arc::clone(&waiting));
    let excess = connection.open_http2(inbound, Arc::clone(&waiting), rule.header_timeout);
    let digest = Digest {
        ssl_digest: connection.get_ssl_digest(),
        proxy_digest: connection.get_proxy_digest(),
        socket_digest: connection.get_socket_digest(),
        ..Digest::default()
    };
    let streams = Streams { proxy, shutdown, waiting, digest: Arc::new(digest), active: Arc::default() };
    let served = streams.serve(connection, rule).await;
    let found = served.as_ref().err().and_then(Ended::by);
    excess.get().copied().map(Ended::from).or(found)
}

/// The streams of one connection.
struct Streams<'p> {
    proxy: &'p Arc<Proxy>,
    shutdown: &'p watch::Receiver<bool>,
    waiting: Arc<Waiting>,
    digest: Arc<Digest>,
    active: Arc<Active>,
}

impl Streams<'_> {
    async fn serve(&self, connection: Box<Connection>, rule: &RequestRule) -> Result<(), h2::Error> {
        let mut connection = Builder::new()
            .max_concurrent_streams(STREAMS)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(rule.header_bytes).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(SMALL_PIECES)
            .handshake::<_, Bytes>(connection)
            .await?;
        let mut shutdown = self.shutdown.clone();
        let mut draining = false;
        loop {
            let patience = if draining { CLOSE_TIMEOUT } else { rule.idle_timeout };
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|draining| *draining), if !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                }
                accepted = connection.accept() => match accepted {
                    Some(accepted) => {
                        let (request, respond) = accepted?;
                        self.begin(request, respond);
                    }
                    None => return Ok(()),
                },
                // GOAWAY comes first: a client knows from it that its later requests were not processed (RFC 9113,
                // 6.8).
                () = self.active.idle_for(patience), if !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                }
                () = self.active.idle_for(patience), if draining => return Ok(()),
            }
        }
    }

    /// Serves a stream concurrently with the others.
    fn begin(&self, request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) {
        let number = respond.stream_id().as_u32();
        let Some(header) = self.waiting.take(number) else {
            // A stream begins only with a header that was read.
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
            return;
        };
        let active = ActiveStream::take(&self.active);
        let waiting = Arc::clone(&self.waiting);
        let stream = Stream::new(header, request.into_body(), respond, waiting, Arc::clone(&self.digest));
        let (proxy, shutdown) = (Arc::clone(self.proxy), self.shutdown.clone());
        tokio::spawn(async move {
            let session = ServerSession::new_custom(Box::new(stream));
            proxy.process_new_http(session, &shutdown).await;
            drop(active);
        });
    }
}

/// The number of streams that are being served.
#[derive(Default)]
struct Active {
    count: AtomicUsize,
    none: Notify,
}

impl Active {
    /// Waits until no stream has been served for so long.
    async fn idle_for(&self, patience: Duration) {
        while self.count.load(Ordering::Acquire) > 0 {
            self.none.notified().await;
        }
        tokio::time::sleep(patience).await;
    }
}

/// Counts one served stream until this is dropped.
struct ActiveStream(Arc<Active>);

impl ActiveStream {
    fn take(active: &Arc<Active>) -> Self {
        active.count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(active))
    }
}

impl Drop for ActiveStream {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_one();
        }
    }
}
