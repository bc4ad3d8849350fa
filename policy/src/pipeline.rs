//! What a request goes through, in the order in which it happens: moving a line moves the enforcement.
//!
//! Three steps, so that nothing is judged twice and nothing scarce is held while a client is waited for. [`begin`] needs
//! no body, so none is read for a client that is over its limit. [`Routed::authorize`] needs what limits count by. Then the
//! gateway reads the beginning of the body, and [`Authorized::enter`] takes what others wait for: a place among those in
//! flight, and the breaker's consent. Every [`Admission`] is [settled](settle).

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

/// When it is worth asking again whether something can be changed.
const READ_ONLY_RETRY: Duration = Duration::from_secs(10);

/// When it is worth asking again whether there is room.
const OVERLOADED_RETRY: Duration = Duration::from_secs(1);

/// A request whose route is known, and that no limit holds which needs neither its body nor its subject.
#[derive(Debug)]
pub struct Routed {
    client: Client,
    route: Arc<Route>,
    spent: Spent,
}

/// A request that may do what it asks for, and that has taken nothing yet that others wait for.
#[derive(Debug)]
pub struct Authorized {
    client: Client,
    route: Arc<Route>,
    subject: Subject,
    permission: Permission,
    quotas: Vec<Quota>,
    reserved: Reserved,
}

/// A request that may go on to its upstream, with the evidence that it may.
#[derive(Debug)]
pub struct Admission<P, C> {
    /// Who is at the other end.
    pub client: Client,
    /// The rules that it is under.
    pub route: Arc<Route>,
    /// Who is asking.
    pub subject: Subject,
    /// What its limits have left.
    pub quotas: Vec<Quota>,
    /// What it gets back from limits that count failures, if it is none.
    pub reserved: Reserved,
    /// How it is known that it may.
    pub permission: Permission,
    /// The breaker's consent, to be settled.
    pub pass: P,
    /// Its place among those in flight, until this is dropped.
    pub permit: C,
}

/// The admission of a request in the world `W`.
pub type AdmissionIn<W> = Admission<<W as Breakers>::Pass, <W as Permits>::Permit>;

/// The first step: who comes, whether it is blocked, where it goes, and the limits that need no body.
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
        // Before it is read, and not after it.
        let fits = policy.check_length(&route, request);
        progress.stage(Length, fits).inspect_err(|_| spent.give_back_failures(world))?;
    }
    Ok(Routed { client, route, spent })
}

impl Routed {
    /// The most bytes of the body that a later limit has to see; `None`: none of it.
    pub fn body_limit(&self) -> Option<u64> {
        self.route.reads_body().then(|| self.route.max_body.map_or(0, |most| most.0))
    }

    /// The second step: limits that count by the body, who is asking, limits by subject, what the subject may do.
    /// `request` has its body now, if a limit has to see it.
    pub async fn authorize<W: World>(
        self,
        policy: &Policy,
        request: &Request<'_>,
        world: &W,
        progress: &mut Progress,
    ) -> Result<Authorized, Refusal> {
        let Now { steady, wall } = world.now(); // the body may have taken its time
        let Self { client, route, spent } = self;
        let demand = |stage: Stage, rules| Demand::of(stage, rules, &route, &client, request);
        let spent = demand(LimitField, &route.limits.field).meet(spent, world, steady).await;
        let spent = progress.stage(LimitField, spent)?;
        let subject = route.auth.authenticate(&policy.permissions, request, world, wall).await;
        let subject = progress.subject(Authenticate, subject)?;
        let spent = demand(LimitSubject, &route.limits.subject).by(&subject).meet(spent, world, steady).await;
        let mut spent = progress.stage(LimitSubject, spent)?;
        let allowed = route.access.authorize(policy.permission_service(), subject, request, world).await;
        let Allowed { subject, permission } = progress.stage(Authorize, allowed)?;
        if !route.reads_body() {
            let fits = policy.check_length(&route, request);
            progress.stage(Length, fits).inspect_err(|_| spent.give_back_failures(world))?;
        }
        let reserved = spent.reserved();
        Ok(Authorized { client, route, subject, permission, quotas: spent.quotas, reserved })
    }

