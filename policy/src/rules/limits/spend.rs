//! Spending: what a request takes from the buckets of its limits, all of it or nothing, and what it gets back.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::rules::authenticate::Subject;
use crate::rules::client::Client;
use crate::rules::limits::bucket::Bucket;
use crate::rules::limits::gcra::Reading;
use crate::rules::limits::{Counts, LimitRule, Mode, OnStoreFailure, Scope};
use crate::values::refusal::{Code, Refusal, whole_seconds};
use crate::values::request::Request;
use crate::values::stage::Stage;
use crate::values::time::Timestamp;
use crate::world::{Store, World};

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
pub(crate) struct Spent {
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
        let ambiguous = self.rules.iter().find_map(|rule| rule.ambiguous_member(self.request));
        let verdict = match ambiguous {
            None => self.spend(&mut spent, world, now).await,
            Some(name) => {
                let detail = format!("the body names `{name}` more than once: send it once");
                Err(Refusal::new(self.stage, Code::MalformedRequest, detail))
            }
        };
        verdict.inspect_err(|_| spent.give_back(world)).map(|()| spent)
    }

    /// First the limits that hold everybody, then those that spare who has not touched another one.
    async fn spend<W: World>(&self, spent: &mut Spent, world: &W, now: Timestamp) -> Result<(), Refusal> {
        let holds_all = |rule: &&Arc<LimitRule>| rule.spares.is_none();
        self.pay(self.rules.iter().filter(holds_all), spent, world, now).await?;
        let due: SmallVec<[&Arc<LimitRule>; 2]> = self
            .rules
            .iter()
            .filter(|rule| rule.spares.as_ref().is_some_and(|other| !spent.untouched(other)))
            .collect();
        self.pay(due.into_iter(), spent, world, now).await
    }

    async fn pay<W: World>(
        &self,
        rules: impl Iterator<Item = &Arc<LimitRule>>,
        spent: &mut Spent,
        world: &W,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let (shared, local): (Charges, Charges) = rules
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

    /// Whether the bucket of the limit `name` was full before this request.
    fn untouched(&self, name: &str) -> bool {
        let full = |quota: &Quota| quota.remaining + 1 == quota.rule.gcra.burst();
        self.quotas.iter().any(|quota| *quota.rule.name == *name && !quota.exceeded && full(quota))
    }

    /// What was paid to limits that count failures, to be given back when the request turns out to be none.
    pub(crate) fn reserved(&mut self) -> Reserved {
        let counts_failures = |charge: &Charge| charge.rule.counts == Counts::Failures;
        let reserve = |(store, charges): (Store, Charges)| {
            let charges: Charges = charges.into_iter().filter(counts_failures).collect();
            (!charges.is_empty()).then_some((store, charges))
        };
        self.paid.drain(..).filter_map(reserve).collect()
    }
}

/// Charges with where they were paid.
pub type Reserved = SmallVec<[(Store, Charges); 1]>;
