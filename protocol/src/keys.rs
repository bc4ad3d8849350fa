//! Whose an API key is.

use serde::{Deserialize, Serialize};

/// Where [`WhoseKey`] is asked, by POST; the answer is a [`KeyHolder`].
pub const PATH: &str = "/internal/api-keys";

/// Whose key is this? The key itself is never sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhoseKey {
    /// SHA-256 of the key, in hexadecimal.
    pub sha256: String,
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyHolder {
    /// As of which change.
    pub revision: i64,
    /// The key; nothing when it is unknown, has ended, or its owner is not active.
    #[serde(flatten)]
    pub key: Option<Key>,
}

/// An API key that is valid.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Key {
    /// Its own id.
    pub id: String,
    /// Its owner.
    pub user: String,
    /// The owner's roles.
    pub roles: Vec<String>,
    /// The owner's groups.
    pub groups: Vec<String>,
    /// What it is limited to; empty: no limit.
    pub scopes: Vec<Scope>,
    /// When it ends, in seconds since the epoch.
    pub expires_at: Option<u64>,
}

/// One permission on one resource, or on those with the prefix before a `*`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scope {
    /// `records:read`, or `*`.
    pub permission: String,
    /// On what.
    pub resource: String,
}
