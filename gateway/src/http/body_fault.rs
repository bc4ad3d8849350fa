//! What may be wrong with a request's body, as pingora's errors carry it.

use pingora_core::ErrorType;

/// The body is over the limit.
pub(crate) const BODY_TOO_LARGE: ErrorType = ErrorType::new_code("BodyTooLarge", 413);

/// The body took too long.
pub(crate) const BODY_TOO_SLOW: ErrorType = ErrorType::new_code("BodyTooSlow", 408);

/// The body of a request over HTTP/2 is not as it was announced; the fault's text says how.
pub(crate) const BODY_MALFORMED: ErrorType = ErrorType::new_code("BodyMalformed", 400);
