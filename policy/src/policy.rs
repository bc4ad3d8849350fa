//! The whole policy: it is read from a text, and the result is validated rules or a list of faults.

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

/// All rules in force. A request uses one snapshot from its first stage to its last.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Which proxies are trusted to name the client's address.
    pub client: ClientRule,
    /// The bounds of a request.
    pub requests: RequestRule,
    /// Which clients are refused.
    pub blocks: BlockRule,
    /// The routes, with the rules of each.
    pub routes: Routes,
    /// How permission questions are answered.
    pub permissions: PermissionRule,
    /// The upstream that answers them, if the policy has `[permissions]` or a route that needs an answer. No other
    /// upstream receives permission questions.
    pub permission_service: Option<Arc<str>>,
    /// The header fields of every response.
    pub headers: ResponseHeaders,
    /// The issuers, for the code that fetches their keys.
    pub issuers: Vec<Arc<Issuer>>,
    /// The limits.
    pub limits: Vec<Arc<LimitRule>>,
    /// The breakers.
    pub breakers: Vec<Arc<BreakerRule>>,
    /// Read-only mode: whether requests that may change something are refused.
    pub read_only: bool,
    /// How this policy is watched after it has come into force, if it is.
    pub canary: Option<CanaryRule>,
    /// The policy's own tests.
    pub tests: Vec<PolicyTest>,
    /// Keys that the file writes with their old names.
    pub renamed: Vec<Renamed>,
    /// Normalised names of header fields that only the gateway may set.
    identity_fields: Vec<String>,
}

/// The version of the policy language that this program reads.
pub const VERSION: u32 = 1;

impl Policy {
    /// Reads `text`. Faults name it `file`. When `upstreams` is given, a route that names any other upstream is a
    /// fault.
    pub fn parse(file: &str, text: &str, upstreams: Option<&[String]>) -> Result<Self, Vec<Fault>> {
        let faults = Faults::new(file, text);
        let document = faults.document();
        if !faults.is_empty() {
            return Err(faults.into_list()); // a key may only seem to be missing from a broken text
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

    /// Whether a header field carries identity, in any spelling, because services may read `X_Auth_User` as
    /// `X-Auth-User`.
    pub fn is_identity_field(&self, name: &str) -> bool {
        IDENTITY_FIELDS.iter().any(|field| same_field(field, name))
            || self.identity_fields.iter().any(|field| same_field(field, name))
    }

    /// How to ask the permission service, if the policy has one.
    pub fn permission_service(&self) -> Option<&PermissionRule> {
        self.permission_service.as_ref().map(|_| &self.permissions)
    }

    /// The most bytes of a body on this route.
    pub fn max_body(&self, route: &Route) -> u64 {
        route.max_body.map_or(self.requests.max_body, |most| most.0)
    }

    /// The route of a request. No route leads to the internal paths of the permission service, because only the gateway
    /// may ask those.
    pub fn route(&self, request: &Request<'_>) -> Result<Arc<Route>, Refusal> {
        let route = self.routes.find(request)?;
        if self.permission_service.as_ref() == Some(&route.upstream) && request.path.starts_with(INTERNAL) {
            return Err(routes::not_found());
        }
        Ok(route)
    }
}

/// Header fields that our own backend trusts. Only the gateway may set them, whatever a policy forwards.
const IDENTITY_FIELDS: [&str; 3] = ["x-auth-user", "x-auth-roles", "x-palisade-assertion"];

/// Paths of the permission service that only the gateway may request.
const INTERNAL: &str = "/internal/";

/// Whether `name` is some spelling of `ours`, which is in lower case with dashes.
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
