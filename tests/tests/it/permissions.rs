//! Permissions against a model, how soon a change counts, and how long an answer is believed when changes cannot be heard
//! of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::{Client, closes, read_for};
use tests::eventually;
use tests::fault::FaultProxy;
use tests::policy_text::PolicyText;
use tests::stack::{Backend, Gateway, PASSWORD};
use tests::upstream::RawUpstream;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Chance that a test can repeat: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    fn some<T: Clone>(&mut self, items: &[T], one_in: u64) -> Vec<T> {
        items.iter().filter(|_| self.next().is_multiple_of(one_in)).cloned().collect()
    }
}

const ROLES: [&str; 4] = ["reader", "writer", "auditor", "guest"];
const GROUPS: [&str; 3] = ["staff", "night-shift", "partners"];
const RESOURCES: [&str; 5] = ["notes", "team-a", "team-b", "team", "plans"];
const PATTERNS: [&str; 6] = ["notes", "team-*", "team-a", "t*", "*", "plans"];
const PERMISSIONS: [&str; 2] = ["records:read", "records:write"];

/// Who may do what, as naively as can be.
#[derive(Default)]
struct Model {
    roles: BTreeMap<String, Vec<String>>,
    grants: BTreeMap<String, Vec<(String, String)>>,
    members: BTreeMap<String, BTreeSet<String>>,
    group_roles: BTreeMap<String, Vec<String>>,
    acl: BTreeMap<String, (String, String, String, bool)>,
}

fn covers(pattern: &str, resource: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == resource, |prefix| resource.starts_with(prefix))
}

impl Model {
    fn allows(&self, user: &str, permission: &str, resource: &str) -> bool {
        let groups: Vec<&String> =
            self.members.iter().filter(|(_, users)| users.contains(user)).map(|(group, _)| group).collect();
        let mut roles: BTreeSet<&String> = self.roles.get(user).into_iter().flatten().collect();
        roles.extend(groups.iter().flat_map(|group| self.group_roles.get(*group).into_iter().flatten()));
        let is_of = |principal: &str| match principal.split_once(':').unwrap() {
            ("user", id) => id == user,
            ("role", name) => roles.iter().any(|role| *role == name),
            (_, name) => groups.iter().any(|group| *group == name),
        };
        let entries = || {
            self.acl.values().filter(|(principal, on, pattern, _)| {
                is_of(principal) && (on == "*" || on == permission) && covers(pattern, resource)
            })
        };
        if entries().any(|entry| !entry.3) {
            return false;
        }
        let granted = |role: &&String| {
            self.grants
                .get(*role)
                .into_iter()
                .flatten()
                .any(|(on, pattern)| (on == "*" || on == permission) && covers(pattern, resource))
        };
        entries().any(|entry| entry.3) || roles.iter().any(granted)
    }
}

/// A backend behind a gateway, an administrator, and a call as them.
struct Setup {
    client: Client,
    admin: String,
}

impl Setup {
    async fn put(&self, path: &str, body: Value) {
        let answer = self.client.json("PUT", path, Some(&self.admin), &body).await;
        assert_eq!(answer.status(), 200, "PUT {path}: {:?}", answer.body);
    }

