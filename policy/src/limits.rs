//! Limits: at most so many requests in so much time, for each key.
//!
//! All limits that a request meets are checked before any is charged, and a request that a later limit refuses gives
//! back what the earlier ones took. A key that a request lacks (no such header, no subject) shares one `anonymous`
//! bucket: leaving a key out never exempts. A limit in `shadow` counts and reports but refuses nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use smallvec::SmallVec;

use crate::authenticate::Subject;
use crate::bucket::{ANONYMOUS, Bucket};
use crate::client::{Client, ClientRule, parse_network};
use crate::document::{OneOrMany, Section};
use crate::from_toml_str;
use crate::gcra::{Gcra, Reading};
use crate::refusal::{Code, Refusal, whole_seconds};
use crate::request::Request;
use crate::stage::Stage;
use crate::time::Timestamp;
use crate::units::Rate;
use crate::world::{Store, World};

/// What a limit counts by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// The client's address, or its IPv6 prefix.
    Ip,
    /// The subject of the token.
    User,
    /// The name of the route.
    Route,
    /// One bucket for all.
    Global,
    /// The value of a header field.
    Header(Arc<str>),
    /// The value of a field of a JSON body.
    Field(Arc<str>),
}

impl FromStr for KeyPart {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ip" => Ok(Self::Ip),
            "user" => Ok(Self::User),
            "route" => Ok(Self::Route),
            "global" => Ok(Self::Global),
            _ => match text.split_once(':') {
                Some(("header", name)) if is_field_name(name) => {
                    Ok(Self::Header(name.to_ascii_lowercase().into()))
                }
                Some(("field", name)) if !name.is_empty() => Ok(Self::Field(name.into())),
                _ => Err("ip, user, route, global, header:NAME or field:NAME"),
            },
        }
    }
}

/// Whether `name` is a field name, RFC 9110, 5.1.
pub(crate) fn is_field_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Who shares a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All replicas, through Redis where it is configured.
    Shared,
    /// Each replica has its own.
    Local,
}

/// Whether a limit refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It refuses.
    Enforce,
    /// It counts and reports, and never refuses.
    Shadow,
}

/// What happens to a shared limit while the store is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStoreFailure {
    /// Each replica enforces its share on its own.
    Local,
    /// The limit is not enforced.
    Allow,
    /// Every request under the limit gets 503.
    Deny,
}

macro_rules! words {
    ($($type:ident { $($word:literal => $variant:ident),+ } or $allowed:literal;)+) => {$(
        impl FromStr for $type {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text { $($word => Ok(Self::$variant),)+ _ => Err($allowed) }
            }
        }
    )+};
}

words! {
    Scope { "shared" => Shared, "local" => Local } or "shared or local";
    Mode { "enforce" => Enforce, "shadow" => Shadow } or "enforce or shadow";
    OnStoreFailure { "local" => Local, "allow" => Allow, "deny" => Deny } or "local, allow or deny";
}

from_toml_str!(KeyPart, Scope, Mode, OnStoreFailure);

