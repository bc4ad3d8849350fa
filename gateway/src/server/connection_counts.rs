//! How many connections each client holds.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::Mutex;

/// The connections of each client's network; one without any is not remembered.
#[derive(Clone, Default)]
pub(crate) struct Places(Arc<Mutex<HashMap<IpNet, u32>>>);

/// One connection's place, free again when dropped.
pub(crate) struct Place {
    places: Places,
    client: IpNet,
}

impl Places {
    /// A place for `client`, unless it holds `most` already.
    pub(crate) fn take(&self, client: IpNet, most: u32) -> Option<Place> {
        let mut counts = self.0.lock();
        let count = counts.entry(client).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.0.lock();
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_place_is_free_again_and_leaves_nothing_behind() {
        let places = Places::default();
        let client = "192.0.2.1/32".parse().unwrap();
        let first = places.take(client, 1);
        assert!(first.is_some() && places.take(client, 1).is_none());
        drop(first);
        assert!(places.0.lock().is_empty() && places.take(client, 1).is_some());
    }
}
