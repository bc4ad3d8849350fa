//! Passwords: argon2id, hashed and estimated on blocking threads with a bound on how many at once and how many wait. Hashes of bcrypt, from another
//! system, are accepted and upgraded at login.

use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use axum::http::StatusCode;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zxcvbn::Score;

use crate::config::PasswordRule;
use crate::problem::{Problem, internal};

/// OWASP Password Storage Cheat Sheet: argon2id with 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// What a hash begins with that needs no upgrade.
const CURRENT: &str = "$argon2id$v=19$m=19456,t=2,p=1$";

/// A longer password is refused: hashing it would be a way to keep us busy.
const MAX_BYTES: usize = 1024;

/// Of a longer password its first and its last so many characters are estimated. The time grows with the square and more
/// of the length, as `estimates_take_milliseconds_whatever_is_estimated` measures, and beyond 20 zxcvbn's products overflow.
const ESTIMATED: usize = 20;

/// What zxcvbn takes for letters in disguise. It tries all combinations of those that a password holds, hundreds with all
/// of these; beyond the first few, each stands for a character that disguises nothing, which is as hard to guess.
const DISGUISES: &str = "4@8({[<3691!|70$5+%2";
const MOST_DISGUISES: usize = 4;
const UNDISGUISED: &str = "~^&*_=:;?,.'\"/)]";

/// What is known of the owner is compared with the password up to so many characters each.
const ABOUT: usize = 64;

/// Hashes of other systems may cost so much: bcrypt's exponent, argon2's memory in KiB, passes and lanes.
const MOST_BCRYPT_COST: u32 = 14;
const MOST_ARGON2: [u32; 3] = [128 * 1024, 10, 16];

/// Each hash takes 19 MiB and a core for some 20 ms; more at once only makes all of them late.
const AT_ONCE: usize = 8;
static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// Those who work or wait for a place; one more is refused at once.
static QUEUE: Semaphore = Semaphore::const_new(AT_ONCE * 16);

/// The longest wait for a place.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `work`, which takes a core for a while, on a blocking thread, few at a time. Who waits too long gets 503.
async fn slowly<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let busy = || {
        let detail = "too many passwords are judged just now: try again";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "passwords_busy", detail)
    };
    let _waiting = QUEUE.try_acquire().map_err(|_| busy())?;
    let place = timeout(PATIENCE, PLACES.acquire()).await.map_err(|_| busy())?;
    let place = place.map_err(|error| internal(error.into()))?;
    // The place is held by the work, not by who waits for it: a client that leaves frees no core.
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    done.await.map_err(|error| internal(error.into()))?.map_err(internal)
}

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
        // bcrypt repeats a password with a zero byte between: `a\0a` would be right where `a` is.
        let right = bcrypt::verify(password, hash).unwrap_or(false); // first: it takes as long as any other
        return right && !password.contains('\0');
    }
    let Ok(parsed) = PasswordHash::new(hash) else { return false };
    hasher().is_ok_and(|hasher| hasher.verify_password(password.as_bytes(), &parsed).is_ok())
}

/// Whether a hash is of a kind that [`verify`] reads, and costs no more than it may.
pub(crate) fn is_hash(hash: &str) -> bool {
    if is_bcrypt(hash) {
        return hash.parse::<bcrypt::HashParts>().is_ok_and(|parts| parts.get_cost() <= MOST_BCRYPT_COST);
    }
    let Ok(parsed) = PasswordHash::new(hash) else { return false };
    let Ok(params) = Params::try_from(&parsed) else { return false };
    let costs = [params.m_cost(), params.t_cost(), params.p_cost()];
    parsed.algorithm.as_str().starts_with("argon2")
        && costs.iter().zip(&MOST_ARGON2).all(|(cost, most)| cost <= most)
}

/// Whether a hash that is kept may be computed.
fn is_affordable(stored: &str) -> bool {
    let affordable = is_hash(stored);
    if !affordable {
        tracing::warn!(
            "an account's hash is of no kind that is read here, or costs too much, and no password is right for it: \
             set a new one with `backend-sqlite user passwd NAME`"
        );
    }
    affordable
}

