//! What holds for every policy and every request.
#![expect(clippy::unwrap_used, reason = "a test panics to fail")]

use std::net::IpAddr;
use std::time::Duration;

use futures_util::FutureExt as _;
use policy::Policy;
use policy::pipeline::{admit, settle};
use policy::policy_test::RequestLine;
use policy::progress::Progress;
use policy::rules::breaker::Outcome;
use policy::testing::check::judge;
use policy::testing::simulation::Simulation;
use policy::values::refusal::{Code, Refusal};
use policy::values::request::{Headers, Request};
use policy::values::stage::{Finding, Stage, Trail};
use policy::values::time::Timestamp;
use proptest::prelude::*;

const POLICY: &str = r#"
version = 1
[client]
trusted_proxies = ["10.0.0.0/8"]
[blocks]
deny = ["192.0.2.0/24"]
[blocks.auto]
failures = 3
[limits.address]
key = "ip"
rate = "3/s"
[limits.person]
key = "user"
rate = "2/s"
[limits.watched]
key = "ip"
rate = "1/day"
mode = "shadow"
[limits.strict]
key = "ip"
rate = "100/s"
on_store_failure = "deny"
[limits.relaxed]
key = "ip"
rate = "1/s"
on_store_failure = "allow"
[jwt.us]
algorithms = ["EdDSA"]
jwks = "http://127.0.0.1/"
forward = { sub = "x-auth-user" }
[breakers.backend]
failures = 2
[[routes]]
name = "open"
path = "/open"
upstream = "backend"
limits = ["address", "watched"]
counts_failed_logins = [401]
[[routes]]
name = "closed"
path = "/closed/{thing}"
methods = ["GET"]
upstream = "backend"
limits = ["address", "person"]
auth = ["jwt:us"]
permission = "read"
resource = "{thing}"
[[routes]]
name = "strict"
path = "/strict"
upstream = "backend"
limits = ["strict"]
[[routes]]
name = "relaxed"
path = "/relaxed"
upstream = "backend"
limits = ["relaxed"]
"#;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);

fn policy() -> Policy {
    Policy::parse("test", POLICY, None).unwrap()
}

