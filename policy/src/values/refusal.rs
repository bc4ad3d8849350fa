//! Every way in which the gateway can say no, with the status, the code and what a client may do about it.

use std::sync::Arc;
use std::time::Duration;

use crate::values::quota::Quota;
use crate::values::stage::Stage;
use crate::values::time::whole_seconds;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:literal $code:literal $title:literal,)+) => {
        /// Why a request was refused; the word that a machine reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)+ }

        impl Code {
            /// Every code, for documentation and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The HTTP status that goes with the code.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)+ }
            }

            /// The code on the wire, in metrics and in logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// The title of the problem: the status in words.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)+ }
            }
        }
    };
}

codes! {
    /// The request line, a header or the framing breaks the grammar.
    MalformedRequest = 400 "malformed_request" "Bad Request",
    /// The target cannot be normalised or is not allowed.
    MalformedTarget = 400 "malformed_target" "Bad Request",
    /// A trusted proxy wrote an address that is none.
    MalformedForwardedFor = 400 "malformed_forwarded_for" "Bad Request",
    /// The route wants a token and there is none.
    TokenMissing = 401 "token_missing" "Unauthorized",
    /// The token cannot be believed.
    TokenInvalid = 401 "token_invalid" "Unauthorized",
    /// The token was good once.
    TokenExpired = 401 "token_expired" "Unauthorized",
    /// The token, or the key, was revoked.
    TokenRevoked = 401 "token_revoked" "Unauthorized",
    /// Nobody's API key, or not any more.
    ApiKeyInvalid = 401 "api_key_invalid" "Unauthorized",
    /// The client is on a block list.
    ClientBlocked = 403 "client_blocked" "Forbidden",
    /// The token holds none of the roles that the route asks for.
    RoleMissing = 403 "role_missing" "Forbidden",
    /// The API key is not for this.
    ScopeMissing = 403 "scope_missing" "Forbidden",
    /// The subject has no such permission.
    PermissionDenied = 403 "permission_denied" "Forbidden",
    /// No route names this path.
    RouteNotFound = 404 "route_not_found" "Not Found",
    /// The route does not take this method.
    MethodNotAllowed = 405 "method_not_allowed" "Method Not Allowed",
    /// The header did not arrive in time.
    HeaderTimeout = 408 "header_timeout" "Request Timeout",
    /// The body did not arrive in time.
    BodyTimeout = 408 "body_timeout" "Request Timeout",
    /// The body is larger than allowed.
    BodyTooLarge = 413 "body_too_large" "Content Too Large",
    /// A limit is used up.
    RateLimited = 429 "rate_limited" "Too Many Requests",
    /// One client has too many connections.
    TooManyConnections = 429 "too_many_connections" "Too Many Requests",
    /// Too many header fields, or too many bytes of them.
    HeaderTooLarge = 431 "header_too_large" "Request Header Fields Too Large",
    /// Something in the gateway broke.
    Internal = 500 "internal_error" "Internal Server Error",
    /// The upstream cannot be reached or broke off.
    UpstreamUnreachable = 502 "upstream_unreachable" "Bad Gateway",
    /// The breaker is open: the upstream has failed too often.
    BreakerOpen = 503 "breaker_open" "Service Unavailable",
    /// The upstream is sent as much as it can take, and those that wait are too many.
    Overloaded = 503 "overloaded" "Service Unavailable",
    /// Nothing is changed for now; reading goes on.
    ReadOnly = 503 "read_only" "Service Unavailable",
    /// The store of the limits is away and the limit says `deny`.
    LimitUnavailable = 503 "limit_unavailable" "Service Unavailable",
    /// The keys that verify tokens are away.
    KeysUnavailable = 503 "keys_unavailable" "Service Unavailable",
    /// Who knows API keys is away.
    ApiKeyUnavailable = 503 "api_key_unavailable" "Service Unavailable",
    /// The permission question could not be answered.
    PermissionUnavailable = 503 "permission_unavailable" "Service Unavailable",
    /// The upstream took too long.
    UpstreamTimeout = 504 "upstream_timeout" "Gateway Timeout",
}

/// The end of a request: what a client is told, and nothing that it should not know.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Where the request ended.
    pub stage: Stage,
    /// Why, for a machine.
    pub code: Code,
    /// Why, for a person, and what to do about it.
    pub detail: Box<str>,
    /// The rule that refused: a limit, a route, an issuer, a breaker.
    pub rule: Option<Arc<str>>,
    /// What of a proof did not do, for the operator's log: `signature`, `claims.aud`.
    pub reason: Option<Arc<str>>,
    /// When it is worth trying again.
    pub retry_after: Option<Duration>,
    /// The methods that the route takes, for `Allow`.
    pub allow: Box<[Arc<str>]>,
    /// Whether the last good answer will do instead.
    pub or_last_good: bool,
    /// The limits of the request, for `RateLimit` and `RateLimit-Policy`.
    pub quotas: Vec<Quota>,
}

impl Refusal {
    /// A refusal with a code and a sentence.
    pub fn new(stage: Stage, code: Code, detail: impl Into<Box<str>>) -> Self {
        Self {
            stage,
            code,
            detail: detail.into(),
            rule: None,
            reason: None,
            retry_after: None,
            allow: Box::default(),
            or_last_good: false,
            quotas: Vec::new(),
        }
    }

    /// A body that is larger than `most` bytes, announced or counted.
    pub fn body_too_large(most: u64) -> Self {
        Self::new(Stage::Forward, Code::BodyTooLarge, format!("a body here has at most {most} bytes"))
    }

    /// Names the rule that refused.
    #[must_use]
    pub fn by(mut self, rule: &Arc<str>) -> Self {
        self.rule = Some(Arc::clone(rule));
        self
    }

    /// Says what of a proof did not do.
    #[must_use]
    pub fn because(mut self, reason: impl Into<Arc<str>>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// Says whether the last good answer will do instead.
    #[must_use]
    pub(crate) fn or_last_good(mut self, will_do: bool) -> Self {
        self.or_last_good = will_do;
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.code.status()
    }

    /// `Retry-After` in whole seconds, rounded up: a client that waits so long is admitted.
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after.map(whole_seconds)
    }
}
