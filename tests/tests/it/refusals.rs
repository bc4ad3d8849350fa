//! Every code with which the gateway can refuse a request, provoked on the real program.
//!
//! The table below is a `match` over [`Code`]: one that lacks a case does not compile, and no comment stands for one. Each
//! case is a test of its own, so what fails has a name, and none of it depends on which other tests ran.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header, encode};
use policy::values::refusal::Code;
use serde_json::json;
use tests::accounts::{RECORD, lenient_stack, post, reader};
use tests::client::{Answer, read_until};
use tests::policy_text::PolicyText;
use tests::stack::{Gateway, Stack};
use tests::upstream::RawUpstream;
use tests::{eventually, free_port};
use tokio::io::AsyncWriteExt as _;

/// `code: sentence = case` makes the test `sentence`, whose answer must have that code; `except` those that nobody can
/// provoke from outside, with the reason.
macro_rules! every_code {
    ($($code:ident: $name:ident = $case:expr,)+; except $($unprovoked:ident: $reason:literal,)+) => {
        const _: fn(Code) -> &'static str = |code| match code {
            $(Code::$code => stringify!($name),)+
            $(Code::$unprovoked => $reason,)+
        };
        $(#[tokio::test]
        async fn $name() {
            let answer: Answer = $case.await;
            let said = (answer.status(), answer.code());
            assert_eq!(said, (Code::$code.status(), Code::$code.as_str().to_owned()), "{:?}", answer.body);
            assert_eq!(answer.json()["title"], Code::$code.title());
        })+
    };
}

every_code! {
    MalformedRequest: a_request_without_a_host_is_malformed = raw("", "GET /a HTTP/1.1\r\n\r\n"),
    MalformedTarget: a_target_above_the_root_is_malformed = get("", "/a/%2e%2e/%2e%2e/b"),
    MalformedForwardedFor: a_trusted_proxy_that_names_no_address_is_refused = forwarded_for("192.0.2.1, unknown"),
    TokenMissing: a_guarded_route_wants_a_token = get("", "/guarded"),
    TokenInvalid: a_token_that_somebody_else_signed_is_invalid = with_token("another secret, as long as it must", 600),
    TokenExpired: a_token_whose_time_is_over_is_expired = with_token(SECRET, -600),
    TokenRevoked: a_token_that_an_operator_revoked_is_revoked = revoked(),
    ApiKeyInvalid: an_api_key_that_nobody_made_is_invalid = unknown_key(),
    ClientBlocked: a_denied_network_is_blocked = blocked(),
    RoleMissing: a_token_without_the_role_is_refused = with_token(SECRET, 600),
    ScopeMissing: an_api_key_for_something_else_is_refused = out_of_scope(),
    PermissionDenied: a_user_without_a_grant_is_denied = without_a_grant(),
    RouteNotFound: a_path_without_a_route_is_not_found = get("", "/nowhere/at/all"),
    MethodNotAllowed: a_method_that_the_route_does_not_take_is_not_allowed = ask("", "DELETE", "/a", ""),
    HeaderTimeout: a_header_that_does_not_end_is_late =
        raw("[requests]\nheader_timeout = \"200ms\"", "GET /a HTTP/1.1\r\n"),
    BodyTimeout: a_body_that_does_not_come_is_late = late_body(),
    BodyTooLarge: a_body_over_the_limit_is_too_large =
        ask("[requests]\nmax_body = \"1KB\"", "POST", "/a", &"x".repeat(1_001)),
    RateLimited: a_second_request_of_one_an_hour_is_limited = second("", "/limited"),
    TooManyConnections: a_second_connection_of_one_is_too_many = second_connection(),
    HeaderTooLarge: a_header_of_too_many_bytes_is_too_large =
        ask("[requests]\nheader_bytes = \"1KB\"", "GET", &format!("/{}", "x".repeat(1_001)), ""),
    UpstreamUnreachable: an_upstream_that_does_not_listen_is_unreachable = before_nobody("", "/a"),
    BreakerOpen: an_upstream_that_failed_is_not_asked_again = second_before_nobody(),
    Overloaded: an_upstream_at_its_limit_is_overloaded = overloaded(),
    ReadOnly: a_change_of_what_is_read_only_is_refused = ask("read_only = true", "POST", "/a", ""),
    LimitUnavailable: a_limit_that_denies_without_redis_is_unavailable = limit_without_redis(),
    KeysUnavailable: a_token_whose_keys_cannot_be_fetched_cannot_be_judged = keys_unavailable(),
    ApiKeyUnavailable: an_api_key_that_nobody_can_check_cannot_be_judged = key_without_backend(),
    PermissionUnavailable: a_permission_that_nobody_can_answer_is_unavailable = permission_without_backend(),
    UpstreamTimeout: an_upstream_that_never_answers_times_out = silent_upstream(),
    ; except
    Internal: "the gateway answers it where it contradicts itself: an assertion that it cannot sign, a request that reaches \
               the upstream's side without an admission, an upgrade over HTTP/2 that it did not offer; all three are \
               made impossible before, and no byte from a client or a service leads there",
}

