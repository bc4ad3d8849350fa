//! The keys that verify tokens, by issuer.
//!
//! A key set is fetched in the background, again every `refresh`, and at once when a token names a key that is not in
//! it. That happens at most once in [`AT_MOST_ONCE_IN`]: one request fetches, the others wait for the same answer. The
//! last good set is used while the source is unavailable.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use arc_swap::{ArcSwap, ArcSwapOption};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{AlgorithmFamily, DecodingKey};
use parking_lot::Mutex;
use policy::Policy;
use policy::rules::authenticate::VerifyFault;
use policy::rules::authenticate::issuer::{Issuer, KeySource, without_secrets};
use policy::rules::authenticate::token::{Algorithm, Token};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::secrets::Secrets;
use crate::observe::metrics::Metrics;
use crate::resilience::backoff::Backoff;
use crate::upstream::http_client::HttpClient;

/// The shortest time between two fetches because of an unknown key.
const AT_MOST_ONCE_IN: Duration = Duration::from_secs(10);

/// The pause before a source that did not answer is asked again: the first and the longest one. `refresh` counts where
/// it is shorter.
const RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The most keys that are tried for one token. Only keys that may have signed it are tried.
const MOST_TRIED: usize = 8;

/// The timeout of a fetch.
const PATIENCE: Duration = Duration::from_secs(2);

/// The largest key file, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// One key and what it may be used for.
struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    verifier: DecodingKey,
}

/// The keys of one source.
struct Source {
    place: KeySource,
    keys: ArcSwapOption<Vec<Key>>,
    /// The digest of the key set in use, to see when it changes.
    digest: Mutex<Vec<u8>>,
    /// When the source was last asked because of a request. Held while it is asked.
    asked: tokio::sync::Mutex<Asked>,
    /// Whether the last fetch failed.
    fails: AtomicBool,
}

/// When a source was last asked because of a request.
#[derive(Default)]
struct Asked {
    /// Because a token named an unknown key.
    for_a_key: Option<Instant>,
    /// Because there were no keys at all, as at the start. Counted apart from the other reason.
    for_any: Option<Instant>,
}

/// Every source that the policy in force names.
pub struct Keys {
    sources: ArcSwap<HashMap<KeySource, Arc<Source>>>,
    /// The sources of the policy in force.
    latest: Mutex<Vec<KeySource>>,
    http_client: HttpClient,
    secrets: Secrets,
    metrics: Metrics,
    /// Whether a policy that asks the permission service must be refused, because the secret for that service was
    /// missing at the start.
    lacks_gateway_token: AtomicBool,
    /// The folder of the policy. Key files with relative names are below it.
    folder: PathBuf,
    /// Counts the changes of keys.
    generation: AtomicU64,
    /// Whether keys changed lately.
    changed: AtomicBool,
}

impl Keys {
    /// No keys yet; `folder` is the policy's.
    pub fn new(secrets: Secrets, folder: PathBuf, metrics: Metrics) -> Self {
        Self {
            sources: ArcSwap::default(),
            latest: Mutex::default(),
            http_client: HttpClient::anywhere(),
            secrets,
            metrics,
            lacks_gateway_token: AtomicBool::new(false),
            folder,
            generation: AtomicU64::new(0),
            changed: AtomicBool::new(false),
        }
    }

