use super::*;

fn guard() -> Arc<LoginGuard> {
    let key = HashKey::of(b"a key");
    LoginGuard::new(key, &Lockout::default(), Metrics::new().unwrap())
}

fn at(begun: Instant, milliseconds: u64) -> Instant {
    begun + Duration::from_millis(milliseconds)
}

/// A guess that fails, if it may be made at all; how many have failed in a row.
fn guess(guard: &Arc<LoginGuard>, name: Hash, now: Instant, in_a_row: &mut u32) -> bool {
    let Ok(ticket) = guard.admit_at(name, false, now) else { return false };
    *in_a_row += 1;
    ticket.failed(*in_a_row);
    true
}

#[test]
fn a_crowd_that_floods_gets_next_to_nothing_and_a_quiet_account_is_let_in() {
    let (guard, begun) = (guard(), Instant::now());
    let names: Vec<_> = (0..40).map(|number| guard.key().name(&format!("victim-{number}"))).collect();
    let mut counts = [0; 40];
    let mut evaluated = 0;
    for turn in 0..10_000_u64 {
        let which = usize::try_from(turn).unwrap() % 40;
        // Five hundred a second.
        evaluated += u64::from(guess(&guard, names[which], at(begun, turn * 2), &mut counts[which]));
    }
    assert!(evaluated <= 80, "{evaluated}");
    let end = at(begun, 20_000);
    assert!(guard.admit_at(guard.key().name("honest"), false, end).is_ok(), "nobody failed at this one");
    assert!(guard.admit_at(names[0], true, end).is_ok(), "nor does it matter to a known place");
    let (_, wait) = guard.admit_at(names[0], false, end).err().unwrap();
    assert!(wait <= Duration::from_secs(3), "{wait:?}");
    assert!(guard.admit_at(names[0], false, end + wait + Duration::from_millis(1)).is_ok());
}

#[test]
fn five_wrong_logins_a_second_hold_nobody_up_not_even_at_the_one_account_that_they_aim_at() {
    let (guard, begun) = (guard(), Instant::now());
    let victim = guard.key().name("victim");
    let mut in_a_row = 0;
    for turn in 0..3_000_u64 {
        let now = at(begun, turn * 200);
        guess(&guard, victim, now, &mut in_a_row);
        if turn % 50 == 49 {
            let ticket = guard.admit_at(victim, false, at(begun, turn * 200 + 100));
            assert!(ticket.is_ok(), "its owner, from a new address, at {turn}");
            ticket.unwrap().succeeded();
            in_a_row = 0;
        }
    }
}

#[test]
fn who_is_patient_gets_a_hundred_guesses_and_then_one_a_minute() {
    let (guard, begun) = (guard(), Instant::now());
    let victim = guard.key().name("victim");
    let mut in_a_row = 0;
    let a_day = 24 * 3_600;
    let evaluated =
        (0..a_day).filter(|second| guess(&guard, victim, at(begun, second * 1_000), &mut in_a_row)).count();
    assert!(evaluated <= 100 + 24 * 60 + 1, "{evaluated}");
    guard.forget(victim);
    assert!(guard.admit_at(victim, false, at(begun, a_day * 1_000)).is_ok(), "a reset opens it again");
}

#[test]
fn a_right_password_is_not_counted_and_leaves_nothing_behind() {
    let (guard, begun) = (guard(), Instant::now());
    for turn in 0..1_000 {
        let name = guard.key().name(&format!("user-{turn}"));
        guard.admit_at(name, false, begun).ok().unwrap().succeeded();
        guard.admit_at(name, false, begun).ok().unwrap().give_back();
    }
    assert!(guard.state.lock().names.is_empty());
}

#[test]
fn memory_has_a_bound_and_a_name_that_many_guessed_at_outlives_those_that_were_made_up() {
    let (guard, begun) = (guard(), Instant::now());
    let victim = guard.key().name("victim");
    let mut in_a_row = 0;
    while in_a_row < 100 {
        guess(&guard, victim, at(begun, u64::from(in_a_row) * 1_000), &mut in_a_row);
    }
    let later = at(begun, 200_000);
    for number in 0..2 * MOST_NAMES {
        // Slow enough to be let in.
        let now = later + Duration::from_millis(130) * u32::try_from(number).unwrap();
        guess(&guard, guard.key().name(&format!("made-up-{number}")), now, &mut 0);
    }
    let state = guard.state.lock();
    assert!(state.names.len() <= MOST_NAMES);
    assert_eq!(state.names.get(&victim).map(|name| name.failures), Some(100));
}
