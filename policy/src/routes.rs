//! Routes: which rules apply to a path and a method.
//!
//! The most specific path wins, segment by segment: a literal before `{name}` before `{*rest}`. Only then the method is
//! compared. A path that no route matches is 404. A method that the winning path does not accept is 405, even if a less
//! specific route accepts it. Otherwise a client could evade a narrow rule with a method that the rule does not list.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::document::units::{Bytes, Span};
use crate::rules::authenticate::AuthRule;
use crate::rules::authorize::AccessRule;
use crate::rules::breaker::BreakerRule;
use crate::rules::concurrency::{ConcurrencyRule, Priority};
use crate::rules::limits::LimitRule;
use crate::rules::retry::RetryRule;
use crate::values::path;
use crate::values::pattern::{Pattern, Segment, without_slash};
use crate::values::refusal::{Code, Refusal};
use crate::values::request::Request;
use crate::values::stage::Stage;
use crate::words;

/// `[[routes]]`, with every name resolved.
#[derive(Clone, Debug)]
pub struct Route {
    /// The name in metrics, logs and spans.
    pub name: Arc<str>,
    /// The path as written.
    pub pattern: Pattern,
    /// The methods that it accepts; all when empty.
    pub methods: Vec<Arc<str>>,
    /// The upstream of its requests.
    pub upstream: Arc<str>,
    /// Its limits.
    pub limits: RouteLimits,
    /// The proofs that it accepts.
    pub auth: AuthRule,
    /// The roles and the permission that its subject needs.
    pub access: AccessRule,
    /// The breaker of its upstream.
    pub breaker: Option<Arc<BreakerRule>>,
    /// What its clients receive while the breaker is open.
    pub when_open: WhenOpen,
    /// Whether its requests change something. `None`: all but GET, HEAD and OPTIONS do.
    pub writes: Option<bool>,
    /// The bound on the requests in flight to its upstream.
    pub concurrency: Option<Arc<ConcurrencyRule>>,
    /// How important its requests are under overload.
    pub priority: Priority,
    /// How its requests are retried.
    pub retry: Option<Arc<RetryRule>>,
    /// The statuses that count as failed logins.
    pub counts_failed_logins: Vec<u32>,
    /// Its own `max_body`.
    pub max_body: Option<Bytes>,
    /// Its own `upstream_timeout`.
    pub upstream_timeout: Option<Span>,
    /// Its own `request_timeout`.
    pub request_timeout: Option<Span>,
}

/// The limits of a route, grouped by when their key is known.
#[derive(Clone, Debug, Default)]
pub struct RouteLimits {
    /// Those whose key is in the head of a request.
    pub client: Vec<Arc<LimitRule>>,
    /// Those whose key is in the body, and those that depend on such a limit.
    pub field: Vec<Arc<LimitRule>>,
    /// Those whose key is the subject.
    pub subject: Vec<Arc<LimitRule>>,
}

impl RouteLimits {
    /// Groups the limits of a route.
    pub fn new(limits: Vec<Arc<LimitRule>>) -> Self {
        let (subject, client): (Vec<_>, Vec<_>) = limits.into_iter().partition(|limit| limit.needs_subject());
        let readers: Vec<_> = client.iter().filter(|limit| limit.reads_body()).cloned().collect();
        let depends = |limit: &Arc<LimitRule>| {
            let other = limit.skip_if_full.as_ref();
            other.is_some_and(|other| readers.iter().any(|reader| reader.name == *other))
        };
        let (field, client) = client.into_iter().partition(|limit| limit.reads_body() || depends(limit));
        Self { client, field, subject }
    }

    /// A limit that counts by the body, so that the body has to be read first.
    pub fn reader(&self) -> Option<&LimitRule> {
        self.field.iter().chain(&self.subject).find(|limit| limit.reads_body()).map(|limit| &**limit)
    }
}

/// What clients receive while the breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenOpen {
    /// 503.
    Fail,
    /// The last good answer for the same request, if there is one; otherwise 503.
    Stale,
}

words! { WhenOpen { "fail" => Fail, "stale" => Stale } or "fail or stale" }

/// The most methods of one path.
const MOST_METHODS: usize = 64;

impl Route {
    /// Whether a request with this method may change something.
    pub fn changes_something(&self, method: &str) -> bool {
        self.writes.unwrap_or(!matches!(method, "GET" | "HEAD" | "OPTIONS"))
    }