/// What [`is_hash`] takes, for people.
pub(crate) fn hash_kinds() -> String {
    let [memory, passes, lanes] = MOST_ARGON2;
    format!(
        "argon2 ($argon2id$…, up to m={memory},t={passes},p={lanes}) or bcrypt ($2b$…, up to cost {MOST_BCRYPT_COST})"
    )
}

/// [`hash`] on a blocking thread.
async fn hash_async(password: String) -> Result<String, Problem> {
    slowly(move || hash(&password)).await
}

/// The hash of a password that keeps every rule.
pub(crate) async fn accept(
    rule: PasswordRule,
    password: String,
    about: Vec<String>,
) -> Result<String, Problem> {
    let judged = slowly(move || {
        let about: Vec<&str> = about.iter().map(String::as_str).collect();
        let violations = rule.violations(&password, &about);
        if violations.is_empty() { hash(&password).map(Ok) } else { Ok(Err(violations)) }
    });
    judged.await?.map_err(|violations| {
        let details: Vec<_> = violations.iter().map(|violation| violation.detail.as_str()).collect();
        let detail = format!("a password is {}", details.join("; "));
        Problem::unprocessable("weak_password", detail).with("violations", serde_json::json!(violations))
    })
}

/// Whether `password` is the one of `stored`. Without a hash, as for an unknown account, it takes as long and is wrong.
pub(crate) async fn verify_async(password: String, stored: Option<String>) -> Result<bool, Problem> {
    slowly(move || match stored.filter(|stored| password.len() <= MAX_BYTES && is_affordable(stored)) {
        Some(stored) => Ok(verify(&password, &stored)),
        None => hash(password.get(..MAX_BYTES).unwrap_or(&password)).map(|_| false),
    })
    .await
}

/// Whether a password that [`verify`] found right is the one that was set, and not only begins like it: bcrypt looks at
/// 72 bytes. And `$2x$` is how a program of old hashed what is not ASCII, so that several passwords fit.
fn is_certain(password: &str, stored: &str) -> bool {
    const LOOKED_AT: usize = 72;
    !is_bcrypt(stored) || (password.len() < LOOKED_AT && (password.is_ascii() || !stored.starts_with("$2x$")))
}

/// A better hash of a password that is right, where `stored` is an old one. None where another password may be the right
/// one: who knows its beginning alone must not thereby set it.
pub(crate) async fn better_hash(password: String, stored: &str) -> Result<Option<String>, Problem> {
    if stored.starts_with(CURRENT) || !is_certain(&password, stored) {
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
        if self.strong && is_easy_to_guess(password, about) {
            broken("strength", "harder to guess: longer, or less like words, names and dates".to_owned());
        }
        violations
    }
}

/// Whether both ends of a password are; it is at least as hard to guess as any part of it.
fn is_easy_to_guess(password: &str, about: &[&str]) -> bool {
    let about: Vec<String> = about.iter().map(|known| known.chars().take(ABOUT).collect()).collect();
    let about: Vec<&str> = about.iter().map(String::as_str).collect();
    let first: String = password.chars().take(ESTIMATED).collect();
    let beyond = password.chars().count().saturating_sub(ESTIMATED);
    let last: String = password.chars().skip(beyond).collect();
    let is_easy = |part: &str| zxcvbn::zxcvbn(&few_disguises(part), &about).score() < Score::Three;
    is_easy(&first) && (beyond == 0 || is_easy(&last))
}

