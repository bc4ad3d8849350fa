//! Passing a request on to its upstream and the answer back, as often as it takes.

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

use client::{FromClient, Listens, client_event, tell};
use websocket::tunnel;

use crate::clock;
use crate::http::body_fault::BODY_TOO_SLOW;
use crate::request::exchange::Exchange;
use crate::request::failure::{connection, understand};
use crate::request::forward::{self, Outgoing};
use crate::request::proxy::Proxy;
use crate::request::retry::try_again;
use crate::upstream::Tried;
use crate::upstream::address_pool::Member;
use crate::upstream::connection::{Event, Hop};
use crate::upstream::fault::UpstreamFault;

/// For the rest of a request whose answer is whole, while the upstream takes nothing.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// A client has so long for its body, and a millisecond more for every so many bytes, before others are sent in its place.
const SLOW_BODY: Duration = Duration::from_secs(1);
const BYTES_A_MS: u64 = 10;

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    Answered,
    Again,
}

/// The way to the upstream that one try takes.
struct Way {
    upstream: Arc<str>,
    /// Where the try before went, which is avoided.
    last: Option<Member>,
    /// Addresses that could not be reached.
    tried: Tried,
    /// The address to which another connection is made.
    peer: Option<HttpPeer>,
    /// Whether kept connections are not trusted any more.
    fresh: bool,
}

/// What has become of an answer.
enum Answer {
    GoesOn,
    /// It has begun; the client is not told yet.
    Begins(HttpTask),
    Whole,
    /// What follows is not HTTP.
    Tunnel,
    /// The client is told nothing of it: the request is sent again.
    Withheld,
}

impl Proxy {
    /// Sends an admitted request to its upstream, again where the policy says so, and the client the answer.
    pub(crate) async fn relay(&self, session: &mut Session, exchange: &mut Exchange) -> Result<()> {
        session.enable_retry_buffering();
        session.set_proxy_tasks_enabled(true);
        loop {
            let mut way = self.begin_try(exchange).await?;
            let tried = self.try_once(session, exchange, &mut way).await;
            if tried.as_ref().is_ok_and(|tried| *tried == Try::Answered) {
                return Ok(());
            }
            exchange.upstream_is_done();
            let Err(fault) = tried else { continue };
            let again = understand(session, &fault).is_some_and(|(_, outcome)| {
                exchange.tell_address(outcome);
                try_again(&self.gateway, session, exchange, outcome, None)
            });
            if !again {
                return Err(fault);
            }
        }
    }

    /// Begins the next try, when it is time for it.
    async fn begin_try(&self, exchange: &mut Exchange) -> Result<Way> {
        let internal = || Error::explain(ErrorType::InternalError, "not admitted");
        let admission = exchange.admission.as_ref().ok_or_else(internal)?;
        let route = Arc::clone(&admission.route);
        if let Some(wait) = exchange.begin_try() {
            tokio::time::sleep(wait).await;
        }
        if let Some(rule) = route.retry.as_deref().filter(|_| exchange.tries == 1) {
            self.gateway.retry_budgets.pay_in(&route.upstream, rule);
        }
        let last = exchange.turn.take().map(|turn| turn.member());
        exchange.asked_upstream = Some(Instant::now());
        let upstream = Arc::clone(&route.upstream);
        Ok(Way { upstream, last, tried: Tried::new(), peer: None, fresh: false })
    }

    /// One try. A kept connection that was closed meanwhile is nobody's failure: the request goes over a new one.
    async fn try_once(&self, session: &mut Session, exchange: &mut Exchange, way: &mut Way) -> Result<Try> {
        loop {
            let (mut hop, peer) = self.reach(exchange, way).await?;
            let carried = self.carry(session, exchange, &mut hop, &peer).await;
            let Err(fault) = &carried else {
                self.pool.release(hop, &peer, false);
                return carried;
            };
            let unfit = self.pool.learn(&peer, fault);
            let repeatable = session.req_header().method.is_idempotent();
            let unheard = hop.is_untouched(fault) || ((unfit || hop.is_stale(fault)) && repeatable);
            self.pool.release(hop, &peer, is_timeout(fault));
            if way.fresh || !unheard || session.retry_buffer_truncated() {
                return carried;
            }
            (way.fresh, way.peer, exchange.received) = (true, Some(peer), 0);
        }
    }

