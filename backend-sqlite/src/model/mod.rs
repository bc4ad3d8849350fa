//! What the service knows and does, as functions over a transaction: accounts, sessions, permissions.
//!
//! Floor 4: it may import `config`, `observe`, `storage`, `mail` and `problem`, and no HTTP.

pub(crate) mod access_tokens;
pub(crate) mod acl;
pub(crate) mod administration;
pub(crate) mod api_keys;
pub(crate) mod changes;
pub(crate) mod credentials;
pub(crate) mod grants;
pub(crate) mod groups;
pub(crate) mod lockout;
pub(crate) mod login_guard;
pub(crate) mod logins;
pub(crate) mod names;
pub(crate) mod password_hash;
pub(crate) mod password_resets;
pub(crate) mod password_rules;
pub(crate) mod permissions;
pub(crate) mod places;
pub(crate) mod records;
pub(crate) mod roles;
pub(crate) mod second_factor;
pub(crate) mod sessions;
pub(crate) mod users;