fn token(subject: &str, expires_in: i64) -> String {
    use base64::Engine as _;
    let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let expires = i64::try_from(START.as_secs()).unwrap() + expires_in;
    let claims = format!(r#"{{"sub":"{subject}","exp":{expires}}}"#);
    format!(
        "Bearer {}.{}.{}",
        encode(r#"{"alg":"EdDSA"}"#),
        encode(&claims),
        policy::testing::simulation::SIGNATURE
    )
}

fn ask(
    policy: &Policy,
    world: &Simulation,
    ip: &str,
    line: &str,
    token: Option<&str>,
) -> (Result<(), Refusal>, Trail) {
    let headers: Vec<_> =
        token.iter().map(|token| ("Authorization".to_owned(), (*token).to_owned())).collect();
    let (verdict, progress) = judge(policy, &line.parse().unwrap(), ip.parse().unwrap(), &headers, world);
    (verdict.map(|_| ()), progress.trail)
}

fn code(policy: &Policy, world: &Simulation, ip: &str, line: &str, token: Option<&str>) -> Option<Code> {
    ask(policy, world, ip, line, token).0.err().map(|refusal| refusal.code)
}

#[test]
fn an_admitted_request_has_been_through_every_judged_stage_in_order() {
    let world = Simulation::at(START);
    world.grant("ann", "read");
    let (verdict, trail) = ask(&policy(), &world, "198.51.100.1", "GET /closed/it", Some(&token("ann", 60)));
    assert!(verdict.is_ok(), "{verdict:?}");
    let visited: Vec<_> = trail.visited().collect();
    assert_eq!(visited, Stage::JUDGED.map(|stage| (stage, Finding::Passed)));
    assert!(Stage::ORDER.is_sorted(), "the table of contents is in the order of enforcement");
    assert_eq!(world.take_asked(), ["spend", "verify", "spend", "permitted", "enter"]);
}

#[test]
fn blocked_client_spends_no_tokens() {
    let world = Simulation::at(START);
    assert_eq!(code(&policy(), &world, "192.0.2.7", "GET /open", None), Some(Code::ClientBlocked));
    assert!(world.take_asked().is_empty() && world.buckets().is_empty());
}

#[test]
fn each_refusal_names_its_stage_and_says_what_to_do() {
    let (policy, world) = (policy(), Simulation::at(START));
    let client = "198.51.100.1";
    assert_eq!(code(&policy, &world, client, "GET /nowhere", None), Some(Code::RouteNotFound));
    assert_eq!(code(&policy, &world, client, "GET /%2f", None), Some(Code::MalformedTarget));
    let (verdict, _) = ask(&policy, &world, client, "POST /closed/it", None);
    assert_eq!(*verdict.unwrap_err().allow, [std::sync::Arc::from("GET")]);
    assert_eq!(code(&policy, &world, client, "GET /closed/it", None), Some(Code::TokenMissing));
    let expired = token("ann", -60);
    assert_eq!(code(&policy, &world, client, "GET /closed/it", Some(&expired)), Some(Code::TokenExpired));
    let forged = token("ann", 60).replace(policy::testing::simulation::SIGNATURE, "Zm9yZ2Vk");
    assert_eq!(code(&policy, &world, client, "GET /closed/it", Some(&forged)), Some(Code::TokenInvalid));
    world.advance(Duration::from_secs(5));
    let fine = token("ann", 60);
    assert_eq!(code(&policy, &world, client, "GET /closed/it", Some(&fine)), Some(Code::PermissionDenied));
    world.set_permissions_unavailable(true);
    assert_eq!(
        code(&policy, &world, client, "GET /closed/it", Some(&fine)),
        Some(Code::PermissionUnavailable),
        "nobody is let through because the question could not be answered"
    );
}

#[test]
fn a_request_that_a_later_limit_refuses_gives_back_what_earlier_ones_took() {
    let (policy, world) = (policy(), Simulation::at(START));
    world.grant("ann", "read");
    let ann = token("ann", 60);
    // Two addresses and one user: the user's limit of 2 is used up first.
    for ip in ["198.51.100.1", "198.51.100.2"] {
        assert_eq!(code(&policy, &world, ip, "GET /closed/it", Some(&ann)), None);
    }
    let before = world.buckets();
    let (verdict, _) = ask(&policy, &world, "198.51.100.1", "GET /closed/it", Some(&ann));
    let refusal = verdict.unwrap_err();
    assert_eq!((refusal.code, refusal.rule.as_deref()), (Code::RateLimited, Some("person")));
    assert_eq!(world.buckets(), before, "nothing was charged");
    world.advance(refusal.retry_after.unwrap());
    assert_eq!(code(&policy, &world, "198.51.100.1", "GET /closed/it", Some(&ann)), None);
}

#[test]
fn a_shadow_limit_reports_and_never_refuses() {
    let (policy, world) = (policy(), Simulation::at(START));
    for _ in 0..2 {
        assert_eq!(code(&policy, &world, "198.51.100.1", "GET /open", None), None);
    }
    let line: RequestLine = "GET /open".parse().unwrap();
    let (verdict, _) = judge(&policy, &line, IpAddr::from([198, 51, 100, 1]), &[], &world);
    let quotas = verdict.unwrap().quotas;
    let watched = quotas.iter().find(|quota| &*quota.limit == "watched").unwrap();
    assert!(watched.exceeded);
}

#[test]
fn while_the_store_is_away_each_limit_does_what_it_says() {
    let (policy, world) = (policy(), Simulation::at(START));
    world.set_store_unavailable(true);
    let client = "198.51.100.1";
    assert_eq!(code(&policy, &world, client, "GET /strict", None), Some(Code::LimitUnavailable));
    for _ in 0..5 {
        assert_eq!(code(&policy, &world, client, "GET /relaxed", None), None);
    }
    let admitted = (0..9).filter(|_| code(&policy, &world, client, "GET /open", None).is_none()).count();
    assert_eq!(admitted, 3, "a local share still limits");
}

#[test]
fn failed_logins_ban_and_a_success_clears() {
    let (policy, world) = (policy(), Simulation::at(START));
    let login = |ip: [u8; 4], status: u16| {
        let request = Request {
            peer: ip.into(),
            method: "POST",
            path: "/open",
            headers: Headers::default(),
            body: None,
        };
        world.advance(Duration::from_secs(1));
        let admission = admit(&policy, &request, &world, &mut Progress::default()).now_or_never().unwrap();
        admission.map(|admission| settle(&policy, admission, Outcome::Answered(status), &world)).is_ok()
    };
    for status in [401, 401, 200, 401, 401, 200] {
        assert!(login([198, 51, 100, 1], status), "a success clears the history");
    }
    assert!((0..3).all(|_| login([198, 51, 100, 2], 401)));
    assert!(!login([198, 51, 100, 2], 401), "banned after three failures");
    assert!(login([198, 51, 100, 3], 401), "and only that address");
    world.advance(Duration::from_hours(1));
    assert!(login([198, 51, 100, 2], 200), "the ban ends");
}

#[test]
fn an_open_breaker_refuses_at_its_own_stage() {
    let (policy, world) = (policy(), Simulation::at(START));
    for _ in 0..2 {
        let request = Request {
            peer: IpAddr::from([198, 51, 100, 1]),
            method: "GET",
            path: "/relaxed",
            headers: Headers::default(),
            body: None,
        };
        world.advance(Duration::from_secs(1));
        let admission =
            admit(&policy, &request, &world, &mut Progress::default()).now_or_never().unwrap().unwrap();
        settle(&policy, admission, Outcome::Unreachable, &world);
    }
    world.advance(Duration::from_secs(1));
    let (verdict, _) = ask(&policy, &world, "198.51.100.1", "GET /relaxed", None);
    let refusal = verdict.unwrap_err();
    assert_eq!((refusal.code, refusal.stage), (Code::BreakerOpen, Stage::Break));
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(29)));
}

