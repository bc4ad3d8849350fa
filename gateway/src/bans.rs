//! The ban list as requests read it: a snapshot, no lock.

use std::collections::HashMap;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use parking_lot::Mutex;
use policy::blocks::Ban;
use policy::client::Client;
use policy::time::Timestamp;

use crate::store::BanChange;

/// Bans in force, and those that were lifted lately.
#[derive(Default)]
pub struct BanList {
    /// The truth; changed under the lock.
    changes: Mutex<HashMap<IpNet, BanChange>>,
    /// What requests read.
    table: ArcSwap<Table>,
}

#[derive(Default)]
struct Table {
    /// Bans of one client's network, by exactly that network.
    clients: HashMap<IpNet, Ban>,
    /// Wider bans.
    wide: Vec<(IpNet, Ban)>,
}

impl BanList {
    /// The ban that `client` is under.
    pub fn find(&self, client: &Client, now: Timestamp) -> Option<Ban> {
        let table = self.table.load();
        let exact = table.clients.get(&client.network);
        let host = || table.clients.get(&IpNet::from(client.address));
        let wide =
            || table.wide.iter().find(|(network, _)| network.contains(&client.address)).map(|(_, ban)| ban);
        exact.or_else(host).or_else(wide).copied().filter(|ban| ban.holds(now))
    }

    /// Takes in a change, unless a later one is known. Says whether it was news.
    pub fn apply(&self, change: BanChange, now: Timestamp) -> bool {
        let mut changes = self.changes.lock();
        let known = changes.get(&change.network);
        if known.is_some_and(|known| known.changed_at >= change.changed_at) {
            return false;
        }
        changes.insert(change.network, change);
        changes.retain(|_, change| change.matters(now));
        self.table.store(Table::new(changes.values()));
        true
    }

    /// Every change that still matters.
    pub fn changes(&self, now: Timestamp) -> Vec<BanChange> {
        self.changes.lock().values().filter(|change| change.matters(now)).cloned().collect()
    }

    /// Bans in force.
    pub fn active(&self, now: Timestamp) -> usize {
        self.changes.lock().values().filter(|change| !change.lifted && change.matters(now)).count()
    }
}

impl Table {
    fn new<'c>(changes: impl Iterator<Item = &'c BanChange>) -> std::sync::Arc<Self> {
        let mut table = Self::default();
        for change in changes.filter(|change| !change.lifted) {
            let ban = Ban { until: change.until.map(Timestamp::from_nanos) };
            // An IPv6 client is a /64 unless the policy says otherwise, so anything wider than that is looked
            // through, not looked up.
            let is_client = change.network.prefix_len() >= change.network.max_prefix_len().min(64);
            if is_client {
                table.clients.insert(change.network, ban);
            } else {
                table.wide.push((change.network, ban));
            }
        }
        table.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(network: &str, lifted: bool, changed_at: u64) -> BanChange {
        BanChange {
            network: network.parse().unwrap(),
            until: None,
            lifted,
            reason: String::new(),
            changed_at,
        }
    }

    fn banned(list: &BanList, address: &str) -> bool {
        let address = address.parse().unwrap();
        let client = Client { address, network: IpNet::from(address), behind_proxy: false };
        list.find(&client, Timestamp::from_secs(1)).is_some()
    }

    #[test]
    fn the_later_change_counts_whatever_the_order_of_arrival() {
        let (list, now) = (BanList::default(), Timestamp::from_secs(1));
        assert!(list.apply(change("192.0.2.1/32", true, 2), now));
        assert!(!list.apply(change("192.0.2.1/32", false, 1), now));
        assert!(!banned(&list, "192.0.2.1"));
        assert!(list.apply(change("192.0.2.1/32", false, 3), now));
        assert!(banned(&list, "192.0.2.1") && !banned(&list, "192.0.2.2"));
    }

    #[test]
    fn a_wide_ban_holds_for_all_its_addresses() {
        let list = BanList::default();
        list.apply(change("192.0.2.0/24", false, 1), Timestamp::from_secs(1));
        list.apply(change("2001:db8::/32", false, 1), Timestamp::from_secs(1));
        assert!(banned(&list, "192.0.2.99") && banned(&list, "2001:db8::7") && !banned(&list, "192.0.3.1"));
    }
}
