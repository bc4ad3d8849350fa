//! Finds guarded routes with a weaker neighbour. A service may treat two paths as one that are different for the route
//! table, such as `/private` and `/Private`. Then the guarded path is open under its other spelling. This is a warning,
//! because a policy may intend it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::Policy;
use crate::routes::Route;
use crate::values::request::{Headers, Request};

/// A guarded route, and the weaker one that matches other spellings of its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeakerNeighbour {
    /// The route that requires more.
    pub guarded: String,
    /// The route that requires less.
    pub weaker: String,
    /// Paths that match the weaker route, and that a service may treat as the guarded path.
    pub paths: Vec<String>,
}

impl fmt::Display for WeakerNeighbour {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guarded, weaker, paths } = self;
        let paths = paths.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", ");
        write!(text, "route `{guarded}` is guarded, but {paths} go to route `{weaker}`, which asks for less")
    }
}

impl Policy {
    /// Guarded routes with a weaker neighbour, in the order of the file.
    pub fn weaker_neighbours(&self) -> Vec<WeakerNeighbour> {
        let guarded = self.routes.iter().filter(|route| route.auth.wants_proof());
        guarded.flat_map(|route| self.weaker_than(route)).collect()
    }

    fn weaker_than(&self, guarded: &Route) -> Vec<WeakerNeighbour> {
        let mut found: Vec<WeakerNeighbour> = Vec::new();
        for path in other_spellings(&guarded.pattern.example()) {
            let method = guarded.methods.first().map_or("GET", |method| &**method);
            let headers = Headers::default();
            let request =
                Request { peer: IpAddr::V4(Ipv4Addr::LOCALHOST), method, path: &path, headers, body: None };
            let Some(other) = self.route(&request).ok().filter(|other| is_weaker(other, guarded)) else {
                continue;
            };
            if let Some(known) = found.iter_mut().find(|known| known.weaker == *other.name) {
                known.paths.push(path);
            } else {
                let (guarded, weaker) = (guarded.name.to_string(), other.name.to_string());
                found.push(WeakerNeighbour { guarded, weaker, paths: vec![path] });
            }
        }
        found
    }
}

/// Spellings that some services treat as `path`: in another case, with a parameter, with an extension, with one more
/// segment.
fn other_spellings(path: &str) -> Vec<String> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name.is_empty() {
        return Vec::new();
    }
    let mut letters = name.chars();
    let other_case = letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters);
    let other_case = format!("{parent}/{}", other_case.collect::<String>());
    let spellings = [other_case, format!("{path};x"), format!("{path}.json"), format!("{path}/x")];
    spellings.into_iter().filter(|spelling| spelling != path).collect()
}

/// Whether a route requires less than `guarded`, which requires a proof.
fn is_weaker(route: &Route, guarded: &Route) -> bool {
    let asks_for_rights = |route: &Route| !route.access.roles.is_empty() || route.access.permission.is_some();
    !route.auth.wants_proof() || (asks_for_rights(guarded) && !asks_for_rights(route))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbours(routes: &str) -> Vec<WeakerNeighbour> {
        let text = format!(
            "version = 1\n[jwt.a]\nalgorithms = [\"HS256\"]\nsecret = \"S\"\n{routes}[[routes]]\nname = \"private\"\n\
             path = \"/private\"\nupstream = \"u\"\nauth = [\"jwt:a\"]\n"
        );
        Policy::parse("policy.toml", &text, None).unwrap().weaker_neighbours()
    }

    #[test]
    fn an_open_catch_all_beside_a_guarded_path_is_named() {
        let open = "[[routes]]\nname = \"all\"\npath = \"/{*rest}\"\nupstream = \"u\"\n";
        let found = neighbours(open);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].to_string(),
            "route `private` is guarded, but `/Private`, `/private;x`, `/private.json`, `/private/x` go to route `all`, \
             which asks for less"
        );
        let guarded = format!("{open}auth = [\"jwt:a\"]\n");
        assert!(neighbours(&guarded).is_empty() && neighbours("").is_empty());
    }
}