#[test]
fn identity_fields_are_known_in_every_spelling() {
    let policy = policy();
    for name in ["x-auth-user", "X-Auth-User", "X_Auth_User", "x.auth~user"] {
        assert!(policy.is_identity_field(name), "{name}");
    }
    assert!(!policy.is_identity_field("x-auth-use"));
}

#[test]
fn every_fault_of_a_policy_is_reported_at_once() {
    let text = r#"version = 2
[limits.login]
key = "ip"
rate = "0/s"
brust = 3
[jwt.us]
algorithms = ["none"]
secret = "JWT_SECRET"
[[routes]]
name = "a"
path = "/a"
upstream = "backand"
limits = ["logn"]
permission = "read"
"#;
    let faults = Policy::parse("p.toml", text, Some(&["backend".to_owned()])).unwrap_err();
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "p.toml:1:11: version: 1 (got 2)",
            "p.toml:4:8: limits.login.rate: N/s, N/min, N/h or N/day with N from 1 to 1000000 (got \"0/s\")",
            "p.toml:5:1: limits.login.brust: unknown key `brust`: did you mean `burst`?",
            "p.toml:7:14: jwt.us.algorithms: HS256, RS256, ES256 or EdDSA (got \"none\")",
            "p.toml:12:12: routes[0].upstream: no upstream is called `backand`: did you mean `backend`? (known: `backend`)",
            "p.toml:13:10: routes[0].limits: no limit is called `logn` (there is none)",
            "p.toml:14:14: routes[0].permission: needs `auth`, because without it nobody knows who is asking",
        ]
    );
}

#[test]
fn a_half_written_file_is_no_policy() {
    for text in ["", "version = 1", "[[routes]]\nname=\"a\"\npath=\"/\"\nupstream=\"backend\""] {
        assert!(Policy::parse("p.toml", text, None).is_err(), "{text}");
    }
}

#[test]
fn the_shipped_policy_parses_and_passes_its_own_tests() {
    let text = include_str!("../../config/policy.toml");
    let policy = Policy::parse("config/policy.toml", text, Some(&["backend".to_owned()])).unwrap();
    assert_eq!(policy.run_tests("config/policy.toml", text).unwrap(), 6);
}

#[test]
fn a_failing_policy_test_is_a_fault_with_its_place() {
    let text = format!("{POLICY}\n[[tests]]\nrequest = \"GET /open\"\nexpect = {{ status = 403 }}\n");
    let policy = Policy::parse("p.toml", &text, None).unwrap();
    let faults = policy.run_tests("p.toml", &text).unwrap_err();
    assert_eq!(faults[0].line, text.lines().position(|line| line == "[[tests]]").unwrap() + 1);
    assert!(faults[0].message.contains("admitted by route `open`"), "{}", faults[0]);
}

#[derive(Clone, Debug)]
struct Step {
    wait_ms: u64,
    ip: u8,
    path: usize,
    token: usize,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0u64..900, 1u8..4, 0usize..6, 0usize..4);
    let step = step.prop_map(|(wait_ms, ip, path, token)| Step { wait_ms, ip, path, token });
    prop::collection::vec(step, 1..80)
}