    /// The generation of the keys in force. Tokens that were verified in another generation do not count.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn note_change(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.changed.store(true, Ordering::Release);
    }

    /// Adds the sources of `policy`; known sources keep their keys. Keys in files and secrets are read here, so that a
    /// policy is refused if its keys are missing. Sources that only the previous policy needs stay until the next
    /// change, because its requests in flight finish under it.
    pub fn adopt(&self, policy: &Policy) -> anyhow::Result<()> {
        self.check_gateway_token(policy)?;
        let (known, mut latest) = (self.sources.load(), self.latest.lock());
        let mut sources: HashMap<_, _> = known
            .iter()
            .filter(|(place, _)| latest.contains(place))
            .map(|(place, source)| (place.clone(), Arc::clone(source)))
            .collect();
        for issuer in &policy.issuers {
            let source = known.get(&issuer.keys).cloned();
            let source = source.unwrap_or_else(|| Arc::new(Source::new(issuer.keys.clone())));
            if !matches!(issuer.keys, KeySource::Jwks(_)) {
                let keys = self.read(&issuer.keys).with_context(|| format!("jwt.{}", issuer.name))?;
                source.keys.store(Some(Arc::new(keys)));
            }
            sources.insert(issuer.keys.clone(), source);
        }
        *latest = policy.issuers.iter().map(|issuer| issuer.keys.clone()).collect();
        self.sources.store(Arc::new(sources));
        self.note_change();
        Ok(())
    }

    /// Checks that the keys of `policy` in files and secrets can be read.
    pub fn check(&self, policy: &Policy) -> anyhow::Result<()> {
        self.check_gateway_token(policy)?;
        for issuer in &policy.issuers {
            self.read(&issuer.keys).with_context(|| format!("jwt.{}", issuer.name))?;
        }
        Ok(())
    }

    /// Refuses, from now on, policies that ask the permission service.
    pub fn note_missing_gateway_token(&self) {
        self.lacks_gateway_token.store(true, Ordering::Relaxed);
    }

    fn check_gateway_token(&self, policy: &Policy) -> anyhow::Result<()> {
        if policy.permission_service.is_some() && self.lacks_gateway_token.load(Ordering::Relaxed) {
            bail!(
                "permissions: GATEWAY_TOKEN was missing when the gateway started: the service trusts it for that"
            );
        }
        Ok(())
    }

    /// Whether a key of the issuer made the token's signature.
    pub async fn verify(&self, issuer: &Issuer, token: &Token<'_>) -> Result<(), VerifyFault> {
        let source = self.sources.load().get(&issuer.keys).cloned().ok_or(VerifyFault::Unavailable)?;
        let verdict = source.verify(token);
        if !matches!(verdict, Err(VerifyFault::UnknownKey | VerifyFault::Unavailable)) {
            return verdict;
        }
        self.ask_about_unknown(&source).await;
        source.verify(token)
    }

    async fn ask_about_unknown(&self, source: &Source) {
        let KeySource::Jwks(_) = source.place else { return };
        let mut asked = source.asked.lock().await;
        let Asked { for_a_key, for_any } = &mut *asked;
        let last = if source.keys.load().is_none() { for_any } else { for_a_key };
        if last.is_none_or(|at| at.elapsed() >= AT_MOST_ONCE_IN) {
            *last = Some(Instant::now());
            self.refresh(source).await;
        }
    }

    /// Fetches the key sets of the policy in force, each at its own interval, forever.
    pub async fn keep_fresh(&self, policy: impl Fn() -> Vec<Arc<Issuer>>) {
        /// When a source was asked last, how long the pause after that is, and its backoff.
        type Asked = (Instant, Duration, Backoff);
        let mut asked: HashMap<KeySource, Asked> = HashMap::new();
        loop {
            if self.changed.swap(false, Ordering::AcqRel) {
                // The generation changes once more, a moment later: a token may have been verified with the old keys
                // and stored after the change.
                self.generation.fetch_add(1, Ordering::AcqRel);
            }
            let issuers = policy();
            asked.retain(|place, _| issuers.iter().any(|issuer| issuer.keys == *place));
            for issuer in issuers.iter().filter(|issuer| matches!(issuer.keys, KeySource::Jwks(_))) {
                let Some(source) = self.sources.load().get(&issuer.keys).cloned() else { continue };
                let (at, wait, mut backoff) = match asked.get(&issuer.keys).copied() {
                    Some((at, wait, backoff)) => (Some(at), wait, backoff),
                    None => (None, Duration::ZERO, Backoff::from(RETRY)),
                };
                // The `refresh` of the policy in force counts.
                if at.is_some_and(|at| at.elapsed() < wait.min(issuer.refresh)) {
                    continue;
                }
                let at = Instant::now();
                let wait = if self.refresh(&source).await {
                    backoff.succeeded();
                    Duration::MAX
                } else {
                    backoff.failed(LONGEST_RETRY, rand::random()).1
                };
                asked.insert(issuer.keys.clone(), (at, wait, backoff));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Fetches a key set; `false` when the fetch failed.
    async fn refresh(&self, source: &Source) -> bool {
        let KeySource::Jwks(url) = &source.place else { return true };
        let fetched = self.http_client.get(url, PATIENCE).await.and_then(|body| Ok((key_set(&body)?, body)));
        let url = without_secrets(url);
        let result = if fetched.is_ok() { "fetched" } else { "failed" };
        self.metrics.key_set_fetches.with_label_values(&[result]).inc();
        match fetched {
            Ok((keys, body)) => {
                if source.fails.swap(false, Ordering::AcqRel) || source.keys.load().is_none() {
                    info!(url, keys = keys.len(), "key set fetched");
                }
                source.keys.store(Some(Arc::new(keys)));
                let digest = Sha256::digest(&body).to_vec();
                let before = std::mem::replace(&mut *source.digest.lock(), digest.clone());
                if before != digest {
                    self.note_change();
                }
                true
            }
            Err(error) => {
                if !source.fails.swap(true, Ordering::AcqRel) {
                    let serves = if source.keys.load().is_some() {
                        "the last good one serves"
                    } else {
                        "there is none yet, and its tokens get 503 until there is"
                    };
                    warn!(url, error = format!("{error:#}"), "a key set cannot be fetched: {serves}");
                }
                false
            }
        }
    }

    fn read(&self, place: &KeySource) -> anyhow::Result<Vec<Key>> {
        match place {
            KeySource::Jwks(_) => Ok(Vec::new()),
            KeySource::Secret(name) => {
                let secret = self.secrets.require(name, "the policy verifies tokens with it")?;
                let key = DecodingKey::from_secret(secret.expose());
                Ok(vec![Key { kid: None, algorithm: Algorithm::HS256, verifier: key }])
            }
            KeySource::File(path) => {
                let bytes = self.read_file(path).context("key_file")?;
                if bytes.trim_ascii_start().starts_with(b"{") {
                    return key_set(&bytes).with_context(|| format!("key_file `{path}`"));
                }
                let families = [
                    (Algorithm::EdDSA, DecodingKey::from_ed_pem(&bytes)),
                    (Algorithm::ES256, DecodingKey::from_ec_pem(&bytes)),
                    (Algorithm::RS256, DecodingKey::from_rsa_pem(&bytes)),
                ];
                let key = families.into_iter().find_map(|(algorithm, key)| Some((algorithm, key.ok()?)));
                let (algorithm, key) =
                    key.with_context(|| format!("key_file `{path}`: a public key in PEM or a key set"))?;
                Ok(vec![Key { kid: None, algorithm, verifier: key }])
            }
        }
    }
}

impl Keys {
    /// A relative name is a file below the policy's folder. An absolute name is a place where keys are mounted; only
    /// the policy file may give one.
    fn read_file(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let path = Path::new(name);
        let file =
            if path.is_absolute() { path.to_owned() } else { service::files::below(&self.folder, name)? };
        Ok(service::files::read(&file, LARGEST_FILE)?)
    }
}

impl Source {
    fn new(place: KeySource) -> Self {
        Self {
            place,
            keys: ArcSwapOption::empty(),
            digest: Mutex::default(),
            asked: tokio::sync::Mutex::default(),
            fails: AtomicBool::new(false),
        }
    }

    fn verify(&self, token: &Token<'_>) -> Result<(), VerifyFault> {
        let keys = self.keys.load();
        let keys = keys.as_ref().ok_or(VerifyFault::Unavailable)?;
        let of_its_algorithm = || keys.iter().filter(|key| key.algorithm == token.algorithm);
        // A token without a key id may be signed by any key. A token with a key id may be signed by that key, or by a
        // key without an id.
        let named = of_its_algorithm().filter(|key| token.kid.is_some() && key.kid == token.kid);
        let others = of_its_algorithm().filter(|key| match &token.kid {
            Some(_) => key.kid.is_none(),
            None => true,
        });
        let mut candidates = named.chain(others).take(MOST_TRIED).peekable();
        candidates.peek().ok_or(VerifyFault::UnknownKey)?;
        if candidates.any(|key| key.made(token)) { Ok(()) } else { Err(VerifyFault::Forged) }
    }
}

impl Key {
    /// Whether the token's signature is this key's.
    fn made(&self, token: &Token<'_>) -> bool {
        let (signed, algorithm) = (token.signed.as_bytes(), jsonwebtoken_algorithm(self.algorithm));
        jsonwebtoken::crypto::verify(token.signature, signed, &self.verifier, algorithm).unwrap_or(false)
    }
}

const fn jsonwebtoken_algorithm(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::HS256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::RS256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::ES256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::EdDSA => jsonwebtoken::Algorithm::EdDSA,
    }
}

/// The usable keys of a key set. A key that is not for signatures, or that we cannot use, is skipped; the others are
/// used.
fn key_set(bytes: &[u8]) -> anyhow::Result<Vec<Key>> {
    #[derive(serde::Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    const MOST: usize = 100;
    // The error is not logged, because it could quote another file or a secret.
    let set: Set = serde_json::from_slice(bytes).map_err(|_| anyhow!("not a key set"))?;
    if set.keys.len() > MOST {
        bail!("a key set of more than {MOST} keys");
    }
    let keys: Vec<_> = set
        .keys
        .into_iter()
        .filter_map(|key| serde_json::from_value(key).ok())
        .filter_map(|key| usable(&key))
        .collect();
    if keys.is_empty() {
        bail!("a key set without a key that verifies signatures");
    }
    Ok(keys)
}

/// A public key for signatures, with one algorithm that its type, `use`, `key_ops` and `alg` allow.
fn usable(jwk: &Jwk) -> Option<Key> {
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return None;
    }
    let operations = jwk.common.key_operations.as_ref();
    if operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
        return None;
    }
    let by_type = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        // A symmetric key in a public key set is not secret, so it is not accepted.
        _ => return None,
    };
    let said = jwk.common.key_algorithm.map(|algorithm| match algorithm {
        KeyAlgorithm::RS256 => Some(Algorithm::RS256),
        KeyAlgorithm::ES256 => Some(Algorithm::ES256),
        KeyAlgorithm::EdDSA => Some(Algorithm::EdDSA),
        _ => None,
    });
    if said.is_some_and(|said| said != Some(by_type)) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok().filter(|key| key.family() != AlgorithmFamily::Hmac)?;
    Some(Key { kid: jwk.common.key_id.clone(), algorithm: by_type, verifier: key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_used_for_what_it_says_alone() {
        let key = |more: &str| {
            // RFC 8037, A.2.
            let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
            let text = format!("{{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"{x}\"{more}}}");
            usable(&serde_json::from_str(&text).unwrap()).is_some()
        };
        for more in ["", ",\"use\":\"sig\"", ",\"key_ops\":[\"sign\",\"verify\"]", ",\"alg\":\"EdDSA\""] {
            assert!(key(more), "{more}");
        }
        for more in
            [",\"use\":\"enc\"", ",\"key_ops\":[\"encrypt\"]", ",\"key_ops\":[]", ",\"alg\":\"ES256\""]
        {
            assert!(!key(more), "{more}");
        }
    }

    #[test]
    fn every_key_that_may_have_signed_a_token_is_tried() {
        let key = |kid: Option<&str>, secret: &[u8]| Key {
            kid: kid.map(str::to_owned),
            algorithm: Algorithm::HS256,
            verifier: DecodingKey::from_secret(secret),
        };
        let verdict = |keys: Vec<Key>, kid: Option<&str>| {
            let source = Source::new(KeySource::Secret("A".to_owned()));
            source.keys.store(Some(Arc::new(keys)));
            let header = jsonwebtoken::Header { kid: kid.map(str::to_owned), ..Default::default() };
            let signer = jsonwebtoken::EncodingKey::from_secret(b"new");
            let text = jsonwebtoken::encode(&header, &serde_json::json!({"sub": "a"}), &signer).unwrap();
            source.verify(&Token::parse(&text).unwrap())
        };
        for kid in [None, Some("k")] {
            assert_eq!(verdict(vec![key(kid, b"old"), key(kid, b"new")], kid), Ok(()), "{kid:?}");
            assert_eq!(verdict(vec![key(kid, b"old")], kid), Err(VerifyFault::Forged));
        }
        assert_eq!(
            verdict(vec![key(Some("a"), b"old"), key(Some("b"), b"new")], None),
            Ok(()),
            "it names none"
        );
        assert_eq!(verdict(vec![key(Some("a"), b"new")], Some("b")), Err(VerifyFault::UnknownKey));
        let many = (0..20).map(|_| key(None, b"old")).chain([key(None, b"new")]).collect();
        assert_eq!(verdict(many, None), Err(VerifyFault::Forged), "not without end");
    }
}
