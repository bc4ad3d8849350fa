//! Who is at the other end, and who we are for the service: key sets, verified tokens, the assertion that we sign.
//!
//! Floor 5: imports `upstream` and what lies below.

pub mod assertion;
pub mod keys;
pub mod verified_tokens;
