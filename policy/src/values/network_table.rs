//! Finds the network of an address among a hundred thousand: a sorted table of address ranges, with an index.
//!
//! Two networks are nested or disjoint. So they can be flattened into ranges, and each address is in exactly one range.
//! A look-up is one step in the index and a short binary search. It takes no lock and allocates nothing. A table is
//! built once and never changes.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// Networks, each with a value.
#[derive(Clone, Debug)]
pub struct NetworkTable<T> {
    v4: Ranges<u32, T>,
    v6: Ranges<u128, T>,
    networks: usize,
}

impl<T> Default for NetworkTable<T> {
    fn default() -> Self {
        Self { v4: Ranges::empty(), v6: Ranges::empty(), networks: 0 }
    }
}

impl<T: Copy> NetworkTable<T> {
    /// A table of `networks`. For an address in several of them, `merge` combines the outer value and the inner one.
    pub fn new(networks: impl IntoIterator<Item = (IpNet, T)>, merge: impl Fn(T, T) -> T) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (network, value) in networks {
            match network {
                IpNet::V4(network) => {
                    v4.push((u32::from(network.network()), u32::from(network.broadcast()), value));
                }
                IpNet::V6(network) => {
                    v6.push((u128::from(network.network()), u128::from(network.broadcast()), value));
                }
            }
        }
        let networks = v4.len() + v6.len();
        Self { v4: Ranges::new(v4, &merge), v6: Ranges::new(v6, &merge), networks }
    }

    /// The value for `address`; `None` when it is in no network.
    pub fn find(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(address) => self.v4.find(u32::from(address)),
            IpAddr::V6(address) => self.v6.find(u128::from(address)),
        }
    }

    /// The number of networks.
    pub const fn len(&self) -> usize {
        self.networks
    }

    /// Whether there is no network in it.
    pub const fn is_empty(&self) -> bool {
        self.networks == 0
    }
}

/// An address as a number.
trait Number: Copy + Ord {
    fn next(self) -> Option<Self>;
    /// `(self - from) >> shift`, at most [`SLOTS`].
    fn slot(self, from: Self, shift: u32) -> usize;
    /// The smallest shift that makes `self - from` less than [`SLOTS`].
    fn shift_from(self, from: Self) -> u32;
}

/// Number of slots of the index.
const SLOTS: usize = 1 << 16;

/// With fewer ranges than these a plain binary search is as fast.
const WORTH_AN_INDEX: usize = 64;

macro_rules! number {
    ($($type:ty),+) => {$(
        impl Number for $type {
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }

            fn slot(self, from: Self, shift: u32) -> usize {
                usize::try_from((self - from) >> shift).map_or(SLOTS, |slot| slot.min(SLOTS))
            }

            fn shift_from(self, from: Self) -> u32 {
                (Self::BITS - (self - from).leading_zeros()).saturating_sub(SLOTS.trailing_zeros())
            }
        }
    )+};
}

number!(u32, u128);

/// Ranges in ascending order: each begins at its start and ends just before the next start.
#[derive(Clone, Debug)]
struct Ranges<K, T> {
    starts: Vec<K>,
    values: Vec<Option<T>>,
    /// How many ranges start before each slot. Empty for a small table.
    index: Vec<u32>,
    shift: u32,
}

impl<K, T> Ranges<K, T> {
    const fn empty() -> Self {
        Self { starts: Vec::new(), values: Vec::new(), index: Vec::new(), shift: 0 }
    }
}

impl<K: Number, T: Copy> Ranges<K, T> {
    fn new(mut networks: Vec<(K, K, T)>, merge: &impl Fn(T, T) -> T) -> Self {
        // Outer networks come before inner ones.
        networks.sort_by(|(start, end, _), (other, other_end, _)| start.cmp(other).then(other_end.cmp(end)));
        let mut ranges = Self::empty();
        let mut around: Vec<(K, T)> = Vec::new();
        for (start, end, value) in networks {
            ranges.close(&mut around, Some(start));
            let value = around.last().map_or(value, |(_, outer)| merge(*outer, value));
            ranges.begin(start, Some(value));
            around.push((end, value));
        }
        ranges.close(&mut around, None);
        ranges.build_index();
        ranges
    }

