//! The ban list as requests read it: a snapshot, no lock.

use arc_swap::ArcSwap;
use policy::document::network::parse_network;
use policy::rules::blocks::Ban;
use policy::rules::client::Client;
use policy::values::network_table::NetworkTable;
use policy::values::time::Timestamp;

use crate::state::store::Change;

/// Bans in force.
#[derive(Default)]
pub struct BanList(ArcSwap<NetworkTable<Ban>>);

impl BanList {
    /// The ban that covers `client`: one of its address, or one of its whole network.
    pub fn find(&self, client: &Client, now: Timestamp) -> Option<Ban> {
        self.0.load().find(client.address).filter(|ban| ban.holds(now))
    }

    /// Replaces the bans in force by `bans`.
    pub fn replace(&self, bans: &[Change]) {
        let bans = bans.iter().filter_map(|change| {
            Some((parse_network(&change.key)?, Ban { until: change.until.map(Timestamp::from_nanos) }))
        });
        self.0.store(NetworkTable::new(bans, Ban::longer).into());
    }

    /// Bans in the table.
    pub fn len(&self) -> usize {
        self.0.load().len()
    }

    /// Whether there are no bans.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;
    use crate::state::store::Topic;

    #[test]
    fn a_ban_holds_for_all_addresses_of_its_network_until_it_ends() {
        let list = BanList::default();
        let ban = |network: &str, until: Option<u64>| Change {
            topic: Topic::Bans,
            key: network.to_owned(),
            value: Some("".into()),
            until,
            changed_at: 0,
        };
        let in_two_seconds = Some(2_000_000_000);
        list.replace(&[ban("192.0.2.0/24", in_two_seconds), ban("2001:db8:1:2::/64", None)]);
        let banned = |address: &str, now| {
            let address = address.parse().unwrap();
            let client = Client { address, network: IpNet::from(address), behind_proxy: false };
            list.find(&client, Timestamp::from_secs(now)).is_some()
        };
        assert!(banned("192.0.2.99", 1) && !banned("192.0.2.99", 2) && !banned("192.0.3.1", 1));
        assert!(banned("2001:db8:1:2::7", 9) && !banned("2001:db8:1:3::7", 9));
        assert_eq!(list.len(), 2);
    }
}
