//! Block list: a client that is on `deny`, or banned because of its failures, gets 403 before anything else is judged.
//!
//! `allow` comes first: a client on it is never blocked, and its failures are never counted. A client is banned for
//! `duration` when it gets `failures` answers within `window` that its route counts (`counts_failed_logins`). Each
//! further ban lasts longer. A success clears the client's failures.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::document::network::read_network;
use crate::document::units::Span;
use crate::document::{Fault, Faults, Section};
use crate::rules::client::Client;
use crate::values::network_table::NetworkTable;
use crate::values::refusal::{Code, Refusal};
use crate::values::stage::Stage;
use crate::values::time::Timestamp;

/// The most deny files, and the most denied networks in total.
const MOST_FILES: usize = 64;
const MOST_DENIED: usize = 2_000_000;

/// How many faults of a deny file are listed at most. The others are counted.
const MOST_LIST_FAULTS: usize = 10;

/// `[blocks]`: which clients are refused.
#[derive(Clone, Debug, Default)]
pub struct BlockRule {
    allow: Arc<NetworkTable<()>>,
    denied: Vec<IpNet>,
    deny: Arc<NetworkTable<()>>,
    /// Files with more networks to deny, as written. The gateway reads them and calls [`BlockRule::deny_also`].
    pub deny_files: Vec<String>,
    /// Automatic bans; `None` when the policy has no `[blocks.auto]`.
    pub auto: Option<AutoBlock>,
}

/// `[blocks.auto]`: how many failed logins make a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoBlock {
    /// The number of failures, at least one.
    pub failures: u32,
    /// The time within which they count.
    pub window: Duration,
    /// How long the first ban lasts.
    pub duration: Duration,
    /// Each further ban of the same client lasts this many times as long as the one before; with 1 all last equally
    /// long.
    pub escalation: u32,
    /// The longest ban.
    pub max_duration: Duration,
}

impl AutoBlock {
    /// How long the `offence`th ban of a client lasts, counted from one.
    pub fn duration_of(&self, offence: u32) -> Duration {
        let factor = self.escalation.saturating_pow(offence.saturating_sub(1));
        self.duration.saturating_mul(factor).min(self.max_duration.max(self.duration))
    }

    /// How long a ban is remembered for the escalation: twice the longest ban.
    pub fn memory(&self) -> Duration {
        self.max_duration.max(self.duration).saturating_mul(2)
    }

    fn read(section: Section<'_>) -> Self {
        let within = |allowed: RangeInclusive<u32>| {
            move |number: &u32| {
                let fault = format!("from {} to {} (got {number})", allowed.start(), allowed.end());
                allowed.contains(number).then_some(()).ok_or(fault)
            }
        };
        let rule = Self {
            failures: section.get_checked("failures", 10, within(1..=1_000)),
            window: section.get_or("window", Span(Duration::from_mins(10))).0,
            duration: section.get_or("duration", Span(Duration::from_hours(1))).0,
            escalation: section.get_checked("escalation", 1, within(1..=100)),
            max_duration: section.get_or("max_duration", Span(Duration::from_hours(24))).0,
        };
        section.finish();
        rule
    }
}

/// What blocking asks of the outside. An implementation never waits without a bound.
pub trait Bans: Sync {
    /// The ban that is in force for this client, if any. `now` is of the wall clock.
    fn banned(&self, client: &Client, now: Timestamp) -> Option<Ban>;

    /// Counts a failed login of this client. This may ban the client.
    fn login_failed(&self, client: &Client, rule: AutoBlock, now: Timestamp);

    /// Clears the failed logins of this client.
    fn login_succeeded(&self, client: &Client);
}

impl BlockRule {
    pub(crate) fn read(section: Option<Section<'_>>) -> Self {
        let Some(section) = section else { return Self::default() };
        let denied: Vec<IpNet> = section.get_or("deny", Vec::new());
        let rule = Self {
            allow: NetworkTable::of(section.get_or("allow", Vec::new())),
            deny: NetworkTable::of(denied.clone()),
            denied,
            deny_files: section.list("deny_files", MOST_FILES),
            auto: section.section("auto").map(AutoBlock::read),
        };
        section.finish();
        rule
    }

