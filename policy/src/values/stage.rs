//! The stages of a request, in the order of enforcement. This is the table of contents of the product.

use std::fmt;

/// One step in the life of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Connection limit, header deadline, strict framing.
    Accept,
    /// Client address, request id, trace context, normalised path.
    Identify,
    /// Block list: configured and automatic.
    Block,
    /// Which route the request takes.
    Route,
    /// Limits whose key is known before authentication: address, header, route, global.
    LimitClient,
    /// Limits whose key is in the body.
    LimitField,
    /// Who is asking: a token or a key.
    Authenticate,
    /// Limits whose key is the subject.
    LimitSubject,
    /// Roles, then the permission.
    Authorize,
    /// The announced length of the body. When a limit counts by the body, this is checked before the body is read.
    Length,
    /// Read-only mode, and the number of requests in flight to the upstream.
    Concurrency,
    /// Circuit breaker.
    Break,
    /// Body limit, timeouts, the upstream.
    Forward,
    /// Security headers, request id, counting of failures.
    Answer,
    /// Metrics, access log, span.
    Observe,
}

impl Stage {
    /// The order of enforcement. It is a security property, and `pipeline` follows it line by line.
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

    /// The stages that `pipeline` decides. The gateway does the others while it receives, forwards and answers.
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

    /// The name in answers, metrics, spans and policy tests. All limit stages are called `limit`. The length is part of
    /// `forward`, concurrency is part of `break`.
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

    /// The name in `gateway explain`, which distinguishes the steps of a stage.
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
    /// The request continues.
    Passed,
    /// The request was refused here.
    Refused,
}

/// The stages that a request went through, with the finding of each. It does not allocate.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    findings: [Option<Finding>; Stage::ORDER.len()],
}

impl Trail {
    /// Notes the finding of `stage` and returns the verdict.
    pub fn stage<T, E>(&mut self, stage: Stage, verdict: Result<T, E>) -> Result<T, E> {
        self.findings[stage as usize] =
            Some(if verdict.is_ok() { Finding::Passed } else { Finding::Refused });
        verdict
    }

    /// The finding of `stage`; `None` when the request did not reach it.
    pub fn finding(&self, stage: Stage) -> Option<Finding> {
        self.findings[stage as usize]
    }

    /// The stages that the request reached, in order.
    pub fn visited(&self) -> impl Iterator<Item = (Stage, Finding)> + '_ {
        Stage::ORDER.into_iter().filter_map(|stage| Some((stage, self.finding(stage)?)))
    }
}
