//! Runs the policy's own tests, before the policy comes into force.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::document::{Fault, Faults};
use crate::pipeline::{AdmissionIn, admit};
use crate::policy::Policy;
use crate::policy_test::{PolicyTest, RequestLine};
use crate::progress::Progress;
use crate::rules::authenticate::KEY_FIELD;
use crate::testing::simulation::{SIGNATURE, Simulation};
use crate::values::path;
use crate::values::refusal::{Code, Refusal};
use crate::values::request::{Headers, Request};
use crate::values::stage::Stage;
use crate::values::time::Timestamp;
use crate::world::World;

impl PolicyTest {
    /// The decision of the policy, in a simulated world of its own in which nothing else happens.
    fn run(&self, policy: &Policy) -> Verdict {
        let world = Simulation::at(Timestamp::from_secs(1_800_000_000));
        let mut headers = self.headers.clone();
        if let Some(subject) = &self.subject {
            for permission in &self.granted {
                world.grant(subject, permission);
            }
            headers.push(self.proof(policy, subject, &world));
        }
        judge(policy, &self.request, self.ip, &headers, &world).0
    }

    /// A token of the first issuer of the request's route, or an API key if the route accepts no tokens.
    fn proof(&self, policy: &Policy, subject: &str, world: &Simulation) -> (String, String) {
        let normal = path::normalise(&self.request.path, policy.requests.encoded_slash).unwrap_or_default();
        let request = Request {
            peer: self.ip,
            method: &self.request.method,
            path: &normal,
            headers: Headers::default(),
            body: None,
        };
        let route = policy.routes.find(&request).ok();
        let Some(issuer) = route.as_ref().and_then(|route| route.auth.issuers.first()) else {
            return (KEY_FIELD.to_owned(), world.give_key(subject, &self.roles, &[]));
        };
        let header = json!({"alg": issuer.algorithms[0].as_str()});
        let mut claims =
            json!({"sub": subject, "exp": world.now().wall.as_secs() + 60, "aud": issuer.audience});
        claims[&issuer.roles_claim] = json!(self.roles);
        if let Some(iss) = &issuer.issuer {
            claims["iss"] = json!(iss);
        }
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let token = format!("Bearer {}.{}.{SIGNATURE}", encode(&header), encode(&claims));
        ("authorization".to_owned(), token)
    }

    fn disagreement(&self, policy: &Policy) -> Option<String> {
        let verdict = self.run(policy);
        let (stage, status, code) = match &verdict {
            Ok(_) => (Stage::Forward.as_str(), None, None),
            Err(refusal) => {
                (refusal.stage.as_str(), Some(u32::from(refusal.status())), Some(refusal.code.as_str()))
            }
        };
        let route = verdict.as_ref().ok().map(|admission| admission.route.name.to_string());
        let expect = &self.expect;
        let agrees = expect.stage.as_ref().is_none_or(|wanted| wanted.0 == stage)
            && expect.status.is_none_or(|wanted| status == Some(wanted))
            && expect.code.as_ref().is_none_or(|wanted| code == Some(wanted))
            && expect.route.as_ref().is_none_or(|wanted| route.as_ref() == Some(wanted));
        let found = match &verdict {
            Ok(admission) => format!("admitted by route `{}`", admission.route.name),
            Err(refusal) => {
                format!("{} {} at stage {stage}: {}", refusal.status(), refusal.code.as_str(), refusal.detail)
            }
        };
        (!agrees).then(|| {
            format!("`{} {}` is not decided as expected: {found}", self.request.method, self.request.path)
        })
    }
}

/// The verdict about a request.
pub type Verdict = Result<AdmissionIn<Simulation>, Refusal>;

/// Judges a request that is never sent: normalises its path and runs the pipeline.
pub fn judge(
    policy: &Policy,
    line: &RequestLine,
    ip: IpAddr,
    headers: &[(String, String)],
    world: &Simulation,
) -> (Verdict, Progress) {
    let mut progress = Progress::default();
    let normal = match path::normalise(&line.path, policy.requests.encoded_slash) {
        Ok(normal) => normal,
        Err(fault) => {
            let refusal = Refusal::new(Stage::Identify, Code::MalformedTarget, fault.to_string());
            return (progress.stage(Stage::Identify, Err(refusal)), progress);
        }
    };
    let fields: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let request =
        Request { peer: ip, method: &line.method, path: &normal, headers: Headers::new(&fields), body: None };
    let verdict = at_once(admit(policy, &request, world, &mut progress));
    (verdict, progress)
}

/// The result of a future that never waits.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("the simulated world answers at once"),
    }
}

impl Policy {
    /// Runs the policy's own tests. A test that fails is a fault at its place in `text`. Returns the number of tests.
    pub fn run_tests(&self, file: &str, text: &str) -> Result<usize, Vec<Fault>> {
        let faults = Faults::new(file, text);
        for (index, test) in self.tests.iter().enumerate() {
            if let Some(disagreement) = test.disagreement(self) {
                faults.add(&test.span, format!("tests[{index}]"), disagreement);
            }
        }
        let list = faults.into_list();
        if list.is_empty() { Ok(self.tests.len()) } else { Err(list) }
    }

    /// The limits in the order of their names, for a listing.
    pub fn limits_by_name(&self) -> BTreeMap<&str, &crate::rules::limits::LimitRule> {
        self.limits.iter().map(|limit| (&*limit.name, &**limit)).collect()
    }
}
