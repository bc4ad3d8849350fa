//! `[limits.NAME]`: what a limit counts, and which bucket a request uses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::document::network::parse_network;
use crate::document::units::Rate;
use crate::document::{OneOrMany, Section};
use crate::rules::authenticate::Subject;
use crate::rules::client::{Client, ClientRule};
use crate::rules::limits::bucket::{ANONYMOUS, Bucket};
use crate::rules::limits::gcra::Gcra;
use crate::rules::limits::key::KeyPart;
use crate::values::request::{Member, Request};
use crate::words;
use serde_json::Value;

/// The largest burst.
const MOST_BURST: u32 = 1_000_000;

/// Which replicas share a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All replicas share it, through Redis where that is configured.
    Shared,
    /// Each replica has its own bucket.
    Local,
}

/// Whether a limit refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It refuses.
    Enforce,
    /// It counts and reports, but never refuses.
    Shadow,
}

/// Which requests use up a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Every request.
    Requests,
    /// Requests that the route counts as failed logins. The others get their token back when they are answered.
    Failures,
}

/// What happens to a shared limit while the store is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStoreFailure {
    /// Each replica enforces its own share.
    Local,
    /// The limit is not enforced.
    Allow,
    /// Every request under the limit gets 503.
    Deny,
}

words! { Scope { "shared" => Shared, "local" => Local } or "shared or local" }
words! { Mode { "enforce" => Enforce, "shadow" => Shadow } or "enforce or shadow" }
words! { Counts { "requests" => Requests, "failures" => Failures } or "requests or failures" }
words! { OnStoreFailure { "local" => Local, "allow" => Allow, "deny" => Deny } or "local, allow or deny" }

/// `[limits.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitRule {
    /// The name in the policy, in metrics and in `RateLimit`.
    pub name: Arc<str>,
    /// By what it counts.
    pub key: Vec<KeyPart>,
    /// The rate as written.
    pub rate: Rate,
    /// Rate and burst as arithmetic.
    pub gcra: Gcra,
    /// Which replicas share a bucket.
    pub scope: Scope,
    /// Whether it refuses.
    pub mode: Mode,
    /// Which requests use up a token.
    pub counts: Counts,
    /// Another limit. A request that finds its bucket of that limit full skips this limit.
    pub skip_if_full: Option<Arc<str>>,
    /// What to do while the store is unavailable.
    pub on_store_failure: OnStoreFailure,
}

impl LimitRule {
    /// `[limits.*]`, by name.
    pub(crate) fn read_all(root: &Section<'_>) -> HashMap<String, Arc<Self>> {
        let sections = root.named_sections("limits");
        sections
            .into_iter()
            .filter_map(|(name, section)| Some((name.clone(), Arc::new(Self::read(&name, section)?))))
            .collect()
    }

