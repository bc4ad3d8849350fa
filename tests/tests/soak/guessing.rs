//! Guessing passwords for long: a crowd gets nowhere, and holds nobody up who has the right one; and nobody learns from
//! the time of an answer who has an account.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tests::accounts::{lenient, login};
use tests::client::Client;
use tests::eventually;
use tests::policy_text::PolicyText;
use tests::stack::{Backend, Gateway, PASSWORD, Stack, root};

/// An address of its own for each number, below a network of the test's.
fn address(network: u8, number: usize) -> [u8; 4] {
    let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
    [127, network, high, low]
}

/// Logs in, trying again when the answer says so: how long it took.
async fn gets_in(client: &Client, name: &str) -> Duration {
    let begun = Instant::now();
    loop {
        let answer = login(client, name, PASSWORD).await;
        if answer.status() == 200 {
            return begun.elapsed();
        }
        assert_eq!(answer.status(), 429, "{:?}", answer.body);
        assert!(begun.elapsed() < Duration::from_mins(1), "{name} does not get in");
        let wait: u64 = answer.field("retry-after").parse().unwrap();
        tokio::time::sleep(Duration::from_secs(wait)).await; // as the answer asks
    }
}

const GUESSES: usize = 10_000;

const ACCOUNTS: usize = 40;

/// Sixteen guessers at once, from some 6 700 addresses: what was answered.
fn attack(client: Client, guessed: &Arc<AtomicUsize>) -> Vec<tokio::task::JoinHandle<HashMap<u16, usize>>> {
    let next = Arc::new(AtomicUsize::new(0));
    let one = |_| {
        let (next, guessed) = (Arc::clone(&next), Arc::clone(guessed));
        tokio::spawn(async move {
            let mut statuses: HashMap<u16, usize> = HashMap::new();
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                if turn >= GUESSES {
                    return statuses;
                }
                // First each address three times, then each once.
                let source = if turn < GUESSES / 2 { turn / 3 } else { turn };
                let name = format!("victim-{}", turn % ACCOUNTS);
                let status = login(&client.at(address(100, source)), &name, &format!("guess {turn}")).await;
                guessed.fetch_add(1, Ordering::Relaxed);
                *statuses.entry(status.status()).or_default() += 1;
            }
        })
    };
    (0..16).map(one).collect()
}

#[tokio::test]
async fn ten_thousand_guesses_are_refused_at_99_percent_and_300_a_minute_hold_nobody_up() {
    crowd().await;
    trickle().await;
}

/// Ten thousand guesses, as fast as they go.
async fn crowd() {
    let stack = shipped_stack().await;
    for name in ["victim-0", "victim-1", "victim-2", "honest"] {
        stack.backend.add_user(name, &[]).await;
    }
    let at_home = stack.gateway.client().at([127, 201, 0, 1]);
    assert_eq!(login(&at_home, "victim-0", PASSWORD).await.status(), 200);
    let guessed = Arc::new(AtomicUsize::new(0));
    let attackers = attack(stack.gateway.client(), &guessed);
    eventually("the attack goes on", || async { guessed.load(Ordering::Relaxed) > GUESSES / 10 }).await;
    let home = login(&at_home, "victim-0", PASSWORD).await;
    assert_eq!(home.status(), 200, "a victim's owner, from where he was before: {:?}", home.body);
    let honest = gets_in(&stack.gateway.client().at([127, 202, 0, 1]), "honest").await;
    println!("an account at which nobody guessed was open from a new address after {honest:?}");
    let mut all: HashMap<u16, usize> = HashMap::new();
    for attacker in attackers {
        for (status, count) in attacker.await.unwrap() {
            *all.entry(status).or_default() += count;
        }
    }
    let compared = GUESSES - all.get(&429).copied().unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "a share to print")]
    let refused = 100.0 * (1.0 - compared as f64 / GUESSES as f64);
    println!("{GUESSES} guesses at {ACCOUNTS} accounts: {all:?}, {refused:.2} % refused");
    assert!(refused >= 99.0, "{all:?}");
    assert!(all.keys().all(|status| [401, 429].contains(status)), "{all:?}");
}