    /// The request is not judged any further: its body did not come, or is not what it may be.
    pub fn withdraw<W: World>(mut self, world: &W) {
        self.spent.give_back_failures(world);
    }
}

impl Authorized {
    /// The third step: a place among those in flight, for which it may wait, and the breaker's consent.
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
            // The gateway forwards it now, and then calls `settle`.
            Ok((pass, permit)) => {
                Ok(Admission { client, route, subject, quotas, reserved, permission, pass, permit })
            }
            Err(refusal) => {
                give_back(reserved, world);
                Err(refusal)
            }
        }
    }

    /// The request goes no further: its body did not come, or is not what it may be.
    pub fn withdraw<W: World>(self, world: &W) {
        give_back(self.reserved, world);
    }
}

/// All three steps, for a request whose body is there, or that has none.
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

/// Whether what let a WebSocket in still holds, as far as nobody else need be asked: its client, its route, its proof.
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

/// Judges again what let a WebSocket in, without the limits, which count how often somebody comes, and the breaker.
pub async fn rejudge<W: World>(policy: &Policy, request: &Request<'_>, world: &W) -> Result<(), Refusal> {
    let now = world.now().wall;
    let client = policy.client.identify(request)?;
    policy.blocks.pass(&client, world, now)?;
    let route = policy.route(request)?;
    let subject = route.auth.authenticate(&policy.permissions, request, world, now).await?;
    route.access.authorize(policy.permission_service(), subject, request, world).await.map(drop)
}

/// Draws the conclusions from how an admitted request ended: the breaker learns, failed logins are counted. A client that
/// left before it was told counts as a failure at the limits: leaving early is no way to guess for nothing. What we did not
/// send, and what the service refused because it is read-only, says nothing about anybody.
pub fn settle<W: World>(policy: &Policy, admission: AdmissionIn<W>, outcome: Outcome, world: &W) {
    let now = world.now().steady;
    world.settle(admission.pass, outcome, now);
    let counted = &admission.route.counts_failed_logins;
    let failed = match outcome {
        Outcome::Answered(status) => counted.contains(&u32::from(status)),
        Outcome::Unreachable | Outcome::TimedOut | Outcome::NotSent | Outcome::ReadOnly => false,
        Outcome::ClientLeft => true,
    };
    if !failed {
        give_back(admission.reserved, world);
    }
    let Outcome::Answered(status) = outcome else { return };
    let Some(auto) = policy.blocks.auto.filter(|_| !counted.is_empty()) else { return };
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
    /// Whether the body that a request announces is one that its route takes.
    fn check_length(&self, route: &Route, request: &Request<'_>) -> Result<(), Refusal> {
        let most = self.max_body(route);
        match request.content_length() {
            Some(length) if length > most => Err(Refusal::body_too_large(most)),
            _ => Ok(()),
        }
    }
}

impl Route {
    /// A place among those in flight. Nobody waits for one who is refused anyway.
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
            let detail = "the service has more to do than it can";
            Refusal::new(Concurrency, Code::Overloaded, detail)
                .by(&self.upstream)
                .retry_after(Some(OVERLOADED_RETRY))
        })
    }

    fn ask_breaker<W: World>(&self, world: &W, now: Timestamp) -> Result<W::Pass, Refusal> {
        world.enter(self.breaker.as_ref(), now).map_err(|wait| {
            let detail = "the service has failed too often and is given a rest";
            Refusal::new(Break, Code::BreakerOpen, detail)
                .by(&self.upstream)
                .retry_after(Some(wait))
                .or_last_good(self.when_open == WhenOpen::Stale)
        })
    }
}
