//! Everything that a request goes through, in the order of enforcement. Moving a line here moves the enforcement.
//!
//! There are three steps, so that nothing is judged twice, and nothing scarce is held while the gateway waits for a
//! client:
//!
//! 1. [`begin`] needs no body, so no body is read for a client that is over its limit.
//! 2. [`Routed::authorize`] needs the body only where a limit counts by it. Then the gateway reads the beginning of the
//!    body.
//! 3. [`Authorized::enter`] takes what other requests wait for: a permit of the upstream, and a pass of its breaker.
//!
//! Every [`Admission`] is [settled](settle).

use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use crate::policy::Policy;
use crate::progress::Progress;
use crate::routes::{Route, WhenOpen};
use crate::rules::authenticate::Subject;
use crate::rules::authorize::{Allowed, Permission};
use crate::rules::breaker::{Breakers, Outcome};
use crate::rules::client::Client;
use crate::rules::concurrency::Permits;
use crate::rules::limits::spend::{Demand, Spent};
use crate::rules::limits::{LimitRule, Reserved};
use crate::values::quota::Quota;
use crate::values::refusal::{Code, Refusal};
use crate::values::request::Request;
use crate::values::stage::Stage::{
    self, Authenticate, Authorize, Block, Break, Concurrency, Identify, Length, LimitClient, LimitField,
    LimitSubject, Route as Routing,
};
use crate::values::time::{Now, Timestamp};
use crate::world::World;

/// `Retry-After` in read-only mode.
const READ_ONLY_RETRY: Duration = Duration::from_secs(10);

/// `Retry-After` under overload.
const OVERLOADED_RETRY: Duration = Duration::from_secs(1);

/// A request whose route is known, and that has passed all limits that need neither its body nor its subject.
#[derive(Debug)]
pub struct Routed {
    client: Client,
    route: Arc<Route>,
    spent: Spent,
}

/// A request that is permitted, and that does not yet hold anything that other requests wait for.
#[derive(Debug)]
pub struct Authorized {
    client: Client,
    route: Arc<Route>,
    subject: Subject,
    permission: Permission,
    quotas: Vec<Quota>,
    reserved: Reserved,
}

/// A request that may be forwarded, with the evidence for that.
#[derive(Debug)]
pub struct Admission<P, C> {
    /// The client.
    pub client: Client,
    /// The route, with its rules.
    pub route: Arc<Route>,
    /// Who is asking.
    pub subject: Subject,
    /// What is left of its limits.
    pub quotas: Vec<Quota>,
    /// What limits that count failures give back, if the request is not a failure.
    pub reserved: Reserved,
    /// How it is known that it is permitted.
    pub permission: Permission,
    /// The pass of the breaker, which has to be settled.
    pub pass: P,
    /// The permit of the upstream, held until it is dropped.
    pub permit: C,
}

/// The admission of a request in the world `W`.
pub type AdmissionIn<W> = Admission<<W as Breakers>::Pass, <W as Permits>::Permit>;

/// The first step: identify the client, check the block list, find the route, check the limits that need no body.
pub async fn begin<W: World>(
    policy: &Policy,
    request: &Request<'_>,
    world: &W,
    progress: &mut Progress,
) -> Result<Routed, Refusal> {
    let Now { steady, wall } = world.now();
    let client = progress.client(Identify, policy.client.identify(request))?;
    progress.stage(Block, policy.blocks.pass(&client, world, wall))?;
    let route = progress.route(Routing, policy.route(request))?;
    let spent = Demand::of(LimitClient, &route.limits.client, &route, &client, request)
        .meet(Spent::default(), world, steady)
        .await;
    let mut spent = progress.stage(LimitClient, spent)?;
    if route.reads_body() {
        // Before the body is read, not after.
        let fits = policy.check_length(&route, request);
        progress.stage(Length, fits).inspect_err(|_| spent.give_back_failures(world))?;
    }
    Ok(Routed { client, route, spent })
}

impl Routed {
    /// The most bytes of the body that a later limit has to see; `None` when no limit needs the body.
    pub fn body_limit(&self) -> Option<u64> {
        self.route.reads_body().then(|| self.route.max_body.map_or(0, |most| most.0))
    }