/// Five wrong logins a second, each from an address of its own, for as long as a hundred users log in.
async fn trickle() {
    const USERS: usize = 5;
    const TRIES: usize = 100;
    let stack = shipped_stack().await;
    for number in 0..USERS {
        stack.backend.add_user(&format!("user-{number}"), &[]).await;
    }
    let client = stack.gateway.client();
    let at_home = client.at([127, 201, 0, 2]);
    assert_eq!(login(&at_home, "user-0", PASSWORD).await.status(), 200);
    let sent = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&sent);
    let wrong = tokio::spawn(async move {
        let mut beat = tokio::time::interval(Duration::from_millis(200));
        loop {
            beat.tick().await;
            let number = counting.fetch_add(1, Ordering::Relaxed);
            let name = match number % 3 {
                0 => format!("made-up-{}", number % 40),
                1 => "user-0".to_owned(), // one of those who want to log in, above all others
                _ => format!("user-{}", number % USERS),
            };
            // The answer is waited for elsewhere: the next comes in time.
            tokio::spawn(async move { login(&client.at(address(110, number)), &name, "wrong").await });
        }
    });
    let mut took = Vec::new();
    for turn in 0..TRIES {
        let due = turn;
        eventually("the next wrong login", || async { sent.load(Ordering::Relaxed) >= due }).await;
        took.push(gets_in(&client.at(address(111, turn)), &format!("user-{}", turn % USERS)).await);
        if turn % 25 == 0 {
            let home = login(&at_home, "user-0", PASSWORD).await;
            assert_eq!(home.status(), 200, "at once, from a known address: {:?}", home.body);
        }
    }
    wrong.abort();
    took.sort_unstable();
    let in_time = took.iter().filter(|took| **took <= Duration::from_secs(3)).count();
    println!(
        "{} wrong logins at 300 a minute: {in_time} of {TRIES} got in from a new address within 3 s, \
         the slowest after {:?}; from a known one each at once",
        sent.load(Ordering::Relaxed),
        took.last()
    );
    assert!(in_time >= 99, "{took:?}");
}

/// The policy that is shipped, before a backend of the test's.
fn shipped(backend: &Backend) -> PolicyText {
    let text = std::fs::read_to_string(Path::new(root()).join("config/policy.toml")).unwrap();
    PolicyText::of(text)
        .replace("127.0.0.1:8090", &backend.address.to_string())
        .set("requests.max_connections", 1_000)
}

async fn shipped_stack() -> Stack {
    let backend = Backend::start(&[]).await;
    let gateway = Gateway::start(backend.address, &shipped(&backend), &[]).await;
    Stack { backend, gateway }
}

#[tokio::test]
async fn an_unknown_account_takes_as_long_as_a_wrong_password() {
    let backend = Backend::start(&[("PALISADE_BACKEND__ACCOUNTS__LOCKOUT__FAILURES", "1000000")]).await;
    let gateway = Gateway::start(backend.address, &lenient(), &[]).await;
    backend.add_user("ann", &[]).await;
    let client = gateway.client();
    let mut took = [Vec::new(), Vec::new()];
    for turn in 0..120 {
        for (times, name) in took.iter_mut().zip(["ann", "nobody"]) {
            let begun = Instant::now();
            assert_eq!(login(&client, name, "wrong").await.status(), 401);
            if turn >= 20 {
                times.push(begun.elapsed());
            }
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64()
    };
    let [known, unknown] = took.each_mut().map(median);
    println!("wrong {:.2} ms, unknown {:.2} ms: ratio {:.3}", known * 1e3, unknown * 1e3, unknown / known);
    assert!((unknown / known - 1.0).abs() < 0.1, "{known} {unknown}");
}
