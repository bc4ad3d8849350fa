//! The pool of connections to upstreams, which are pingora's: made, stored while they are unused, and shared where they
//! use HTTP/2.

use std::sync::Arc;

use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::v2::{Connector, H2HandshakeSettings, handshake};
use pingora_core::protocols::{ALPN, Stream};
use pingora_core::upstreams::peer::{HttpPeer, Peer as _};
use pingora_core::{Error, ErrorType, OkOrErr as _, Result};

use super::{UpstreamConnection, Wire};

/// The connections to all upstreams.
#[derive(Clone)]
pub struct Pool(Arc<Connector>);

impl Pool {
    /// Stores at most so many unused connections, for all upstreams together.
    pub fn new(kept: usize) -> Self {
        Self(Arc::new(Connector::new(Some(ConnectorOptions::new(kept)))))
    }

    /// A connection to `peer`, or a stream of one; always a new one if `fresh`.
    pub(crate) async fn connect(&self, peer: &HttpPeer, fresh: bool) -> Result<UpstreamConnection> {
        let (http1, http2) = match peer.options.alpn {
            ALPN::H1 => (true, false),
            ALPN::H2 => (false, true),
            _ => (true, true),
        };
        if !fresh {
            // A connection that broke meanwhile is not used.
            if http2 && let Ok(Some(stream)) = self.0.reused_http_session(peer).await {
                return Ok(UpstreamConnection::http2(stream, true));
            }
            if http1 && let Some(stream) = self.0.transport().reused_stream(peer).await {
                return Ok(UpstreamConnection::http1(stream, true));
            }
        }
        let stream = self.0.transport().new_stream(peer).await?;
        match stream.selected_alpn_proto() {
            Some(ALPN::H2) => self.open(stream, peer).await,
            // Without TLS there is no ALPN, so the setting decides.
            None if !http1 && !peer.is_tls() => self.open(stream, peer).await,
            _ if http1 => Ok(UpstreamConnection::http1(stream, false)),
            _ => Error::e_explain(ErrorType::H2Error, "the upstream agreed on HTTP/1.1"),
        }
    }

    /// Begins HTTP/2 on a new connection.
    async fn open(&self, stream: Stream, peer: &HttpPeer) -> Result<UpstreamConnection> {
        let options = &peer.options;
        let mut settings = H2HandshakeSettings::new();
        settings.max_streams = options.max_h2_streams;
        settings.ping_interval = options.h2_ping_interval;
        settings.stream_window_size = options.h2_stream_window_size;
        settings.connection_window_size = options.h2_connection_window_size;
        let connection = handshake(stream, settings).await?;
        let stream = connection.spawn_stream().await?;
        let stream = stream.or_err(ErrorType::H2Error, "a new connection takes no request")?;
        if connection.more_streams_allowed() {
            self.0.in_use_pool().insert(peer.reuse_hash(), connection);
        }
        Ok(UpstreamConnection::http2(stream, false))
    }

    /// Takes a connection back, and stores it if it can serve another request.
    pub(crate) fn release(&self, connection: UpstreamConnection, peer: &HttpPeer, timed_out: bool) {
        let idle = peer.options.idle_timeout;
        match connection.wire {
            Wire::Http1(connection) => {
                if let Some(stream) = connection.into_kept() {
                    self.0.transport().release_stream(stream, peer.reuse_hash(), idle);
                }
            }
            Wire::Http2(connection) => self.0.release_http_session(connection.end(timed_out), peer, idle),
        }
    }

    /// Whether `fault` shows that the upstream does not handle HTTP/2 and may be asked in HTTP/1.1. It is asked in
    /// HTTP/1.1 from then on.
    pub(crate) fn learn(&self, peer: &HttpPeer, fault: &Error) -> bool {
        let unfit = matches!(fault.etype(), ErrorType::H2Downgrade | ErrorType::InvalidH2);
        let may = matches!(peer.options.alpn, ALPN::H2H1);
        if unfit && may {
            self.0.prefer_h1(peer);
        }
        unfit && may
    }
}