/// `[limits.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitRule {
    /// The name in the policy, in metrics and in `RateLimit`.
    pub name: Arc<str>,
    /// What it counts by.
    pub key: Vec<KeyPart>,
    /// As written.
    pub rate: Rate,
    /// As arithmetic.
    pub gcra: Gcra,
    /// Who shares a bucket.
    pub scope: Scope,
    /// Whether it refuses.
    pub mode: Mode,
    /// What to do while the store is away.
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
                "a limit's name holds letters, digits, `-` and `_`, for it stands in an answer's header",
            );
        }
        let key = section.require::<OneOrMany<KeyPart>>(
            "key",
            "ip, user, route, global, header:NAME, field:NAME or a list of them",
        );
        let rate = section.require::<Rate>("rate", "N/s, N/min, N/h or N/day");
        let burst = section.get_checked("burst", rate.map_or(1, |rate| rate.count), |burst| {
            (1..=1_000_000).contains(burst).then_some(()).ok_or(format!("from 1 to 1000000 (got {burst})"))
        });
        let scope = section.get_or("scope", Scope::Shared);
        let mode = section.get_or("mode", Mode::Enforce);
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
            on_store_failure,
        })
    }

    /// Whether the key is known only after authentication.
    pub fn needs_subject(&self) -> bool {
        self.key.contains(&KeyPart::User)
    }

    /// Whether the key is in the body.
    pub fn reads_body(&self) -> bool {
        self.key.iter().any(|part| matches!(part, KeyPart::Field(_)))
    }

    /// The bucket of this request.
    fn bucket(
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
                KeyPart::User => bucket.push(part, subject.and_then(Subject::id).map(str::as_bytes)),
                KeyPart::Route => bucket.push(part, Some(route.as_bytes())),
                KeyPart::Global => bucket.push(part, Some(b"")),
                KeyPart::Header(name) => bucket.push(part, request.headers.first(name)),
                KeyPart::Field(name) => match request.body.and_then(|body| body.get(&**name)) {
                    Some(Value::String(text)) => bucket.push(part, Some(text.as_bytes())),
                    Some(Value::Number(number)) => bucket.push(part, Some(number.to_string().as_bytes())),
                    _ => bucket.push(part, None),
                },
            }
        }
        bucket
    }

    /// The bucket that an operator means by `text`: the value of each part, with commas between.
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
                _ => bucket.push(part, Some(value.as_bytes()).filter(|value| *value != ANONYMOUS)),
            }
        }
        Some(bucket)
    }

    /// The sentence that a client reads.
    fn detail(&self) -> String {
        let part = |part: &KeyPart| match part {
            KeyPart::Ip => "ip".to_owned(),
            KeyPart::User => "user".to_owned(),
            KeyPart::Route => "route".to_owned(),
            KeyPart::Global => "all clients together".to_owned(),
            KeyPart::Header(name) | KeyPart::Field(name) => format!("value of {name}"),
        };
        let each = self.key.iter().map(part).collect::<Vec<_>>().join(" and ");
        let each = if self.key == [KeyPart::Global] { each } else { format!("each {each}") };
        format!("limit {}: {} for {each}", self.name, self.rate)
    }
}

/// One token to be taken from one bucket.
#[derive(Clone, Debug)]
pub struct Charge {
    /// The limit.
    pub rule: Arc<LimitRule>,
    /// The bucket.
    pub bucket: Bucket,
}

/// One reading for each charge, in order.
pub type Readings = SmallVec<[Reading; 2]>;

/// Charges of one request; rarely more than a few.
pub type Charges = SmallVec<[Charge; 4]>;

/// Takes one token from every bucket of `charges`, or none from any when one that enforces is empty. `arrival` reads
/// the stored number of a charge by its place, `keep` writes it.
pub fn spend_all(
    charges: &[Charge],
    now: Timestamp,
    mut arrival: impl FnMut(usize) -> Timestamp,
    mut keep: impl FnMut(usize, Timestamp),
) -> Readings {
    let gcra = |charge: &Charge| charge.rule.gcra;
    let mut readings: Readings =
        charges.iter().enumerate().map(|(at, charge)| gcra(charge).take(arrival(at), now)).collect();
    let holds_back =
        |(charge, reading): (&Charge, &Reading)| !reading.conforms && charge.rule.mode == Mode::Enforce;
    let refused = charges.iter().zip(&readings).any(holds_back);
    for (at, (charge, reading)) in charges.iter().zip(&mut readings).enumerate() {
        if refused {
            *reading = gcra(charge).describe(arrival(at).max(now), now, reading.conforms);
        } else {
            keep(at, reading.arrival);
        }
    }
    readings
}

/// What a limit has left for this client, for `RateLimit` and `RateLimit-Policy`.
#[derive(Clone, Debug)]
pub struct Quota {
    /// The limit.
    pub rule: Arc<LimitRule>,
    /// What is left now.
    pub remaining: u32,
    /// How long until there is one more.
    pub next: Duration,
    /// Whether this limit had nothing left for the request.
    pub exceeded: bool,
}

impl Quota {
    fn new(charge: &Charge, reading: Reading) -> Self {
        Self {
            rule: Arc::clone(&charge.rule),
            remaining: reading.remaining,
            next: reading.next,
            exceeded: !reading.conforms,
        }
    }

    /// `"login";q=5;w=60`, draft-ietf-httpapi-ratelimit-headers.
    pub fn policy_field(&self) -> String {
        format!("\"{}\";q={};w={}", self.rule.name, self.rule.rate.count, self.rule.rate.per.as_secs())
    }

    /// `"login";r=0;t=12`.
    pub fn field(&self) -> String {
        let seconds = if self.next.is_zero() { 0 } else { whole_seconds(self.next) };
        format!("\"{}\";r={};t={seconds}", self.rule.name, self.remaining)
    }
}

