//! The words of `Cache-Control` and `Vary`, and what they say of an answer's age (RFC 9111, 4.2 and 5.2).

use std::time::Duration;

use http::HeaderMap;
use http::header::{AGE, HeaderName};

/// The words of a field with their values, in lower case.
pub(super) struct Directives(Vec<(String, String)>);

impl Directives {
    /// Reads all fields named `name`. A field that is not text counts as the strictest word.
    pub(super) fn read(headers: &HeaderMap, name: HeaderName) -> Self {
        let mut words = Vec::new();
        for value in headers.get_all(name) {
            match value.to_str() {
                Ok(text) => words.extend(split(text).map(pair)),
                Err(_) => words.push(("no-store".to_owned(), String::new())),
            }
        }
        words.retain(|(word, _)| !word.is_empty());
        Self(words)
    }

    /// Whether the word is there; `private="x"` counts as `private`.
    pub(super) fn has(&self, wanted: &str) -> bool {
        self.0.iter().any(|(word, _)| word == wanted)
    }

    /// The words without their values.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(word, _)| word.as_str())
    }

    /// The value in seconds; `None` if it is not a number.
    fn seconds(&self, wanted: &str) -> Option<Duration> {
        let (_, value) = self.0.iter().find(|(word, _)| word == wanted)?;
        Some(Duration::from_secs(value.parse().unwrap_or(0)))
    }
}

/// The elements of a list, whose quoted texts may hold commas.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |letter| {
        let is_comma = letter == ',' && !quoted;
        match letter {
            '"' if !escaped => quoted = !quoted,
            '\\' if quoted && !escaped => {
                escaped = true;
                return false;
            }
            _ => {}
        }
        escaped = false;
        is_comma
    })
}

fn pair(element: &str) -> (String, String) {
    let (word, value) = element.split_once('=').unwrap_or((element, ""));
    (word.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_ascii_lowercase())
}

/// For how long an answer is fresh in a shared cache; zero if the answer does not say.
pub(super) fn freshness(says: &Directives) -> Duration {
    says.seconds("s-maxage").or_else(|| says.seconds("max-age")).unwrap_or_default()
}

/// How old an answer was when it arrived.
pub(super) fn age(headers: &HeaderMap) -> Duration {
    let age = headers.get(AGE).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(age.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::CACHE_CONTROL;

    fn read(values: &[&[u8]]) -> Directives {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CACHE_CONTROL, http::HeaderValue::from_bytes(value).unwrap());
        }
        Directives::read(&headers, CACHE_CONTROL)
    }

    #[test]
    fn words_are_read_over_all_fields_and_not_inside_of_quotes() {
        let says = read(&[b"Private=\"a, no-store, \\\"b\", MAX-AGE = 60", b", s-maxage=\"7\""]);
        assert_eq!(says.names().collect::<Vec<_>>(), ["private", "max-age", "s-maxage"]);
        assert!(says.has("private") && !says.has("no-store"));
        assert_eq!(freshness(&says), Duration::from_secs(7));
        assert_eq!(freshness(&read(&[b"max-age=60"])), Duration::from_mins(1));
        assert_eq!(freshness(&read(&[b"max-age=soon"])), Duration::ZERO);
        assert!(read(&[b"max-age=60\xff"]).has("no-store"), "what cannot be read forbids");
    }
}
