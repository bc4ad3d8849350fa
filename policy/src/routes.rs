//! Routes: which rules a path and a method are under.
//!
//! The most specific path wins, segment by segment: a literal before `{name}` before `{*rest}`. Only then the method is
//! looked at. A path that no route names is 404; a method that the winning path does not take is 405, even where a
//! less specific route would take it: a narrow rule is never evaded by a method that it forgot.

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
    /// The methods that it takes; all when empty.
    pub methods: Vec<Arc<str>>,
    /// Where its requests go.
    pub upstream: Arc<str>,
    /// Its limits.
    pub limits: RouteLimits,
    /// Whose proofs it takes.
    pub auth: AuthRule,
    /// What its subject needs.
    pub access: AccessRule,
    /// The breaker of its upstream.
    pub breaker: Option<Arc<BreakerRule>>,
    /// What its clients get while the breaker is open.
    pub when_open: WhenOpen,
    /// Whether its requests change something; `None`: those that are not GET, HEAD or OPTIONS.
    pub writes: Option<bool>,
    /// How many requests its upstream is sent at a time.
    pub concurrency: Option<Arc<ConcurrencyRule>>,
    /// How much its requests matter when there are too many.
    pub priority: Priority,
    /// How its requests are tried again.
    pub retry: Option<Arc<RetryRule>>,
    /// The answers that count as failed logins.
    pub counts_failed_logins: Vec<u32>,
    /// Its own `max_body`.
    pub max_body: Option<Bytes>,
    /// Its own `upstream_timeout`.
    pub upstream_timeout: Option<Span>,
    /// Its own `request_timeout`.
    pub request_timeout: Option<Span>,
}

/// The limits of a route, by what has to be known for them.
#[derive(Clone, Debug, Default)]
pub struct RouteLimits {
    /// Those that are known by the head of a request.
    pub client: Vec<Arc<LimitRule>>,
    /// Those that count by the body, and those that lean on one that does.
    pub field: Vec<Arc<LimitRule>>,
    /// Those whose key is the subject.
    pub subject: Vec<Arc<LimitRule>>,
}

impl RouteLimits {
    /// Sorts the limits that a route names.
    pub fn new(limits: Vec<Arc<LimitRule>>) -> Self {
        let (subject, client): (Vec<_>, Vec<_>) = limits.into_iter().partition(|limit| limit.needs_subject());
        let readers: Vec<_> = client.iter().filter(|limit| limit.reads_body()).cloned().collect();
        let leans = |limit: &Arc<LimitRule>| {
            let other = limit.skip_if_full.as_ref();
            other.is_some_and(|other| readers.iter().any(|reader| reader.name == *other))
        };
        let (field, client) = client.into_iter().partition(|limit| limit.reads_body() || leans(limit));
        Self { client, field, subject }
    }

    /// A limit that counts by the body, which is read for it.
    pub fn reader(&self) -> Option<&LimitRule> {
        self.field.iter().chain(&self.subject).find(|limit| limit.reads_body()).map(|limit| &**limit)
    }
}

/// What clients get while the breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenOpen {
    /// 503.
    Fail,
    /// The last good answer that they had, where there is one.
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

    /// Whether a limit counts by a field of the body, so that the body is read before the request is judged.
    pub fn reads_body(&self) -> bool {
        self.limits.reader().is_some()
    }
}

pub(crate) fn not_found() -> Refusal {
    Refusal::new(Stage::Route, Code::RouteNotFound, "no route names this path")
}

/// All routes, ordered for look-up.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    root: Node,
    all: Vec<Arc<Route>>,
    names: HashSet<Arc<str>>,
    /// By the shape of a path.
    taken: HashMap<String, Taken>,
}

/// Who has a path already, by method.
#[derive(Clone, Debug, Default)]
struct Taken {
    all_methods: Option<Arc<str>>,
    methods: BTreeMap<Arc<str>, Arc<str>>,
}

impl Taken {
    /// Takes the methods of `route`; the error is the fault.
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

/// The routes below one prefix. A path is walked once; at each segment the literal is tried first.
#[derive(Clone, Debug, Default)]
struct Node {
    literals: HashMap<String, Node>,
    one: Option<Box<Node>>,
    here: SmallVec<[Arc<Route>; 1]>,
    rest: SmallVec<[Arc<Route>; 1]>,
}

impl Routes {
    /// Adds a route; the error names the route that it collides with.
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
        // `OPTIONS *` is about the server as a whole: no route names it.
        let Some(path) = request.path.strip_prefix('/') else { return Err(not_found()) };
        let Some(routes) = self.root.find(without_slash(path)) else {
            return Err(not_found());
        };
        let takes = |route: &&Arc<Route>| {
            route.methods.is_empty() || route.methods.iter().any(|m| **m == *request.method)
        };
        if let Some(route) = routes.iter().find(takes) {
            return Ok(Arc::clone(route));
        }
        let mut refusal = Refusal::new(Stage::Route, Code::MethodNotAllowed, "");
        refusal.allow = routes.iter().flat_map(|route| route.methods.iter().cloned()).collect();
        refusal.detail = format!("this path takes {}", refusal.allow.join(", ")).into();
        Err(refusal)
    }
}

impl Node {
    fn find(&self, path: &str) -> Option<&[Arc<Route>]> {
        let (segment, tail) = match path.split_once('/') {
            Some((segment, tail)) => (segment, Some(tail)),
            None => (path, None),
        };
        // `%3A` and `:` are two spellings of one literal: a narrow rule is not evaded by the other.
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
            // `/a/{*rest}` takes the bare slash before the rest, and so the path without it.
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
