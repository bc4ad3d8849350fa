//! Passwords: argon2id, hashed on blocking threads with a bound on how many at once. Hashes of bcrypt, from another
//! system, are accepted and upgraded at login.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use serde::Serialize;
use tokio::sync::Semaphore;
use zxcvbn::Score;

use crate::config::PasswordRule;

/// OWASP Password Storage Cheat Sheet: argon2id with 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// What a hash begins with that needs no upgrade.
const CURRENT: &str = "$argon2id$v=19$m=19456,t=2,p=1$";

/// A longer password is refused: hashing it would be a way to keep us busy.
const MAX_BYTES: usize = 1024;

/// Each hash takes 19 MiB and a core for some 20 ms; more at once only makes all of them late.
static PLACES: Semaphore = Semaphore::const_new(8);

fn hasher() -> anyhow::Result<Argon2<'static>> {
    let params =
        Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|error| anyhow::anyhow!("argon2: {error}"))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// The PHC string of `password`, with a salt of its own.
pub(crate) fn hash(password: &str) -> anyhow::Result<String> {
    let hash =
        hasher()?.hash_password(password.as_bytes()).map_err(|error| anyhow::anyhow!("argon2: {error}"))?;
    Ok(hash.to_string())
}

fn is_bcrypt(hash: &str) -> bool {
    ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix))
}

fn verify(password: &str, hash: &str) -> bool {
    if is_bcrypt(hash) {
        return bcrypt::verify(password, hash).unwrap_or(false);
    }
    let Ok(parsed) = PasswordHash::new(hash) else { return false };
    hasher().is_ok_and(|hasher| hasher.verify_password(password.as_bytes(), &parsed).is_ok())
}

/// Whether a hash is of a kind that [`verify`] reads.
pub(crate) fn is_hash(hash: &str) -> bool {
    let argon2 =
        || PasswordHash::new(hash).is_ok_and(|parsed| parsed.algorithm.as_str().starts_with("argon2"));
    if is_bcrypt(hash) { hash.parse::<bcrypt::HashParts>().is_ok() } else { argon2() }
}

/// [`hash`] on a blocking thread.
pub(crate) async fn hash_async(password: String) -> anyhow::Result<String> {
    let place = PLACES.acquire().await?;
    // The place is held by the work, not by who waits for it: a client that leaves frees no core.
    let hashed = tokio::task::spawn_blocking(move || {
        let _place = place;
        hash(&password)
    });
    hashed.await?
}

/// Whether `password` is the one of `stored`. Without a hash, as for an unknown account, it takes as long and is wrong.
pub(crate) async fn verify_async(password: String, stored: Option<String>) -> anyhow::Result<bool> {
    let place = PLACES.acquire().await?;
    let verified = tokio::task::spawn_blocking(move || {
        let _place = place;
        match stored.filter(|_| password.len() <= MAX_BYTES) {
            Some(stored) => Ok(verify(&password, &stored)),
            None => hash(password.get(..MAX_BYTES).unwrap_or(&password)).map(|_| false),
        }
    });
    verified.await?
}

/// A better hash of a password that is right, where `stored` is an old one.
pub(crate) async fn better_hash(password: String, stored: &str) -> anyhow::Result<Option<String>> {
    if stored.starts_with(CURRENT) {
        return Ok(None);
    }
    hash_async(password).await.map(Some)
}

/// A rule that a password breaks.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) detail: String,
}

impl PasswordRule {
    /// Every rule that a password breaks. `about` is what is known of its owner, who should not use it in a password.
    pub(crate) fn violations(&self, password: &str, about: &[&str]) -> Vec<Violation> {
        let mut violations = Vec::new();
        let mut broken = |rule, detail| violations.push(Violation { rule, detail });
        if password.chars().count() < self.min_length {
            broken("min_length", format!("at least {} characters long", self.min_length));
        }
        if password.len() > MAX_BYTES {
            broken("max_length", format!("at most {MAX_BYTES} bytes long"));
            return violations;
        }
        if password.chars().any(char::is_control) {
            broken("control_characters", "without control characters".to_owned());
        }
        if about.iter().any(|known| !known.is_empty() && password.eq_ignore_ascii_case(known)) {
            broken("own_name", "not the name or the address of the account".to_owned());
        }
        // What is estimated beyond this says nothing new, and takes time that grows with the square.
        let estimated: String = password.chars().take(100).collect();
        if self.strong && zxcvbn::zxcvbn(&estimated, about).score() < Score::Three {
            broken("strength", "harder to guess: longer, or less like words, names and dates".to_owned());
        }
        violations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_verifies_its_password_and_no_other() {
        let phc = hash("correct horse battery").unwrap();
        assert!(phc.starts_with(CURRENT), "{phc}");
        assert!(verify("correct horse battery", &phc));
        assert!(!verify("wrong horse battery", &phc));
        assert_ne!(phc, hash("correct horse battery").unwrap(), "each has a salt of its own");
    }

    #[tokio::test]
    async fn a_hash_of_bcrypt_is_accepted_and_replaced() {
        let stored = bcrypt::hash("correct horse battery", 4).unwrap();
        assert!(is_hash(&stored) && !is_hash("$2b$") && !is_hash("plain"));
        let password = || "correct horse battery".to_owned();
        assert!(verify_async(password(), Some(stored.clone())).await.unwrap());
        assert!(!verify_async("wrong".to_owned(), Some(stored.clone())).await.unwrap());
        let better = better_hash(password(), &stored).await.unwrap().unwrap();
        assert!(is_hash(&better) && verify(&password(), &better));
        assert_eq!(better_hash(password(), &better).await.unwrap(), None);
    }

    #[test]
    fn every_rule_that_is_broken_is_named() {
        let rule = PasswordRule { min_length: 12, strong: true };
        let names = |password: &str, about: &[&str]| -> Vec<_> {
            rule.violations(password, about).into_iter().map(|violation| violation.rule).collect()
        };
        assert_eq!(names("short", &[]), ["min_length", "strength"]);
        assert_eq!(names("passwordpassword", &[]), ["strength"]);
        assert_eq!(names("Annabelle.Smith", &["annabelle.smith"]), ["own_name", "strength"]);
        assert_eq!(names("correct horse battery", &["ann"]), [] as [&str; 0]);
        assert_eq!(names(&"x".repeat(2_000), &[]), ["max_length"]);
    }
}
