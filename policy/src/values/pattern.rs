//! Path patterns (`/v1/{name}/{*rest}`), and templates that are filled from a matching path (`notes/{name}`).

use std::sync::Arc;

use crate::values::path::{self, EncodedSlash};

/// The longest path pattern and resource, in bytes, and the most segments of a pattern. A look-up recurses once per
/// segment.
const LONGEST_PATTERN: usize = 1_024;
const MOST_SEGMENTS: usize = 64;

/// A path pattern: `/v1/{name}/{*rest}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: Arc<str>,
    pub(crate) segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Literal(String),
    One(Arc<str>),
    Rest(Arc<str>),
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
            return Err("a path has no empty segment, because `//` is one slash".to_owned());
        }
        let pattern = Self { text: text.into(), segments };
        let mut names: Vec<_> = pattern.names().collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("`{{{}}}` is used twice", pair[0])),
            None => Ok(pattern),
        }
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// An example of a path that matches.
    pub(crate) fn example(&self) -> String {
        let segment = |segment: &Segment| match segment {
            Segment::Literal(text) => text.clone(),
            Segment::One(_) | Segment::Rest(_) => "x".to_owned(),
        };
        format!("/{}", self.segments.iter().map(segment).collect::<Vec<_>>().join("/"))
    }

    /// The pattern without its names. Two patterns with the same shape match the same paths.
    pub(crate) fn shape(&self) -> String {
        let part = |segment: &Segment| match segment {
            Segment::Literal(text) => format!("/{text}"),
            Segment::One(_) => "/{}".to_owned(),
            Segment::Rest(_) => "/{*}".to_owned(),
        };
        self.segments.iter().map(part).collect()
    }

    /// The names of the captures.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::One(name) | Segment::Rest(name) => Some(&**name),
        })
    }

    /// The part of `path` that `name` captures.
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

/// A path without its trailing slash. That slash never decides the route, because most services treat both paths as
/// one.
pub(crate) fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

impl Segment {
    fn parse(text: &str) -> Result<Self, String> {
        let Some(inner) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
            // A literal that is not in normal form would never match.
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

/// A text with captures: `notes/{collection}`.
#[derive(Clone, Debug)]
pub struct Template {
    pattern: Pattern,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Capture(String),
}

impl Template {
    /// Parses a template. `pattern` has to name its captures.
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
        Ok(Self { pattern: pattern.clone(), parts })
    }

    /// The text for `path`, which has to match the pattern. The captured parts are decoded as the service decodes them,
    /// so that a resource has one name, in whatever spelling the path has.
    pub fn fill(&self, path: &str) -> String {
        let mut filled = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Capture(name) => {
                    filled.push_str(&path::decoded(self.pattern.capture(name, path).unwrap_or_default()));
                }
            }
        }
        filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_from_the_path() {
        let pattern = Pattern::parse("/v1/{c}/records/{*key}").unwrap();
        let template = Template::parse("{c}:{key}!", &pattern).unwrap();
        for path in ["/v1/notes/records/a/b", "/v1/n%6Ftes/records/a%2Fb"] {
            assert_eq!(template.fill(path), "notes:a/b!", "{path}");
        }
        let slash = template.fill("/v1/notes/records/a/b/");
        assert_eq!(slash, "notes:a/b/!", "the resource that is asked about is the one that is forwarded");
        assert_eq!(template.fill("/v1/a+b/records/c%2Bd%20e"), "a+b:c+d e!");
        assert!(Template::parse("{other}", &pattern).is_err());
    }

    #[test]
    fn anything_that_is_not_a_pattern_is_refused() {
        for path in ["a", "/a//b", "/{*rest}/b", "/{}", "/{a}/{a}", "/a{b}", "/%61", "/.."] {
            assert!(Pattern::parse(path).is_err(), "{path}");
        }
    }
}