    /// The second step: check the limits that count by the body, authenticate, check the limits by subject, authorize.
    /// `request` now has its body, if a limit needs it.
    pub async fn authorize<W: World>(
        mut self,
        policy: &Policy,
        request: &Request<'_>,
        world: &W,
        progress: &mut Progress,
    ) -> Result<Authorized, Refusal> {
        match self.judge(policy, request, world, progress).await {
            Ok(Allowed { subject, permission }) => {
                let reserved = self.spent.reserved();
                let Self { client, route, spent } = self;
                Ok(Authorized { client, route, subject, permission, quotas: spent.quotas, reserved })
            }
            // A refusal with a status that the route counts, such as 401, is a failure like the service's own.
            Err(refusal) if self.route.counts(refusal.status()) => Err(refusal),
            Err(refusal) => {
                self.spent.give_back_failures(world);
                Err(refusal)
            }
        }
    }

    async fn judge<W: World>(
        &mut self,
        policy: &Policy,
        request: &Request<'_>,
        world: &W,
        progress: &mut Progress,
    ) -> Result<Allowed, Refusal> {
        let Now { steady, wall } = world.now(); // reading the body may have taken a while
        let Self { client, route, spent } = self;
        let demand = |stage: Stage, rules| Demand::of(stage, rules, route, client, request);
        let met = demand(LimitField, &route.limits.field).meet(take(spent), world, steady).await;
        *spent = progress.stage(LimitField, met)?;
        let subject = route.auth.authenticate(&policy.permissions, request, world, wall).await;
        let subject = progress.subject(Authenticate, subject)?;
        let by_subject = demand(LimitSubject, &route.limits.subject).by(&subject);
        let met = by_subject.meet(take(spent), world, steady).await;
        *spent = progress.stage(LimitSubject, met)?;
        let allowed = route.access.authorize(policy.permission_service(), subject, request, world).await;
        let allowed = progress.stage(Authorize, allowed)?;
        if !route.reads_body() {
            progress.stage(Length, policy.check_length(route, request))?;
        }
        Ok(allowed)
    }

    /// Ends the request before it is judged further, because its body did not arrive or is not allowed.
    pub fn withdraw<W: World>(mut self, world: &W) {
        self.spent.give_back_failures(world);
    }
}

impl Authorized {
    /// The third step: acquire a permit of the upstream, which may wait, and ask the breaker.
    pub async fn enter<W: World>(
        self,
        policy: &Policy,
        request: &Request<'_>,
        world: &W,
        progress: &mut Progress,
    ) -> Result<AdmissionIn<W>, Refusal> {
        let permit = progress.stage(Concurrency, self.route.acquire(policy, request, world).await);
        let entered = permit.and_then(|permit| {
            let pass = self.route.ask_breaker(world, world.now().steady);
            Ok((progress.stage(Break, pass)?, permit))
        });
        let Self { client, route, subject, permission, quotas, reserved } = self;
        match entered {
            // Now the gateway forwards the request, and then it calls `settle`.
            Ok((pass, permit)) => {
                Ok(Admission { client, route, subject, quotas, reserved, permission, pass, permit })
            }
            Err(refusal) => {
                give_back(reserved, world);
                Err(refusal)
            }
        }
    }

    /// Ends the request before it is forwarded, because its body did not arrive or is not allowed.
    pub fn withdraw<W: World>(self, world: &W) {
        give_back(self.reserved, world);
    }
}

/// All three steps, for a request whose body has been read, or that has none.
pub async fn admit<W: World>(
    policy: &Policy,
    request: &Request<'_>,
    world: &W,
    progress: &mut Progress,
) -> Result<AdmissionIn<W>, Refusal> {
    let routed = begin(policy, request, world, progress).await?;
    let authorized = routed.authorize(policy, request, world, progress).await?;
    authorized.enter(policy, request, world, progress).await
}

/// Whether a WebSocket is still permitted, as far as that is known without asking another service: by its client, its
/// route and its proof.
pub fn still_holds<W: World>(
    policy: &Policy,
    request: &Request<'_>,
    subject: &Subject,
    world: &W,
) -> Result<(), Refusal> {
    let now = world.now().wall;
    let client = policy.client.identify(request)?;
    policy.blocks.pass(&client, world, now)?;
    policy.route(request)?;
    if subject.credential().is_some_and(|credential| world.revoked(&credential)) {
        return Err(Refusal::new(Authenticate, Code::TokenRevoked, "what proved who you are was revoked"));
    }
    if subject.ends().is_some_and(|ends| ends <= now) {
        return Err(Refusal::new(Authenticate, Code::TokenExpired, "what proved who you are has ended"));
    }
    Ok(())
}

