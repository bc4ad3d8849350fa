//! Passwords: argon2id, hashed on blocking threads with a bound on how many at once.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;

/// OWASP Password Storage Cheat Sheet: argon2id with 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

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

fn verify(password: &str, phc: &str) -> bool {
    let Ok(parsed) = PasswordHash::new(phc) else { return false };
    hasher().is_ok_and(|hasher| hasher.verify_password(password.as_bytes(), &parsed).is_ok())
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

/// Whether `password` is the one of `phc`. Without a hash, as for an unknown account, it takes as long and is false.
pub(crate) async fn verify_async(password: String, phc: Option<String>) -> anyhow::Result<bool> {
    let place = PLACES.acquire().await?;
    let verified = tokio::task::spawn_blocking(move || {
        let _place = place;
        match phc {
            Some(phc) => Ok(verify(&password, &phc)),
            None => hash(&password).map(|_| false),
        }
    });
    verified.await?
}

/// What is wrong with a password; empty when nothing is.
pub(crate) fn faults(password: &str, min_length: usize) -> Vec<String> {
    const MAX_BYTES: usize = 1024;
    let mut faults = Vec::new();
    if password.chars().count() < min_length {
        faults.push(format!("at least {min_length} characters"));
    }
    if password.len() > MAX_BYTES {
        faults.push(format!("at most {MAX_BYTES} bytes"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_verifies_its_password_and_no_other() {
        let phc = hash("correct horse battery").unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(verify("correct horse battery", &phc));
        assert!(!verify("wrong horse battery", &phc));
        assert_ne!(phc, hash("correct horse battery").unwrap(), "each has a salt of its own");
    }
}
