//! What the service knows and does, as functions over a transaction: accounts, sessions, permissions.
//!
//! Floor 4: it may import `config`, `observe`, `storage`, `mail` and `problem`, and no HTTP.

pub(crate) mod access_tokens;
pub(crate) mod changes;
pub(crate) mod grants;
pub(crate) mod lockout;
pub(crate) mod login_guard;
pub(crate) mod password_hash;
pub(crate) mod permissions;
pub(crate) mod sessions;
pub(crate) mod users;
