//! Tokens: short-lived access tokens that the gateway verifies, and refresh tokens that are stored as hashes.

use std::time::Duration;

use anyhow::Context as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::clock::{now, seconds};
use crate::config::secrets::Secrets;
use crate::random::random_token;
use crate::storage::Database;
use crate::storage::sql;

/// Who the tokens are from and for.
pub(crate) const ISSUER: &str = "palisade";

/// The most by which a gateway lets clocks differ: it may accept a token for so long after it has expired.
const MOST_LEEWAY: Duration = Duration::from_mins(5);

/// Signs access tokens.
pub(crate) struct Signer {
    key: EncodingKey,
    header: Header,
    public: JwkSet,
    lifetime: Duration,
    verifies: DecodingKey,
    validation: Validation,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    roles: &'a [String],
    iat: i64,
    exp: i64,
    jti: &'a str,
    /// When the account's owner last proved to be that, with password and second factor (`OpenID` Connect Core, 2).
    auth_time: i64,
}

/// What is read of an access token of ours.
#[derive(Deserialize)]
struct Shown {
    sub: String,
    auth_time: i64,
}

impl Signer {
    /// A key pair in PEM where there is one, else HS256 with the shared secret, else Ed25519 with a key that lives in
    /// the database.
    pub(crate) async fn load(
        secrets: &Secrets,
        database: &Database,
        lifetime: Duration,
    ) -> anyhow::Result<Self> {
        if let Some(pem) = &secrets.jwt_key {
            return Self::from_pem(pem.expose(), lifetime);
        }
        if let Some(secret) = &secrets.jwt_secret {
            return Ok(Self {
                key: EncodingKey::from_secret(secret.expose()),
                header: Header::new(Algorithm::HS256),
                public: JwkSet { keys: Vec::new() },
                lifetime,
                verifies: DecodingKey::from_secret(secret.expose()),
                validation: validation(Algorithm::HS256),
            });
        }
        let pkcs8 = stored_key(database).await?;
        Self::from_key(EncodingKey::from_ed_der(&pkcs8), Algorithm::EdDSA, lifetime)
    }

    fn from_pem(pem: &[u8], lifetime: Duration) -> anyhow::Result<Self> {
        let families = [
            (Algorithm::EdDSA, EncodingKey::from_ed_pem(pem)),
            (Algorithm::ES256, EncodingKey::from_ec_pem(pem)),
            (Algorithm::RS256, EncodingKey::from_rsa_pem(pem)),
        ];
        let key = families.into_iter().find_map(|(algorithm, key)| Some((algorithm, key.ok()?)));
        let (algorithm, key) =
            key.context("JWT_KEY: a private key in PEM (PKCS #8): Ed25519, P-256 or RSA")?;
        Self::from_key(key, algorithm, lifetime).context("JWT_KEY")
    }

    fn from_key(key: EncodingKey, algorithm: Algorithm, lifetime: Duration) -> anyhow::Result<Self> {
        let mut public = Jwk::from_encoding_key(&key, algorithm).context("the signing key is unusable")?;
        let kid = public.thumbprint(ThumbprintHash::SHA256).context("the signing key is unusable")?;
        public.common.key_id = Some(kid.clone());
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        let header = Header { kid: Some(kid), ..Header::new(algorithm) };
        let verifies = DecodingKey::from_jwk(&public).context("the signing key is unusable")?;
        let validation = validation(algorithm);
        Ok(Self { key, header, public: JwkSet { keys: vec![public] }, lifetime, verifies, validation })
    }

    /// The keys that verify what we sign.
    pub(crate) fn jwks(&self) -> &JwkSet {
        &self.public
    }

    /// Seconds that an access token lives.
    pub(crate) fn expires_in(&self) -> u64 {
        self.lifetime.as_secs()
    }

    /// What a session is given next.
    pub(crate) fn new_pair(&self, refresh_lifetime: Duration) -> anyhow::Result<NewPair> {
        let issued_at = now();
        Ok(NewPair {
            jti: uuid::Uuid::now_v7().to_string(),
            refresh_token: random_token()?,
            issued_at,
            access_expires_at: issued_at.saturating_add(seconds(self.lifetime)),
            revoked_until: issued_at.saturating_add(seconds(self.lifetime + MOST_LEEWAY)),
            refresh_expires_at: issued_at.saturating_add(seconds(refresh_lifetime)),
        })
    }

    /// When the owner of `user` last proved to be that, by an access token of ours.
    pub(crate) fn auth_time(&self, token: &str, user: &str) -> Option<i64> {
        let shown = decode::<Shown>(token, &self.verifies, &self.validation).ok()?.claims;
        (shown.sub == user).then_some(shown.auth_time)
    }

    /// The access token of `pair` for `user`, who proved to be that at `auth_time`.
    pub(crate) fn sign(
        &self,
        user: &str,
        roles: &[String],
        pair: &NewPair,
        auth_time: i64,
    ) -> anyhow::Result<String> {
        let claims = Claims {
            iss: ISSUER,
            aud: ISSUER,
            sub: user,
            roles,
            iat: pair.issued_at,
            exp: pair.access_expires_at,
            jti: &pair.jti,
            auth_time,
        };
        encode(&self.header, &claims, &self.key).context("the token cannot be signed")
    }
}

fn validation(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[ISSUER]);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    validation
}

/// An access token that is still to be signed and the refresh token beside it.
#[derive(Clone, Debug)]
pub(crate) struct NewPair {
    pub(crate) jti: String,
    pub(crate) refresh_token: String,
    pub(crate) issued_at: i64,
    pub(crate) access_expires_at: i64,
    /// Until then a gateway may accept the access token, unless it is revoked.
    pub(crate) revoked_until: i64,
    pub(crate) refresh_expires_at: i64,
}

/// The key in the database, made when there is none yet.
async fn stored_key(database: &Database) -> anyhow::Result<Vec<u8>> {
    let stored = database.read(|transaction| transaction.row(sql::SIGNING_KEY, [], |row| row.get(0))).await?;
    if let Some(stored) = stored {
        return Ok(stored);
    }
    let pkcs8 = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new())
        .map_err(|_| anyhow::anyhow!("no signing key can be made"))?
        .as_ref()
        .to_vec();
    let stored = pkcs8.clone();
    database.write(move |transaction| transaction.run(sql::ADD_SIGNING_KEY, params![stored, now()])).await?;
    Ok(pkcs8)
}
