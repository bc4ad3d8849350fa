//! The stages of a request, in the order in which they are enforced: the table of contents of the product.

use std::fmt;

/// One step of the way of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Connection limit, header deadline, strict framing.
    Accept,
    /// Client address, request id, trace context, normal path.
    Identify,
    /// Block list: configured and automatic.
    Block,
    /// Which route the request takes.
    Route,
    /// Limits whose key is known before the subject: address, header, route, global.
    LimitClient,
    /// Limits whose key is in the body.
    LimitField,
    /// Who is asking: a token or a key.
    Authenticate,
    /// Limits whose key is the subject.
    LimitSubject,
    /// Roles, then the permission.
    Authorize,
    /// The length that a body announces; where a limit counts by the body, before it is read.
    Length,
    /// Read-only mode, and how many requests the upstream has in flight.
    Concurrency,
    /// Circuit breaker.
    Break,
    /// Body limit, timeouts, the upstream.
    Forward,
    /// Security headers, request id; failures counted.
    Answer,
    /// Metrics, access log, span.
    Observe,
}

impl Stage {
    /// The order of enforcement. It is a security property: `pipeline` follows it line by line.
    pub const ORDER: [Self; 15] = [
        Self::Accept,
        Self::Identify,
        Self::Block,
        Self::Route,
        Self::LimitClient,
        Self::LimitField,
        Self::Authenticate,
        Self::LimitSubject,
        Self::Authorize,
        Self::Length,
        Self::Concurrency,
        Self::Break,
        Self::Forward,
        Self::Answer,
        Self::Observe,
    ];

    /// The stages that `pipeline` decides; the others belong to the wire.
    pub const JUDGED: [Self; 11] = [
        Self::Identify,
        Self::Block,
        Self::Route,
        Self::LimitClient,
        Self::LimitField,
        Self::Authenticate,
        Self::LimitSubject,
        Self::Authorize,
        Self::Length,
        Self::Concurrency,
        Self::Break,
    ];

    /// The name in answers, metrics, spans and policy tests. All limit stages are called `limit`; a length is
    /// part of `forward`, concurrency of `break`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Identify => "identify",
            Self::Block => "block",
            Self::Route => "route",
            Self::LimitClient | Self::LimitField | Self::LimitSubject => "limit",
            Self::Authenticate => "authenticate",
            Self::Authorize => "authorize",
            Self::Concurrency | Self::Break => "break",
            Self::Length | Self::Forward => "forward",
            Self::Answer => "answer",
            Self::Observe => "observe",
        }
    }

    /// The name in `gateway explain`, which tells the steps of a stage apart.
    pub const fn step(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Concurrency => "concurrency",
            stage => stage.as_str(),
        }
    }

    /// What the stage does, for `gateway explain`.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Accept => "connection limit, header deadline, strict framing",
            Self::Identify => "client address, request id, normal path",
            Self::Block => "block list",
            Self::Route => "route and method",
            Self::LimitClient => "limits by ip, header, route, global",
            Self::Authenticate => "token or API key",
            Self::LimitField => "limits by field",
            Self::LimitSubject => "limits by user, api_key",
            Self::Authorize => "roles, then permission",
            Self::Length => "announced length of the body",
            Self::Concurrency => "read-only mode, requests in flight",
            Self::Break => "circuit breaker",
            Self::Forward => "body limit, timeouts, upstream",
            Self::Answer => "security headers, request id",
            Self::Observe => "metrics, access log, span",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a judged stage found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The request may go on.
    Passed,
    /// The request ends here.
    Refused,
}

/// The stages that a request went through, with what each found; no allocation.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    findings: [Option<Finding>; Stage::ORDER.len()],
}

impl Trail {
    /// Notes what `stage` found and hands the verdict on.
    pub fn stage<T, E>(&mut self, stage: Stage, verdict: Result<T, E>) -> Result<T, E> {
        self.findings[stage as usize] =
            Some(if verdict.is_ok() { Finding::Passed } else { Finding::Refused });
        verdict
    }

    /// What `stage` found; `None` when the request did not come so far.
    pub fn finding(&self, stage: Stage) -> Option<Finding> {
        self.findings[stage as usize]
    }

    /// The stages that were asked, in order.
    pub fn visited(&self) -> impl Iterator<Item = (Stage, Finding)> + '_ {
        Stage::ORDER.into_iter().filter_map(|stage| Some((stage, self.finding(stage)?)))
    }
}
