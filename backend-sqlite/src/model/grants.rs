//! Permissions and resources as they are written: a permission is a word or `*`, a resource a name or a prefix that
//! ends in `*`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problem::{Problem, Result};

fn is_word(text: &str) -> bool {
    (1..=256).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/@".contains(&byte))
}

/// Whether `text` names resources: it holds no special character but a `*` at its end.
pub(crate) fn is_pattern(text: &str) -> bool {
    text == "*" || is_word(text.strip_suffix('*').unwrap_or(text))
}

/// A permission on a resource.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grant {
    pub(crate) permission: String,
    pub(crate) resource: String,
}

impl Grant {
    /// Checks how it is written.
    pub(crate) fn check(&self) -> Result<()> {
        if (self.permission == "*" || is_word(&self.permission)) && is_pattern(&self.resource) {
            return Ok(());
        }
        let allowed =
            "a permission is a word like records:read or `*`, a resource a name that may end in `*`";
        let found = format!("{allowed} (got {:?} on {:?})", self.permission, self.resource);
        Err(Problem::unprocessable("invalid_grant", found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_one_star_at_its_end() {
        for fine in ["notes", "team-*", "*", "a/b:c"] {
            assert!(is_pattern(fine), "{fine}");
        }
        for bad in ["", "a*b", "**", "a?", "[a]", "a b"] {
            assert!(!is_pattern(bad), "{bad}");
        }
    }
}
