//! Permissions against a model, and how soon a change counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::accounts::lenient;
use tests::load::percentile;
use tests::permissions::{Administrator, access_token, allows, session};
use tests::stack::{Backend, Gateway};

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

/// Makes one random change, here and in the model.
async fn change(admin: &Administrator, model: &mut Model, users: &[String], random: &mut Random) {
    match random.below(6) {
        0 => {
            let (user, roles) = (random.of(users).clone(), random.some(&ROLES, 3));
            admin.put(&format!("/v1/users/{user}/roles"), json!({"roles": roles})).await;
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
            admin.put(&format!("/v1/roles/{role}/permissions"), json!({"permissions": body})).await;
            model.grants.insert(role.to_owned(), grants);
        }
        2 => {
            let (group, members) = (*random.of(&GROUPS), random.some(users, 3));
            admin.put(&format!("/v1/groups/{group}/members"), json!({"users": members})).await;
            model.members.insert(group.to_owned(), members.into_iter().collect());
        }
        3 => {
            let (group, roles) = (*random.of(&GROUPS), random.some(&ROLES, 4));
            admin.put(&format!("/v1/groups/{group}/roles"), json!({"roles": roles})).await;
            model.group_roles.insert(group.to_owned(), roles.iter().map(|role| (*role).to_owned()).collect());
        }
        4 if model.acl.len() < 12 => add_entry(admin, model, users, random).await,
        _ => {
            let Some(id) = model.acl.keys().nth(random.below(model.acl.len().max(1))).cloned() else {
                return;
            };
            let path = format!("/v1/acl/{id}");
            assert_eq!(
                admin.client.json("DELETE", &path, Some(&admin.token), &json!({})).await.status(),
                200
            );
            model.acl.remove(&id);
        }
    }
}

async fn add_entry(admin: &Administrator, model: &mut Model, users: &[String], random: &mut Random) {
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
    let answer = admin.client.json("POST", "/v1/acl", Some(&admin.token), &body).await;
    assert_eq!(answer.status(), 201, "{:?}", answer.body);
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    model.acl.insert(id, (principal, permission, pattern, allow));
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
    let admin = Administrator::log_in(client).await;
    for role in ROLES {
        admin.put(&format!("/v1/roles/{role}/permissions"), json!({"permissions": []})).await;
    }
    for group in GROUPS {
        admin.put(&format!("/v1/groups/{group}/members"), json!({"users": []})).await;
    }
    let (mut users, mut tokens) = (Vec::new(), Vec::new());
    for number in 0..6 {
        let name = format!("user-{number}");
        users.push(backend.add_user(&name, &[]).await);
        tokens.push(access_token(&session(&client, &name).await));
    }
    for gateway in &gateways {
        gateway.follows_the_feed().await;
    }
    let mut random = Random(20_261_121);
    let (mut model, mut allowed, mut checks) = (Model::default(), 0, 0);
    let begun = Instant::now();
    for number in 0..CHANGES {
        change(&admin, &mut model, &users, &mut random).await;
        for gateway in &gateways {
            let user = random.below(users.len());
            let (permission, resource) = (*random.of(&PERMISSIONS), *random.of(&RESOURCES));
            let expected = model.allows(&users[user], permission, resource);
            let found = allows(&gateway.client(), &tokens[user], permission, resource).await;
            assert_eq!(found, expected, "after change {number}: {user} {permission} {resource}");
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

#[tokio::test]
async fn a_revoked_grant_or_token_is_refused_at_three_gateways_at_once() {
    const ROUNDS: usize = 100;
    let backend = Backend::start(&[]).await;
    let mut gateways = Vec::new();
    for _ in 0..3 {
        gateways.push(Gateway::start(backend.address, &lenient(), &[]).await);
    }
    backend.add_user("root", &["admin"]).await;
    let ann = backend.add_user("ann", &[]).await;
    let client = gateways[0].client();
    let admin = Administrator::log_in(client).await;
    let grants = json!({"permissions": [{"permission": "records:read", "resource": "notes"}]});
    admin.put("/v1/roles/reader/permissions", grants).await;
    for gateway in &gateways {
        gateway.follows_the_feed().await;
    }
    let roles = format!("/v1/users/{ann}/roles");
    let (mut grants, mut tokens) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let session = session(&client, "ann").await;
        let ann = access_token(&session);
        admin.put(&roles, json!({"roles": ["reader"]})).await;
        for gateway in &gateways {
            assert!(allows(&gateway.client(), &ann, "records:read", "notes").await);
        }
        admin.put(&roles, json!({"roles": []})).await;
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
    let [grant, token] = [grants, tokens].map(|times| percentile(times, 0.99));
    println!(
        "first refusal at all three after the answer, p99 of {ROUNDS}: grant {grant:?}, token {token:?}"
    );
    assert!(grant < Duration::from_millis(100) && token < Duration::from_millis(100));
}