    /// A connection to the upstream. Where one of its addresses cannot be reached the next is tried at once, for
    /// nothing was sent yet; when none can be, the last one's fault is the upstream's.
    async fn reach(&self, exchange: &mut Exchange, way: &mut Way) -> Result<(Hop, HttpPeer)> {
        let mut fault = Error::explain(ErrorType::ConnectError, "the upstream has no address").into_up();
        loop {
            let peer = match way.peer.take() {
                Some(peer) => peer,
                None => match self.next_peer(exchange, way).await? {
                    Some(peer) => peer,
                    None => return Err(fault),
                },
            };
            match self.pool.connect(&peer, way.fresh).await {
                Ok(hop) => {
                    if let Some(turn) = &exchange.turn {
                        turn.reached(clock::steady());
                    }
                    return Ok((hop, peer));
                }
                Err(error) => fault = error.into_up(),
            }
            if let Some(turn) = &mut exchange.turn {
                self.upstreams.note_unreachable(&way.upstream, turn, &fault);
                way.tried.push(turn.member());
            }
            if exchange.is_out_of_time() {
                return Err(fault);
            }
        }
    }

    /// The next address to try; `None` when there is none left.
    async fn next_peer(&self, exchange: &mut Exchange, way: &Way) -> Result<Option<HttpPeer>> {
        let patience = exchange.try_timeout();
        let found = self.upstreams.peer(&way.upstream, patience, &way.tried, way.last).await;
        let found =
            found.map_err(|error| Error::explain(ErrorType::ConnectError, format!("{error:#}")).into_up())?;
        let Some((mut peer, turn)) = found else { return Ok(None) };
        exchange.turn = Some(turn);
        if exchange.handshake {
            peer.options.set_http_version(1, 1); // HTTP/2 has no such upgrade
        }
        Ok(Some(peer))
    }

    /// Carries the request's body up and the answer down, both at once.
    async fn carry(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        hop: &mut Hop,
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
        let request = forward::outgoing(header, exchange, signer, hop.is_http2(), body)?;
        let scheme = if peer.is_tls() { "https" } else { "http" };
        hop.begin(request, scheme, read_whole && read_before.is_none())?;
        if let Some(piece) = read_before {
            exchange.count(&piece)?; // it came in time, whenever it is sent
            hop.send(piece, read_whole);
        }
        let patience = exchange.try_timeout();
        let write_timeout = exchange.rules().requests.write_timeout;
        let body_deadline = time::Instant::from_std(exchange.started + exchange.request_timeout());
        let mut alarm = pin!(sleep_until(body_deadline));
        let begun = time::Instant::now();
        let (mut told_at, mut waited_for) = (begun, true);
        let (mut answered, mut full, mut header) = (false, false, None);
        loop {
            let told = !session.has_pending_downstream_proxy_tasks();
            let room = told || !full;
            let sent = !hop.takes_more() || (read_whole && !hop.is_sending());
            if answered && told && sent {
                return Ok(Try::Answered);
            }
            let waits_for_body = !read_whole && hop.takes_more() && !hop.is_sending();
            let next_body_alarm =
                if waited_for { body_deadline.min(slow_at(begun, exchange)) } else { body_deadline };
            // While a client is slow to take its answer, an upstream may be slow as well.
            alarm.as_mut().reset(match (told, waits_for_body, answered) {
                (true, true, _) => next_body_alarm,
                (true, false, false) => time::Instant::now() + patience,
                (true, false, true) => time::Instant::now() + AFTERWARDS.min(patience),
                (false, true, _) => body_deadline.min(told_at + write_timeout),
                (false, false, _) => told_at + write_timeout,
            });
            let listens = Listens::to(waits_for_body, read_whole);
            tokio::select! {
                biased; // what is there of an answer is told together, and nothing of one that breaks off at once
                event = hop.next(room), if hop.is_sending() || (room && !answered) => {
                    let event = event?;
                    if !matches!(event, Event::Sent) {
                        told_at = time::Instant::now();
                        full = !matches!(event, Event::Head(..));
                        if let Some(header) = header.take() {
                            tell(session, header).await?;
                        }
                    }
                    match self.pass_on(session, exchange, event).await? {
                        Answer::GoesOn => {}
                        Answer::Begins(task) => header = Some(task),
                        Answer::Whole => answered = true,
                        Answer::Tunnel => {
                            tunnel(session, hop, exchange.tunnel.as_ref()).await?;
                            return Ok(Try::Answered);
                        }
                        Answer::Withheld => return Ok(Try::Again),
                    }
                }
                () = std::future::ready(()), if header.is_some() => {
                    if let Some(header) = header.take() {
                        tell(session, header).await?;
                    }
                }
                event = client_event(session, listens) => {
                    let taken = match event {
                        Ok(FromClient::Took) => continue,
                        Ok(FromClient::Sent(piece)) => exchange.take_in(piece),
                        Err(fault) => Err(fault),
                    };
                    let piece = match taken {
                        Err(_) if answered && told => return Ok(Try::Answered),
                        taken => taken?,
                    };
                    read_whole = piece.is_none() || session.is_body_done();
                    if read_whole && !std::mem::replace(&mut waited_for, true) {
                        exchange.resume();
                    }
                    let piece = piece.unwrap_or_default();
                    if !piece.is_empty() || read_whole {
                        hop.send(piece, read_whole);
                    }
                }
                () = &mut alarm => {
                    if told && waits_for_body && waited_for && time::Instant::now() < body_deadline {
                        waited_for = false;
                        exchange.pause();
                        continue;
                    }
                    // Whoever has the whole answer has lost nothing.
                    return if answered && told { Ok(Try::Answered) } else { late(hop, told, waits_for_body) };
                }
            }
        }
    }

