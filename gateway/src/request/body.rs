//! Reads a request's body, or its beginning, before the request is sent to the upstream. What is read here is stored
//! and sent first.

use std::time::Duration;

use http::Version;
use pingora_core::protocols::http::ServerSession as Session;
use pingora_core::{Error, Result};
use pingora_http::RequestHeader;

use crate::http::body_fault::{BODY_TOO_LARGE, BODY_TOO_SLOW};
use crate::http::fields;
use crate::request::failure::is_http2;

/// The largest body that is stored before it is sent; pingora stores no more.
const KEPT: u64 = 64 * 1024;

/// So much of a chunked body is read ahead, so that one more piece still fits into what pingora stores.
const LOOKED_AT: usize = 48 * 1024;

/// The longest time for reading a chunked body ahead. A slower one is sent as it arrives.
const LOOK: Duration = Duration::from_millis(200);

/// Reads a body of at most `most` bytes.
pub(crate) async fn read(session: &mut Session, most: u64, patience: Duration) -> Result<Vec<u8>> {
    if expects_continue(session) {
        session.write_continue_response().await?;
    }
    session.enable_retry_buffering();
    let mut body = Vec::new();
    let read = async {
        while let Some(piece) = session.read_request_body().await.map_err(Error::into_down)? {
            body.extend_from_slice(&piece);
            if body.len() as u64 > most {
                return Err(Error::new_down(BODY_TOO_LARGE));
            }
        }
        Ok(())
    };
    tokio::time::timeout(patience, read).await.unwrap_or_else(|_| Err(Error::new_down(BODY_TOO_SLOW)))?;
    Ok(body)
}

/// What has to be read of a body before it is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// All of it, because an assertion is bound to it.
    pub(crate) bound: bool,
    /// All of a short one, because other requests may wait for this one once it is sent.
    pub(crate) whole: bool,
}

/// Reads the part of a body that must be known before the upstream receives it. Over HTTP/2 the body may be shorter or
/// longer than announced, and a chunked body may be malformed. If the body is short and arrives at once, such a fault
/// is found before anything is sent.
pub(crate) async fn read_ahead(session: &mut Session, patience: Duration, wanted: Wanted) -> Result<()> {
    let bound = wanted.bound;
    if announces_little(session.req_header(), wanted.whole) {
        return read(session, KEPT, patience).await.map(drop);
    }
    if expects_continue(session) {
        session.set_close_on_response_before_downstream_finish(false);
        session.write_continue_response().await?;
        session.set_close_on_response_before_downstream_finish(true);
    }
    let of_unknown_length = is_http2(session) && fields::content_length(session.req_header()).is_none();
    if fields::is_chunked(session.req_header()) || (bound && of_unknown_length && !session.is_body_done()) {
        session.enable_retry_buffering();
        let mut length = 0;
        let look = async {
            while let Some(piece) = session.read_request_body().await.map_err(Error::into_down)? {
                length += piece.len();
                if length > LOOKED_AT {
                    break;
                }
            }
            Ok(())
        };
        return tokio::time::timeout(LOOK, look).await.unwrap_or(Ok(()));
    }
    Ok(())
}

fn expects_continue(session: &Session) -> bool {
    let header = session.req_header();
    let expects = header
        .headers
        .get("expect")
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    expects && header.version != Version::HTTP_10
}

/// Whether the length of the body is known and small, so that all of it is read.
fn announces_little(header: &RequestHeader, whole: bool) -> bool {
    let announced = fields::content_length(header).is_some_and(|length| length <= KEPT);
    announced && (whole || header.version == Version::HTTP_2)
}