    /// Whether a limit counts by a field of the body, so that the body has to be read before the request is judged.
    pub fn reads_body(&self) -> bool {
        self.limits.reader().is_some()
    }
}

pub(crate) fn not_found() -> Refusal {
    Refusal::new(Stage::Route, Code::RouteNotFound, "no route matches this path")
}

/// All routes, in a tree for look-up.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    root: Node,
    all: Vec<Arc<Route>>,
    names: HashSet<Arc<str>>,
    /// The methods that are in use, for each shape of a path.
    taken: HashMap<String, Taken>,
}

/// Which route already has a path, for each method.
#[derive(Clone, Debug, Default)]
struct Taken {
    all_methods: Option<Arc<str>>,
    methods: BTreeMap<Arc<str>, Arc<str>>,
}

impl Taken {
    /// Takes the methods of `route`. The error says which route has one of them already.
    fn take(&mut self, route: &Route) -> Result<(), String> {
        let of_method = |method| self.methods.get(method);
        let other = match (&self.all_methods, route.methods.as_slice()) {
            (Some(other), _) => Some(other),
            (None, []) => self.methods.values().next(),
            (None, methods) => methods.iter().find_map(of_method),
        };
        if let Some(other) = other {
            return Err(format!("route `{other}` has this path and method already"));
        }
        if route.methods.is_empty() {
            self.all_methods = Some(Arc::clone(&route.name));
        }
        self.methods.extend(route.methods.iter().map(|method| (Arc::clone(method), Arc::clone(&route.name))));
        if self.methods.len() > MOST_METHODS {
            return Err(format!("a path has at most {MOST_METHODS} methods"));
        }
        Ok(())
    }
}

/// The routes below one prefix. At each segment the literal is tried first.
#[derive(Clone, Debug, Default)]
struct Node {
    literals: HashMap<String, Node>,
    one: Option<Box<Node>>,
    here: SmallVec<[Arc<Route>; 1]>,
    rest: SmallVec<[Arc<Route>; 1]>,
}

impl Routes {
    /// Adds a route. The error names the route that already has its path and method.
    pub fn add(&mut self, route: Arc<Route>) -> Result<(), String> {
        self.taken.entry(route.pattern.shape()).or_default().take(&route)?;
        let mut node = &mut self.root;
        let mut tail = false;
        for segment in &route.pattern.segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.clone()).or_default(),
                Segment::One(_) => &mut **node.one.get_or_insert_default(),
                Segment::Rest(_) => {
                    tail = true;
                    node
                }
            };
        }
        let routes = if tail { &mut node.rest } else { &mut node.here };
        routes.push(Arc::clone(&route));
        self.names.insert(Arc::clone(&route.name));
        self.all.push(route);
        Ok(())
    }

    /// Whether a route is called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The routes in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.all.iter()
    }

    /// The route of a request.
    pub fn find(&self, request: &Request<'_>) -> Result<Arc<Route>, Refusal> {
        // `OPTIONS *` is about the whole server, so no route matches it.
        let Some(path) = request.path.strip_prefix('/') else { return Err(not_found()) };
        let Some(routes) = self.root.find(without_slash(path)) else {
            return Err(not_found());
        };
        let accepts = |route: &&Arc<Route>| {
            route.methods.is_empty() || route.methods.iter().any(|m| **m == *request.method)
        };
        if let Some(route) = routes.iter().find(accepts) {
            return Ok(Arc::clone(route));
        }
        let mut refusal = Refusal::new(Stage::Route, Code::MethodNotAllowed, "");
        refusal.allow = routes.iter().flat_map(|route| route.methods.iter().cloned()).collect();
        refusal.detail = format!("this path accepts {}", refusal.allow.join(", ")).into();
        Err(refusal)
    }
}

impl Node {
    fn find(&self, path: &str) -> Option<&[Arc<Route>]> {
        let (segment, tail) = match path.split_once('/') {
            Some((segment, tail)) => (segment, Some(tail)),
            None => (path, None),
        };
        // `%3A` and `:` are two spellings of one literal. Neither may evade a narrow rule.
        let literal = self.literals.get(&*path::decoded(segment));
        if let Some(found) = literal.and_then(|node| node.step(tail)) {
            return Some(found);
        }
        let one = self.one.as_ref().filter(|_| !segment.is_empty());
        if let Some(found) = one.and_then(|node| node.step(tail)) {
            return Some(found);
        }
        (!self.rest.is_empty()).then_some(self.rest.as_slice())
    }

