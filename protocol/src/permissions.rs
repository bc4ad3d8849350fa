//! Questions about what an account may do, and their answers.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Where [`Question`] is asked, by POST; the answer is a [`Decision`].
pub const QUESTION_PATH: &str = "/internal/permissions";

/// Where [`Whose`] is asked, by POST; the answer is [`HeldRoles`].
pub const ROLES_PATH: &str = "/internal/roles";

/// May this user do this to that?
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question<'a> {
    /// The account's id.
    pub user: Cow<'a, str>,
    /// Who issued the id, where the gateway accepts several issuers' tokens: the token's `iss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Cow<'a, str>>,
    /// `records:read`.
    pub permission: Cow<'a, str>,
    /// On what.
    pub resource: Cow<'a, str>,
}

/// The answer, and what it rests on, so that a change of a role or a group finds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// Whether it may.
    pub allowed: bool,
    /// Why, for a person.
    #[serde(default)]
    pub reason: String,
    /// As of which change.
    pub revision: i64,
    /// The account's roles.
    #[serde(default)]
    pub roles: Vec<String>,
    /// Its groups.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// Whose roles?
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Whose<'a> {
    /// The account's id.
    pub user: Cow<'a, str>,
    /// Who issued the id, as in [`Question`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Cow<'a, str>>,
}

/// The roles that an account has now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeldRoles {
    /// As of which change.
    pub revision: i64,
    /// `None`: the backend does not know the account, and the token's roles count.
    pub roles: Option<Vec<String>>,
    /// Its groups.
    #[serde(default)]
    pub groups: Vec<String>,
}
