//! How many connections each client address holds.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// The connections of each address; an address without any is not remembered.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<IpAddr, u32>>>);

/// One connection's place, free again when dropped.
pub(super) struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    /// A place for `address`, unless it holds `most` already.
    pub(super) fn take(&self, address: IpAddr, most: u32) -> Option<Place> {
        let mut counts = self.0.lock();
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.0.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
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
        let address = IpAddr::from([192, 0, 2, 1]);
        let first = places.take(address, 1);
        assert!(first.is_some() && places.take(address, 1).is_none());
        drop(first);
        assert!(places.0.lock().is_empty() && places.take(address, 1).is_some());
    }
}
