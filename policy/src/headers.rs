//! Header fields that every answer carries, whoever made it.

use crate::document::Section;
use crate::limits::is_field_name;

/// `[headers]` over the defaults; an empty value removes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerHeaders(Vec<(String, String)>);

/// Source: OWASP Secure Headers Project. HSTS is sent over TLS alone, where it means something.
const DEFAULTS: [(&str, &str); 5] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("content-security-policy", "default-src 'self'"),
    ("referrer-policy", "no-referrer"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
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

impl AnswerHeaders {
    pub(crate) fn read(section: Option<&Section<'_>>) -> Self {
        let mut fields: Vec<(String, String)> =
            DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let set = section.map(Section::free_strings).unwrap_or_default();
        if let Some(section) = section.filter(|_| set.len() > MOST) {
            section.fault("", format!("at most {MOST} fields (got {})", set.len()));
        }
        for (name, value, _) in set.into_iter().take(MOST) {
            let lower = name.to_ascii_lowercase();
            let visible = value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            if !is_field_name(&lower) || RESERVED.contains(&lower.as_str()) || !visible {
                if let Some(section) = section {
                    section
                        .fault(&name, "a header field that is free to set, with visible ASCII as its value");
                }
                continue;
            }
            fields.retain(|(known, _)| *known != lower);
            if !value.is_empty() {
                fields.push((lower, value));
            }
        }
        Self(fields)
    }

    /// The fields, names in lower case.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}
