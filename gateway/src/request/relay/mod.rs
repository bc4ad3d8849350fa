//! Passes a request on to its upstream and the answer back, with retries.

mod client;
mod websocket;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pingora_core::protocols::http::{HttpTask, ServerSession as Session};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use tokio::time::{self, sleep_until};

use client::{FromClient, Listens, client_event, send_to_client};
use websocket::relay_websocket;

use crate::clock;
use crate::http::body_fault::BODY_TOO_SLOW;
use crate::request::exchange::Exchange;
use crate::request::failure::{connection, understand};
use crate::request::forward::{self, Outgoing};
use crate::request::proxy::Proxy;
use crate::request::retry::try_again;
use crate::upstream::TriedAddresses;
use crate::upstream::address_pool::Member;
use crate::upstream::connection::{Event, UpstreamConnection};
use crate::upstream::fault::UpstreamFault;

/// How long the rest of a request may wait, after its answer is complete, for an upstream that reads nothing.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// A client has so long for its body, and a millisecond more for every so many bytes. After that, other requests may
/// use its permit.
const SLOW_BODY: Duration = Duration::from_secs(1);
const BYTES_A_MS: u64 = 10;

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    Answered,
    Again,
}

/// One try at the upstream: which address it uses.
struct Attempt {
    upstream: Arc<str>,
    /// The address of the try before, which is avoided.
    last: Option<Member>,
    /// Addresses that could not be reached.
    tried: TriedAddresses,
    /// The address to which another connection is made.
    peer: Option<HttpPeer>,
    /// Whether only a new connection may be used.
    fresh: bool,
}

/// The state of an answer.
enum Answer {
    Continues,
    /// It has begun; its header is not sent to the client yet.
    Begins(HttpTask),
    Whole,
    /// The bytes after it are not HTTP.
    WebSocket,
    /// Nothing of it is sent to the client: the request is sent again.
    Withheld,
}

impl Proxy {
    /// Sends an admitted request to its upstream, with retries where the policy says so, and the answer to the client.
    pub(crate) async fn relay(&self, session: &mut Session, exchange: &mut Exchange) -> Result<()> {
        session.enable_retry_buffering();
        session.set_proxy_tasks_enabled(true);
        loop {
            let mut attempt = self.begin_try(exchange).await?;
            let tried = self.try_once(session, exchange, &mut attempt).await;
            if tried.as_ref().is_ok_and(|tried| *tried == Try::Answered) {
                return Ok(());
            }
            exchange.upstream_is_done();
            let Err(fault) = tried else { continue };
            let again = understand(session, &fault).is_some_and(|(_, outcome)| {
                exchange.report_to_address(outcome);
                try_again(&self.gateway, session, exchange, outcome, None)
            });
            if !again {
                return Err(fault);
            }
        }
    }

    /// Waits for the time of the next try and begins it.
    async fn begin_try(&self, exchange: &mut Exchange) -> Result<Attempt> {
        let internal = || Error::explain(ErrorType::InternalError, "not admitted");
        let admission = exchange.admission.as_ref().ok_or_else(internal)?;
        let route = Arc::clone(&admission.route);
        if let Some(wait) = exchange.begin_try() {
            tokio::time::sleep(wait).await;
        }
        if let Some(rule) = route.retry.as_deref().filter(|_| exchange.tries == 1) {
            self.gateway.retry_budgets.pay_in(&route.upstream, rule);
        }
        let last = exchange.selection.take().map(|selection| selection.member());
        exchange.asked_upstream = Some(Instant::now());
        let upstream = Arc::clone(&route.upstream);
        Ok(Attempt { upstream, last, tried: TriedAddresses::new(), peer: None, fresh: false })
    }

    /// Makes one try. If a reused connection was closed meanwhile, that is not a failure: the request is sent on a new
    /// one.
    async fn try_once(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        attempt: &mut Attempt,
    ) -> Result<Try> {
        loop {
            let (mut connection, peer) = self.reach(exchange, attempt).await?;
            let carried = self.carry(session, exchange, &mut connection, &peer).await;
            let Err(fault) = &carried else {
                self.pool.release(connection, &peer, false);
                return carried;
            };
            let unfit = self.pool.learn(&peer, fault);
            let repeatable = session.req_header().method.is_idempotent();
            let unheard =
                connection.is_untouched(fault) || ((unfit || connection.is_stale(fault)) && repeatable);
            self.pool.release(connection, &peer, is_timeout(fault));
            if attempt.fresh || !unheard || session.retry_buffer_truncated() {
                return carried;
            }
            (attempt.fresh, attempt.peer, exchange.received) = (true, Some(peer), 0);
        }
    }

