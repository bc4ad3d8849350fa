//! What was given is taken back: a `WebSocket` ends with whatever let it in, a role opens nothing any more, and two issuers
//! with the same `sub` are two people.

use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};
use tests::accounts::{lenient, login};
use tests::client::{Client, closes, read_until};
use tests::eventually;
use tests::stack::{Backend, Gateway, User};
use tests::upstream::RawUpstream;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// The secret of a second issuer.
const SECRET: &str = "a secret of another issuer, long enough";

/// Two more issuers' routes to a service that is not our backend.
const ROUTES: &str = r#"
[jwt.other]
algorithms = ["HS256"]
secret = "JWT_SECRET"
issuer = "other"
leeway = "0s"

[jwt.partner]
algorithms = ["HS256"]
secret = "JWT_SECRET"

[limits.person]
key = "user"
rate = "2/h"

[[routes]]
name = "room"
path = "/rooms/{room}"
upstream = "rooms"
auth = ["jwt:accounts", "jwt:other", "api_key"]

[[routes]]
name = "staff-room"
path = "/staff/{room}"
upstream = "rooms"
auth = ["jwt:accounts", "jwt:other"]
roles = ["staff"]

[[routes]]
name = "own-room"
path = "/own/{room}"
upstream = "rooms"
auth = ["jwt:accounts", "jwt:other"]
permission = "rooms:own"
resource = "{room}"

[[routes]]
name = "partners-room"
path = "/partners/{room}"
upstream = "rooms"
auth = ["jwt:partner"]
permission = "rooms:own"
resource = "{room}"

[[routes]]
name = "few"
path = "/few"
upstream = "rooms"
auth = ["jwt:accounts", "jwt:other"]
limits = ["person"]
"#;

const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const FINE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

struct House {
    backend: Backend,
    rooms: RawUpstream,
    gateway: Gateway,
    root: String,
}

impl House {
    async fn open(answer: &'static [u8]) -> Self {
        let rooms = RawUpstream::start(vec![(Duration::ZERO, answer)], true).await;
        let backend = Backend::start(&[]).await;
        let address = rooms.address.to_string();
        let environment =
            [("PALISADE_GATEWAY__UPSTREAMS__ROOMS__ADDRESSES", address.as_str()), ("JWT_SECRET", SECRET)];
        let gateway = Gateway::start(backend.address, &(lenient() + ROUTES), &environment).await;
        backend.add_user("root", &["admin"]).await;
        let root = token(&gateway.client(), "root").await;
        let house = Self { backend, rooms, gateway, root };
        for role in ["staff", "guest"] {
            house.as_root("PUT", &format!("/v1/roles/{role}/permissions"), json!({"permissions": []})).await;
        }
        house
    }

    async fn user(&self, name: &str, roles: &[&str]) -> User {
        let mut user = User { id: self.backend.add_user(name, &[]).await, token: String::new() };
        self.set_roles(&user, roles).await;
        user.token = token(&self.gateway.client(), name).await;
        user
    }