/// Judges the request of a WebSocket again, without limits and breaker: the limits count new requests, and this is
/// none.
pub async fn rejudge<W: World>(policy: &Policy, request: &Request<'_>, world: &W) -> Result<(), Refusal> {
    let now = world.now().wall;
    let client = policy.client.identify(request)?;
    policy.blocks.pass(&client, world, now)?;
    let route = policy.route(request)?;
    let subject = route.auth.authenticate(&policy.permissions, request, world, now).await?;
    route.access.authorize(policy.permission_service(), subject, request, world).await.map(drop)
}

/// Settles an admitted request with its outcome: notifies the breaker and counts failed logins. At the limits, a client
/// that closed the connection before the answer counts as a failure, so that nobody can guess passwords for free by
/// leaving early. A request that the gateway did not send, or that the service refused because it is read-only, does
/// not count.
pub fn settle<W: World>(policy: &Policy, admission: AdmissionIn<W>, outcome: Outcome, world: &W) {
    let now = world.now().steady;
    world.settle(admission.pass, outcome, now);
    let route = &admission.route;
    let failed = match outcome {
        Outcome::Answered(status) => route.counts(status),
        Outcome::Unreachable | Outcome::TimedOut | Outcome::NotSent | Outcome::ReadOnly => false,
        Outcome::ClientLeft => true,
    };
    if !failed {
        give_back(admission.reserved, world);
    }
    let Outcome::Answered(status) = outcome else { return };
    let Some(auto) = policy.blocks.auto.filter(|_| !route.counts_failed_logins.is_empty()) else { return };
    if policy.blocks.exempts(admission.client.address) {
        return;
    }
    if failed {
        world.login_failed(&admission.client, auto, now);
    } else if (200..300).contains(&status) {
        world.login_succeeded(&admission.client);
    }
}

fn give_back<W: World>(reserved: Reserved, world: &W) {
    reserved.into_iter().for_each(|(store, charges)| world.refund(store, charges));
}

impl<'a> Demand<'a> {
    fn of(
        stage: Stage,
        rules: &'a [Arc<LimitRule>],
        route: &'a Route,
        client: &'a Client,
        request: &'a Request<'a>,
    ) -> Self {
        Self { stage, rules, route: &route.name, client, subject: None, request }
    }

    fn by(self, subject: &'a Subject) -> Self {
        Self { subject: Some(subject), ..self }
    }
}

impl Policy {
    /// Refuses a request that announces a larger body than its route allows.
    fn check_length(&self, route: &Route, request: &Request<'_>) -> Result<(), Refusal> {
        let most = self.max_body(route);
        match request.content_length() {
            Some(length) if length > most => Err(Refusal::body_too_large(most)),
            _ => Ok(()),
        }
    }
}

impl Route {
    /// Whether a response with this status counts as a failed login.
    fn counts(&self, status: u16) -> bool {
        self.counts_failed_logins.contains(&u32::from(status))
    }

    /// Acquires a permit of the upstream. Read-only mode is checked first, so that no request waits in vain.
    async fn acquire<W: World>(
        &self,
        policy: &Policy,
        request: &Request<'_>,
        world: &W,
    ) -> Result<W::Permit, Refusal> {
        if policy.read_only && self.changes_something(request.method) {
            let detail = "nothing can be changed now, reading continues";
            return Err(Refusal::new(Break, Code::ReadOnly, detail).retry_after(Some(READ_ONLY_RETRY)));
        }
        let permit = world.acquire(&self.upstream, self.concurrency.as_deref(), self.priority).await;
        permit.map_err(|_| {
            let detail = "the service has more requests than it can serve";
            Refusal::new(Concurrency, Code::Overloaded, detail)
                .by(&self.upstream)
                .retry_after(Some(OVERLOADED_RETRY))
        })
    }

    fn ask_breaker<W: World>(&self, world: &W, now: Timestamp) -> Result<W::Pass, Refusal> {
        world.enter(self.breaker.as_ref(), now).map_err(|wait| {
            let detail = "the service has failed too often and gets no requests for a while";
            Refusal::new(Break, Code::BreakerOpen, detail)
                .by(&self.upstream)
                .retry_after(Some(wait))
                .or_last_good(self.when_open == WhenOpen::Stale)
        })
    }
}
