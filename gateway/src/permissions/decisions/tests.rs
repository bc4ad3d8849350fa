use super::*;
use policy::rules::permissions::OnPermissionFailure;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::time::Duration;

use protocol::feed::Kind;

const MOST_STALE: u64 = 500;

fn rule(capacity: u32) -> PermissionRule {
    PermissionRule {
        upstream: "backend".into(),
        ttl: Duration::from_secs(5),
        negative_ttl: Duration::from_secs(2),
        capacity,
        max_staleness: Duration::from_millis(MOST_STALE),
        on_failure: OnPermissionFailure::Deny,
    }
}

/// A yes or a no about a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(bool);

impl Answer for Word {
    fn is_yes(&self) -> bool {
        self.0
    }

    fn touched_by(&self, key: &[u8], change: &Change) -> bool {
        parts(key).next() == Some(change.name.as_bytes())
    }

    fn heap(&self) -> usize {
        0
    }
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_nanos((1_000_000 + ms) * 1_000_000)
}

fn change(revision: i64, user: usize) -> Change {
    let name = user.to_string();
    Change { revision, kind: Kind::User, name, permission: None, resource: None, until: None }
}

fn key(answers: &Answers<Word>, user: usize) -> Key {
    let name = user.to_string();
    answers.key(name.as_bytes(), &[name.as_bytes()])
}

/// The permission service: what is so, since when, and the log of changes.
#[derive(Default)]
struct Truth {
    log: Vec<Change>,
    /// For each user the times at which it changed, the latest last; each change is another word.
    flips: [Vec<u64>; 4],
}

impl Truth {
    fn word(&self, user: usize) -> Word {
        Word(self.flips[user].len() % 2 == 1)
    }

    /// Whether `word` was so at some time from `since` to now.
    fn was(&self, user: usize, word: Word, since: u64) -> bool {
        let later = self.flips[user].iter().filter(|time| **time > since).count();
        let at_since = (self.flips[user].len() - later) % 2 == 1;
        later > 0 || at_since == word.0
    }
}

/// A question in flight: when it was asked, at which moment, and the answer of the service, once there is one.
struct Asked {
    user: usize,
    since: u64,
    moment: Moment,
    said: Option<(Word, i64)>,
}

/// A round of the feed in flight: when it was asked, and its changes.
struct Round {
    asked_at: u64,
    known: i64,
    news: Option<News>,
}

fn simulate(seed: u64) -> (usize, usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let knowledge = Arc::new(Knowledge::default());
    let answers: Arc<Answers<Word>> = Answers::new(Arc::clone(&knowledge));
    // Room for less than there is to know, in some runs.
    let rule = rule(if seed.is_multiple_of(3) { 1 } else { 1_000 });
    let (mut truth, mut now) = (Truth::default(), 0);
    let (mut asked, mut round): (Vec<Asked>, Option<Round>) = (Vec::new(), None);
    let (mut cut_until, mut used_answers, mut late) = (0, 0, 0);
    for _ in 0..3_000 {
        now += random.random_range(0..20);
        let user = random.random_range(0..4);
        match random.random_range(0..12) {
            0 => {
                truth.flips[user].push(now);
                let revision = i64::try_from(truth.log.len()).unwrap() + 1;
                truth.log.push(change(revision, user));
            }
            1..3 => {
                let moment = knowledge.moment();
                asked.push(Asked { user, since: now, moment, said: None });
            }
            3..5 => {
                if let Some(one) = asked.iter_mut().find(|one| one.said.is_none()) {
                    one.said = Some((truth.word(one.user), i64::try_from(truth.log.len()).unwrap()));
                }
            }
            5..7 => {
                // Answers land in any order, some of them after changes that they do not know of.
                let landing = asked.iter().position(|one| one.said.is_some() && random.random_bool(0.5));
                if let Some(one) = landing.map(|place| asked.remove(place)) {
                    let found = key(&answers, one.user);
                    answers.land(&found, one.moment, one.said.as_ref(), rule.capacity, at(one.since));
                }
            }
            7 => match &mut round {
                None if now >= cut_until => {
                    round = Some(Round { asked_at: now, known: knowledge.revision(), news: None });
                }
                Some(round) if round.news.is_none() => {
                    let known = usize::try_from(round.known).unwrap();
                    let changes = truth.log[known..].to_vec();
                    let revision = i64::try_from(truth.log.len()).unwrap();
                    let reset = random.random_bool(0.02);
                    let changes = if reset { Vec::new() } else { changes };
                    round.news = Some(News { revision, run: String::new(), reset, changes, more: false });
                }
                _ => {}
            },
            8 => {
                if let Some(Round { asked_at, news: Some(news), .. }) =
                    round.take_if(|one| one.news.is_some())
                {
                    knowledge.note(&news);
                    answers.apply(&news, |_| Reach::All);
                    knowledge.heard(at(asked_at));
                }
            }
            9 if random.random_bool(0.05) => {
                cut_until = now + random.random_range(0..3_000);
                round = None;
            }
            _ => {
                let Some(word) = answers.find(&key(&answers, user), &rule, at(now)) else { continue };
                used_answers += 1;
                late += usize::from(word != truth.word(user));
                let since = now.saturating_sub(MOST_STALE);
                assert!(truth.was(user, word, since), "seed {seed}: {word:?} of {user} at {now}");
            }
        }
    }
    (used_answers, late)
}