    /// Closes the networks that end before `start`.
    fn close(&mut self, around: &mut Vec<(K, T)>, start: Option<K>) {
        while let Some((end, _)) = around.pop_if(|(end, _)| start.is_none_or(|start| *end < start)) {
            if let Some(after) = end.next() {
                self.begin(after, around.last().map(|(_, value)| *value));
            }
        }
    }

    fn begin(&mut self, start: K, value: Option<T>) {
        if self.starts.last() == Some(&start) {
            if let Some(last) = self.values.last_mut() {
                *last = value;
            }
        } else {
            self.starts.push(start);
            self.values.push(value);
        }
    }

    fn build_index(&mut self) {
        let (Some(first), Some(last)) = (self.starts.first(), self.starts.last()) else { return };
        if self.starts.len() < WORTH_AN_INDEX {
            return;
        }
        self.shift = last.shift_from(*first);
        self.index = vec![0; SLOTS + 1];
        for start in &self.starts {
            let slot = start.slot(*first, self.shift);
            self.index[(slot + 1).min(SLOTS)] += 1;
        }
        for slot in 1..=SLOTS {
            self.index[slot] += self.index[slot - 1];
        }
    }

    fn find(&self, key: K) -> Option<T> {
        let first = *self.starts.first()?;
        if key < first {
            return None;
        }
        let (from, to) = if self.index.is_empty() {
            (0, self.starts.len())
        } else {
            let slot = key.slot(first, self.shift).min(SLOTS - 1);
            let beyond = key.slot(first, self.shift) >= SLOTS;
            let to = if beyond { self.starts.len() } else { self.index[slot + 1] as usize };
            (self.index[slot] as usize, to)
        };
        let within = self.starts[from..to].partition_point(|start| *start <= key);
        self.values[(from + within).checked_sub(1)?]
    }
}

impl NetworkTable<()> {
    /// A table that only says whether an address is in one of `networks`.
    pub fn of(networks: Vec<IpNet>) -> Arc<Self> {
        Arc::new(Self::new(networks.into_iter().map(|network| (network, ())), |(), ()| ()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(networks: &[(&str, u32)]) -> NetworkTable<u32> {
        let parse = |(network, value): &(&str, u32)| (network.parse().unwrap(), *value);
        NetworkTable::new(networks.iter().map(parse), u32::max)
    }

    #[test]
    fn an_address_has_the_value_of_its_networks() {
        let table = table(&[
            ("10.0.0.0/8", 1),
            ("10.1.0.0/16", 5),
            ("10.1.2.3/32", 2),
            ("255.255.255.255/32", 7),
            ("2001:db8::/32", 3),
            ("::/0", 1),
        ]);
        let find = |address: &str| table.find(address.parse().unwrap());
        assert_eq!(find("10.0.0.0"), Some(1));
        assert_eq!(find("10.1.2.3"), Some(5), "the outer value is greater");
        assert_eq!(find("10.2.0.0"), Some(1));
        assert_eq!(find("9.255.255.255"), None);
        assert_eq!(find("11.0.0.0"), None);
        assert_eq!(find("255.255.255.255"), Some(7));
        assert_eq!(find("2001:db8::1"), Some(3));
        assert_eq!(find("ffff::"), Some(1));
        assert_eq!(table.len(), 6);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list_that_is_searched(
            networks in prop::collection::vec((0u32..4_096, 0u8..=32, 0u32..100), 0..300),
            spread in prop::bool::ANY,
            probes in prop::collection::vec(0u32..5_000, 50),
        ) {
            // Close together, so that networks nest, or spread over all numbers.
            let place = |number: u32| if spread { number.wrapping_mul(1_048_583) } else { number };
            let networks: Vec<(IpNet, u32)> = networks
                .into_iter()
                .map(|(at, prefix, value)| {
                    let network = ipnet::Ipv4Net::new_assert(place(at).into(), prefix).trunc();
                    (network.into(), value)
                })
                .collect();
            let table = NetworkTable::new(networks.clone(), u32::max);
            for probe in probes {
                let address = IpAddr::V4(place(probe).into());
                let slow =
                    networks.iter().filter(|(network, _)| network.contains(&address)).map(|(_, value)| *value);
                prop_assert_eq!(table.find(address), slow.max());
            }
        }
    }
}