const SECRET: &str = "a secret that is shared for tests, long enough";

const POLICY: &str = r#"
[client]
trusted_proxies = ["127.0.9.0/24"]
[blocks]
deny = ["127.66.0.0/16"]
[jwt.accounts]
algorithms = ["HS256"]
secret = "SHARED_SECRET"
[limits.few]
key = "ip"
rate = "1/h"
[limits.strict]
key = "ip"
rate = "1/h"
on_store_failure = "deny"
[[routes]]
name = "any"
path = "/{name}"
methods = ["GET", "POST"]
upstream = "backend"
[[routes]]
name = "guarded"
path = "/guarded"
upstream = "backend"
auth = ["jwt:accounts"]
roles = ["admin"]
[[routes]]
name = "limited"
path = "/limited"
upstream = "backend"
limits = ["few"]
[[routes]]
name = "strict"
path = "/strict"
upstream = "backend"
limits = ["strict"]
"#;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

fn policy(more: &str) -> String {
    format!("version = 1\n{more}\n{POLICY}")
}

/// A gateway before a service that answers 200, with more policy or environment than usual.
async fn gateway(more: &str, environment: &[(&str, &str)]) -> (RawUpstream, Gateway) {
    let upstream = RawUpstream::start(vec![(Duration::ZERO, OK)], false).await;
    let environment = [environment, &[("SHARED_SECRET", SECRET)]].concat();
    let gateway = Gateway::start(upstream.address, &policy(more), &environment).await;
    (upstream, gateway)
}

async fn ask(more: &str, method: &str, target: &str, body: &str) -> Answer {
    let (_upstream, gateway) = gateway(more, &[]).await;
    gateway.client().ask(method, target, &[], body.to_owned()).await
}

async fn get(more: &str, target: &str) -> Answer {
    ask(more, "GET", target, "").await
}

/// Sends these bytes, and no more.
async fn raw(more: &str, bytes: &str) -> Answer {
    let (_upstream, gateway) = gateway(more, &[]).await;
    let mut stream = gateway.client().connect().await;
    stream.write_all(bytes.as_bytes()).await.unwrap();
    Answer::read(&read_until(&mut stream, "}").await)
}

/// Two requests of one client.
async fn second(more: &str, target: &str) -> Answer {
    let (_upstream, gateway) = gateway(more, &[]).await;
    assert_eq!(gateway.client().get(target, None).await.status(), 200);
    gateway.client().get(target, None).await
}

async fn forwarded_for(value: &str) -> Answer {
    let (_upstream, gateway) = gateway("", &[]).await;
    let proxy = gateway.client().at([127, 0, 9, 1]);
    assert_eq!(proxy.ask("GET", "/a", &[("x-forwarded-for", "192.0.2.1")], "").await.status(), 200);
    let nobody_trusts = gateway.client().ask("GET", "/a", &[("x-forwarded-for", value)], "").await;
    assert_eq!(nobody_trusts.status(), 200, "what somebody else says is not read");
    proxy.ask("GET", "/a", &[("x-forwarded-for", value)], "").await
}

async fn blocked() -> Answer {
    let (_upstream, gateway) = gateway("", &[]).await;
    gateway.client().at([127, 66, 0, 1]).get("/a", None).await
}