/// The decision, the questions to the world, and how far the request came.
type Decision = (Option<(Stage, Code)>, Vec<String>, Trail);

/// Runs the steps. Each is a request.
fn run(steps: &[Step]) -> Vec<Decision> {
    const PATHS: [&str; 6] = ["/open", "/closed/it", "/nowhere", "/strict", "/relaxed", "/closed/%00"];
    let (policy, world) = (policy(), Simulation::at(START));
    world.grant("ann", "read");
    let tokens = [None, Some(token("ann", 60)), Some(token("bob", 60)), Some(token("ann", -60))];
    let decide = |step: &Step| {
        world.advance(Duration::from_millis(step.wait_ms));
        let ip = format!("198.51.100.{}", step.ip);
        let line = format!("GET {}", PATHS[step.path]);
        let (verdict, trail) = ask(&policy, &world, &ip, &line, tokens[step.token].as_deref());
        let refusal = verdict.err().map(|refusal| (refusal.stage, refusal.code));
        (refusal, world.take_asked(), trail)
    };
    steps.iter().map(decide).collect()
}

proptest! {
    #[test]
    fn same_input_and_same_clock_give_the_same_decisions(steps in steps()) {
        let decisions = |steps| run(steps).into_iter().map(|(refusal, asked, _)| (refusal, asked)).collect::<Vec<_>>();
        prop_assert_eq!(decisions(&steps), decisions(&steps));
    }

    #[test]
    fn a_refusal_at_one_stage_leaves_no_trace_of_later_ones(steps in steps()) {
        for (refusal, asked, trail) in run(&steps) {
            let Some((stage, code)) = refusal else { continue };
            let last = trail.visited().last();
            let (last, finding) = last.unwrap();
            prop_assert_eq!(last.as_str(), stage.as_str());
            prop_assert_eq!(finding, Finding::Refused);
            let visited: Vec<_> = trail.visited().map(|(stage, _)| stage).collect();
            prop_assert!(Stage::JUDGED.starts_with(&visited), "no gap and nothing after: {visited:?}");
            let asks = |what: &str| asked.iter().any(|word| word == what);
            prop_assert!(!asks("enter"), "{code:?}");
            prop_assert!(last >= Stage::Authorize || !asks("permitted"));
            prop_assert!(last >= Stage::Authenticate || !asks("verify"));
            prop_assert!(last >= Stage::LimitClient || !asks("spend"));
        }
    }

    /// Over any window the limits admit at most `burst + rate × T` requests of one address.
    #[test]
    fn admitted_requests_keep_their_bound(waits in prop::collection::vec(0u64..700, 1..120)) {
        let (policy, world) = (policy(), Simulation::at(START));
        let mut admitted: Vec<u64> = Vec::new();
        let mut at = 0;
        for wait in waits {
            at += wait;
            world.advance(Duration::from_millis(wait));
            if code(&policy, &world, "198.51.100.1", "GET /open", None).is_none() { admitted.push(at) }
        }
        for (first, from) in admitted.iter().enumerate() {
            for (last, to) in admitted.iter().enumerate().skip(first) {
                prop_assert!((last - first + 1) as u64 <= 3 + (to - from) * 3 / 1000);
            }
        }
    }
}

#[test]
fn a_refused_request_gives_back_what_limits_that_count_failures_took_unless_its_status_counts() {
    let text = POLICY.replace(
        "[jwt.us]",
        "[limits.guesses]\nkey = \"ip\"\nrate = \"2/day\"\ncounts = \"failures\"\n[jwt.us]",
    ) + "[[routes]]\nname = \"guarded\"\npath = \"/guarded/{thing}\"\nupstream = \"backend\"\nmax_body = \"1KB\"\n\
         limits = [\"guesses\"]\nauth = [\"jwt:us\"]\npermission = \"read\"\nresource = \"{thing}\"\n\
         counts_failed_logins = [401]\n";
    let (policy, world) = (Policy::parse("policy.toml", &text, None).unwrap(), Simulation::at(START));
    let token = token("ann", 60);
    let ask = |token: Option<&str>| code(&policy, &world, "198.51.100.9", "GET /guarded/it", token);
    for _ in 0..5 {
        assert_eq!(ask(Some(&token)), Some(Code::PermissionDenied), "403 is no failed login here");
    }
    for _ in 0..2 {
        assert_eq!(ask(None), Some(Code::TokenMissing));
    }
    assert_eq!(ask(Some(&token)), Some(Code::RateLimited), "401 is one, whoever says it");
}
