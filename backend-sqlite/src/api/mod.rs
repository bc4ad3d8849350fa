//! What the program answers: one file a resource. A handler parses, calls the model and answers.
//!
//! Floor 6: it may import `http`, `model` and what is below.

pub(crate) mod acl;
pub(crate) mod api_keys;
pub(crate) mod auth;
pub(crate) mod changes;
pub(crate) mod groups;
pub(crate) mod health;
pub(crate) mod passwords;
pub(crate) mod permissions;
pub(crate) mod records;
pub(crate) mod roles;
pub(crate) mod routes;
pub(crate) mod second_factor;
pub(crate) mod sessions;
pub(crate) mod users;