    async fn as_root(&self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.gateway.client().json(method, path, Some(&self.root), &body).await;
        assert!((200..300).contains(&answer.status()), "{method} {path}: {:?}", answer.body);
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    async fn set_roles(&self, user: &User, roles: &[&str]) {
        self.as_root("PUT", &format!("/v1/users/{}/roles", user.id), json!({"roles": roles})).await;
    }

    /// Shakes hands for a WebSocket.
    async fn join(&self, from: [u8; 4], path: &str, proof: &str) -> TcpStream {
        let mut stream = self.gateway.client().at(from).connect().await;
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\n{proof}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        stream.write_all(b"hello").await.unwrap();
        assert_eq!(read_until(&mut stream, "hello").await, "hello");
        stream
    }
}

async fn token(client: &Client, name: &str) -> String {
    let answer = login(client, name, tests::stack::PASSWORD).await;
    answer.json()["access_token"].as_str().unwrap_or_else(|| panic!("{:?}", answer.body)).to_owned()
}

/// A token of the second issuer, good for so many seconds.
fn others_token(sub: &str, roles: &[&str], seconds: u64) -> String {
    token_of("other", sub, roles, seconds)
}

fn token_of(iss: &str, sub: &str, roles: &[&str], seconds: u64) -> String {
    let exp = get_current_timestamp() + seconds;
    let claims = json!({"iss": iss, "sub": sub, "roles": roles, "exp": exp});
    encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

#[tokio::test]
async fn a_websocket_ends_with_whatever_let_it_in() {
    let house = House::open(SWITCH).await;
    let home = [127, 0, 0, 1];
    let (ann, bob) = (house.user("ann", &["staff"]).await, house.user("bob", &[]).await);
    let mut stays = house.join([127, 0, 0, 8], "/rooms/1", &bearer(&others_token("eve", &[], 600))).await;

    let mut short = house.join(home, "/rooms/1", &bearer(&others_token("eve", &[], 2))).await;
    assert!(closes(&mut short).await, "its token has ended");

    let mut staff = house.join(home, "/staff/1", &bearer(&ann.token)).await;
    house.set_roles(&ann, &[]).await;
    assert!(closes(&mut staff).await, "the role is taken");

    let made =
        house.gateway.client().json("POST", "/v1/api-keys", Some(&bob.token), &json!({"name": "k"})).await;
    let made = made.json();
    let proof = format!("X-API-Key: {}", made["key"].as_str().unwrap_or_else(|| panic!("{made}")));
    let mut keyed = house.join(home, "/rooms/1", &proof).await;
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    let deleted = house.gateway.client().json("DELETE", &path, Some(&bob.token), &json!({})).await;
    assert_eq!(deleted.status(), 204);
    assert!(closes(&mut keyed).await, "the API key is deleted");

    let mut bobs = house.join(home, "/rooms/1", &bearer(&bob.token)).await;
    house.as_root("POST", &format!("/v1/users/{}/deactivate", bob.id), json!({})).await;
    assert!(closes(&mut bobs).await, "the account is switched off");

    let mut banned = house.join([127, 0, 0, 9], "/rooms/1", &bearer(&others_token("eve", &[], 600))).await;
    let block = house.gateway.operator().json("PUT", "/admin/ip-blocks/127.0.0.9", None, &json!({})).await;
    assert!(block.status() < 300, "{:?}", block.body);
    assert!(closes(&mut banned).await, "the client is banned");

    stays.write_all(b"still").await.unwrap();
    assert_eq!(read_until(&mut stays, "still").await, "still", "nobody else is disturbed");
    house.gateway.edit_policy(|text| text.replace("path = \"/rooms/{room}\"", "path = \"/halls/{room}\""));
    assert!(closes(&mut stays).await, "the route is gone");
    for code in ["token_expired", "role_missing", "api_key_invalid", "client_blocked", "route_not_found"] {
        let closed = format!("palisade_websockets_closed_total{{reason=\"{code}\"}}");
        assert!(house.gateway.metric(&closed).await > 0.5, "{code}");
    }
}

#[tokio::test]
async fn a_ban_closes_websockets_though_nobody_answers_for_the_others() {
    let house = House::open(SWITCH).await;
    let ann = house.user("ann", &["staff"]).await;
    let mut others = Vec::new();
    for _ in 0..30 {
        others.push(house.join([127, 0, 0, 1], "/staff/1", &bearer(&ann.token)).await);
    }
    let mut banned = house.join([127, 0, 0, 9], "/staff/1", &bearer(&ann.token)).await;
    house.backend.program.freeze().await;
    // Nobody can be asked about roles any more, once what is known of them is too old.
    eventually("the permission service is missed", || async {
        house.gateway.client().get("/staff/1", Some(&ann.token)).await.status() == 503
    })
    .await;
    let block = house.gateway.operator().json("PUT", "/admin/ip-blocks/127.0.0.9", None, &json!({})).await;
    assert!(block.status() < 300, "{:?}", block.body);
    assert!(closes(&mut banned).await, "the ban counts at once");
    others[0].write_all(b"still").await.unwrap();
    assert_eq!(read_until(&mut others[0], "still").await, "still", "that nobody answers closes nothing");
    house.backend.program.signal("CONT");
}

#[tokio::test]
async fn a_role_that_is_taken_away_opens_nothing_whatever_the_token_says() {
    let house = House::open(FINE).await;
    let ann = house.user("ann", &["staff"]).await;
    let client = house.gateway.client();
    let roles_told = || {
        let received = house.rooms.received().pop().unwrap();
        received.lines().find_map(|line| line.strip_prefix("x-auth-roles: ")).map(str::to_owned)
    };
    assert_eq!(client.get("/staff/1", Some(&ann.token)).await.status(), 200);
    assert_eq!(roles_told().as_deref(), Some("staff"));
    house.set_roles(&ann, &["guest"]).await;
    assert_eq!(client.get("/staff/1", Some(&ann.token)).await.code(), "role_missing");
    assert_eq!(client.get("/rooms/1", Some(&ann.token)).await.status(), 200);
    assert_eq!(roles_told().as_deref(), Some("guest"), "the service is told what holds now");
    house.set_roles(&ann, &["staff"]).await;
    assert_eq!(client.get("/staff/1", Some(&ann.token)).await.status(), 200, "and one that is given counts");
    // A group gives a role as well.
    house.set_roles(&ann, &[]).await;
    house.as_root("PUT", "/v1/groups/night/members", json!({"users": [ann.id]})).await;
    house.as_root("PUT", "/v1/groups/night/roles", json!({"roles": ["staff"]})).await;
    assert_eq!(client.get("/staff/1", Some(&ann.token)).await.status(), 200);
    house.as_root("PUT", "/v1/groups/night/roles", json!({"roles": []})).await;
    assert_eq!(client.get("/staff/1", Some(&ann.token)).await.code(), "role_missing");
    // Whom the permission service does not know has the roles of the token.
    let eve = others_token("eve", &["staff"], 600);
    assert_eq!(client.get("/staff/1", Some(&eve)).await.status(), 200);
}

#[tokio::test]
async fn two_issuers_with_one_sub_are_two_people() {
    let house = House::open(FINE).await;
    let ann = house.user("ann", &["staff"]).await;
    let double = others_token(&ann.id, &[], 600);
    let client = house.gateway.client();
    let grants = json!({"permissions": [{"permission": "rooms:own", "resource": "*"}]});
    house.as_root("PUT", "/v1/roles/staff/permissions", grants).await;

    assert_eq!(client.get("/own/1", Some(&ann.token)).await.status(), 200);
    assert_eq!(client.get("/own/1", Some(&double)).await.code(), "permission_denied");
    assert_eq!(client.get("/staff/1", Some(&double)).await.code(), "role_missing");
    assert_eq!(
        client.get("/v1/auth/sessions", Some(&double)).await.code(),
        "token_invalid",
        "not taken there"
    );

    // An issuer to which the policy gives no `iss` writes another's into its tokens.
    let forged = token_of("palisade", &ann.id, &["staff"], 600);
    assert_eq!(client.get("/partners/1", Some(&forged)).await.code(), "permission_denied");

    for _ in 0..2 {
        assert_eq!(client.get("/few", Some(&double)).await.status(), 200);
    }
    assert_eq!(client.get("/few", Some(&double)).await.code(), "rate_limited");
    assert_eq!(client.get("/few", Some(&ann.token)).await.status(), 200, "a bucket of its own");

    let path = format!("/admin/revocations/sub/{}@other", ann.id);
    let revoked = house.gateway.operator().json("PUT", &path, None, &json!({})).await;
    assert!(revoked.status() < 300, "{:?}", revoked.body);
    eventually("the other one's token is revoked", || async {
        client.get("/rooms/1", Some(&double)).await.status() == 401
    })
    .await;
    assert_eq!(client.get("/rooms/1", Some(&ann.token)).await.status(), 200);
    assert!(
        house.gateway.program.events().iter().any(|line| line["user"] == format!("{}@other", ann.id)),
        "the log says whose word it is"
    );
}
