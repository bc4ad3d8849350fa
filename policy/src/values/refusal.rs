//! Every reason for which the gateway refuses a request, with its status, its code and what a client can do about it.

use std::sync::Arc;
use std::time::Duration;

use crate::values::quota::Quota;
use crate::values::stage::Stage;
use crate::values::time::whole_seconds;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:literal $code:literal $title:literal,)+) => {
        /// Why a request was refused: one word, for machines.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)+ }

        impl Code {
            /// Every code, for documentation and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The HTTP status that goes with the code.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)+ }
            }

            /// The code in answers, metrics and logs.
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
    /// The target cannot be normalised, or is not allowed.
    MalformedTarget = 400 "malformed_target" "Bad Request",
    /// A trusted proxy sent something that is not an address.
    MalformedForwardedFor = 400 "malformed_forwarded_for" "Bad Request",
    /// The route requires a token, and the request has none.
    TokenMissing = 401 "token_missing" "Unauthorized",
    /// The token cannot be trusted.
    TokenInvalid = 401 "token_invalid" "Unauthorized",
    /// The token was valid, but has expired.
    TokenExpired = 401 "token_expired" "Unauthorized",
    /// The token or the API key was revoked.
    TokenRevoked = 401 "token_revoked" "Unauthorized",
    /// The API key is unknown, or is no longer valid.
    ApiKeyInvalid = 401 "api_key_invalid" "Unauthorized",
    /// The client is on a block list.
    ClientBlocked = 403 "client_blocked" "Forbidden",
    /// The subject has none of the roles that the route requires.
    RoleMissing = 403 "role_missing" "Forbidden",
    /// The scopes of the API key do not cover this.
    ScopeMissing = 403 "scope_missing" "Forbidden",
    /// The subject does not have the permission.
    PermissionDenied = 403 "permission_denied" "Forbidden",
    /// No route matches this path.
    RouteNotFound = 404 "route_not_found" "Not Found",
    /// The route does not accept this method.
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
    /// The gateway itself failed.
    Internal = 500 "internal_error" "Internal Server Error",
    /// The upstream cannot be reached, or closed the connection before its answer was complete.
    UpstreamUnreachable = 502 "upstream_unreachable" "Bad Gateway",
    /// The breaker is open, because the upstream failed too often.
    BreakerOpen = 503 "breaker_open" "Service Unavailable",
    /// The upstream has as many requests as it can serve, and too many others wait.
    Overloaded = 503 "overloaded" "Service Unavailable",
    /// Changes are refused at the moment; reading continues.
    ReadOnly = 503 "read_only" "Service Unavailable",
    /// The store of the limits is unavailable, and the limit says `deny`.
    LimitUnavailable = 503 "limit_unavailable" "Service Unavailable",
    /// The keys that verify tokens are unavailable.
    KeysUnavailable = 503 "keys_unavailable" "Service Unavailable",
    /// The service that knows the API keys is unavailable.
    ApiKeyUnavailable = 503 "api_key_unavailable" "Service Unavailable",
    /// The permission question could not be answered.
    PermissionUnavailable = 503 "permission_unavailable" "Service Unavailable",
    /// The upstream took too long.
    UpstreamTimeout = 504 "upstream_timeout" "Gateway Timeout",
}

/// A refused request: what the client receives, and what only the log gets.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The stage that refused.
    pub stage: Stage,
    /// The reason, for a machine.
    pub code: Code,
    /// The reason, for a person, and what to do about it.
    pub detail: Box<str>,
    /// The rule that refused: a limit, a route, an issuer, a breaker.
    pub rule: Option<Arc<str>>,
    /// What is wrong with a proof, for the operator's log alone: `signature`, `claims.aud`.
    pub reason: Option<Arc<str>>,
    /// After which time a retry makes sense.
    pub retry_after: Option<Duration>,
    /// The methods that the path accepts, for `Allow`.
    pub allow: Box<[Arc<str>]>,
    /// Whether the last good answer may be sent instead.
    pub or_last_good: bool,
    /// The limits of the request, for `RateLimit` and `RateLimit-Policy`.
    pub quotas: Vec<Quota>,
}

impl Refusal {
    /// A refusal with a code and a sentence for the client.
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

    /// A body is larger than `most` bytes, as announced or as counted.
    pub fn body_too_large(most: u64) -> Self {
        Self::new(Stage::Forward, Code::BodyTooLarge, format!("a body here has at most {most} bytes"))
    }

    /// Sets the rule that refused.
    #[must_use]
    pub fn by(mut self, rule: &Arc<str>) -> Self {
        self.rule = Some(Arc::clone(rule));
        self
    }

    /// Sets what is wrong with a proof.
    #[must_use]
    pub fn because(mut self, reason: impl Into<Arc<str>>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Sets when to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// Sets whether the last good answer may be sent instead.
    #[must_use]
    pub(crate) fn or_last_good(mut self, allowed: bool) -> Self {
        self.or_last_good = allowed;
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.code.status()
    }

    /// `Retry-After` in whole seconds, rounded up, so that a client that waits this long is admitted.
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after.map(whole_seconds)
    }
}
