//! `[[routes]]`: reads a section of the document into a route and resolves every name that it uses.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use crate::document::units::Bytes;
use crate::document::{LONGEST_NAME, Section, nearest};
use crate::from_toml_str;
use crate::routes::{Route, RouteLimits, Routes, WhenOpen};
use crate::rules::authenticate::AuthRule;
use crate::rules::authenticate::issuer::Issuer;
use crate::rules::authorize::{AccessRule, RequiredPermission};
use crate::rules::breaker::BreakerRule;
use crate::rules::concurrency::{ConcurrencyRule, Priority};
use crate::rules::limits::{Counts, LimitRule};
use crate::rules::requests::RequestRule;
use crate::rules::retry::RetryRule;
use crate::values::pattern::{Pattern, Template};

/// The most limits, issuers, methods or statuses that one route names, and the most roles.
const MOST_NAMED: usize = 64;
const MOST_ROLES: usize = 256;

/// The largest body that is buffered while its request is judged.
const MAX_JUDGED_BODY: u64 = 64 * 1024;

/// Everything that a route can refer to by name.
pub(crate) struct Names<'a> {
    pub(crate) limits: HashMap<String, Arc<LimitRule>>,
    pub(crate) issuers: HashMap<String, Arc<Issuer>>,
    pub(crate) breakers: HashMap<String, Arc<BreakerRule>>,
    pub(crate) retries: HashMap<String, Arc<RetryRule>>,
    pub(crate) concurrency: HashMap<String, Arc<ConcurrencyRule>>,
    pub(crate) upstreams: Option<&'a [String]>,
}

impl Names<'_> {
    pub(crate) fn check_upstream(&self, section: &Section<'_>, key: &str, name: &str) {
        if let Some(upstreams) = self.upstreams.filter(|known| !known.iter().any(|known| known == name)) {
            let say = || unknown("upstream", name, upstreams.iter().map(String::as_str));
            section.fault(key, if section.is_full() { String::new() } else { say() });
        }
    }
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    const LISTED: usize = 10;
    let all = known.clone().take(LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let more = if known.clone().nth(LISTED).is_some() { ", …" } else { "" };
    let all = if all.is_empty() { "there is none".to_owned() } else { format!("known: {all}{more}") };
    match nearest(name, known) {
        Some(nearest) => format!("no {what} is called `{name}`: did you mean `{nearest}`? ({all})"),
        None => format!("no {what} is called `{name}` ({all})"),
    }
}

/// How the clients of a route have to prove who they are.
#[derive(Clone, Debug)]
enum Scheme {
    Jwt(String),
    ApiKey,
}

impl FromStr for Scheme {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.strip_prefix("jwt:")) {
            ("api_key", _) => Ok(Self::ApiKey),
            (_, Some(name)) => Ok(Self::Jwt(name.to_owned())),
            _ => Err("jwt:ISSUER or api_key"),
        }
    }
}

#[derive(Clone, Debug)]
struct Method(String);

impl FromStr for Method {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = ["CONNECT", "TRACE"].contains(&text);
        if refused || text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
            return Err("a method in capitals, and never CONNECT or TRACE");
        }
        Ok(Self(text.to_owned()))
    }
}

from_toml_str!(Scheme, Method);

/// Reads one of `[[routes]]` and adds it to `routes`.
pub(crate) fn read_route(
    section: Section<'_>,
    names: &Names<'_>,
    requests: &RequestRule,
    routes: &mut Routes,
) {
    let name = read_name(&section);
    let path = section.require::<String>("path", "a path like /v1/{name}/{*rest}");
    let pattern =
        path.and_then(|path| Pattern::parse(&path).map_err(|allowed| section.fault("path", allowed)).ok());
    let upstream = section.require::<String>("upstream", "the name of an upstream");
    if let Some(upstream) = &upstream {
        names.check_upstream(&section, "upstream", upstream);
    }
    let methods = section.list::<Method>("methods", MOST_NAMED);
    let counts_failed_logins = section.list("counts_failed_logins", MOST_NAMED);
    let limits = read_limits(&section, names, &counts_failed_logins);
    let auth = read_auth(&section, names);
    let roles = section.list("roles", MOST_ROLES);
    let permission = read_permission(&section, &roles, pattern.as_ref());
    let max_body = read_max_body(&section, limits.reader().map(|limit| &*limit.name), requests);
    let retry = section.get("retry").into_iter().collect();
    let retry = resolve(&section, "retry", "[retries] rule", &names.retries, retry).into_iter().next();
    let priority = section.get_or("priority", Priority::Normal);
    let (when_open, writes) = (section.get_or("when_open", WhenOpen::Fail), section.get("writes"));
    let (upstream_timeout, request_timeout) =
        (section.get("upstream_timeout"), section.get("request_timeout"));
    if let (Some(name), Some(pattern), Some(upstream)) = (name, pattern, upstream) {
        let route = Route {
            access: AccessRule { route: Arc::clone(&name), roles, permission },
            name,
            pattern,
            methods: methods.into_iter().map(|method| method.0.into()).collect(),
            breaker: names.breakers.get(&upstream).cloned(),
            concurrency: names.concurrency.get(&upstream).cloned(),
            priority,
            upstream: upstream.into(),
            limits,
            auth,
            when_open,
            writes,
            retry,
            counts_failed_logins,
            max_body,
            upstream_timeout,
            request_timeout,
        };
        add(&section, route, routes);
    }
    section.finish();
}