    /// Makes a connection to the upstream. If an address cannot be reached, the next one is tried at once, because
    /// nothing was sent yet. If none can be reached, the error of the last one is the result.
    async fn reach(
        &self,
        exchange: &mut Exchange,
        attempt: &mut Attempt,
    ) -> Result<(UpstreamConnection, HttpPeer)> {
        let mut fault = Error::explain(ErrorType::ConnectError, "the upstream has no address").into_up();
        loop {
            let peer = match attempt.peer.take() {
                Some(peer) => peer,
                None => match self.next_peer(exchange, attempt).await? {
                    Some(peer) => peer,
                    None => return Err(fault),
                },
            };
            match self.pool.connect(&peer, attempt.fresh).await {
                Ok(connection) => {
                    if let Some(selection) = &exchange.selection {
                        selection.reached(clock::steady());
                    }
                    return Ok((connection, peer));
                }
                Err(error) => fault = error.into_up(),
            }
            if let Some(selection) = &mut exchange.selection {
                self.upstreams.note_unreachable(&attempt.upstream, selection, &fault);
                attempt.tried.push(selection.member());
            }
            if exchange.is_out_of_time() {
                return Err(fault);
            }
        }
    }

    /// The next address to try; `None` when no address is left.
    async fn next_peer(&self, exchange: &mut Exchange, attempt: &Attempt) -> Result<Option<HttpPeer>> {
        let patience = exchange.try_timeout();
        let found = self.upstreams.peer(&attempt.upstream, patience, &attempt.tried, attempt.last).await;
        let found =
            found.map_err(|error| Error::explain(ErrorType::ConnectError, format!("{error:#}")).into_up())?;
        let Some((mut peer, selection)) = found else { return Ok(None) };
        exchange.selection = Some(selection);
        if exchange.handshake {
            peer.options.set_http_version(1, 1); // HTTP/2 has no such upgrade
        }
        Ok(Some(peer))
    }

    /// Sends the request's body to the upstream and the answer to the client, both at once.
    async fn carry(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        connection: &mut UpstreamConnection,
        peer: &HttpPeer,
    ) -> Result<Try> {
        let read_before = session.get_retry_buffer();
        let mut read_whole = session.is_body_done();
        let body = match &read_before {
            Some(body) if read_whole => Outgoing::Whole(body),
            None if session.is_body_empty() => Outgoing::Whole(b""),
            _ => Outgoing::Streamed,
        };
        let (header, signer) = (session.req_header(), self.signer.as_ref());
        let request = forward::outgoing(header, exchange, signer, connection.is_http2(), body)?;
        let scheme = if peer.is_tls() { "https" } else { "http" };
        connection.begin(request, scheme, read_whole && read_before.is_none())?;
        if let Some(piece) = read_before {
            exchange.count(&piece)?; // only counted: it arrived in time already
            connection.send(piece, read_whole);
        }
        let patience = exchange.try_timeout();
        let write_timeout = exchange.rules().requests.write_timeout;
        let body_deadline = time::Instant::from_std(exchange.started + exchange.request_timeout());
        let mut alarm = pin!(sleep_until(body_deadline));
        let begun = time::Instant::now();
        let (mut forwarded_at, mut waited_for) = (begun, true);
        let (mut answered, mut full, mut header) = (false, false, None);
        loop {
            let flushed = !session.has_pending_downstream_proxy_tasks();
            let room = flushed || !full;
            let sent = !connection.takes_more() || (read_whole && !connection.is_sending());
            if answered && flushed && sent {
                return Ok(Try::Answered);
            }
            let waits_for_body = !read_whole && connection.takes_more() && !connection.is_sending();
            let next_body_alarm =
                if waited_for { body_deadline.min(slow_at(begun, exchange)) } else { body_deadline };
            // While a client reads its answer slowly, an upstream may be slow as well.
            alarm.as_mut().reset(match (flushed, waits_for_body, answered) {
                (true, true, _) => next_body_alarm,
                (true, false, false) => time::Instant::now() + patience,
                (true, false, true) => time::Instant::now() + AFTERWARDS.min(patience),
                (false, true, _) => body_deadline.min(forwarded_at + write_timeout),
                (false, false, _) => forwarded_at + write_timeout,
            });
            let listens = Listens::to(waits_for_body, read_whole);
            tokio::select! {
                biased; // the parts of an answer that are there are sent together; an answer that breaks off at once is not begun
                event = connection.next(room), if connection.is_sending() || (room && !answered) => {
                    let event = event?;
                    if !matches!(event, Event::Sent) {
                        forwarded_at = time::Instant::now();
                        full = !matches!(event, Event::Head(..));
                        if let Some(header) = header.take() {
                            send_to_client(session, header).await?;
                        }
                    }
                    match self.pass_on(session, exchange, event).await? {
                        Answer::Continues => {}
                        Answer::Begins(task) => header = Some(task),
                        Answer::Whole => answered = true,
                        Answer::WebSocket => {
                            relay_websocket(session, connection, exchange.websocket.as_ref()).await?;
                            return Ok(Try::Answered);
                        }
                        Answer::Withheld => return Ok(Try::Again),
                    }
                }
                () = std::future::ready(()), if header.is_some() => {
                    if let Some(header) = header.take() {
                        send_to_client(session, header).await?;
                    }
                }
                event = client_event(session, listens) => {
                    let taken = match event {
                        Ok(FromClient::Took) => continue,
                        Ok(FromClient::Sent(piece)) => exchange.take_in(piece),
                        Err(fault) => Err(fault),
                    };
                    let piece = match taken {
                        Err(_) if answered && flushed => return Ok(Try::Answered),
                        taken => taken?,
                    };
                    read_whole = piece.is_none() || session.is_body_done();
                    if read_whole {
                        exchange.resume();
                    }
                    let piece = piece.unwrap_or_default();
                    if !piece.is_empty() || read_whole {
                        connection.send(piece, read_whole);
                    }
                }
                () = &mut alarm => {
                    if flushed && waits_for_body && waited_for && time::Instant::now() < body_deadline {
                        waited_for = false;
                        exchange.pause();
                        continue;
                    }
                    // A client that has the whole answer has lost nothing.
                    return if answered && flushed { Ok(Try::Answered) } else { late(connection, flushed, waits_for_body) };
                }
            }
        }
    }

