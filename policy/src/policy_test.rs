//! `[[tests]]`: decisions that a policy must make, in the same file as its rules. [`crate::testing`] runs them.

use std::net::IpAddr;
use std::str::FromStr;

use crate::document::Section;
use crate::from_toml_str;
use crate::values::refusal::Code;
use crate::values::stage::Stage;

/// `[[tests]]`: a request that is never sent, and its expected result.
#[derive(Clone, Debug)]
pub struct PolicyTest {
    pub(crate) request: RequestLine,
    pub(crate) ip: IpAddr,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) subject: Option<String>,
    pub(crate) roles: Vec<String>,
    pub(crate) granted: Vec<String>,
    pub(crate) expect: Expectation,
    pub(crate) span: std::ops::Range<usize>,
}

/// `GET /v1/records`.
#[derive(Clone, Debug)]
pub struct RequestLine {
    /// The method.
    pub method: String,
    /// The path, not normalised, without a query.
    pub path: String,
}

impl FromStr for RequestLine {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (method, target) = text.split_once(' ').ok_or("a method and a path, like \"GET /v1/records\"")?;
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        Ok(Self { method: method.to_owned(), path: path.to_owned() })
    }
}

#[derive(Clone, Debug)]
struct Address(IpAddr);

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| "an IP address")
    }
}

#[derive(Clone, Debug)]
pub(crate) struct StageName(pub(crate) &'static str);

impl FromStr for StageName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let judged = Stage::JUDGED.iter().chain(&[Stage::Forward]).map(|stage| stage.as_str());
        judged
            .into_iter()
            .find(|name| *name == text)
            .map(Self)
            .ok_or("identify, block, route, limit, authenticate, authorize, break or forward (admitted)")
    }
}

from_toml_str!(RequestLine, Address, StageName);

#[derive(Clone, Debug)]
pub(crate) struct Expectation {
    pub(crate) stage: Option<StageName>,
    pub(crate) status: Option<u32>,
    pub(crate) code: Option<String>,
    pub(crate) route: Option<String>,
}

impl PolicyTest {
    pub(crate) fn read_all(root: &Section<'_>) -> Vec<Self> {
        root.sections("tests").into_iter().filter_map(Self::read).collect()
    }

    fn read(section: Section<'_>) -> Option<Self> {
        let request = section.require::<RequestLine>("request", "\"METHOD /path\"");
        let expect = section.section("expect").map(|expect| {
            let expectation = Expectation {
                stage: expect.get("stage"),
                status: expect.get("status"),
                code: expect.get("code"),
                route: expect.get("route"),
            };
            if expectation
                .code
                .as_ref()
                .is_some_and(|code| !Code::ALL.iter().any(|known| known.as_str() == *code))
            {
                expect.fault("code", "the code of a refusal, as an answer gives it");
            }
            if ["stage", "status", "code", "route"].iter().all(|key| !expect.has(key)) {
                expect.fault("", "at least one of stage, status, code, route");
            }
            expect.finish();
            expectation
        });
        if expect.is_none() && !section.has("expect") {
            section.fault("expect", "required: { stage, status, code, route }, at least one");
        }
        let headers = section.section("headers").map(|headers| headers.free_strings()).unwrap_or_default();
        let test = Self {
            ip: section.get_or("ip", Address(IpAddr::from([127, 0, 0, 1]))).0,
            headers: headers.into_iter().map(|(name, value, _)| (name, value)).collect(),
            subject: section.get("subject"),
            roles: section.get_or("roles", Vec::new()),
            granted: section.get_or("granted", Vec::new()),
            span: section.span(),
            request: request?,
            expect: expect?,
        };
        section.finish();
        Some(test)
    }
}