#[test]
fn no_answer_is_used_that_was_not_right_within_max_staleness() {
    let (mut used, mut late) = (0, 0);
    for seed in 0..400 {
        let (more_used, more_late) = simulate(seed);
        used += more_used;
        late += more_late;
    }
    println!("{used} answers used, {late} of them overtaken by a change that was not received yet");
    assert!(used > 20_000 && late > 50, "the simulation reaches what it is for: {used} {late}");
}

#[tokio::test]
async fn what_is_asked_by_many_is_asked_once_but_never_joined_over_a_change() {
    let knowledge = Arc::new(Knowledge::default());
    let answers: Arc<Answers<Word>> = Answers::new(Arc::clone(&knowledge));
    let (release, gate) = watch::channel(false);
    let asked = Arc::new(AtomicU64::new(0));
    let ask = |word| {
        let (answers, asked, mut gate) = (Arc::clone(&answers), Arc::clone(&asked), gate.clone());
        tokio::spawn(async move {
            let found = key(&answers, 1);
            let question = || async move {
                asked.fetch_add(1, Ordering::Relaxed);
                gate.wait_for(|open| *open).await.ok()?;
                Some((Word(word), i64::from(word)))
            };
            answers.ask(&found, 100, at(0), question).await
        })
    };
    let early: Vec<_> = (0..10).map(|_| ask(false)).collect();
    while answers.statistics.joined.load(Ordering::Relaxed) < 9 {
        tokio::task::yield_now().await;
    }
    let news =
        News { revision: 1, run: String::new(), reset: false, changes: vec![change(1, 1)], more: false };
    knowledge.note(&news);
    answers.apply(&news, |_| Reach::All);
    let later = ask(true);
    while asked.load(Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    release.send_replace(true);
    for one in early {
        assert_eq!(one.await.unwrap(), Some(Word(false)));
    }
    assert_eq!(later.await.unwrap(), Some(Word(true)));
    assert_eq!(answers.last_known(&key(&answers, 1)), Some(Word(true)), "the early one is not kept");
}

#[tokio::test]
async fn who_asked_first_may_leave() {
    let answers: Arc<Answers<Word>> = Answers::new(Arc::default());
    let found = key(&answers, 1);
    let mut first = Box::pin(answers.ask(&found, 100, at(0), || async {
        tokio::task::yield_now().await;
        Some((Word(true), 1))
    }));
    assert!(futures_util::poll!(&mut first).is_pending());
    let second = answers.ask(&found, 100, at(0), || async { None });
    drop(first);
    assert_eq!(second.await, Some(Word(true)));
}

/// An answer that holds much.
#[derive(Clone)]
struct Heavy(usize);

impl Answer for Heavy {
    fn is_yes(&self) -> bool {
        true
    }

    fn touched_by(&self, _: &[u8], _: &Change) -> bool {
        false
    }

    fn heap(&self) -> usize {
        self.0
    }
}

#[tokio::test]
async fn answers_have_a_bound_in_bytes_whatever_each_holds() {
    const CAPACITY: u32 = 10_000;
    let answers: Arc<Answers<Heavy>> = Answers::new(Arc::default());
    let longest = "k".repeat(LONGEST_KEY - 10);
    for number in 0..2_000_usize {
        let key = answers.key(&number.to_le_bytes(), &[format!("{longest}{number}").as_bytes()]);
        let heavy = Heavy([100, 10_000, 1_000_000][number % 3]);
        let asked = answers.ask(&key, CAPACITY, at(0), || async move { Some((heavy, 1)) }).await;
        assert!(asked.is_some(), "who asks gets it, kept or not");
    }
    let most = usize::try_from(CAPACITY).unwrap().div_ceil(SHARDS) * SHARDS * BYTES_EACH;
    assert!((most / 2..=most).contains(&answers.bytes()), "{} of {most}", answers.bytes());
}
