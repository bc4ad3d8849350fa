//! `[jwt.NAME]`: an issuer whose tokens are accepted, and where the keys are that verify them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::document::Section;
use crate::document::units::Span;
use crate::rules::authenticate::token::Algorithm;
use crate::values::request::is_field_name;

/// `[jwt.NAME]`: one issuer whose tokens are accepted.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// The name in the policy: routes say `jwt:NAME`.
    pub name: Arc<str>,
    /// Whether the policy has other issuers too. Then a `sub` alone does not identify a subject.
    pub is_one_of_several: bool,
    /// The accepted algorithms; never empty.
    pub algorithms: Vec<Algorithm>,
    /// Where its keys are.
    pub keys: KeySource,
    /// The required `iss`; `None` accepts any.
    pub issuer: Option<String>,
    /// `aud` must contain one of these; an empty list accepts any.
    pub audience: Vec<String>,
    /// How much clocks may differ.
    pub leeway: Duration,
    /// How often the key set is fetched again.
    pub refresh: Duration,
    /// The claim that holds the roles.
    pub roles_claim: String,
    /// The claims that are forwarded, each with its header field.
    pub forward: Vec<(String, Arc<str>)>,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// A key set at a URL.
    Jwks(String),
    /// A public key in PEM, or a key set, in a file.
    File(String),
    /// The name of a shared secret.
    Secret(String),
}

/// The most by which clocks may differ. The backend holds a revocation for this time after the end of its token.
const MOST_LEEWAY: Duration = Duration::from_mins(5);

/// The most forwarded claims of one issuer, and the most issuers. Each field of a request is compared with all of them.
const MOST_FORWARDED: usize = 32;
const MOST_ISSUERS: usize = 100;

/// The most audiences of one issuer.
const MOST_AUDIENCES: usize = 64;

/// Header fields that no claim may be written to, because the gateway or HTTP itself relies on them.
const RESERVED_FIELDS: [&str; 12] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-request-id",
];

/// Whether `url` is `http://HOST…` or `https://HOST…`.
fn is_address(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).unwrap_or_default();
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    !host.is_empty() && !host.ends_with(['@', ':']) && !url.chars().any(char::is_whitespace)
}

/// A URL in the form that may be logged: without userinfo, query and fragment, which may contain secrets.
pub fn without_secrets(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (bare, after) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
    // A password may contain any character, so everything before the last @ may be part of one.
    let shown =
        if after.contains('@') { "…" } else { bare.rsplit_once('@').map_or(bare, |(_, host)| host) };
    if scheme.is_empty() { shown.to_owned() } else { format!("{scheme}://{shown}") }
}

/// A name that is not empty, because no token can match an empty one.
fn named(section: &Section<'_>, key: &'static str, name: Option<String>) -> Option<String> {
    if name.as_ref().is_some_and(String::is_empty) {
        section.fault(key, "a name (got \"\")");
    }
    name
}

impl Issuer {
    pub(crate) fn read_all(root: &Section<'_>) -> HashMap<String, Arc<Self>> {
        let sections = root.named_sections("jwt");
        if sections.len() > MOST_ISSUERS {
            root.fault("jwt", format!("at most {MOST_ISSUERS} issuers (got {})", sections.len()));
        }
        let several = sections.len() > 1;
        let read = |(name, section): (String, _)| {
            Some((name.clone(), Arc::new(Self::read(&name, section, several)?)))
        };
        sections.into_iter().filter_map(read).collect()
    }

