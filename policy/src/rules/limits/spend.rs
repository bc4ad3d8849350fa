//! Spending: a request takes a token from the bucket of every limit, or from none, and may get tokens back.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::rules::authenticate::Subject;
use crate::rules::client::Client;
use crate::rules::limits::bucket::Bucket;
use crate::rules::limits::gcra::Reading;
use crate::rules::limits::rule::{Counts, LimitRule, Mode, OnStoreFailure, Scope};
use crate::values::quota::Quota;
use crate::values::refusal::{Code, Refusal};
use crate::values::request::Request;
use crate::values::stage::Stage;
use crate::values::time::Timestamp;

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

/// The charges of one request; rarely more than a few.
pub type Charges = SmallVec<[Charge; 4]>;

/// Which buckets are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Store {
    /// Those that all replicas share.
    Shared,
    /// This replica's own.
    Local,
    /// This replica's share of the shared ones, while the store is unavailable.
    Fallback,
}

/// The store is unavailable.
#[derive(Clone, Copy, Debug)]
pub struct StoreUnavailable;

/// What limits ask of the outside. An implementation never waits without a bound.
pub trait Buckets: Sync {
    /// Takes one token from every bucket. Takes none at all when a bucket whose limit enforces is empty. Returns one
    /// reading for each charge, in order.
    fn spend(
        &self,
        store: Store,
        charges: &[Charge],
        now: Timestamp,
    ) -> impl Future<Output = Result<Readings, StoreUnavailable>> + Send;

    /// Gives back what was taken. This may happen later, and the tokens are lost when the store is unavailable.
    fn refund(&self, store: Store, charges: Charges);
}

/// Takes one token from every bucket of `charges`. Takes none at all when a bucket whose limit enforces is empty.
/// `arrival` reads the stored time of a charge by its index, `keep` writes it.
pub fn spend_all(
    charges: &[Charge],
    now: Timestamp,
    mut arrival: impl FnMut(usize) -> Timestamp,
    mut keep: impl FnMut(usize, Timestamp),
) -> Readings {
    let gcra = |charge: &Charge| charge.rule.gcra;
    let mut readings: Readings =
        charges.iter().enumerate().map(|(at, charge)| gcra(charge).take(arrival(at), now)).collect();
    let fails =
        |(charge, reading): (&Charge, &Reading)| !reading.conforms && charge.rule.mode == Mode::Enforce;
    let refused = charges.iter().zip(&readings).any(fails);
    for (at, (charge, reading)) in charges.iter().zip(&mut readings).enumerate() {
        if refused {
            *reading = gcra(charge).describe(arrival(at).max(now), now, reading.conforms);
        } else {
            keep(at, reading.arrival);
        }
    }
    readings
}

fn quota(charge: &Charge, reading: Reading) -> Quota {
    let LimitRule { name, rate, gcra, mode, .. } = &*charge.rule;
    Quota {
        limit: Arc::clone(name),
        count: rate.count,
        per: rate.per,
        remaining: reading.remaining,
        next: reading.next,
        exceeded: !reading.conforms,
        enforced: *mode == Mode::Enforce,
        was_full: reading.conforms && reading.remaining + 1 == gcra.burst(),
    }
}

/// What a request has paid so far. It is given back when a later limit refuses the request.
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
    /// Takes a token from every bucket. If that fails, gives back everything that the request has `spent` and refuses
    /// it.
    pub(crate) async fn meet<W: Buckets>(
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

    /// First the limits that apply to everybody, then those with `skip_if_full`, which need the readings of the first.
    async fn spend<W: Buckets>(&self, spent: &mut Spent, world: &W, now: Timestamp) -> Result<(), Refusal> {
        let unconditional = |rule: &&Arc<LimitRule>| rule.skip_if_full.is_none();
        self.pay(self.rules.iter().filter(unconditional), spent, world, now).await?;
        let due: SmallVec<[&Arc<LimitRule>; 2]> = self
            .rules
            .iter()
            .filter(|rule| rule.skip_if_full.as_ref().is_some_and(|other| !spent.was_full(other)))
            .collect();
        self.pay(due.into_iter(), spent, world, now).await
    }

    async fn pay<W: Buckets>(
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
            Some(charges) => self.spend_fallback(charges, spent, world, now).await,
        }
    }

    /// Pays at `store`. Returns the charges when the store is unavailable.
    async fn spend_at<W: Buckets>(
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
        let quotas = charges.iter().zip(&readings).map(|(charge, reading)| quota(charge, *reading));
        spent.quotas.extend(quotas);
        let refused = |quota: &&Quota| quota.exceeded && quota.enforced;
        // Of several limits that refuse, take the longest wait: a client that waits this long is admitted by all.
        if let Some(quota) = spent.quotas.iter().filter(refused).max_by_key(|quota| quota.next) {
            Err(self.refusal(quota, &spent.quotas))
        } else {
            spent.paid.push((store, charges));
            Ok(None)
        }
    }

    /// The store is unavailable: each limit says what that means.
    async fn spend_fallback<W: Buckets>(
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
        match self.spend_at(Store::Fallback, charges, spent, world, now).await? {
            None => Ok(()),
            Some(_) => Err(Refusal::new(self.stage, Code::LimitUnavailable, "limits cannot be checked now")),
        }
    }

    fn refusal(&self, quota: &Quota, quotas: &[Quota]) -> Refusal {
        let rule = self.rules.iter().find(|rule| rule.name == quota.limit);
        let detail = rule.map(|rule| rule.detail()).unwrap_or_default();
        let mut refusal = Refusal::new(self.stage, Code::RateLimited, detail)
            .by(&quota.limit)
            .retry_after(Some(quota.next));
        refusal.quotas = quotas.to_vec();
        refusal
    }
}

impl Spent {
    /// Gives back what was paid to limits that count failures. The other limits have counted a request.
    pub(crate) fn give_back_failures<W: Buckets>(&mut self, world: &W) {
        for (store, charges) in self.reserved() {
            world.refund(store, charges);
        }
    }

    fn give_back<W: Buckets>(&mut self, world: &W) {
        for (store, charges) in self.paid.drain(..) {
            world.refund(store, charges);
        }
    }

    /// Whether the bucket of the limit `name` was full before this request.
    fn was_full(&self, name: &str) -> bool {
        self.quotas.iter().any(|quota| *quota.limit == *name && quota.was_full)
    }

    /// What was paid to limits that count failures. It is given back when the request turns out not to be a failure.
    pub(crate) fn reserved(&mut self) -> Reserved {
        let counts_failures = |charge: &Charge| charge.rule.counts == Counts::Failures;
        let reserve = |(store, charges): (Store, Charges)| {
            let charges: Charges = charges.into_iter().filter(counts_failures).collect();
            (!charges.is_empty()).then_some((store, charges))
        };
        self.paid.drain(..).filter_map(reserve).collect()
    }
}

/// Charges, each with the store at which it was paid.
pub type Reserved = SmallVec<[(Store, Charges); 1]>;
