//! The policy as a whole: text in, validated rules or a list of faults out.

use std::sync::Arc;

use crate::document::{Fault, Faults, Renamed, Section};
use crate::policy_test::PolicyTest;
use crate::reading::{Names, read_route};
use crate::routes::{self, Route, Routes};
use crate::rules::authenticate::issuer::Issuer;
use crate::rules::blocks::BlockRule;
use crate::rules::breaker::BreakerRule;
use crate::rules::canary::CanaryRule;
use crate::rules::client::ClientRule;
use crate::rules::concurrency::ConcurrencyRule;
use crate::rules::limits::LimitRule;
use crate::rules::permissions::PermissionRule;
use crate::rules::requests::RequestRule;
use crate::rules::response_headers::ResponseHeaders;
use crate::rules::retry::RetryRule;
use crate::values::refusal::Refusal;
use crate::values::request::Request;

/// Every rule in force. One snapshot serves a request from its first stage to its last.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whose word about the client's address is believed.
    pub client: ClientRule,
    /// The bounds of a request.
    pub requests: RequestRule,
    /// Who may not come in.
    pub blocks: BlockRule,
    /// Which rules a path is under.
    pub routes: Routes,
    /// How permission questions are answered.
    pub permissions: PermissionRule,
    /// The upstream that answers them, where the policy has `[permissions]` or a route that needs an answer. No other
    /// upstream is asked anything, or told who asks.
    pub permission_service: Option<Arc<str>>,
    /// What every answer carries.
    pub headers: ResponseHeaders,
    /// The issuers by name, for those who keep their keys.
    pub issuers: Vec<Arc<Issuer>>,
    /// The limits by name.
    pub limits: Vec<Arc<LimitRule>>,
    /// The breakers by name.
    pub breakers: Vec<Arc<BreakerRule>>,
    /// Whether what would change something is refused for now.
    pub read_only: bool,
    /// How a policy that has just come into force is watched, if it is.
    pub canary: Option<CanaryRule>,
    /// The policy's own tests.
    pub tests: Vec<PolicyTest>,
    /// Keys that the file calls by the names that they had before.
    pub renamed: Vec<Renamed>,
    /// Field names, normalised, that only the gateway may write.
    identity_fields: Vec<String>,
}

/// The version of the policy language that this program reads.
pub const VERSION: u32 = 1;

impl Policy {
    /// Reads `text`, which is called `file` in faults. With `upstreams`, a route that names another one is a fault.
    pub fn parse(file: &str, text: &str, upstreams: Option<&[String]>) -> Result<Self, Vec<Fault>> {
        let faults = Faults::new(file, text);
        let document = faults.document();
        if !faults.is_empty() {
            return Err(faults.into_list()); // what a broken text seems to lack says nothing
        }
        let root = Section::root(&document, &faults);
        let mut policy = Self::read(&root, upstreams);
        root.finish();
        policy.renamed = faults.renamed();
        let list = faults.into_list();
        if list.is_empty() { Ok(policy) } else { Err(list) }
    }

    fn read(root: &Section<'_>, upstreams: Option<&[String]>) -> Self {
        match root.require::<u32>("version", "version = 1") {
            Some(VERSION) | None => {}
            Some(other) => root.fault("version", format!("{VERSION} (got {other})")),
        }
        let names = Names {
            limits: LimitRule::read_all(root),
            issuers: Issuer::read_all(root),
            breakers: BreakerRule::read_all(root),
            retries: RetryRule::read_all(root),
            concurrency: ConcurrencyRule::read_all(root),
            upstreams,
        };
        for name in names.breakers.keys() {
            names.check_upstream(root, "breakers", name);
        }
        for name in names.concurrency.keys() {
            names.check_upstream(root, "concurrency", name);
        }
        let names_service = root.has("permissions");
        let permissions = PermissionRule::read(root.section("permissions"));
        let requests = RequestRule::read(root.section("requests"));
        let mut routes = Routes::default();
        for section in root.sections("routes") {
            read_route(section, &names, &requests, &mut routes);
        }
        if routes.iter().next().is_none() {
            root.fault("routes", "required: at least one [[routes]]");
        }
        let needs_service =
            routes.iter().any(|route| route.access.permission.is_some() || route.auth.api_keys);
        if needs_service {
            names.check_upstream(root, "permissions", &permissions.upstream);
        }
        let permission_service = (names_service || needs_service).then(|| Arc::clone(&permissions.upstream));
        let forwarded = names.issuers.values().flat_map(|issuer| issuer.forward.iter());
        Self {
            client: ClientRule::read(root.section("client")),
            requests,
            blocks: BlockRule::read(root.section("blocks")),
            headers: ResponseHeaders::read(root.section("headers").as_ref()),
            tests: PolicyTest::read_all(root),
            canary: CanaryRule::read(root.section("canary")),
            read_only: root.get_or("read_only", false),
            renamed: Vec::new(),
            identity_fields: forwarded.map(|(_, field)| same_letters(field)).collect(),
            issuers: names.issuers.into_values().collect(),
            limits: names.limits.into_values().collect(),
            breakers: names.breakers.into_values().collect(),
            permissions,
            permission_service,
            routes,
        }
    }

    /// Whether a field carries identity, in any spelling: servers behind us may read `X_Auth_User` as `X-Auth-User`.
    pub fn is_identity_field(&self, name: &str) -> bool {
        IDENTITY_FIELDS.iter().any(|field| same_field(field, name))
            || self.identity_fields.iter().any(|field| same_field(field, name))
    }

    /// How the permission service is asked, where the policy names one.
    pub fn permission_service(&self) -> Option<&PermissionRule> {
        self.permission_service.as_ref().map(|_| &self.permissions)
    }

    /// The most bytes of a body on this route.
    pub fn max_body(&self, route: &Route) -> u64 {
        route.max_body.map_or(self.requests.max_body, |most| most.0)
    }

    /// The route of a request. What the permission service tells the gateway alone is nobody else's: no route leads
    /// there.
    pub fn route(&self, request: &Request<'_>) -> Result<Arc<Route>, Refusal> {
        let route = self.routes.find(request)?;
        if self.permission_service.as_ref() == Some(&route.upstream) && request.path.starts_with(INTERNAL) {
            return Err(routes::not_found());
        }
        Ok(route)
    }
}

/// Fields that our own backend believes: they are the gateway's to write, whatever a policy forwards.
const IDENTITY_FIELDS: [&str; 3] = ["x-auth-user", "x-auth-roles", "x-palisade-assertion"];

/// Paths of the permission service that only the gateway asks for.
const INTERNAL: &str = "/internal/";

/// Whether `name` is `ours` in some spelling; `ours` is in lower case with dashes.
pub fn same_field(ours: &str, name: &str) -> bool {
    ours.len() == name.len() && ours.bytes().zip(name.bytes()).all(|(ours, theirs)| ours == letter(theirs))
}

/// `-`, `_`, `.` and `~` count as the same letter.
const fn letter(byte: u8) -> u8 {
    match byte {
        b'_' | b'.' | b'~' => b'-',
        other => other.to_ascii_lowercase(),
    }
}

fn same_letters(name: &str) -> String {
    name.bytes().map(|byte| char::from(letter(byte))).collect()
}
