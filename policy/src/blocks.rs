//! Block list: a client on `deny`, or banned for its failures, gets 403 before anything else is looked at.
//!
//! `allow` comes first: a client on it is never blocked and never counted. A client with `failures` answers that the
//! route counts (`counts_failed_logins`) within `window` is banned for `duration`, for longer each time it offends
//! again; a success clears its failures.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::client::{Client, parse_network};
use crate::document::{Fault, Faults, Section};
use crate::networks::NetworkTable;
use crate::refusal::{Code, Refusal};
use crate::stage::Stage;
use crate::time::Timestamp;
use crate::units::Span;
use crate::world::World;

/// The most deny files, and the most networks in all of them together.
const MOST_FILES: usize = 64;
const MOST_DENIED: usize = 2_000_000;

/// `[blocks]`: who may not come in.
#[derive(Clone, Debug, Default)]
pub struct BlockRule {
    allow: Arc<NetworkTable<()>>,
    denied: Vec<IpNet>,
    deny: Arc<NetworkTable<()>>,
    /// Files with more to deny, as written; who can read files calls [`BlockRule::deny_also`] with their texts.
    pub deny_files: Vec<String>,
    /// Bans made by the gateway itself; `None` when the policy has no `[blocks.auto]`.
    pub auto: Option<AutoBlock>,
}

/// `[blocks.auto]`: how many failed logins make a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoBlock {
    /// So many failures, at least one.
    pub failures: u32,
    /// Within this time.
    pub window: Duration,
    /// Ban for this time.
    pub duration: Duration,
    /// Each further ban of the same client lasts so many times as long; 1: they all last as long.
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

    /// For how long a ban counts against its client: twice the longest.
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

impl BlockRule {
    pub(crate) fn read(section: Option<Section<'_>>) -> Self {
        let Some(section) = section else { return Self::default() };
        let denied: Vec<IpNet> = section.get_or("deny", Vec::new());
        let rule = Self {
            allow: table(section.get_or("allow", Vec::new())),
            deny: table(denied.clone()),
            denied,
            deny_files: section.list("deny_files", MOST_FILES),
            auto: section.section("auto").map(AutoBlock::read),
        };
        section.finish();
        rule
    }

    /// Denies what the texts of deny files name as well, each with its name: an address or a CIDR a line, `#` begins a
    /// comment. A fault has the place and never what stands there: the file may be one that was not meant.
    pub fn deny_also<'t>(
        &mut self,
        lists: impl IntoIterator<Item = (&'t str, &'t str)>,
    ) -> Result<(), Vec<Fault>> {
        let mut found = Vec::new();
        for (file, text) in lists {
            found.extend(self.read_list(file, text));
        }
        self.deny = table(self.denied.clone());
        if found.is_empty() { Ok(()) } else { Err(found) }
    }

    fn read_list(&mut self, file: &str, text: &str) -> Vec<Fault> {
        let faults = Faults::new(file, text);
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let entry = line.split('#').next().unwrap_or_default().trim();
            match parse_network(entry) {
                Some(_) if self.denied.len() >= MOST_DENIED => {
                    faults.add(&(at..at), "", format!("at most {MOST_DENIED} networks are denied"));
                    break;
                }
                Some(network) => self.denied.push(network),
                None if entry.is_empty() => {}
                None => {
                    let start = at + line.find(entry).unwrap_or(0);
                    faults.add(&(start..start + entry.len()), "", "an address or a CIDR like 192.0.2.0/24");
                }
            }
            at += line.len();
        }
        faults.into_list()
    }

    /// Networks that are denied.
    pub fn denied(&self) -> usize {
        self.deny.len()
    }

    /// Whether `address` is never blocked and never counted.
    pub fn exempts(&self, address: IpAddr) -> bool {
        self.allow.find(address).is_some()
    }

    /// Lets the client pass, or says for how long it may not.
    pub fn pass<W: World>(&self, client: &Client, world: &W, now: Timestamp) -> Result<(), Refusal> {
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

pub(crate) fn table(networks: Vec<IpNet>) -> Arc<NetworkTable<()>> {
    Arc::new(NetworkTable::new(networks.into_iter().map(|network| (network, ())), |(), ()| ()))
}

/// A ban in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// When it ends; never when `None`.
    pub until: Option<Timestamp>,
}

impl Ban {
    /// How long it still lasts.
    pub fn ends_in(&self, now: Timestamp) -> Option<Duration> {
        self.until.map(|until| until.since(now))
    }

    /// Whether it still holds.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    /// Of two bans the one that lasts longer.
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
        rule.deny_also([("list", "# known\n192.0.2.0/24\n\n2001:db8::1 # one\n")]).unwrap();
        assert_eq!(rule.denied(), 2);
        assert!(rule.deny.find("192.0.2.9".parse().unwrap()).is_some());
        let faults = rule.deny_also([("list", "192.0.2.1\n  192.0.2.300\n192.0.2.1/24\n")]).unwrap_err();
        let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], "list:2:3: an address or a CIDR like 192.0.2.0/24");
    }
}