/// A token of a subject without roles that expires so many seconds from now.
fn token(secret: &str, expires: i64) -> String {
    let exp = i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap() + expires;
    let claims = json!({"sub": "ann", "jti": "the-token", "exp": exp});
    encode(&Header::default(), &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

async fn with_token(secret: &str, expires: i64) -> Answer {
    let (_upstream, gateway) = gateway("", &[]).await;
    gateway.client().get("/guarded", Some(&token(secret, expires))).await
}

async fn revoked() -> Answer {
    let (_upstream, gateway) = gateway("", &[]).await;
    let revoke = gateway.operator().ask("PUT", "/admin/revocations/jti/the-token", &[], "").await;
    assert_eq!(revoke.status(), 204);
    gateway.client().get("/guarded", Some(&token(SECRET, 600))).await
}

async fn unknown_key() -> Answer {
    let stack = Stack::start().await;
    stack.gateway.client().ask("GET", RECORD, &[("x-api-key", "pal_unknown")], "").await
}

async fn out_of_scope() -> Answer {
    let stack = lenient_stack().await;
    let (_, ann) = reader(&stack).await;
    let client = stack.gateway.client();
    let scopes = json!([{"permission": "records:read", "resource": "other-*"}]);
    let made =
        post(&client, "/v1/api-keys", Some(&ann.token), &json!({"name": "robot", "scopes": scopes})).await;
    let key = made.json()["key"].as_str().unwrap().to_owned();
    client.ask("GET", RECORD, &[("x-api-key", &key)], "").await
}

async fn without_a_grant() -> Answer {
    let stack = Stack::start().await;
    let ann = stack.user("ann", &[]).await;
    stack.gateway.client().get(RECORD, Some(&ann.token)).await
}

async fn second_connection() -> Answer {
    let (_upstream, gateway) = gateway("[requests]\nmax_connections = 1", &[]).await;
    let mut first = gateway.client().connect().await;
    first.write_all(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    read_until(&mut first, "\r\n\r\nok").await;
    let mut second = gateway.client().connect().await;
    second.write_all(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    Answer::read(&read_until(&mut second, "}").await)
}

/// A gateway whose service does not listen.
async fn alone(more: &str) -> Gateway {
    let nobody = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    Gateway::start(nobody, &policy(more), &[("SHARED_SECRET", SECRET)]).await
}

async fn before_nobody(more: &str, target: &str) -> Answer {
    alone(more).await.client().get(target, None).await
}

async fn second_before_nobody() -> Answer {
    let gateway = alone("[breakers.backend]\nfailures = 1").await;
    assert_eq!(gateway.client().get("/a", None).await.status(), 502);
    gateway.client().get("/a", None).await
}

/// A service that takes requests and answers none.
async fn silent(more: &str) -> (RawUpstream, Gateway) {
    let upstream = RawUpstream::start(Vec::new(), false).await;
    let gateway = Gateway::start(upstream.address, &policy(more), &[("SHARED_SECRET", SECRET)]).await;
    (upstream, gateway)
}

async fn silent_upstream() -> Answer {
    let (_upstream, gateway) = silent("[requests]\nupstream_timeout = \"200ms\"").await;
    gateway.client().get("/a", None).await
}

async fn late_body() -> Answer {
    // One that answered at once would answer before the body is late.
    let (_upstream, gateway) = silent("[requests]\nrequest_timeout = \"200ms\"").await;
    let mut stream = gateway.client().connect().await;
    stream.write_all(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na").await.unwrap();
    Answer::read(&read_until(&mut stream, "}").await)
}

async fn overloaded() -> Answer {
    let (upstream, gateway) = silent("[concurrency.backend]\nmost = 1\nqueue = 0").await;
    let mut first = gateway.client().connect().await;
    first.write_all(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    eventually("the first is on its way", || async { upstream.received().concat().contains("GET /a ") })
        .await;
    gateway.client().get("/a", None).await
}

async fn limit_without_redis() -> Answer {
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    let (_upstream, gateway) = gateway("", &[("PALISADE_GATEWAY__REDIS__URL", &nowhere)]).await;
    assert_eq!(gateway.client().get("/limited", None).await.status(), 200, "another limit does without");
    gateway.client().get("/strict", None).await
}

async fn keys_unavailable() -> Answer {
    // `{jwks}` is an address of the service, and nobody is there.
    let nobody = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let gateway = Gateway::start(nobody, &PolicyText::usual(), &[]).await;
    let exp = jsonwebtoken::get_current_timestamp() + 600;
    let claims = json!({"iss": "palisade", "aud": "palisade", "sub": "ann", "exp": exp}).to_string();
    let parts = [r#"{"alg":"EdDSA"}"#, &claims, "a signature that nobody can check"];
    let token = parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    gateway.client().get("/v1/users", Some(&token)).await
}

async fn key_without_backend() -> Answer {
    let nobody = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let gateway = Gateway::start(nobody, &PolicyText::usual(), &[]).await;
    gateway.client().ask("GET", RECORD, &[("x-api-key", "pal_unknown")], "").await
}

async fn permission_without_backend() -> Answer {
    let permitted = "[permissions]\n[[routes]]\nname = \"permitted\"\npath = \"/permitted\"\nupstream = \"backend\"\n\
                     auth = [\"jwt:accounts\"]\npermission = \"pages:read\"\n";
    alone(permitted).await.client().get("/permitted", Some(&token(SECRET, 600))).await
}
