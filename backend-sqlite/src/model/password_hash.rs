//! Passwords: argon2id, hashed and estimated on blocking threads with a bound on how many at once and how many wait.
//! Hashes of bcrypt, from another system, are accepted and upgraded at login.

use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::password_rules::{MAX_BYTES, violations};
use crate::config::PasswordRule;
use crate::problem::{Problem, internal};

/// OWASP Password Storage Cheat Sheet: argon2id with 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// What a hash begins with that needs no upgrade.
const CURRENT: &str = "$argon2id$v=19$m=19456,t=2,p=1$";

/// Hashes of other systems may cost so much: bcrypt's exponent, argon2's memory in KiB, passes and lanes.
const MOST_BCRYPT_COST: u32 = 14;
const MOST_ARGON2: [u32; 3] = [128 * 1024, 10, 16];

/// Each hash takes 19 MiB and a core for some 20 ms; more at once only makes all of them late.
const AT_ONCE: usize = 8;
static SLOTS: Semaphore = Semaphore::const_new(AT_ONCE);

/// Requests that work or wait for a slot; one more is refused at once.
static QUEUE: Semaphore = Semaphore::const_new(AT_ONCE * 16);

/// The longest wait for a slot.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs `work`, which takes a core for a while, on a blocking thread, few at a time. A request that waits too long is
/// refused with 503.
async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let busy = || {
        let detail = "too many passwords are being checked: try again";
        Problem::unavailable("passwords_busy", detail)
    };
    let _waiting = QUEUE.try_acquire().map_err(|_| busy())?;
    let slot = timeout(QUEUE_TIMEOUT, SLOTS.acquire()).await.map_err(|_| busy())?;
    let slot = slot.map_err(|error| internal(error.into()))?;
    // The slot is held by the work, not by the request that waits for it: a client that disconnects frees no core.
    let done = tokio::task::spawn_blocking(move || {
        let _slot = slot;
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

/// Whether a stored hash may be computed.
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
    on_blocking_thread(move || hash(&password)).await
}

/// The hash of a password that breaks no rule.
pub(crate) async fn accept(
    rule: PasswordRule,
    password: String,
    about: Vec<String>,
) -> Result<String, Problem> {
    let judged = on_blocking_thread(move || {
        let about: Vec<&str> = about.iter().map(String::as_str).collect();
        let violations = violations(rule, &password, &about);
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
    on_blocking_thread(move || {
        match stored.filter(|stored| password.len() <= MAX_BYTES && is_affordable(stored)) {
            Some(stored) => Ok(verify(&password, &stored)),
            None => hash(password.get(..MAX_BYTES).unwrap_or(&password)).map(|_| false),
        }
    })
    .await
}

/// Whether a password that [`verify`] found right is the one that was set, and not only begins like it: bcrypt looks at
/// 72 bytes. And `$2x$` is how a program of old hashed what is not ASCII, so that several passwords fit.
fn is_certain(password: &str, stored: &str) -> bool {
    const LOOKED_AT: usize = 72;
    !is_bcrypt(stored) || (password.len() < LOOKED_AT && (password.is_ascii() || !stored.starts_with("$2x$")))
}

/// A better hash of a password that is right, where `stored` is an old one. None where another password may be the
/// right one: who knows its beginning alone must not thereby set it.
pub(crate) async fn better_hash(password: String, stored: &str) -> Result<Option<String>, Problem> {
    if stored.starts_with(CURRENT) || !is_certain(&password, stored) {
        return Ok(None);
    }
    hash_async(password).await.map(Some)
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
}