    fn step(&self, tail: Option<&str>) -> Option<&[Arc<Route>]> {
        match tail {
            Some(tail) => self.find(tail),
            // `/a/{*rest}` matches `/a/`, so it also matches `/a`.
            None => {
                [&self.here, &self.rest].into_iter().find(|here| !here.is_empty()).map(SmallVec::as_slice)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::request::Headers;

    fn route(name: &str, path: &str, methods: &[&str]) -> Arc<Route> {
        Arc::new(Route {
            name: name.into(),
            pattern: Pattern::parse(path).unwrap(),
            methods: methods.iter().map(|method| (*method).into()).collect(),
            upstream: "backend".into(),
            limits: RouteLimits::default(),
            auth: AuthRule::default(),
            access: AccessRule { route: name.into(), roles: Vec::new(), permission: None },
            breaker: None,
            when_open: WhenOpen::Fail,
            writes: None,
            concurrency: None,
            priority: Priority::Normal,
            retry: None,
            counts_failed_logins: Vec::new(),
            max_body: None,
            upstream_timeout: None,
            request_timeout: None,
        })
    }

    fn find(routes: &Routes, method: &str, path: &str) -> Result<String, Code> {
        let request = Request {
            peer: "127.0.0.1".parse().unwrap(),
            method,
            path,
            headers: Headers::default(),
            body: None,
        };
        routes.find(&request).map(|route| route.name.to_string()).map_err(|refusal| refusal.code)
    }

    #[test]
    fn the_most_specific_path_wins_and_then_its_methods_count() {
        let mut routes = Routes::default();
        for (name, path, methods) in [
            ("rest", "/a/{*rest}", &[][..]),
            ("one", "/a/{x}/c", &["GET"]),
            ("literal", "/a/b/c", &["POST"]),
            ("slash", "/a/b/", &["GET"]),
            ("action", "/a/b:run", &[]),
            ("root", "/", &[]),
        ] {
            routes.add(route(name, path, methods)).unwrap();
        }
        assert_eq!(find(&routes, "POST", "/a/b/c").as_deref(), Ok("literal"));
        assert_eq!(
            find(&routes, "GET", "/a/b/c"),
            Err(Code::MethodNotAllowed),
            "a narrow rule is not evaded"
        );
        assert_eq!(find(&routes, "GET", "/a/z/c").as_deref(), Ok("one"));
        assert_eq!(find(&routes, "GET", "/a/z/d").as_deref(), Ok("rest"));
        assert_eq!(find(&routes, "GET", "/a/b/c/d").as_deref(), Ok("rest"));
        for path in ["/a/b", "/a/b/"] {
            assert_eq!(find(&routes, "GET", path).as_deref(), Ok("slash"), "{path}");
            assert_eq!(find(&routes, "POST", path), Err(Code::MethodNotAllowed), "{path}");
        }
        assert_eq!(find(&routes, "POST", "/a/b/c/").as_deref(), Ok("literal"));
        assert_eq!(find(&routes, "GET", "/a/b%3Arun").as_deref(), Ok("action"), "another spelling");
        assert_eq!(find(&routes, "GET", "/a/").as_deref(), Ok("rest"), "the bare slash before the rest");
        assert_eq!(find(&routes, "GET", "/a").as_deref(), Ok("rest"));
        assert_eq!(find(&routes, "GET", "/b"), Err(Code::RouteNotFound));
        assert_eq!(find(&routes, "GET", "/").as_deref(), Ok("root"));
    }

    #[test]
    fn two_routes_for_one_path_and_method_collide() {
        let mut routes = Routes::default();
        routes.add(route("read", "/a/{x}", &["GET"])).unwrap();
        routes.add(route("write", "/a/{y}", &["PUT"])).unwrap();
        assert!(routes.add(route("again", "/a/{z}", &["GET"])).unwrap_err().contains("`read`"));
        assert!(routes.add(route("slash", "/a/{z}/", &["GET"])).unwrap_err().contains("`read`"));
    }
}
