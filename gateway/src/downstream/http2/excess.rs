//! What ends an HTTP/2 connection when a client does too much of it.

/// What ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Excess {
    #[error("too many requests were reset")]
    Resets,
    #[error("too many frames that ask for nothing")]
    Idle,
    #[error("a request's header did not arrive in time")]
    SlowHeader,
    #[error("a request's header has no end")]
    LargeHeader,
    #[error("too many requests at once")]
    Streams,
}

impl Excess {
    /// The name in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Resets => "resets",
            Self::Idle => "idle_frames",
            Self::SlowHeader => "slow_header",
            Self::LargeHeader => "large_header",
            Self::Streams => "streams",
        }
    }
}
