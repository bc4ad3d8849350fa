//! What a password must be, and how hard to guess.

use serde::Serialize;
use zxcvbn::Score;

use crate::config::PasswordRule;

/// A longer password is refused, because hashing it would take too long.
pub(super) const MAX_BYTES: usize = 1024;

/// Of a longer password its first and its last so many characters are estimated. The time grows with the square and
/// more of the length, as `estimates_take_milliseconds_whatever_is_estimated` measures, and beyond 20 zxcvbn's products
/// overflow.
const ESTIMATED: usize = 20;

/// What zxcvbn takes for letters in disguise. It tries all combinations of those that a password holds, hundreds with
/// all of these; beyond the first few, each stands for a character that disguises nothing, which is as hard to guess.
const DISGUISES: &str = "4@8({[<3691!|70$5+%2";
const MOST_DISGUISES: usize = 4;
const UNDISGUISED: &str = "~^&*_=:;?,.'\"/)]";

/// What is known of the owner is compared with the password up to so many characters each.
const ABOUT: usize = 64;

/// A rule that a password breaks.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) detail: String,
}

/// Every rule that a password breaks. `about` is what is known of its owner, who should not use it in a password.
pub(crate) fn violations(rule: PasswordRule, password: &str, about: &[&str]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut broken = |name, detail| violations.push(Violation { rule: name, detail });
    if password.chars().count() < rule.min_length {
        broken("min_length", format!("at least {} characters long", rule.min_length));
    }
    if password.len() > MAX_BYTES {
        broken("max_length", format!("at most {MAX_BYTES} bytes long"));
        return violations;
    }
    if password.chars().any(char::is_control) {
        broken("control_characters", "without control characters".to_owned());
    }
    if about.iter().any(|known| !known.is_empty() && password.eq_ignore_ascii_case(known)) {
        broken("own_name", "not the name or the address of the account".to_owned());
    }
    if rule.strong && is_easy_to_guess(password, about) {
        broken("strength", "harder to guess: longer, or less like words, names and dates".to_owned());
    }
    violations
}

/// Whether both ends of a password are; it is at least as hard to guess as any part of it.
fn is_easy_to_guess(password: &str, about: &[&str]) -> bool {
    let about: Vec<String> = about.iter().map(|known| known.chars().take(ABOUT).collect()).collect();
    let about: Vec<&str> = about.iter().map(String::as_str).collect();
    let first: String = password.chars().take(ESTIMATED).collect();
    let beyond = password.chars().count().saturating_sub(ESTIMATED);
    let last: String = password.chars().skip(beyond).collect();
    let is_easy = |part: &str| zxcvbn::zxcvbn(&few_disguises(part), &about).score() < Score::Three;
    is_easy(&first) && (beyond == 0 || is_easy(&last))
}

/// The same text with no more than [`MOST_DISGUISES`] characters that may disguise letters.
fn few_disguises(part: &str) -> String {
    let mut seen: Vec<char> = Vec::new();
    let mut replace = |char: char| {
        if !DISGUISES.contains(char) {
            return char;
        }
        let at = seen.iter().position(|known| *known == char).unwrap_or_else(|| {
            seen.push(char);
            seen.len() - 1
        });
        at.checked_sub(MOST_DISGUISES).and_then(|at| UNDISGUISED.chars().nth(at)).unwrap_or(char)
    };
    part.chars().map(&mut replace).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn estimates_take_milliseconds_whatever_is_estimated() {
        let rule = PasswordRule { min_length: 12, strong: true };
        let crafted = [
            "4@8({[<6931!|70$5+%2".repeat(5),
            "p@$$w0rd1!".repeat(10),
            "aA1!".repeat(25),
            "1".repeat(100),
            "12".repeat(50),
            "abc".repeat(33),
            "1/1/11".repeat(16),
            "qwertyuiop".repeat(10),
            "zxcvbnm,./".repeat(10),
            "!|1l1|!".repeat(14),
            "é".repeat(100),
        ];
        let mut slowest = (Duration::ZERO, "");
        for password in &crafted {
            let begun = std::time::Instant::now();
            violations(rule, password, &[password, &"x".repeat(254)]);
            slowest = slowest.max((begun.elapsed(), password));
        }
        println!("the slowest estimate took {slowest:?}");
        assert!(
            slowest.0 < Duration::from_millis(500),
            "{slowest:?}: some ms, on a machine that does nothing else"
        );
    }

    #[test]
    fn few_characters_stand_for_letters_and_none_is_lost() {
        assert_eq!(few_disguises("p@$$w0rd1!"), "p@$$w0rd1~");
        let many = few_disguises(DISGUISES);
        assert_eq!(many.chars().filter(|char| DISGUISES.contains(*char)).count(), MOST_DISGUISES);
        assert_eq!(many.chars().collect::<std::collections::BTreeSet<_>>().len(), DISGUISES.len());
    }

    #[test]
    fn every_rule_that_is_broken_is_named() {
        let rule = PasswordRule { min_length: 12, strong: true };
        let names = |password: &str, about: &[&str]| -> Vec<_> {
            violations(rule, password, about).into_iter().map(|violation| violation.rule).collect()
        };
        assert_eq!(names("short", &[]), ["min_length", "strength"]);
        assert_eq!(names("passwordpassword", &[]), ["strength"]);
        assert_eq!(names("Annabelle.Smith", &["annabelle.smith"]), ["own_name", "strength"]);
        assert_eq!(names("correct horse battery", &["ann"]), [] as [&str; 0]);
        let end = format!("{}vK9#tq2Lm!zR", "a".repeat(30));
        assert_eq!(names(&end, &["ann"]), [] as [&str; 0], "one end that is hard to guess will do");
        assert_eq!(names(&"x".repeat(2_000), &[]), ["max_length"]);
    }
}
