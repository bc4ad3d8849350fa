//! Routes: which rules a path and a method are under.
//!
//! The most specific path wins, segment by segment: a literal before `{name}` before `{*rest}`. Only then the method is
//! looked at. A path that no route names is 404; a method that the winning path does not take is 405, even where a
//! less specific route would take it: a narrow rule is never evaded by a method that it forgot.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::document::units::{Bytes, Span};
use crate::rules::authenticate::issuer::Issuer;
use crate::rules::breaker::BreakerRule;
use crate::rules::concurrency::{CrowdRule, Priority};
use crate::rules::limits::LimitRule;
use crate::rules::retry::RetryRule;
use crate::values::path::{self, EncodedSlash};
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
    /// Limits checked before authentication.
    pub client_limits: Vec<Arc<LimitRule>>,
    /// Limits whose key is the subject.
    pub subject_limits: Vec<Arc<LimitRule>>,
    /// The issuers whose tokens are taken.
    pub issuers: Vec<Arc<Issuer>>,
    /// Whether API keys are taken. With neither anybody may come.
    pub api_keys: bool,
    /// Any of these roles; anybody when empty.
    pub roles: Vec<String>,
    /// The permission that the subject needs, and on what.
    pub permission: Option<RequiredPermission>,
    /// The breaker of its upstream.
    pub breaker: Option<Arc<BreakerRule>>,
    /// What its clients get while the breaker is open.
    pub when_open: WhenOpen,
    /// Whether its requests change something; `None`: those that are not GET, HEAD or OPTIONS.
    pub writes: Option<bool>,
    /// How many requests its upstream is sent at a time.
    pub crowd: Option<Arc<CrowdRule>>,
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

/// What clients get while the breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenOpen {
    /// 503.
    Fail,
    /// The last good answer that they had, where there is one.
    Stale,
}

words! { WhenOpen { "fail" => Fail, "stale" => Stale } or "fail or stale" }

/// The longest path pattern and resource, in bytes, and the most segments of a pattern: look-up goes as deep.
const LONGEST_PATTERN: usize = 1_024;
const MOST_SEGMENTS: usize = 64;

/// The most methods of one path.
const MOST_METHODS: usize = 64;

/// `permission` and `resource` of a route.
#[derive(Clone, Debug)]
pub struct RequiredPermission {
    /// `records:read`.
    pub permission: Arc<str>,
    /// What it is wanted on.
    pub resource: Template,
}

/// A path pattern: `/v1/{name}/{*rest}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: Arc<str>,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    One(Arc<str>),
    Rest(Arc<str>),
}

impl Route {
    /// Whether a client has to prove who it is.
    pub fn wants_proof(&self) -> bool {
        self.api_keys || !self.issuers.is_empty()
    }

    /// Whether a request with this method may change something.
    pub fn changes_something(&self, method: &str) -> bool {
        self.writes.unwrap_or(!matches!(method, "GET" | "HEAD" | "OPTIONS"))
    }

    /// Whether a limit counts by a field of the body, so that the body is read before the request is judged.
    pub fn reads_body(&self) -> bool {
        self.client_limits.iter().chain(&self.subject_limits).any(|limit| limit.reads_body())
    }
}

impl Pattern {
    /// Parses a pattern; the error says what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('/').ok_or("a path begins with `/`")?;
        if text.len() > LONGEST_PATTERN || rest.split('/').count() > MOST_SEGMENTS {
            return Err(format!("a path has at most {LONGEST_PATTERN} bytes and {MOST_SEGMENTS} segments"));
        }
        let segments = without_slash(rest).split('/').map(Segment::parse).collect::<Result<Vec<_>, _>>()?;
        if segments.iter().rev().skip(1).any(|segment| matches!(segment, Segment::Rest(_))) {
            return Err("`{*rest}` is the last segment".to_owned());
        }
        if segments.iter().rev().skip(1).any(|segment| *segment == Segment::Literal(String::new())) {
            return Err("a path has no empty segment, for `//` is one slash".to_owned());
        }
        let pattern = Self { text: text.into(), segments };
        let mut names: Vec<_> = pattern.names().collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("`{{{}}}` stands twice", pair[0])),
            None => Ok(pattern),
        }
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// A path that it matches.
    pub(crate) fn example(&self) -> String {
        let segment = |segment: &Segment| match segment {
            Segment::Literal(text) => text.clone(),
            Segment::One(_) | Segment::Rest(_) => "x".to_owned(),
        };
        format!("/{}", self.segments.iter().map(segment).collect::<Vec<_>>().join("/"))
    }

    /// The pattern without its names: two of one shape match the same paths.
    fn shape(&self) -> String {
        let part = |segment: &Segment| match segment {
            Segment::Literal(text) => format!("/{text}"),
            Segment::One(_) => "/{}".to_owned(),
            Segment::Rest(_) => "/{*}".to_owned(),
        };
        self.segments.iter().map(part).collect()
    }

    /// The names of its captures.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::One(name) | Segment::Rest(name) => Some(&**name),
        })
    }

    /// What the path holds for `name`.
    fn capture<'p>(&self, name: &str, path: &'p str) -> Option<&'p str> {
        let mut rest = path.strip_prefix('/')?;
        for segment in &self.segments {
            let (head, tail) = rest.split_once('/').unwrap_or((rest, ""));
            match segment {
                Segment::One(other) if **other == *name => return Some(head),
                Segment::Rest(other) if **other == *name => return Some(rest),
                _ => rest = tail,
            }
        }
        None
    }
}