fn add(section: &Section<'_>, route: Route, routes: &mut Routes) {
    if routes.has(&route.name) {
        section.fault("name", format!("another route is called `{}`", route.name));
    }
    if let Err(collision) = routes.add(Arc::new(route)) {
        section.fault("path", collision);
    }
}

fn read_name(section: &Section<'_>) -> Option<Arc<str>> {
    let name = section.require::<String>("name", "a name for metrics and logs")?;
    if name.len() > LONGEST_NAME {
        section.fault("name", format!("a name has at most {LONGEST_NAME} bytes"));
        return None;
    }
    Some(name.into())
}

fn read_limits(section: &Section<'_>, names: &Names<'_>, counts_failed_logins: &[u32]) -> RouteLimits {
    let limits = resolve(section, "limits", "limit", &names.limits, section.list("limits", MOST_NAMED));
    let limits = RouteLimits::new(limits);
    let before: Vec<_> = limits.client.iter().chain(&limits.field).cloned().collect();
    check_limits(section, &before, counts_failed_logins);
    check_limits(section, &limits.subject, counts_failed_logins);
    limits
}

/// `permission` on `resource`. Both of them and `roles` need `auth`.
fn read_permission(
    section: &Section<'_>,
    roles: &[String],
    pattern: Option<&Pattern>,
) -> Option<RequiredPermission> {
    let permission = section.get::<String>("permission");
    let resource = section.get::<String>("resource");
    if (permission.is_some() || !roles.is_empty()) && !section.has("auth") {
        let key = if permission.is_some() { "permission" } else { "roles" };
        section.fault(key, "needs `auth`, because without it nobody knows who is asking");
    }
    if resource.is_some() && permission.is_none() {
        section.fault("resource", "needs `permission`");
    }
    let (permission, pattern) = permission.zip(pattern)?;
    let resource = Template::parse(resource.as_deref().unwrap_or("*"), pattern);
    let resource = resource.map_err(|allowed| section.fault("resource", allowed)).ok()?;
    Some(RequiredPermission { permission: permission.into(), resource })
}

/// The route's own `max_body`. Where the limit `reader` counts by a field of the body, the body is buffered until the
/// request is judged. So its size has a bound there, even if the route sets none.
fn read_max_body(section: &Section<'_>, reader: Option<&str>, requests: &RequestRule) -> Option<Bytes> {
    let own = section.get::<Bytes>("max_body");
    let (Some(limit), own_or_all) = (reader, own.map_or(requests.max_body, |own| own.0)) else { return own };
    if own.is_some() && own_or_all > MAX_JUDGED_BODY {
        let message = format!(
            "at most 64KB, because limit `{limit}` counts by a field of the body, which is buffered until the request is judged"
        );
        section.fault("max_body", message);
    }
    Some(Bytes(own_or_all.min(MAX_JUDGED_BODY)))
}

/// Checks that the route has what its limits depend on.
fn check_limits(section: &Section<'_>, limits: &[Arc<LimitRule>], counts_failed_logins: &[u32]) {
    for limit in limits {
        if limit.counts == Counts::Failures && counts_failed_logins.is_empty() {
            let message =
                format!("limit `{}` counts failures: the route needs `counts_failed_logins`", limit.name);
            section.fault("limits", message);
        }
        let unmet = |other: &&Arc<str>| {
            !limits.iter().any(|limit| limit.name == **other && limit.skip_if_full.is_none())
        };
        if let Some(other) = limit.skip_if_full.as_ref().filter(unmet) {
            let message = format!(
                "limit `{}` is skipped if `{other}` is full: the route needs that limit too, at the same stage",
                limit.name
            );
            section.fault("limits", message);
        }
    }
}

/// The issuers whose tokens a route accepts, and whether it accepts API keys.
fn read_auth(section: &Section<'_>, names: &Names<'_>) -> AuthRule {
    let mut api_keys = false;
    let issuer = |scheme| match scheme {
        Scheme::Jwt(name) => Some(name),
        Scheme::ApiKey => {
            api_keys = true;
            None
        }
    };
    let schemes = section.list::<Scheme>("auth", MOST_NAMED).into_iter().filter_map(issuer).collect();
    let issuers = resolve(section, "auth", "[jwt] issuer", &names.issuers, schemes);
    if section.has("auth") && issuers.is_empty() && !api_keys {
        let allowed = "at least one of jwt:ISSUER, api_key; remove the key to make the route open";
        section.fault("auth", allowed);
    }
    AuthRule { issuers, api_keys }
}

/// The rules with the names `wanted`. An unknown name is a fault: without it a rule would silently be missing.
fn resolve<T>(
    section: &Section<'_>,
    key: &str,
    what: &str,
    known: &HashMap<String, Arc<T>>,
    wanted: Vec<String>,
) -> Vec<Arc<T>> {
    let find = |name: String| {
        let rule = known.get(&name).cloned();
        if rule.is_none() {
            let say = || unknown(what, &name, known.keys().map(String::as_str));
            section.fault(key, if section.is_full() { String::new() } else { say() });
        }
        rule
    };
    wanted.into_iter().filter_map(find).collect()
}
