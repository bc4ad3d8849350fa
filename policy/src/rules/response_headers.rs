//! Header fields of every response, from a service or from the gateway itself.
//!
//! A default is used only where the service did not set the field, because a service knows its own pages best. A value
//! in
//! `[headers]` replaces the field of the service, and an empty value removes the field. With `mode = "fill"` a value in
//! `[headers]` is also used only where the service did not set the field, and an empty value removes only the default.

use crate::document::Section;
use crate::values::request::is_field_name;
use crate::words;

/// `[headers]` over the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHeaders {
    fields: Vec<(String, Edit)>,
    /// Whether `Strict-Transport-Security` is set by the policy, not by default.
    sets_hsts: bool,
}

/// What to do with one field of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Set this value if the field is absent.
    Fill(String),
    /// Set this value, whether or not the field is there.
    Replace(String),
    /// Remove the field.
    Remove,
}

/// How a response is sent to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// The client uses TLS, to the gateway or, as a trusted proxy says, to that proxy.
    pub encrypted: bool,
    /// The profile is production, in which clients are told to use TLS from now on.
    pub production: bool,
}

/// Whether the values in `[headers]` replace those of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Fill,
    Replace,
}

words! { Mode { "fill" => Fill, "replace" => Replace } or "fill or replace" }

/// RFC 6797: from now on the browser uses TLS only. A browser remembers this for a long time, so it is sent only in the
/// production profile, and never over plain HTTP (section 7.2).
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

/// The longest value of one field, in bytes. Clients may not accept longer ones.
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
                section.fault(&name, "a header field that is not reserved, with at most 4096 bytes of visible ASCII as its value");
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

    /// The edits of a response that is sent by `channel`. Names are in lower case.
    pub fn edits(&self, channel: Channel) -> impl Iterator<Item = (&str, &Edit)> {
        let sends_hsts = channel.encrypted && (channel.production || self.sets_hsts);
        let edits = self.fields.iter().map(|(name, edit)| (name.as_str(), edit));
        edits.filter(move |(name, edit)| *name != HSTS || sends_hsts || **edit == Edit::Remove)
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
    fn defaults_fill_and_values_of_the_policy_replace_or_remove() {
        let named = "Content-Security-Policy = \"x\"\nreferrer-policy = \"\"";
        let find = |section: &str, name| edit(section, SAFE, name);
        let fill = |value: &str| Some(Edit::Fill(value.to_owned()));
        assert_eq!(find("", "content-security-policy"), fill("default-src 'self'"));
        assert_eq!(find(named, "content-security-policy"), Some(Edit::Replace("x".to_owned())));
        assert_eq!(find(named, "referrer-policy"), Some(Edit::Remove));
        assert_eq!(
            find(named, "x-frame-options"),
            fill("DENY"),
            "a field that the policy does not name has its default"
        );
        let filling = format!("mode = \"fill\"\n{named}");
        assert_eq!(find(&filling, "content-security-policy"), fill("x"));
        assert_eq!(find(&filling, "referrer-policy"), None, "the service's own passes");
        assert_eq!(headers("mode = \"x\"").unwrap_err(), "p:7:8: headers.mode: fill or replace (got \"x\")");
        assert!(
            headers("content-length = \"1\"").unwrap_err().starts_with("p:7:18: headers.content-length: ")
        );
    }

    #[test]
    fn hsts_is_sent_in_production_over_tls_only() {
        let says =
            |section: &str, encrypted, production| edit(section, Channel { encrypted, production }, HSTS);
        assert_eq!(says("", true, true), Some(Edit::Fill("max-age=31536000; includeSubDomains".to_owned())));
        for (encrypted, production) in [(true, false), (false, true), (false, false)] {
            assert_eq!(says("", encrypted, production), None);
        }
        let own = format!("{HSTS} = \"max-age=60\"");
        assert_eq!(
            says(&own, true, false),
            Some(Edit::Replace("max-age=60".to_owned())),
            "the policy sets it itself"
        );
        assert_eq!(says(&own, false, true), None);
        assert_eq!(says(&format!("{HSTS} = \"\""), false, false), Some(Edit::Remove));
    }
}