    /// Passes an event of the upstream on to the client.
    async fn pass_on(&self, session: &mut Session, exchange: &mut Exchange, event: Event) -> Result<Answer> {
        let is_whole = match event {
            Event::Sent => false,
            Event::Head(mut header, false) if is_informational(&header) => {
                forward::clean_hint(&mut header);
                session.write_response_header(header).await.map_err(Error::into_down)?;
                false
            }
            Event::Head(mut header, end) => {
                if !self.take_head(session, exchange, &mut header, end)? {
                    return Ok(Answer::Withheld);
                }
                if self.is_draining() {
                    session.set_keepalive(None);
                }
                let upgraded = header.status == StatusCode::SWITCHING_PROTOCOLS;
                let task = HttpTask::Header(header, end);
                if !upgraded && !end {
                    return Ok(Answer::Begins(task));
                }
                send_to_client(session, task).await?;
                if upgraded {
                    return Ok(Answer::WebSocket);
                }
                true
            }
            Event::Piece(piece, end) => {
                self.take_piece(exchange, &piece, end);
                send_to_client(session, HttpTask::Body(Some(piece), end)).await?;
                end
            }
            Event::End(trailers) => {
                self.take_piece(exchange, &Bytes::new(), true);
                end_answer(session, exchange, trailers).await?;
                true
            }
        };
        Ok(if is_whole { Answer::Whole } else { Answer::Continues })
    }
}

/// The time from which a client counts as slow with its body.
fn slow_at(begun: time::Instant, exchange: &Exchange) -> time::Instant {
    begun + SLOW_BODY + Duration::from_millis(exchange.received / BYTES_A_MS)
}

/// Ends the answer, with its trailers where the client can receive them.
async fn end_answer(
    session: &mut Session,
    exchange: &mut Exchange,
    trailers: Option<HeaderMap>,
) -> Result<()> {
    let mut trailers = trailers.unwrap_or_default();
    Proxy::take_trailers(exchange, &mut trailers);
    if trailers.is_empty() {
        return send_to_client(session, HttpTask::Done).await;
    }
    if let Some(connection) = connection(session) {
        connection.set_trailers(&trailers);
    }
    send_to_client(session, HttpTask::Trailer(Some(Box::new(trailers)))).await
}

/// Whether the header is informational and another one follows.
fn is_informational(header: &ResponseHeader) -> bool {
    header.status.is_informational() && header.status != StatusCode::SWITCHING_PROTOCOLS
}

/// The error when nothing moved for too long. It depends on who had to act: an upstream that waits for a body has not
/// failed.
fn late(connection: &UpstreamConnection, flushed: bool, waits_for_body: bool) -> Result<Try> {
    Err(if waits_for_body {
        Error::new_down(BODY_TOO_SLOW)
    } else if !flushed {
        Error::new_down(ErrorType::WriteTimedout)
    } else if connection.is_sending() {
        UpstreamFault::WriteTimeout.error()
    } else {
        UpstreamFault::Timeout.error()
    })
}

fn is_timeout(fault: &Error) -> bool {
    matches!(fault.etype(), ErrorType::WriteTimedout | ErrorType::ReadTimedout)
        && *fault.esource() == pingora_core::ErrorSource::Upstream
}
