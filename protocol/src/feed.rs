//! The change feed: the backend numbers every change to who may do what, and sends it in order.

use serde::{Deserialize, Serialize};

/// Where it is: `GET /internal/changes?replica=ID[&run=RUN&revision=N | &revoked_after=N]`.
pub const PATH: &str = "/internal/changes";

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// All that an account may do, or one permission of it.
    User,
    /// What a role grants.
    Role,
    /// What comes from being in a group.
    Group,
    /// An API key, by its id.
    ApiKey,
    /// An access token that is revoked, by its `jti`.
    Token,
    /// Something that this program does not know: it may be about anything.
    #[serde(other)]
    Unknown,
}

impl Kind {
    /// The word on the wire and in the backend's database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Role => "role",
            Self::Group => "group",
            Self::ApiKey => "api_key",
            Self::Token => "token",
            Self::Unknown => "unknown",
        }
    }

    /// The kind that `word` stands for.
    pub fn of(word: &str) -> Self {
        const KNOWN: [Kind; 5] = [Kind::User, Kind::Role, Kind::Group, Kind::ApiKey, Kind::Token];
        KNOWN.into_iter().find(|kind| kind.as_str() == word).unwrap_or(Self::Unknown)
    }
}

/// A change to who may do what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its number.
    pub revision: i64,
    /// What it is about.
    pub kind: Kind,
    /// Which one.
    pub name: String,
    /// Only this permission of it; all when `None` or `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission: Option<String>,
    /// Only this resource, or those with this prefix before a `*`; all when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// For a revoked token, when it would have expired, in seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

impl Change {
    /// Whether the permission on the resource may be what changed.
    pub fn covers(&self, permission: &[u8], resource: &[u8]) -> bool {
        let same = self.permission.as_ref().is_none_or(|one| one == "*" || one.as_bytes() == permission);
        same && self.resource.as_ref().is_none_or(|on| match on.strip_suffix('*') {
            Some(prefix) => resource.starts_with(prefix.as_bytes()),
            None => on.as_bytes() == resource,
        })
    }
}

/// What the backend sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct News {
    /// With this everything is known up to here.
    pub revision: i64,
    /// Of which run of the backend that is a number: its database may have been restored since.
    #[serde(default)]
    pub run: String,
    /// Nothing that was known before counts any more.
    pub reset: bool,
    /// What happened since; after a reset, the tokens that are revoked.
    pub changes: Vec<Change>,
    /// Whether there are more of them.
    #[serde(default)]
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_one_word() {
        for kind in [Kind::User, Kind::Role, Kind::Group, Kind::ApiKey, Kind::Token] {
            assert_eq!(Kind::of(kind.as_str()), kind);
        }
        assert_eq!(Kind::of("something new"), Kind::Unknown);
    }

    #[test]
    fn a_change_covers_its_permission_on_its_resources() {
        let change = |permission: Option<&str>, resource: Option<&str>| Change {
            revision: 1,
            kind: Kind::User,
            name: "ann".to_owned(),
            permission: permission.map(str::to_owned),
            resource: resource.map(str::to_owned),
            until: None,
        };
        assert!(change(None, None).covers(b"read", b"notes"));
        assert!(change(Some("*"), Some("no*")).covers(b"read", b"notes"));
        assert!(!change(Some("write"), None).covers(b"read", b"notes"));
        assert!(!change(None, Some("note")).covers(b"read", b"notes"));
    }
}