    /// Also denies the networks of `lists`. It is an error when there are too many networks in total.
    pub fn deny_also<'l>(&mut self, lists: impl IntoIterator<Item = &'l [IpNet]>) -> Result<(), String> {
        for list in lists {
            if self.denied.len() + list.len() > MOST_DENIED {
                return Err(format!("at most {MOST_DENIED} networks are denied"));
            }
            self.denied.extend_from_slice(list);
        }
        self.deny = NetworkTable::of(self.denied.clone());
        Ok(())
    }

    /// The number of denied networks.
    pub fn denied(&self) -> usize {
        self.deny.len()
    }

    /// Whether `address` is on `allow`, so that it is never blocked and never counted.
    pub fn exempts(&self, address: IpAddr) -> bool {
        self.allow.find(address).is_some()
    }

    /// Lets the client pass, or refuses it and says for how long.
    pub fn pass<W: Bans>(&self, client: &Client, world: &W, now: Timestamp) -> Result<(), Refusal> {
        if self.exempts(client.address) {
            return Ok(());
        }
        let blocked = |detail: &str| Refusal::new(Stage::Block, Code::ClientBlocked, detail);
        if self.deny.find(client.address).is_some() {
            return Err(blocked("this address is on the deny list"));
        }
        match world.banned(client, now) {
            Some(ban) => Err(blocked("this address is blocked").retry_after(ban.ends_in(now))),
            None => Ok(()),
        }
    }
}

/// Reads the networks of a deny file: `text` is its contents, `file` its name. Each line has an address or a CIDR. `#`
/// and
/// `;` begin a comment, as in published lists. A fault gives the place but does not quote the text, unless the text is
/// an address, because the file may be the wrong one and contain secrets.
pub fn read_list(file: &str, text: &str) -> Result<Vec<IpNet>, Vec<Fault>> {
    let faults = Faults::new(file, text).at_most(MOST_LIST_FAULTS);
    let (mut networks, mut at) = (Vec::new(), 0);
    for line in text.split_inclusive('\n') {
        let entry = line.split(['#', ';']).next().unwrap_or_default();
        let entry = entry.trim_start_matches('\u{feff}').trim(); // a byte order mark
        match read_network(entry) {
            _ if entry.is_empty() => {}
            Ok(_) if networks.len() >= MOST_DENIED => {
                faults.add(&(at..at), "", format!("at most {MOST_DENIED} networks are denied"));
                break;
            }
            Ok(network) => networks.push(network),
            Err(message) => {
                let start = at + line.find(entry).unwrap_or(0);
                faults.add(&(start..start + entry.len()), "", message);
            }
        }
        at += line.len();
    }
    let faults = faults.into_list();
    if faults.is_empty() { Ok(networks) } else { Err(faults) }
}

/// A ban in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// When it ends; `None`: never.
    pub until: Option<Timestamp>,
}

impl Ban {
    /// The time until it ends.
    pub fn ends_in(&self, now: Timestamp) -> Option<Duration> {
        self.until.map(|until| until.since(now))
    }

    /// Whether it is still in force.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    /// The ban of the two that lasts longer.
    #[must_use]
    pub fn longer(self, other: Self) -> Self {
        let until = self.until.zip(other.until).map(|(one, other)| one.max(other));
        Self { until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_further_ban_lasts_longer_up_to_the_longest() {
        let hours = Duration::from_hours;
        let auto = AutoBlock {
            failures: 3,
            window: hours(1),
            duration: hours(1),
            escalation: 3,
            max_duration: hours(24),
        };
        assert_eq!([1, 2, 3, 4, 99].map(|offence| auto.duration_of(offence)), [1, 3, 9, 24, 24].map(hours));
    }

    #[test]
    fn a_deny_file_is_read_whole_and_its_faults_have_places() {
        let mut rule = BlockRule::default();
        let networks = read_list("list", "# known\n192.0.2.0/24\n\n2001:db8::1 # one\n").unwrap();
        rule.deny_also([&networks[..]]).unwrap();
        assert_eq!(rule.denied(), 2);
        assert!(rule.deny.find("192.0.2.9".parse().unwrap()).is_some());
        let faults = read_list("list", "192.0.2.1\n  192.0.2.300\n192.0.2.1/24\n").unwrap_err();
        let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "list:2:3: an address or a CIDR like 192.0.2.0/24",
                "list:3:1: the network 192.0.2.0/24 or the address 192.0.2.1: 192.0.2.1/24 has bits outside its prefix",
            ]
        );
    }

    #[test]
    fn published_lists_are_read_as_they_are() {
        let spamhaus =
            "\u{feff}; Spamhaus DROP List\r\n1.10.16.0/20 ; SBL256894\r\n; end\r\n2.56.192.0/22 ; SBL459831";
        let networks = read_list("drop.txt", spamhaus).unwrap();
        assert_eq!(
            networks.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["1.10.16.0/20", "2.56.192.0/22"]
        );
        let faults = read_list("list", &"no address\n".repeat(50_000)).unwrap_err();
        assert_eq!(faults.len(), MOST_LIST_FAULTS + 1);
        assert_eq!(faults.last().unwrap().message, "49990 more faults are not listed");
    }
}
