//! What was revoked: tokens by their id, subjects, and all tokens issued before a time. Every request with a token or
//! an API key is checked, so the check costs no look-up while nothing is revoked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use policy::rules::authenticate::Credential;
use policy::values::time::Timestamp;

use crate::state::store::Change;

/// By what a token is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Its id: one token, or one API key.
    Jti,
    /// Its subject: all tokens issued up to the revocation, and API keys while it holds. Where there are several issuers,
    /// `SUB@NAME` means that issuer's subject alone.
    Sub,
    /// When it was issued: all tokens from before that time.
    Iat,
}

impl By {
    /// The kind that an operator names `word`.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Jti, Self::Sub, Self::Iat].into_iter().find(|by| by.as_str() == word)
    }

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jti => "jti",
            Self::Sub => "sub",
            Self::Iat => "iat",
        }
    }

    /// The name of a revocation among the changes that replicas agree about.
    pub fn key(self, value: &str) -> String {
        format!("{}/{value}", self.as_str())
    }
}

/// The value of an `iat` revocation: RFC 3339 or seconds since the epoch.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Timestamp::from_secs(seconds));
    }
    let since = humantime::parse_rfc3339(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Timestamp::EPOCH + since)
}

/// Revocations in force.
#[derive(Default)]
pub struct Revocations {
    any: AtomicBool,
    all: RwLock<All>,
}

#[derive(Default)]
struct All {
    tokens: HashMap<String, Ends>,
    /// Subjects, each with the time up to which its tokens are revoked.
    subjects: HashMap<String, (Timestamp, Ends)>,
    /// Tokens issued before this time are revoked. Of all such revocations that hold, the latest time counts.
    before: Vec<(Timestamp, Ends)>,
}

/// When a revocation ends; `None`: never.
type Ends = Option<u64>;

fn holds(ends: Ends, now: Timestamp) -> bool {
    ends.is_none_or(|ends| ends > now.as_nanos())
}

impl Revocations {
    /// Replaces the revocations in force by `changes`.
    pub fn replace(&self, changes: &[Change]) {
        let mut all = All::default();
        for change in changes {
            let Some((by, value)) = change.key.split_once('/') else { continue };
            match By::parse(by) {
                Some(By::Jti) => drop(all.tokens.insert(value.to_owned(), change.until)),
                Some(By::Sub) => {
                    let at = Timestamp::from_nanos(change.changed_at);
                    all.subjects.insert(value.to_owned(), (at, change.until));
                }
                Some(By::Iat) => all.before.extend(parse_time(value).map(|time| (time, change.until))),
                None => {}
            }
        }
        let mut current = self.all.write();
        *current = all;
        self.any.store(!changes.is_empty(), Ordering::Release);
        drop(current);
    }

    /// Adds revoked tokens.
    pub fn add_tokens<'c>(&self, changes: impl IntoIterator<Item = &'c Change>) {
        let mut all = self.all.write();
        for change in changes {
            if let Some(jti) = change.key.strip_prefix("jti/") {
                all.tokens.insert(jti.to_owned(), change.until);
                self.any.store(true, Ordering::Release);
            }
        }
    }

    /// Whether a credential is revoked at `now`.
    pub fn revokes(&self, credential: &Credential<'_>, now: Timestamp) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let all = self.all.read();
        let by_id = credential.jti.and_then(|jti| all.tokens.get(jti)).is_some_and(|ends| holds(*ends, now));
        // A token has its issue time in whole seconds, so a token from the second of the revocation may be older than
        // it.
        let issued_by =
            |until: Timestamp| credential.issued_at.is_none_or(|issued| issued.as_secs() <= until.as_secs());
        let by_subject = || {
            let names = [credential.sub, credential.identity];
            let mut found = names.into_iter().filter_map(|name| all.subjects.get(name));
            found.any(|(at, ends)| holds(*ends, now) && (credential.is_key || issued_by(*at)))
        };
        let by_time = || {
            let before = |time: Timestamp| credential.issued_at.is_none_or(|issued| issued < time);
            !credential.is_key && all.before.iter().any(|(time, ends)| holds(*ends, now) && before(*time))
        };
        by_id || by_subject() || by_time()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::store::Topic;

    fn change(key: &str, until: Option<u64>) -> Change {
        let changed_at = Timestamp::from_secs(1_000).as_nanos();
        Change { topic: Topic::Revocations, key: key.to_owned(), value: Some("".into()), until, changed_at }
    }

    #[test]
    fn a_token_is_revoked_by_its_id_its_subject_or_its_age() {
        let list = Revocations::default();
        let revoked = |jti, sub, issued: Option<u64>, now| {
            let issued_at = issued.map(Timestamp::from_secs);
            let credential = Credential { sub, identity: "ann@other", jti, issued_at, is_key: false };
            list.revokes(&credential, Timestamp::from_secs(now))
        };
        assert!(!revoked(Some("a"), "ann", Some(1), 1));
        let ends = Timestamp::from_secs(2_000).as_nanos();
        list.replace(&[change("jti/a", Some(ends)), change("sub/ann", None), change("iat/500", None)]);
        assert!(revoked(Some("a"), "bob", Some(900), 1_500) && !revoked(Some("a"), "bob", Some(900), 2_000));
        assert!(revoked(None, "ann", Some(1_000), 1_500) && !revoked(None, "ann", Some(1_001), 1_500));
        assert!(revoked(None, "bob", Some(499), 1_500) && !revoked(None, "bob", Some(500), 1_500));
        assert!(revoked(None, "bob", None, 1_500), "nobody knows how old it is");
        let key = Credential { sub: "ann", identity: "ann", jti: Some("k"), issued_at: None, is_key: true };
        assert!(list.revokes(&key, Timestamp::from_secs(1)), "and so is every key of the subject");
        list.replace(&[change("sub/ann@other", None)]);
        assert!(revoked(None, "ann", Some(1_000), 1_500), "the one of this issuer");
        list.replace(&[change("sub/ann@accounts", None)]);
        assert!(!revoked(None, "ann", Some(1_000), 1_500), "not the one of another");
        assert_eq!(parse_time("1970-01-01T00:08:20Z"), parse_time("500"));
    }
}
