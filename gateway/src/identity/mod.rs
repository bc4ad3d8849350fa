//! Who the client is, and how the service recognises the gateway: key sets, verified tokens, the signed assertion.
//!
//! Floor 5: imports `upstream` and what lies below.

pub mod assertion;
pub mod keys;
pub mod verified_tokens;