/// A path without the slash at its end, which never changes which route is taken: most services take both for the same.
fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

impl Segment {
    fn parse(text: &str) -> Result<Self, String> {
        let Some(inner) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
            // A literal that is not in its normal form would never match.
            let path = format!("/{text}");
            let normal = path::normalise(&path, EncodedSlash::Refuse).is_ok_and(|normal| normal == path);
            return if normal && !text.contains('%') {
                Ok(Self::Literal(text.to_owned()))
            } else {
                Err(format!("a segment is a plain word, `{{name}}` or `{{*rest}}` (got `{text}`)"))
            };
        };
        let name = inner.strip_prefix('*').unwrap_or(inner);
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(format!("a name holds letters, digits and `_` (got `{text}`)"));
        }
        Ok(if inner.starts_with('*') { Self::Rest(name.into()) } else { Self::One(name.into()) })
    }
}

/// Text with captures: `notes/{collection}`.
#[derive(Clone, Debug)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Capture(String),
}

impl Template {
    /// Parses a template whose captures are named by `pattern`.
    pub fn parse(text: &str, pattern: &Pattern) -> Result<Self, String> {
        if text.len() > LONGEST_PATTERN {
            return Err(format!("at most {LONGEST_PATTERN} bytes"));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, tail) = after.split_once('}').ok_or("`{` without `}`")?;
            if !pattern.names().any(|known| known == name) {
                return Err(format!("`{{{name}}}` is not in the path `{}`", pattern.as_str()));
            }
            parts.extend([Part::Text(before.to_owned()), Part::Capture(name.to_owned())]);
            rest = tail;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self { parts })
    }

    /// The text for `path`, which `pattern` matches. What is captured is decoded, as the service decodes it: one resource has
    /// one name, however the path spells it.
    pub fn fill(&self, pattern: &Pattern, path: &str) -> String {
        let mut filled = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Capture(name) => {
                    filled.push_str(&path::decoded(pattern.capture(name, path).unwrap_or_default()));
                }
            }
        }
        filled
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
            client_limits: Vec::new(),
            subject_limits: Vec::new(),
            issuers: Vec::new(),
            api_keys: false,
            roles: Vec::new(),
            permission: None,
            breaker: None,
            when_open: WhenOpen::Fail,
            writes: None,
            crowd: None,
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

    #[test]
    fn a_template_is_filled_from_the_path() {
        let pattern = Pattern::parse("/v1/{c}/records/{*key}").unwrap();
        let template = Template::parse("{c}:{key}!", &pattern).unwrap();
        for path in ["/v1/notes/records/a/b", "/v1/n%6Ftes/records/a%2Fb"] {
            assert_eq!(template.fill(&pattern, path), "notes:a/b!", "{path}");
        }
        let slash = template.fill(&pattern, "/v1/notes/records/a/b/");
        assert_eq!(slash, "notes:a/b/!", "what is sent on is what is asked for");
        assert_eq!(template.fill(&pattern, "/v1/a+b/records/c%2Bd%20e"), "a+b:c+d e!");
        assert!(Template::parse("{other}", &pattern).is_err());
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for path in ["a", "/a//b", "/{*rest}/b", "/{}", "/{a}/{a}", "/a{b}", "/%61", "/.."] {
            assert!(Pattern::parse(path).is_err(), "{path}");
        }
    }
}
