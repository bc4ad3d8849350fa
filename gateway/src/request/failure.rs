//! What a fault means: whether the client, the upstream or the gateway caused it.

use http::Version;
use pingora_core::protocols::http::ServerSession as Session;
use pingora_core::{Error, ErrorSource, ErrorType};
use policy::rules::breaker::Outcome;
use policy::values::refusal::{Code, Refusal};
use policy::values::stage::Stage;

use crate::downstream::body::BodyFault;
use crate::downstream::connection::Connection;
use crate::http::body_fault::{BODY_MALFORMED, BODY_TOO_LARGE, BODY_TOO_SLOW};
use crate::request::exchange::Exchange;

/// Whether a request came over HTTP/2.
pub(crate) fn is_http2(session: &Session) -> bool {
    session.req_header().version == Version::HTTP_2
}

/// The connection of an HTTP/1 request.
pub(crate) fn connection(session: &Session) -> Option<&Connection> {
    session.stream().and_then(|stream| stream.as_any().downcast_ref())
}

/// Whether a part of the answer was sent to the client. Informational answers do not count.
pub(crate) fn has_begun(session: &Session) -> bool {
    let written = session.response_written().is_some_and(|response| {
        !response.status.is_informational() || response.status == http::StatusCode::SWITCHING_PROTOCOLS
    });
    written || session.has_pending_downstream_proxy_tasks()
}

/// What a fault means: the code for the client and the outcome for the breaker. `None`: the client is gone.
pub(crate) fn understand(session: &Session, fault: &Error) -> Option<(Code, Outcome)> {
    use ErrorType::{
        ConnectTimedout, ConnectionClosed, H2Error, ReadError, ReadTimedout, WriteError, WriteTimedout,
    };
    match connection(session).and_then(Connection::fault) {
        Some(BodyFault::LATE) => return Some((Code::BodyTimeout, Outcome::ClientLeft)),
        Some(BodyFault::TOO_LARGE) => return Some((Code::BodyTooLarge, Outcome::NotSent)),
        Some(_) => return Some((Code::MalformedRequest, Outcome::ClientLeft)),
        None => {}
    }
    Some(match (fault.etype(), fault.esource()) {
        (kind, _) if *kind == BODY_TOO_LARGE => (Code::BodyTooLarge, Outcome::NotSent),
        (kind, _) if *kind == BODY_MALFORMED => (Code::MalformedRequest, Outcome::ClientLeft),
        (kind, _) if *kind == BODY_TOO_SLOW => (Code::BodyTimeout, Outcome::ClientLeft),
        (ReadTimedout, ErrorSource::Downstream) => (Code::BodyTimeout, Outcome::ClientLeft),
        (ReadError | WriteError | WriteTimedout | ConnectionClosed | H2Error, ErrorSource::Downstream) => {
            return None;
        }
        // For example a Host that is not valid in HTTP/2, with a percent sign.
        (_, ErrorSource::Downstream) => (Code::MalformedRequest, Outcome::ClientLeft),
        (ConnectTimedout | ReadTimedout | WriteTimedout, ErrorSource::Upstream) => {
            (Code::UpstreamTimeout, Outcome::TimedOut)
        }
        (_, ErrorSource::Upstream) => (Code::UpstreamUnreachable, Outcome::Unreachable),
        _ => (Code::Internal, Outcome::NotSent),
    })
}

/// The refusal for a code. It shows no internals of the upstream.
pub(crate) fn describe(code: Code, session: &Session, exchange: &Exchange, fault: &Error) -> Refusal {
    let detail = match code {
        Code::BodyTooLarge => return Refusal::body_too_large(exchange.max_body()),
        Code::BodyTimeout => BodyFault::LATE.0,
        Code::MalformedRequest => {
            let noted = connection(session).and_then(Connection::fault).map(|fault| fault.0);
            let said = fault.context.as_ref().filter(|_| *fault.etype() == BODY_MALFORMED);
            noted.or(said.map(pingora_core::ImmutStr::as_str)).unwrap_or("the request's body is malformed")
        }
        Code::UpstreamTimeout => "the service did not answer in time",
        Code::UpstreamUnreachable => "the service cannot be reached",
        _ => "something went wrong here, not with the request",
    };
    let refusal = Refusal::new(Stage::Forward, code, detail);
    match exchange.route() {
        Some(route) if code.status() >= 500 => refusal.by(&route.upstream),
        _ => refusal,
    }
}