    fn read(name: &str, section: Section<'_>) -> Option<Self> {
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            section.fault(
                "",
                "a limit's name holds letters, digits, `-` and `_`, because it is sent in a response header",
            );
        }
        let key = section.require::<OneOrMany<KeyPart>>(
            "key",
            "ip, user, api_key, route, global, header:NAME, field:NAME or a list of them",
        );
        let rate = section.require::<Rate>("rate", "N/s, N/min, N/h or N/day");
        // A bucket that takes centuries to fill would overflow the clock.
        let most_burst =
            rate.map_or(MOST_BURST, |rate| Gcra::most_burst(rate.count, rate.per).min(MOST_BURST));
        let burst = section.get_checked("burst", rate.map_or(1, |rate| rate.count), |burst| {
            (1..=most_burst)
                .contains(burst)
                .then_some(())
                .ok_or(format!("from 1 to {most_burst} (got {burst})"))
        });
        let scope = section.get_or("scope", Scope::Shared);
        let mode = section.get_or("mode", Mode::Enforce);
        let counts = section.get_or("counts", Counts::Requests);
        let skip_if_full = section.get::<String>(section.renamed("skip_if_full", "spares")).map(Arc::from);
        let on_store_failure = section.get_or("on_store_failure", OnStoreFailure::Local);
        if key.as_ref().is_some_and(|key| key.0.is_empty()) {
            section.fault("key", "at least one key");
        }
        section.finish();
        let rate = rate?;
        Some(Self {
            name: name.into(),
            key: key?.0,
            rate,
            gcra: Gcra::new(rate.count, rate.per, burst),
            scope,
            mode,
            counts,
            skip_if_full,
            on_store_failure,
        })
    }

    /// Whether the key is known only after authentication.
    pub fn needs_subject(&self) -> bool {
        self.key.contains(&KeyPart::User) || self.key.contains(&KeyPart::ApiKey)
    }

    /// Whether the key is in the body.
    pub fn reads_body(&self) -> bool {
        self.key.iter().any(|part| matches!(part, KeyPart::Field(_)))
    }

    /// The member of the body by which this limit counts and that is there more than once.
    pub(crate) fn ambiguous_member(&self, request: &Request<'_>) -> Option<&str> {
        let body = request.body?;
        self.key.iter().find_map(|part| match part {
            KeyPart::Field(name) if body.member(name) == Member::Several => Some(&**name),
            _ => None,
        })
    }

    /// The bucket of this request.
    pub(crate) fn bucket(
        &self,
        route: &str,
        client: &Client,
        subject: Option<&Subject>,
        request: &Request<'_>,
    ) -> Bucket {
        let mut bucket = Bucket::of(&self.name);
        for part in &self.key {
            match part {
                KeyPart::Ip => bucket.push_network(client.network),
                KeyPart::User => bucket.push(part, subject.and_then(Subject::identity).map(str::as_bytes)),
                KeyPart::ApiKey => bucket.push(part, subject.and_then(Subject::key).map(str::as_bytes)),
                KeyPart::Route => bucket.push(part, Some(route.as_bytes())),
                KeyPart::Global => bucket.push(part, Some(b"")),
                KeyPart::Header(name) => bucket.push(part, request.headers.first(name)),
                KeyPart::Field(name) => match request.body.map(|body| body.member(name)) {
                    Some(Member::One(Value::String(text))) => {
                        bucket.push(part, Some(text.to_ascii_lowercase().as_bytes()));
                    }
                    Some(Member::One(Value::Number(number))) => {
                        bucket.push(part, Some(number.to_string().as_bytes()));
                    }
                    _ => bucket.push(part, None),
                },
            }
        }
        bucket
    }

    /// The bucket that an operator names with `text`: the value of each part, joined with commas.
    pub fn bucket_of(&self, text: &str, clients: &ClientRule) -> Option<Bucket> {
        let mut values = text.splitn(self.key.len(), ',');
        let mut bucket = Bucket::of(&self.name);
        for part in &self.key {
            let value = values.next()?;
            match part {
                KeyPart::Ip => bucket.push_network(match value.parse::<IpAddr>() {
                    Ok(address) => clients.network(address.to_canonical()),
                    Err(_) => parse_network(value)?,
                }),
                KeyPart::Field(_) if value.as_bytes() != ANONYMOUS => {
                    bucket.push(part, Some(value.to_ascii_lowercase().as_bytes()));
                }
                _ => bucket.push(part, Some(value.as_bytes()).filter(|value| *value != ANONYMOUS)),
            }
        }
        Some(bucket)
    }

    /// The sentence for the client.
    pub(crate) fn detail(&self) -> String {
        let part = |part: &KeyPart| match part {
            KeyPart::Ip => "ip".to_owned(),
            KeyPart::User => "user".to_owned(),
            KeyPart::ApiKey => "API key".to_owned(),
            KeyPart::Route => "route".to_owned(),
            KeyPart::Global => "all clients together".to_owned(),
            KeyPart::Header(name) | KeyPart::Field(name) => format!("value of {name}"),
        };
        let each = self.key.iter().map(part).collect::<Vec<_>>().join(" and ");
        let each = if self.key == [KeyPart::Global] { each } else { format!("each {each}") };
        format!("limit {}: {} for {each}", self.name, self.rate)
    }
}
