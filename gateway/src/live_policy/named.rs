//! What a policy names outside itself: files, addresses, secrets. Only the policy file may name them. Access to the
//! admin plane must not allow reading files of this machine or sending requests to other addresses. So overrides, and
//! policies that are only judged, may name nothing that the file in force does not name.

use std::collections::HashSet;

use policy::Policy;
use policy::document::{Fault, Faults};
use policy::rules::authenticate::issuer::{KeySource, without_secrets};

/// The names in a policy file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Named {
    deny_files: HashSet<String>,
    keys: HashSet<KeySource>,
}

impl Named {
    /// What `rules` name.
    pub(crate) fn by(rules: &Policy) -> Self {
        Self {
            deny_files: rules.blocks.deny_files.iter().cloned().collect(),
            keys: rules.issuers.iter().map(|issuer| issuer.keys.clone()).collect(),
        }
    }

    /// Refuses `rules`, which were read from `text`, if they name anything else.
    pub(crate) fn cover(&self, rules: &Policy, file: &str, text: &str) -> Result<(), Vec<Fault>> {
        let faults = Faults::new(file, text);
        let refuse = |key: &str, name: &str| {
            let at = text.find(name).unwrap_or_default();
            let message = format!(
                "only the policy file names files, addresses and secrets (got {:?})",
                without_secrets(name)
            );
            faults.add(&(at..at + name.len()), key, message);
        };
        for name in rules.blocks.deny_files.iter().filter(|name| !self.deny_files.contains(*name)) {
            refuse("blocks.deny_files", name);
        }
        for issuer in rules.issuers.iter().filter(|issuer| !self.keys.contains(&issuer.keys)) {
            let (KeySource::Jwks(name) | KeySource::File(name) | KeySource::Secret(name)) = &issuer.keys;
            refuse(&format!("jwt.{}", issuer.name), name);
        }
        let list = faults.into_list();
        if list.is_empty() { Ok(()) } else { Err(list) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(lists: &str, jwks: &str) -> (String, Policy) {
        let text = format!(
            "version = 1\n[blocks]\ndeny_files = {lists}\n[jwt.a]\nalgorithms = [\"ES256\"]\n{jwks}\n\
             [[routes]]\nname = \"r\"\npath = \"/\"\nupstream = \"u\"\n"
        );
        let rules = Policy::parse("p.toml", &text, None).unwrap();
        (text, rules)
    }

    #[test]
    fn nothing_is_named_that_the_file_does_not_name() {
        let named = Named::by(&policy("[\"a.txt\", \"b.txt\"]", "jwks = \"http://keys/\"").1);
        let faults = |lists, keys| {
            let (text, rules) = policy(lists, keys);
            let faults = named.cover(&rules, "p.toml", &text).err().unwrap_or_default();
            faults.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(faults("[\"a.txt\"]", "jwks = \"http://keys/\"").is_empty());
        let said = "only the policy file names files, addresses and secrets";
        assert_eq!(
            faults("[\"/run/secrets/T\"]", "jwks = \"http://u:p@other/\""),
            [
                format!("p.toml:3:16: blocks.deny_files: {said} (got \"/run/secrets/T\")"),
                format!("p.toml:6:9: jwt.a: {said} (got \"http://other/\")"),
            ]
        );
        assert_eq!(faults("[]", "key_file = \"/etc/shadow\"").len(), 1);
    }
}