    /// Makes one random change, here and in the model.
    async fn change(&self, model: &mut Model, users: &[String], random: &mut Random) {
        match random.below(6) {
            0 => {
                let (user, roles) = (random.of(users).clone(), random.some(&ROLES, 3));
                self.put(&format!("/v1/users/{user}/roles"), json!({"roles": roles})).await;
                model.roles.insert(user, roles.iter().map(|role| (*role).to_owned()).collect());
            }
            1 => {
                let role = *random.of(&ROLES);
                let mut grants = Vec::new();
                for pattern in random.some(&PATTERNS, 4) {
                    grants.push((
                        (*random.of(&["records:read", "records:write", "*"])).to_owned(),
                        pattern.to_owned(),
                    ));
                }
                let body: Vec<_> =
                    grants.iter().map(|(one, on)| json!({"permission": one, "resource": on})).collect();
                self.put(&format!("/v1/roles/{role}/permissions"), json!({"permissions": body})).await;
                model.grants.insert(role.to_owned(), grants);
            }
            2 => {
                let (group, members) = (*random.of(&GROUPS), random.some(users, 3));
                self.put(&format!("/v1/groups/{group}/members"), json!({"users": members})).await;
                model.members.insert(group.to_owned(), members.into_iter().collect());
            }
            3 => {
                let (group, roles) = (*random.of(&GROUPS), random.some(&ROLES, 4));
                self.put(&format!("/v1/groups/{group}/roles"), json!({"roles": roles})).await;
                model
                    .group_roles
                    .insert(group.to_owned(), roles.iter().map(|role| (*role).to_owned()).collect());
            }
            4 if model.acl.len() < 12 => self.add_entry(model, users, random).await,
            _ => {
                let Some(id) = model.acl.keys().nth(random.below(model.acl.len().max(1))).cloned() else {
                    return;
                };
                let path = format!("/v1/acl/{id}");
                assert_eq!(
                    self.client.json("DELETE", &path, Some(&self.admin), &json!({})).await.status(),
                    200
                );
                model.acl.remove(&id);
            }
        }
    }

    async fn add_entry(&self, model: &mut Model, users: &[String], random: &mut Random) {
        let principal = match random.below(3) {
            0 => format!("user:{}", random.of(users)),
            1 => format!("role:{}", random.of(&ROLES)),
            _ => format!("group:{}", random.of(&GROUPS)),
        };
        let permission = (*random.of(&["records:read", "records:write", "*"])).to_owned();
        let (pattern, allow) = ((*random.of(&PATTERNS)).to_owned(), random.below(2) == 0);
        let effect = if allow { "allow" } else { "deny" };
        let body =
            json!({"principal": principal, "permission": permission, "resource": pattern, "effect": effect});
        let answer = self.client.json("POST", "/v1/acl", Some(&self.admin), &body).await;
        assert_eq!(answer.status(), 201, "{:?}", answer.body);
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        model.acl.insert(id, (principal, permission, pattern, allow));
    }
}

fn lenient() -> PolicyText {
    PolicyText::shipped().set("limits.login.rate", "1000/s")
}

async fn login(client: &Client, name: &str) -> Value {
    let body = json!({"username": name, "password": PASSWORD});
    client.json("POST", "/v1/auth/login", None, &body).await.json()
}

fn token(tokens: &Value) -> String {
    tokens["access_token"].as_str().unwrap().to_owned()
}

/// What a gateway decides; whether there is such a record is another matter.
async fn allows(client: &Client, token: &str, permission: &str, resource: &str) -> bool {
    let path = format!("/v1/collections/{resource}/records/none");
    let method = if permission == "records:read" { "GET" } else { "DELETE" };
    let answer = client.ask(method, &path, &[("authorization", &format!("Bearer {token}"))], "").await;
    match answer.status() {
        404 => true,
        403 => false,
        status => panic!("{method} {path}: {status} {:?}", answer.body),
    }
}

