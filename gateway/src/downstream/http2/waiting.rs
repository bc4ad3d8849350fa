//! Headers that have been read and whose streams `h2` has not passed on yet; and what was wrong with trailers.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use pingora_http::RequestHeader;

use super::excess::Excess;
use crate::downstream::head::HeadFault;

/// The most headers of one connection that may wait. `h2` passes on as many streams as may be open. It resets those
/// beyond that, and their headers are dropped when the reset is sent.
const MOST: usize = 1_024;

/// The waiting headers of one connection.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    headers: BTreeMap<u32, Box<RequestHeader>>,
    /// Streams that are accepted and not finished.
    served: BTreeSet<u32>,
    faults: BTreeMap<u32, HeadFault>,
}

impl Waiting {
    /// Stores a header until its stream is accepted.
    pub(crate) fn put(&self, stream: u32, header: Box<RequestHeader>) -> Result<(), Excess> {
        let mut state = self.0.lock();
        if state.headers.len() >= MOST {
            return Err(Excess::Streams);
        }
        state.headers.insert(stream, header);
        Ok(())
    }

    /// Takes the header of an accepted stream. Streams are accepted in order, so an earlier stream that still waits
    /// will never be accepted.
    pub(crate) fn take(&self, stream: u32) -> Option<Box<RequestHeader>> {
        let mut state = self.0.lock();
        let mut later = state.headers.split_off(&stream);
        let header = later.remove(&stream);
        state.headers = later;
        if header.is_some() {
            state.served.insert(stream);
        }
        header
    }

    /// Notes what is wrong with a stream's trailers.
    pub(crate) fn note_fault(&self, stream: u32, fault: HeadFault) {
        let mut state = self.0.lock();
        // No code asks about a stream that is finished.
        if state.served.contains(&stream) || state.headers.contains_key(&stream) {
            state.faults.insert(stream, fault);
        }
    }

    /// Whether something is wrong with a stream's trailers.
    pub(crate) fn has_fault(&self, stream: u32) -> bool {
        self.0.lock().faults.contains_key(&stream)
    }

    /// What is wrong with a stream's trailers, if anything is.
    pub(crate) fn take_fault(&self, stream: u32) -> Option<HeadFault> {
        self.0.lock().faults.remove(&stream)
    }

    /// Headers that wait.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().headers.len()
    }

    /// Forgets a stream that was reset from here.
    pub(crate) fn forget(&self, stream: u32) {
        let mut state = self.0.lock();
        state.headers.remove(&stream);
        state.served.remove(&stream);
        state.faults.remove(&stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_has_a_bound_and_is_dropped_with_its_stream() {
        let waiting = Waiting::default();
        let header = || Box::new(RequestHeader::build("GET", b"/", None).unwrap());
        for number in 0..1_024 {
            waiting.put(number * 2 + 1, header()).unwrap();
        }
        assert_eq!(waiting.put(4_001, header()), Err(Excess::Streams));
        waiting.forget(3);
        waiting.put(4_001, header()).unwrap();
        assert!(waiting.take(3).is_none());
        assert!(waiting.take(2_001).is_some());
        assert!(waiting.0.lock().headers.keys().all(|stream| *stream > 2_001));
    }
}
