//! What the gateway and the backend say to each other, and no more: serde types, names of fields and paths. The two
//! programs meet here and nowhere else, so that neither can change a word that the other does not know.
//!
//! [`assertion`] goes with each request, [`permissions`] are questions and answers about an account, [`keys`] about an API
//! key, [`feed`] is what changes meanwhile.

pub mod assertion;
pub mod feed;
pub mod keys;
pub mod permissions;

/// The field of a response that says: the service is read-only and did not change anything. The gateway removes it.
pub const READ_ONLY: &str = "x-palisade-read-only";