    /// Tells the client what the upstream says.
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
                if self.is_leaving() {
                    session.set_keepalive(None);
                }
                let upgraded = header.status == StatusCode::SWITCHING_PROTOCOLS;
                let task = HttpTask::Header(header, end);
                if !upgraded && !end {
                    return Ok(Answer::Begins(task));
                }
                tell(session, task).await?;
                if upgraded {
                    return Ok(Answer::Tunnel);
                }
                true
            }
            Event::Piece(piece, end) => {
                self.take_piece(exchange, &piece, end);
                tell(session, HttpTask::Body(Some(piece), end)).await?;
                end
            }
            Event::End(trailers) => {
                self.take_piece(exchange, &Bytes::new(), true);
                end_answer(session, exchange, trailers).await?;
                true
            }
        };
        Ok(if is_whole { Answer::Whole } else { Answer::GoesOn })
    }
}

/// When a client is slow with its body.
fn slow_at(begun: time::Instant, exchange: &Exchange) -> time::Instant {
    begun + SLOW_BODY + Duration::from_millis(exchange.received / BYTES_A_MS)
}

/// Ends the answer, with its trailers where the client can be told of them.
async fn end_answer(
    session: &mut Session,
    exchange: &mut Exchange,
    trailers: Option<HeaderMap>,
) -> Result<()> {
    let mut trailers = trailers.unwrap_or_default();
    Proxy::take_trailers(exchange, &mut trailers);
    if trailers.is_empty() {
        return tell(session, HttpTask::Done).await;
    }
    if let Some(connection) = connection(session) {
        connection.set_trailers(&trailers);
    }
    tell(session, HttpTask::Trailer(Some(Box::new(trailers)))).await
}

/// Informational, and not the last word.
fn is_informational(header: &ResponseHeader) -> bool {
    header.status.is_informational() && header.status != StatusCode::SWITCHING_PROTOCOLS
}

/// Nothing moved for too long. Who was to move: an upstream that waits for a body which does not come has not failed.
fn late(hop: &Hop, told: bool, waits_for_body: bool) -> Result<Try> {
    Err(if waits_for_body {
        Error::new_down(BODY_TOO_SLOW)
    } else if !told {
        Error::new_down(ErrorType::WriteTimedout)
    } else if hop.is_sending() {
        UpstreamFault::WriteTimeout.error()
    } else {
        UpstreamFault::Timeout.error()
    })
}

fn is_timeout(fault: &Error) -> bool {
    matches!(fault.etype(), ErrorType::WriteTimedout | ErrorType::ReadTimedout)
        && *fault.esource() == pingora_core::ErrorSource::Upstream
}
