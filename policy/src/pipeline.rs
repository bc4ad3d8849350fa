//! What a request goes through, in the order in which it happens: moving a line moves the enforcement.

use std::sync::Arc;
use std::time::Duration;

use crate::policy::Policy;
use crate::routes::Route;
use crate::rules::authenticate::Subject;
use crate::rules::authorize::{Authorized, Permission};
use crate::rules::breaker::Outcome;
use crate::rules::client::Client;
use crate::rules::limits::spend::{Demand, Spent};
use crate::rules::limits::{Quota, Reserved};
use crate::values::refusal::{Code, Refusal};
use crate::values::request::Request;
use crate::values::stage::Stage::{
    Authenticate, Authorize, Block, Break, Identify, LimitClient, LimitSubject, Route as Routing,
};
use crate::values::stage::{Stage, Trail};
use crate::values::time::{Now, Timestamp};
use crate::world::World;

/// When it is worth asking again whether something can be changed.
const READ_ONLY_RETRY: Duration = Duration::from_secs(10);

/// A request that may go on to its upstream, with the evidence that it may.
#[derive(Debug)]
pub struct Admission<P> {
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
}

/// The route of a request whose body has to be read before it is judged. The body of one that will be refused anyway is
/// not waited for.
pub fn wants_body<W: World>(policy: &Policy, request: &Request<'_>, world: &W) -> Option<Arc<Route>> {
    let client = policy.client.identify(request).ok()?;
    policy.blocks.pass(&client, world, world.now().wall).ok()?;
    policy.route(request).ok().filter(|route| route.reads_body())
}

/// Judges a request. The trail says how far it came.
pub async fn admit<W: World>(
    policy: &Policy,
    request: &Request<'_>,
    world: &W,
    trail: &mut Trail,
) -> Result<Admission<W::Pass>, Refusal> {
    let Now { steady, wall } = world.now(); // a request has one time
    let client = trail.stage(Identify, policy.client.identify(request))?;
    trail.stage(Block, policy.blocks.pass(&client, world, wall))?;
    let route = trail.stage(Routing, policy.route(request))?;
    let spent = trail.stage(LimitClient, route.limit_client(&client, request, world, steady).await)?;
    let subject =
        trail.stage(Authenticate, route.authenticate(&policy.permissions, request, world, wall).await)?;
    let mut spent = trail
        .stage(LimitSubject, route.limit_subject(&client, &subject, request, spent, world, steady).await)?;
    let Authorized { subject, permission } = trail
        .stage(Authorize, route.authorize(policy.permission_service(), subject, request, world).await)?;
    let reserved = spent.reserved();
    let pass = trail.stage(Break, route.enter(policy, request, world, steady)).map_err(|refusal| {
        give_back(reserved.clone(), world);
        refusal.or_last_good(&route, &subject)
    })?;
    Ok(Admission { client, route, subject, quotas: spent.quotas, reserved, permission, pass }) // the gateway forwards, then calls `settle`
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
    let subject = route.authenticate(&policy.permissions, request, world, now).await?;
    route.authorize(policy.permission_service(), subject, request, world).await.map(drop)
}

/// Draws the conclusions from how an admitted request ended: the breaker learns, failed logins are counted. A client that
/// left before it was told counts as a failure at the limits: leaving early is no way to guess for nothing.
pub fn settle<W: World>(policy: &Policy, admission: Admission<W::Pass>, outcome: Outcome, world: &W) {
    let now = world.now().steady;
    world.settle(admission.pass, outcome, now);
    let counted = &admission.route.counts_failed_logins;
    let failed = match outcome {
        Outcome::Answered(status) => counted.contains(&u32::from(status)),
        Outcome::Unreachable | Outcome::TimedOut => false,
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

impl Route {
    async fn limit_client<W: World>(
        &self,
        client: &Client,
        request: &Request<'_>,
        world: &W,
        now: Timestamp,
    ) -> Result<Spent, Refusal> {
        let (rules, route) = (&self.client_limits, &self.name);
        Demand { stage: LimitClient, rules, route, client, subject: None, request }
            .meet(Spent::default(), world, now)
            .await
    }

    async fn limit_subject<W: World>(
        &self,
        client: &Client,
        subject: &Subject,
        request: &Request<'_>,
        spent: Spent,
        world: &W,
        now: Timestamp,
    ) -> Result<Spent, Refusal> {
        let (rules, route) = (&self.subject_limits, &self.name);
        Demand { stage: LimitSubject, rules, route, client, subject: Some(subject), request }
            .meet(spent, world, now)
            .await
    }

    fn enter<W: World>(
        &self,
        policy: &Policy,
        request: &Request<'_>,
        world: &W,
        now: Timestamp,
    ) -> Result<W::Pass, Refusal> {
        if policy.read_only && self.changes_something(request.method) {
            let detail = "nothing can be changed now, reading goes on";
            return Err(Refusal::new(Stage::Break, Code::ReadOnly, detail).retry_after(Some(READ_ONLY_RETRY)));
        }
        world.enter(self.breaker.as_ref(), now).map_err(|wait| {
            Refusal::new(
                Stage::Break,
                Code::BreakerOpen,
                "the service has failed too often and is given a rest",
            )
            .by(&self.upstream)
            .retry_after(Some(wait))
        })
    }
}