/// What a request has paid so far, to be given back when a later limit refuses it.
#[derive(Debug, Default)]
pub struct Spent {
    paid: SmallVec<[(Store, Charges); 2]>,
    /// What each limit has left.
    pub quotas: Vec<Quota>,
}

/// The limits of one stage, as one question.
pub(crate) struct Demand<'a> {
    pub(crate) stage: Stage,
    pub(crate) rules: &'a [Arc<LimitRule>],
    pub(crate) route: &'a str,
    pub(crate) client: &'a Client,
    pub(crate) subject: Option<&'a Subject>,
    pub(crate) request: &'a Request<'a>,
}

impl Demand<'_> {
    /// Takes a token from every bucket, or gives everything back that the request has `spent` and refuses it.
    pub(crate) async fn meet<W: World>(
        self,
        mut spent: Spent,
        world: &W,
        now: Timestamp,
    ) -> Result<Spent, Refusal> {
        if self.rules.is_empty() {
            return Ok(spent);
        }
        let verdict = self.spend(&mut spent, world, now).await;
        verdict.inspect_err(|_| spent.give_back(world)).map(|()| spent)
    }

    async fn spend<W: World>(&self, spent: &mut Spent, world: &W, now: Timestamp) -> Result<(), Refusal> {
        let (shared, local): (Charges, Charges) = self
            .rules
            .iter()
            .map(|rule| Charge {
                rule: Arc::clone(rule),
                bucket: rule.bucket(self.route, self.client, self.subject, self.request),
            })
            .partition(|charge| charge.rule.scope == Scope::Shared);
        self.spend_at(Store::Local, local, spent, world, now).await?;
        match self.spend_at(Store::Shared, shared, spent, world, now).await? {
            None => Ok(()),
            Some(charges) => self.spend_alone(charges, spent, world, now).await,
        }
    }

    /// Pays at `store`; what is to be paid comes back when that is away.
    async fn spend_at<W: World>(
        &self,
        store: Store,
        charges: Charges,
        spent: &mut Spent,
        world: &W,
        now: Timestamp,
    ) -> Result<Option<Charges>, Refusal> {
        if charges.is_empty() {
            return Ok(None);
        }
        let Ok(readings) = world.spend(store, &charges, now).await else { return Ok(Some(charges)) };
        let quotas = charges.iter().zip(&readings).map(|(charge, reading)| Quota::new(charge, *reading));
        spent.quotas.extend(quotas);
        let refused = |quota: &&Quota| quota.exceeded && quota.rule.mode == Mode::Enforce;
        // Of several that refuse, the one to wait longest for: who waits for it is admitted by all.
        if let Some(quota) = spent.quotas.iter().filter(refused).max_by_key(|quota| quota.next) {
            Err(self.refusal(quota, &spent.quotas))
        } else {
            spent.paid.push((store, charges));
            Ok(None)
        }
    }

    /// The store is away: each limit says what that means.
    async fn spend_alone<W: World>(
        &self,
        mut charges: Charges,
        spent: &mut Spent,
        world: &W,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if let Some(charge) =
            charges.iter().find(|charge| charge.rule.on_store_failure == OnStoreFailure::Deny)
        {
            let detail = format!("limit {} cannot be checked now", charge.rule.name);
            return Err(Refusal::new(self.stage, Code::LimitUnavailable, detail)
                .by(&charge.rule.name)
                .retry_after(Some(Duration::from_secs(1))));
        }
        charges.retain(|charge| charge.rule.on_store_failure == OnStoreFailure::Local);
        match self.spend_at(Store::Alone, charges, spent, world, now).await? {
            None => Ok(()),
            Some(_) => Err(Refusal::new(self.stage, Code::LimitUnavailable, "limits cannot be checked now")),
        }
    }

    fn refusal(&self, quota: &Quota, quotas: &[Quota]) -> Refusal {
        let mut refusal = Refusal::new(self.stage, Code::RateLimited, quota.rule.detail())
            .by(&quota.rule.name)
            .retry_after(Some(quota.next));
        refusal.quotas = quotas.to_vec();
        refusal
    }
}

impl Spent {
    fn give_back<W: World>(&mut self, world: &W) {
        for (store, charges) in self.paid.drain(..) {
            world.refund(store, charges);
        }
    }
}
