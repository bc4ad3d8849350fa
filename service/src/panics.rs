//! The last that a program says: a panic, and the error with which it ends. Neither waits for somebody who does not read.

use std::any::Any;
use std::sync::mpsc::channel;

use tracing::error;

use crate::lines::{FLUSH_PATIENCE, flush};

/// The most that is logged of a panic's message, in bytes.
const LONGEST: usize = 200;

/// Logs panics from now on, instead of writing them to standard error, where a pipe that nobody reads would hold up the
/// end of the program.
pub fn log_them() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        error!(place, what = message(info.payload()), "panic: this is a fault of the program");
        flush(FLUSH_PATIENCE);
    }));
}

/// What a panic says, without what it quotes: that may be a client's.
fn message(payload: &dyn Any) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
    let bare = text.split_once(['`', '"']).map_or(text, |(bare, _)| bare);
    bare.get(..bare.floor_char_boundary(LONGEST)).unwrap_or_default().to_owned()
}

/// Writes the last line to standard error, after every log line, and waits for neither longer than a moment.
pub fn last_words(text: String) {
    flush(FLUSH_PATIENCE);
    let (done, written) = channel();
    let spawned = std::thread::Builder::new().spawn(move || {
        eprintln!("{text}");
        let _ = done.send(());
    });
    if spawned.is_ok() {
        let _ = written.recv_timeout(FLUSH_PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_without_what_it_quotes() {
        let told = |text: &str| message(&text.to_owned());
        assert_eq!(
            told("index out of bounds: the len is 3 but the index is 7"),
            "index out of bounds: the len is 3 but the index is 7"
        );
        assert_eq!(told("it is inside 'e' of `a secret`"), "it is inside 'e' of ");
        assert_eq!(told("called `Result::unwrap()` on an `Err` value: \"p\""), "called ");
        assert_eq!(message(&"static"), "static");
        assert!(told(&"x".repeat(1_000)).len() <= LONGEST);
    }
}