async fn follows(gateway: &Gateway) {
    eventually("it follows the feed", || async {
        gateway.metric("palisade_permission_feed_lag_seconds").await >= 0.0
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_changes_are_known_at_two_gateways_by_the_time_they_are_acknowledged() {
    const CHANGES: usize = 10_000;
    let backend = Backend::start(&[("PALISADE_BACKEND__DATABASE__SYNCHRONOUS", "normal")]).await;
    let gateways = [
        Gateway::start(backend.address, &lenient(), &[]).await,
        Gateway::start(backend.address, &lenient(), &[]).await,
    ];
    backend.add_user("root", &["admin"]).await;
    let client = gateways[0].client();
    let setup = Setup { client, admin: token(&login(&client, "root").await) };
    for role in ROLES {
        setup.put(&format!("/v1/roles/{role}/permissions"), json!({"permissions": []})).await;
    }
    for group in GROUPS {
        setup.put(&format!("/v1/groups/{group}/members"), json!({"users": []})).await;
    }
    let (mut users, mut tokens) = (Vec::new(), Vec::new());
    for number in 0..6 {
        let name = format!("user-{number}");
        users.push(backend.add_user(&name, &[]).await);
        tokens.push(token(&login(&client, &name).await));
    }
    for gateway in &gateways {
        follows(gateway).await;
    }
    let mut random = Random(20_261_121);
    let (mut model, mut allowed, mut checks) = (Model::default(), 0, 0);
    let begun = Instant::now();
    for change in 0..CHANGES {
        setup.change(&mut model, &users, &mut random).await;
        for gateway in &gateways {
            let user = random.below(users.len());
            let (permission, resource) = (*random.of(&PERMISSIONS), *random.of(&RESOURCES));
            let expected = model.allows(&users[user], permission, resource);
            let found = allows(&gateway.client(), &tokens[user], permission, resource).await;
            assert_eq!(found, expected, "after change {change}: {user} {permission} {resource}");
            allowed += usize::from(found);
            checks += 1;
        }
    }
    let statistics = gateways[1].operator().get("/admin/permissions", None).await.json();
    println!("{CHANGES} changes, {checks} checks, {allowed} allowed, in {:?}; {statistics}", begun.elapsed());
    assert!(
        allowed > checks / 20 && allowed < checks * 19 / 20,
        "both answers are frequent enough to mean something"
    );
}

fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let place = ((times.len() - 1) as f64 * share).ceil() as usize;
    times[place]
}

#[tokio::test]
async fn what_is_taken_back_is_refused_at_three_gateways_at_once() {
    const ROUNDS: usize = 100;
    let backend = Backend::start(&[]).await;
    let mut gateways = Vec::new();
    for _ in 0..3 {
        gateways.push(Gateway::start(backend.address, &lenient(), &[]).await);
    }
    backend.add_user("root", &["admin"]).await;
    let ann = backend.add_user("ann", &[]).await;
    let client = gateways[0].client();
    let setup = Setup { client, admin: token(&login(&client, "root").await) };
    let grants = json!({"permissions": [{"permission": "records:read", "resource": "notes"}]});
    setup.put("/v1/roles/reader/permissions", grants).await;
    for gateway in &gateways {
        follows(gateway).await;
    }
    let roles = format!("/v1/users/{ann}/roles");
    let (mut grants, mut tokens) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let session = login(&client, "ann").await;
        let ann = token(&session);
        setup.put(&roles, json!({"roles": ["reader"]})).await;
        for gateway in &gateways {
            assert!(allows(&gateway.client(), &ann, "records:read", "notes").await);
        }
        setup.put(&roles, json!({"roles": []})).await;
        let acknowledged = Instant::now();
        for gateway in &gateways {
            while allows(&gateway.client(), &ann, "records:read", "notes").await {}
        }
        grants.push(acknowledged.elapsed());
        let body = json!({"refresh_token": session["refresh_token"]});
        assert_eq!(client.json("POST", "/v1/auth/logout", None, &body).await.status(), 204);
        let acknowledged = Instant::now();
        for gateway in &gateways {
            while gateway.client().get("/v1/auth/sessions", Some(&ann)).await.status() != 401 {}
        }
        tokens.push(acknowledged.elapsed());
    }
    let [grant, token] = [grants, tokens].map(|mut times| percentile(&mut times, 0.99));
    println!(
        "first refusal at all three after the answer, p99 of {ROUNDS}: grant {grant:?}, token {token:?}"
    );
    assert!(grant < Duration::from_millis(100) && token < Duration::from_millis(100));
}

#[tokio::test]
async fn without_the_feed_no_answer_is_believed_longer_than_max_staleness() {
    const MOST: Duration = Duration::from_secs(2);
    let policy = lenient().set("permissions.max_staleness", "2s").set("breakers.backend.failures", 1_000_000);
    let backend = Backend::start(&[]).await;
    let near = Gateway::start(backend.address, &policy, &[]).await;
    let way = FaultProxy::to(backend.address).await;
    let cut = Gateway::start(way.address(), &policy, &[]).await;
    backend.add_user("root", &["admin"]).await;
    let ann = backend.add_user("ann", &[]).await;
    let client = near.client();
    let setup = Setup { client, admin: token(&login(&client, "root").await) };
    let grants = json!({"permissions": [{"permission": "records:read", "resource": "notes"}]});
    setup.put("/v1/roles/reader/permissions", grants).await;
    let roles = format!("/v1/users/{ann}/roles");
    setup.put(&roles, json!({"roles": ["reader"]})).await;
    let ann = token(&login(&client, "ann").await);
    follows(&cut).await;
    assert!(allows(&cut.client(), &ann, "records:read", "notes").await);

    way.cut();
    let begun = Instant::now();
    setup.put(&roles, json!({"roles": []})).await;
    println!("a change took {:?} with one of two gateways cut off", begun.elapsed());
    let revoked = Instant::now();
    let read = async || {
        let bearer = format!("Bearer {ann}");
        cut.client().ask("GET", "/v1/collections/notes/records/none", &[("authorization", &bearer)], "").await
    };
    let mut last_believed = Duration::ZERO;
    while revoked.elapsed() < MOST * 2 {
        let answer = read().await;
        match (answer.status(), answer.code().as_str()) {
            (502, "upstream_unreachable") => last_believed = revoked.elapsed(),
            (503, "permission_unavailable") => {}
            other => panic!("{other:?}"),
        }
    }
    println!("the old answer was believed for {last_believed:?} of at most {MOST:?}");
    assert!(last_believed < MOST, "{last_believed:?}");
    way.mend();
    eventually("it is refused once the way is free", || async { read().await.status() == 403 }).await;
}

#[tokio::test]
async fn a_websocket_is_closed_when_what_let_it_in_is_taken_back() {
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let rooms = RawUpstream::start(vec![(Duration::ZERO, switch)], true).await;
    let policy = lenient()
        + "[[routes]]\nname = \"room\"\npath = \"/rooms/{room}\"\nmethods = [\"GET\"]\nupstream = \"rooms\"\nauth = [\"jwt:accounts\"]\npermission = \"rooms:join\"\nresource = \"{room}\"\n";
    let backend = Backend::start(&[]).await;
    let places = [("PALISADE_GATEWAY__UPSTREAMS__ROOMS__ADDRESSES", rooms.address.to_string())];
    let places = places.each_ref().map(|(name, value)| (*name, value.as_str()));
    let gateway = Gateway::start(backend.address, &policy, &places).await;
    backend.add_user("root", &["admin"]).await;
    let (ann, bob) = (backend.add_user("ann", &[]).await, backend.add_user("bob", &[]).await);
    let client = gateway.client();
    let setup = Setup { client, admin: token(&login(&client, "root").await) };
    let grants = json!({"permissions": [{"permission": "rooms:join", "resource": "*"}]});
    setup.put("/v1/roles/talker/permissions", grants).await;
    for id in [&ann, &bob] {
        setup.put(&format!("/v1/users/{id}/roles"), json!({"roles": ["talker"]})).await;
    }
    follows(&gateway).await;
    let join = async |name: &str| {
        let session = login(&client, name).await;
        let head = format!(
            "GET /rooms/1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            token(&session)
        );
        let mut stream = client.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = read_for(&mut stream, Duration::from_millis(500)).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        (stream, session)
    };
    let echoes = async |stream: &mut TcpStream| {
        stream.write_all(b"hello").await.unwrap();
        read_for(stream, Duration::from_millis(300)).await == "hello"
    };
    let ((mut anns, _), (mut bobs, session)) = (join("ann").await, join("bob").await);
    assert!(echoes(&mut anns).await && echoes(&mut bobs).await);
    setup.put(&format!("/v1/users/{ann}/roles"), json!({"roles": []})).await;
    assert!(closes(&mut anns).await, "the permission is taken back");
    assert!(echoes(&mut bobs).await, "the other one goes on");
    let body = json!({"refresh_token": session["refresh_token"]});
    assert_eq!(client.json("POST", "/v1/auth/logout", None, &body).await.status(), 204);
    assert!(closes(&mut bobs).await, "the token is revoked");
}