    fn read(name: &str, section: Section<'_>, is_one_of_several: bool) -> Option<Self> {
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            section.fault(
                "",
                "an issuer's name holds letters, digits, `-`, `_` and `.`, because it is written after `@` in logs",
            );
        }
        let algorithms =
            section.require::<Vec<Algorithm>>("algorithms", "a list of HS256, RS256, ES256, EdDSA");
        let keys = Self::read_keys(&section);
        if let Some(algorithms) = &algorithms {
            Self::check_algorithms(&section, algorithms, keys.as_ref());
        }
        let issuer = Self {
            name: name.into(),
            is_one_of_several,
            algorithms: algorithms.unwrap_or_default(),
            keys: keys?,
            issuer: named(&section, "issuer", section.get("issuer")),
            audience: section.list("audience", MOST_AUDIENCES),
            leeway: section
                .get_checked("leeway", Span(Duration::from_secs(30)), |span| {
                    (span.0 <= MOST_LEEWAY).then_some(()).ok_or(format!("at most 5m (got {span})"))
                })
                .0,
            refresh: section
                .get_checked("refresh", Span(Duration::from_mins(5)), |span| {
                    (span.0 >= Duration::from_secs(1))
                        .then_some(())
                        .ok_or(format!("at least 1s (got {span})"))
                })
                .0,
            roles_claim: named(&section, "roles", section.get("roles")).unwrap_or_else(|| "roles".to_owned()),
            forward: Self::read_forward(&section),
        };
        if issuer.audience.iter().any(String::is_empty) {
            section.fault("audience", "an audience has a name (got \"\")");
        }
        section.finish();
        Some(issuer)
    }

    fn read_keys(section: &Section<'_>) -> Option<KeySource> {
        let sources: Vec<_> = [
            section.get::<String>("jwks").map(KeySource::Jwks),
            section.get::<String>("key_file").map(KeySource::File),
            section.get::<String>("secret").map(KeySource::Secret),
        ]
        .into_iter()
        .flatten()
        .collect();
        match sources.as_slice() {
            [KeySource::Jwks(url)] if !is_address(url) => {
                section.fault(
                    "jwks",
                    format!("an http:// or https:// address (got {:?})", without_secrets(url)),
                );
                None
            }
            [source] => Some(source.clone()),
            [] => {
                section.fault("", "required: one of jwks, key_file, secret");
                None
            }
            _ => {
                section.fault("", "one of jwks, key_file, secret, not several");
                None
            }
        }
    }

    /// An issuer has either a shared secret or public keys. With both, an attacker could use a public key as the
    /// secret.
    fn check_algorithms(section: &Section<'_>, algorithms: &[Algorithm], keys: Option<&KeySource>) {
        let symmetric = matches!(keys, Some(KeySource::Secret(_)));
        if algorithms.is_empty() {
            section.fault("algorithms", "at least one of HS256, RS256, ES256, EdDSA");
        } else if keys.is_some() && algorithms.iter().any(|one| (*one == Algorithm::HS256) != symmetric) {
            section.fault("algorithms", "HS256 needs `secret`, the others need `jwks` or `key_file`");
        }
    }

    fn read_forward(section: &Section<'_>) -> Vec<(String, Arc<str>)> {
        let Some(table) = section.section("forward") else { return Vec::new() };
        let mut forward = Vec::new();
        let fields = table.free_strings();
        if fields.len() > MOST_FORWARDED {
            section.fault("forward", format!("at most {MOST_FORWARDED} claims (got {})", fields.len()));
        }
        for (claim, field, _) in fields.into_iter().take(MOST_FORWARDED) {
            let field = field.to_ascii_lowercase();
            if !is_field_name(&field) || RESERVED_FIELDS.contains(&field.as_str()) {
                section.fault(
                    "forward",
                    format!("the name of a header field that is not reserved (got {field:?})"),
                );
            }
            forward.push((claim, field.into()));
        }
        forward
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_logged_without_the_parts_that_may_be_secret() {
        for (url, shown) in [
            ("https://a.example/jwks.json", "https://a.example/jwks.json"),
            ("https://u:p@a.example:8443/jwks?key=k#f", "https://a.example:8443/jwks"),
            ("redis://:p@w@a.example", "redis://a.example"),
            ("http://u:p/q@a.example/x", "http://a.example/x"),
            ("http://u:p?q@a.example/x", "http://…"),
            ("http://a.example/x?mail=a@b", "http://…"),
            ("u:p@a.example", "a.example"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(url), shown, "{url}");
        }
    }
}
