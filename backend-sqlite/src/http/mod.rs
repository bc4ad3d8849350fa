//! What the handlers share: the parts of a request, who sends it, and what proves that.
//!
//! Floor 5: it may import `model` and what is below.

pub(crate) mod app;
pub(crate) mod assertion;
pub(crate) mod client;
pub(crate) mod conditional;
pub(crate) mod extract;
pub(crate) mod identity;
pub(crate) mod openapi;
pub(crate) mod page;
pub(crate) mod proof;
pub(crate) mod reauthentication;
