//! Guards every handler of the admin plane: who may ask, how large a body may be, how much work is done at a time.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::{Admin, problem};

/// The largest body, in bytes: a policy to judge, or overrides.
pub(super) const MAX_BODY: usize = 1 << 20;

/// The longest wait until other judging work ends.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A body, read whole.
pub(super) struct Whole(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Whole {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let read = Bytes::from_request(request, state).await;
        read.map(Self).map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let detail = format!("a body has at most {MAX_BODY} bytes");
                problem(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", &detail)
            }
            _ => problem(StatusCode::BAD_REQUEST, "malformed_request", "the body ended too early"),
        })
    }
}

/// Without a token the port is for users of this machine only. But a foreign page in their browser can send requests
/// here, too, if its name was changed to resolve to this address (DNS rebinding). The `Host` of such a request is the
/// name of that page, so it is refused.
pub(super) async fn loopback_alone(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().filter(|_| hosts.next().is_none()).and_then(|host| host.to_str().ok());
    if admin.admin_token.is_none() && !host.is_some_and(is_loopback) {
        let detail = "without ADMIN_TOKEN only localhost, 127.0.0.0/8 and [::1] are answered here";
        return problem(StatusCode::MISDIRECTED_REQUEST, "misdirected_request", detail);
    }
    next.run(request).await
}

/// Whether a `Host` names this machine: `localhost`, an address of 127.0.0.0/8 or `[::1]`, with a port or without.
fn is_loopback(host: &str) -> bool {
    let is_port = |port: &str| port.strip_prefix(':').is_none_or(|port| port.parse::<u16>().is_ok());
    if let Some((address, port)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let fine = port.is_empty() || port.starts_with(':') && is_port(port);
        return fine && address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback());
    }
    let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
    is_port(port)
        && (name.eq_ignore_ascii_case("localhost")
            || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback()))
}

/// Runs long work, such as judging a policy, on a thread of its own: one piece at a time, so that it uses one core at
/// most.
pub(super) async fn one_at_a_time<T: Send + 'static>(
    admin: &Admin,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Box<Response>> {
    let permit = tokio::time::timeout(PATIENCE, Arc::clone(&admin.judging).acquire_owned()).await;
    let Ok(Ok(permit)) = permit else { return Err(Box::new(busy())) };
    let done = tokio::task::spawn_blocking(move || {
        let _permit = permit; // held until the work is done, even if the caller is gone
        work()
    });
    done.await.map_err(|_| {
        Box::new(problem(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the work broke off"))
    })
}

/// The refusal while another policy is being judged.
pub(super) fn busy() -> Response {
    let detail = "another policy is being judged";
    later(problem(StatusCode::SERVICE_UNAVAILABLE, "busy", detail), HeaderValue::from_static("5"))
}

/// The refusal of a change because the audit log has no room for it.
pub(super) fn not_audited() -> Response {
    let detail =
        "nothing was changed: the audit log cannot take another line until those before it are written";
    let response = problem(StatusCode::SERVICE_UNAVAILABLE, "audit_unavailable", detail);
    later(response, HeaderValue::from_static("1"))
}

fn later(mut response: Response, seconds: HeaderValue) -> Response {
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
    response
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in ["localhost", "LOCALHOST:8081", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:8081"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]:1",
            "[::1",
            "::1",
            "[::1]x",
            "localhost:8081@evil",
            "localhost:8081, evil",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
