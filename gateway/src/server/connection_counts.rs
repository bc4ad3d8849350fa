//! How many connections each client holds.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::Mutex;

/// The number of connections of each client's network; a network without connections has no entry.
#[derive(Clone, Default)]
pub(crate) struct ConnectionCounts(Arc<Mutex<HashMap<IpNet, u32>>>);

/// The right to one connection; given back when dropped.
pub(crate) struct ConnectionPermit {
    counts: ConnectionCounts,
    client: IpNet,
}

impl ConnectionCounts {
    /// A permit for `client`, unless it holds `most` already.
    pub(crate) fn take(&self, client: IpNet, most: u32) -> Option<ConnectionPermit> {
        let mut counts = self.0.lock();
        let count = counts.entry(client).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(ConnectionPermit { counts: self.clone(), client })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock();
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
    fn a_dropped_permit_is_free_again_and_leaves_nothing_behind() {
        let counts = ConnectionCounts::default();
        let client = "192.0.2.1/32".parse().unwrap();
        let first = counts.take(client, 1);
        assert!(first.is_some() && counts.take(client, 1).is_none());
        drop(first);
        assert!(counts.0.lock().is_empty() && counts.take(client, 1).is_some());
    }
}
