//! Block list: a client on `deny`, or banned for its failures, gets 403 before anything else is looked at.
//!
//! `allow` comes first: a client on it is never blocked and never counted. A client with `failures` answers that the
//! route counts (`counts_failed_logins`) within `window` is banned for `duration`; a success clears its history.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::client::Client;
use crate::document::Section;
use crate::refusal::{Code, Refusal};
use crate::stage::Stage;
use crate::time::Timestamp;
use crate::units::Span;
use crate::world::World;

/// `[blocks]`: who may not come in.
#[derive(Clone, Debug, Default)]
pub struct BlockRule {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
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
}

impl BlockRule {
    pub(crate) fn read(section: Option<Section<'_>>) -> Self {
        let Some(section) = section else { return Self::default() };
        let auto = section.section("auto").map(|auto| {
            let rule = AutoBlock {
                failures: auto.get_checked("failures", 10, |failures| {
                    (1..=1_000)
                        .contains(failures)
                        .then_some(())
                        .ok_or(format!("from 1 to 1000 (got {failures})"))
                }),
                window: auto.get_or("window", Span(Duration::from_mins(10))).0,
                duration: auto.get_or("duration", Span(Duration::from_hours(1))).0,
            };
            auto.finish();
            rule
        });
        let rule = Self {
            allow: section.get_or("allow", Vec::new()),
            deny: section.get_or("deny", Vec::new()),
            auto,
        };
        section.finish();
        rule
    }

    /// Whether `address` is never blocked and never counted.
    pub fn exempts(&self, address: IpAddr) -> bool {
        self.allow.iter().any(|network| network.contains(&address))
    }

    /// Lets the client pass, or says for how long it may not.
    pub fn pass<W: World>(&self, client: &Client, world: &W, now: Timestamp) -> Result<(), Refusal> {
        if self.exempts(client.address) {
            return Ok(());
        }
        let blocked = |detail: &str| Refusal::new(Stage::Block, Code::ClientBlocked, detail);
        if self.deny.iter().any(|network| network.contains(&client.address)) {
            return Err(blocked("this address is on the deny list"));
        }
        match world.banned(client, now) {
            Some(ban) => Err(blocked("this address is blocked").retry_after(ban.ends_in(now))),
            None => Ok(()),
        }
    }
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
}