/// The same text with no more than [`MOST_DISGUISES`] characters that may disguise letters.
fn few_disguises(part: &str) -> String {
    let mut seen: Vec<char> = Vec::new();
    let mut replace = |char: char| {
        if !DISGUISES.contains(char) {
            return char;
        }
        let at = seen.iter().position(|known| *known == char).unwrap_or_else(|| {
            seen.push(char);
            seen.len() - 1
        });
        at.checked_sub(MOST_DISGUISES).and_then(|at| UNDISGUISED.chars().nth(at)).unwrap_or(char)
    };
    part.chars().map(&mut replace).collect()
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

    #[tokio::test]
    async fn a_password_is_kept_better_only_where_it_is_certainly_the_one_that_was_set() {
        let long = "x".repeat(71) + "yz and more";
        let stored = bcrypt::hash(&long, 4).unwrap();
        let better = async |typed: &str| better_hash(typed.to_owned(), &stored).await.unwrap();
        for typed in [&long[..72], &long[..73], &long, &(long[..72].to_owned() + "another end")] {
            assert!(verify(typed, &stored), "bcrypt looks at 72 bytes");
            assert_eq!(better(typed).await, None, "{typed}");
        }
        assert!(!verify(&long[..71], &stored));
        let stored = bcrypt::hash(&long[..71], 4).unwrap();
        assert!(better_hash(long[..71].to_owned(), &stored).await.unwrap().is_some());
        let repeated = bcrypt::hash("abc", 4).unwrap();
        assert!(!verify("abc\0abc", &repeated) && !verify("abc\0", &repeated));
        assert!(
            !is_certain("grün", "$2x$04$") && is_certain("grün", "$2b$04$") && is_certain("plain", "$2x$04$")
        );
        let argon2 = hash(&long).unwrap();
        assert!(is_certain(&long, &argon2));
    }

    #[test]
    fn a_hash_that_costs_too_much_is_none() {
        let argon2 =
            |costs: &str| format!("$argon2id$v=19${costs}$c29tZXNhbHRzYWx0$c29tZWhhc2hzb21laGFzaHNvbWVoYXNo");
        assert!(is_hash(&argon2("m=65536,t=3,p=4")));
        for costs in ["m=4194304,t=3,p=4", "m=65536,t=4000000,p=4", "m=65536,t=3,p=255"] {
            assert!(!is_hash(&argon2(costs)), "{costs}");
        }
        let bcrypt = |cost: &str| format!("$2b${cost}$RE5tWKQtyWUNCw/P2MhDou4M2PVdsHirWTs7lCnaZXxq8ntovIb3S");
        assert!(is_hash(&bcrypt("12")) && !is_hash(&bcrypt("31")));
    }

    #[test]
    fn estimates_take_milliseconds_whatever_is_estimated() {
        let rule = PasswordRule { min_length: 12, strong: true };
        let crafted = [
            "4@8({[<6931!|70$5+%2".repeat(5),
            "p@$$w0rd1!".repeat(10),
            "aA1!".repeat(25),
            "1".repeat(100),
            "12".repeat(50),
            "abc".repeat(33),
            "1/1/11".repeat(16),
            "qwertyuiop".repeat(10),
            "zxcvbnm,./".repeat(10),
            "!|1l1|!".repeat(14),
            "é".repeat(100),
        ];
        let mut slowest = (Duration::ZERO, "");
        for password in &crafted {
            let begun = std::time::Instant::now();
            rule.violations(password, &[password, &"x".repeat(254)]);
            slowest = slowest.max((begun.elapsed(), password));
        }
        println!("the slowest estimate took {slowest:?}");
        assert!(
            slowest.0 < Duration::from_millis(500),
            "{slowest:?}: some ms, on a machine that does nothing else"
        );
    }

    #[test]
    fn few_characters_stand_for_letters_and_none_is_lost() {
        assert_eq!(few_disguises("p@$$w0rd1!"), "p@$$w0rd1~");
        let many = few_disguises(DISGUISES);
        assert_eq!(many.chars().filter(|char| DISGUISES.contains(*char)).count(), MOST_DISGUISES);
        assert_eq!(many.chars().collect::<std::collections::BTreeSet<_>>().len(), DISGUISES.len());
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
        let end = format!("{}vK9#tq2Lm!zR", "a".repeat(30));
        assert_eq!(names(&end, &["ann"]), [] as [&str; 0], "one end that is hard to guess will do");
        assert_eq!(names(&"x".repeat(2_000), &[]), ["max_length"]);
    }
}
