//! Header fields that every answer carries, whoever made it.
//!
//! The defaults fill in what the service left out: a service knows its own pages best. What stands in `[headers]`
//! replaces what the service sent, and an empty value removes it; with `mode = "fill"` that, too, only fills in, and an
//! empty value removes no more than the default.

use crate::document::Section;
use crate::values::request::is_field_name;
use crate::words;

/// `[headers]` over the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHeaders {
    fields: Vec<(String, Edit)>,
    /// Whether `Strict-Transport-Security` is the policy's own and not the default.
    sets_hsts: bool,
}

/// What becomes of a field of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// It gets this value where it is not there.
    Fill(String),
    /// It gets this value.
    Replace(String),
    /// It is taken out.
    Remove,
}

/// How an answer goes to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// The client came over TLS: to the gateway, or to a trusted proxy that says so.
    pub encrypted: bool,
    /// The profile is production: clients are told to come over TLS from now on.
    pub production: bool,
}

/// Whether what stands in `[headers]` replaces what the service sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Fill,
    Replace,
}

words! { Mode { "fill" => Fill, "replace" => Replace } or "fill or replace" }

/// RFC 6797: a browser comes over TLS alone from now on. A browser believes it for a long time, so a machine of a
/// developer does not say it, and nobody says it over plain HTTP (section 7.2).
const HSTS: &str = "strict-transport-security";

/// Source: OWASP Secure Headers Project.
const DEFAULTS: [(&str, &str); 6] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("content-security-policy", "default-src 'self'"),
    ("referrer-policy", "no-referrer"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    (HSTS, "max-age=31536000; includeSubDomains"),
];

/// Fields that frame the message or that the gateway writes itself.
const RESERVED: [&str; 8] = [
    "connection",
    "content-length",
    "date",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "transfer-encoding",
    "x-request-id",
];

/// The most fields of `[headers]`.
const MOST: usize = 64;

/// The longest value of one, in bytes: clients read no longer ones.
const LONGEST: usize = 4_096;

impl ResponseHeaders {
    pub(crate) fn read(section: Option<&Section<'_>>) -> Self {
        let fill = |(name, value): (&str, &str)| (name.to_owned(), Edit::Fill(value.to_owned()));
        let mut headers = Self { fields: DEFAULTS.map(fill).to_vec(), sets_hsts: false };
        let Some(section) = section else { return headers };
        let mode = section.get_or("mode", Mode::Replace);
        let set = section.free_strings();
        if set.len() > MOST {
            section.fault("", format!("at most {MOST} fields (got {})", set.len()));
        }
        for (name, value, _) in set.into_iter().filter(|(name, ..)| name != "mode").take(MOST) {
            let lower = name.to_ascii_lowercase();
            let visible = value.len() <= LONGEST && value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            if !is_field_name(&lower) || RESERVED.contains(&lower.as_str()) || !visible {
                section.fault(&name, "a header field that is free to set, with at most 4096 bytes of visible ASCII as its value");
                continue;
            }
            headers.fields.retain(|(known, _)| *known != lower);
            headers.sets_hsts |= lower == HSTS;
            let edit = match (mode, value.is_empty()) {
                (Mode::Fill, true) => continue,
                (Mode::Fill, false) => Edit::Fill(value),
                (Mode::Replace, true) => Edit::Remove,
                (Mode::Replace, false) => Edit::Replace(value),
            };
            headers.fields.push((lower, edit));
        }
        headers
    }

    /// What is done to an answer that goes by `channel`; names are in lower case.
    pub fn edits(&self, channel: Channel) -> impl Iterator<Item = (&str, &Edit)> {
        let tells_hsts = channel.encrypted && (channel.production || self.sets_hsts);
        let edits = self.fields.iter().map(|(name, edit)| (name.as_str(), edit));
        edits.filter(move |(name, edit)| *name != HSTS || tells_hsts || **edit == Edit::Remove)
    }
}

#[cfg(test)]
mod tests {
    use crate::Policy;

    use super::*;

    const SAFE: Channel = Channel { encrypted: true, production: true };

    fn headers(section: &str) -> Result<ResponseHeaders, String> {
        let text = format!(
            "version = 1\n[[routes]]\nname = \"a\"\npath = \"/\"\nupstream = \"u\"\n[headers]\n{section}\n"
        );
        let policy = Policy::parse("p", &text, None);
        policy.map(|policy| policy.headers).map_err(|faults| faults[0].to_string())
    }

    fn edit(section: &str, channel: Channel, name: &str) -> Option<Edit> {
        let headers = headers(section).unwrap();
        headers.edits(channel).find(|(known, _)| *known == name).map(|(_, edit)| edit.clone())
    }

    #[test]
    fn defaults_fill_and_what_the_policy_says_replaces_or_removes() {
        let named = "Content-Security-Policy = \"x\"\nreferrer-policy = \"\"";
        let find = |section: &str, name| edit(section, SAFE, name);
        let fill = |value: &str| Some(Edit::Fill(value.to_owned()));
        assert_eq!(find("", "content-security-policy"), fill("default-src 'self'"));
        assert_eq!(find(named, "content-security-policy"), Some(Edit::Replace("x".to_owned())));
        assert_eq!(find(named, "referrer-policy"), Some(Edit::Remove));
        assert_eq!(find(named, "x-frame-options"), fill("DENY"), "what is not named keeps its default");
        let filling = format!("mode = \"fill\"\n{named}");
        assert_eq!(find(&filling, "content-security-policy"), fill("x"));
        assert_eq!(find(&filling, "referrer-policy"), None, "the service's own passes");
        assert_eq!(headers("mode = \"x\"").unwrap_err(), "p:7:8: headers.mode: fill or replace (got \"x\")");
        assert!(
            headers("content-length = \"1\"").unwrap_err().starts_with("p:7:18: headers.content-length: ")
        );
    }

    #[test]
    fn hsts_is_said_in_production_over_tls_alone() {
        let says =
            |section: &str, encrypted, production| edit(section, Channel { encrypted, production }, HSTS);
        assert_eq!(says("", true, true), Some(Edit::Fill("max-age=31536000; includeSubDomains".to_owned())));
        for (encrypted, production) in [(true, false), (false, true), (false, false)] {
            assert_eq!(says("", encrypted, production), None);
        }
        let own = format!("{HSTS} = \"max-age=60\"");
        assert_eq!(says(&own, true, false), Some(Edit::Replace("max-age=60".to_owned())), "whoever wants it");
        assert_eq!(says(&own, false, true), None);
        assert_eq!(says(&format!("{HSTS} = \"\""), false, false), Some(Edit::Remove));
    }
}
