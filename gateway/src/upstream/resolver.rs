//! Looks up the names of upstreams: the addresses of a name, and for how long they may be used.
//!
//! An address may belong to somebody else tomorrow. So no address is used that was found more than [`OLDEST`] ago: a
//! later request waits for a new look-up. While requests arrive steadily, the name is looked up in the background. When
//! look-ups fail, the last addresses are used for [`LAST_KNOWN`] and no longer; the log says so.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

/// Addresses older than this are looked up again in the background, and still used.
const FRESH: Duration = Duration::from_secs(2);

/// Addresses older than this are not used; the name is looked up again first.
const OLDEST: Duration = Duration::from_secs(5);

/// How long the last addresses are used while look-ups fail.
const LAST_KNOWN: Duration = Duration::from_mins(1);

/// The timeout of one look-up.
const LOOK_UP: Duration = Duration::from_secs(2);

/// The pause after a failed look-up.
const PAUSE: Duration = Duration::from_secs(1);

/// The most addresses of one name that are used.
const MOST: usize = 64;

type Found = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// How `HOST:PORT` is looked up.
pub type LookUp = Arc<dyn Fn(String) -> Found + Send + Sync>;

/// Looks names up with the system's resolver.
pub fn system() -> LookUp {
    Arc::new(|name| Box::pin(async move { Ok(tokio::net::lookup_host(name).await?.collect()) }))
}

/// A name and its addresses.
pub struct Name {
    text: String,
    look_up: LookUp,
    known: Mutex<Known>,
    /// Held during a look-up, so that there is one at a time.
    looking: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Known {
    addresses: Arc<[SocketAddr]>,
    found: Option<Instant>,
    /// When and why the last look-up failed, if it did.
    failed: Option<(Instant, String)>,
}

/// How the known addresses may be used.
enum Use {
    /// They are used.
    Now(Arc<[SocketAddr]>),
    /// They are used, and the name is looked up in the background.
    LookUpBeside(Arc<[SocketAddr]>),
    /// There are none, or they are too old: a look-up comes first.
    LookUpFirst,
    /// There are none, or they are too old, and the last look-up failed a moment ago.
    Fail(String),
}

impl Known {
    fn judge(&self, now: Instant) -> Use {
        let age = self.found.map_or(Duration::MAX, |found| now - found);
        let paused = self.failed.as_ref().is_some_and(|(at, _)| now - *at < PAUSE);
        let usable = age <= OLDEST || (self.failed.is_some() && age <= LAST_KNOWN);
        match (&self.failed, usable) {
            (_, true) if age <= FRESH || paused => Use::Now(Arc::clone(&self.addresses)),
            (_, true) => Use::LookUpBeside(Arc::clone(&self.addresses)),
            (Some((_, why)), false) if paused => Use::Fail(why.clone()),
            (_, false) => Use::LookUpFirst,
        }
    }
}

impl Name {
    /// `HOST:PORT`, not looked up yet.
    pub fn new(name: String, look_up: LookUp) -> Arc<Self> {
        Arc::new(Self { text: name, look_up, known: Mutex::default(), looking: Arc::default() })
    }

    /// The text in the settings.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its addresses: at least one, and none too old. Waits for a look-up if there are none: at most [`LOOK_UP`], and
    /// as long again if another look-up is running.
    pub async fn addresses(self: &Arc<Self>) -> anyhow::Result<Arc<[SocketAddr]>> {
        let judged = self.known.lock().judge(Instant::now());
        match judged {
            Use::Now(addresses) => Ok(addresses),
            Use::LookUpBeside(addresses) => {
                if let Ok(alone) = Arc::clone(&self.looking).try_lock_owned() {
                    let name = Arc::clone(self);
                    tokio::spawn(async move {
                        name.look_up().await;
                        drop(alone);
                    });
                }
                Ok(addresses)
            }
            Use::LookUpFirst => self.look_up_first().await,
            Use::Fail(why) => Err(self.fault(&why)),
        }
    }

    async fn look_up_first(&self) -> anyhow::Result<Arc<[SocketAddr]>> {
        let _alone = self.looking.lock().await;
        // Another task may have looked it up while this one waited.
        let looked_up = !matches!(self.known.lock().judge(Instant::now()), Use::LookUpFirst);
        if !looked_up {
            self.look_up().await;
        }
        let judged = self.known.lock().judge(Instant::now());
        match judged {
            Use::Now(addresses) | Use::LookUpBeside(addresses) => Ok(addresses),
            Use::Fail(why) => Err(self.fault(&why)),
            Use::LookUpFirst => Err(self.fault("no answer in time")),
        }
    }

    fn fault(&self, why: &str) -> anyhow::Error {
        anyhow!("`{}` cannot be looked up: {why}", self.text)
    }

    /// Looks the name up, and stores the addresses or the failure.
    async fn look_up(&self) {
        let looked = timeout(LOOK_UP, (self.look_up)(self.text.clone())).await;
        let looked = looked.context("no answer in time").and_then(|found| Ok(found?));
        let found = looked.and_then(|mut found| {
            found.sort_unstable();
            found.dedup();
            found.truncate(MOST);
            if found.is_empty() { Err(anyhow!("it has no address")) } else { Ok(found) }
        });
        let (mut known, now) = (self.known.lock(), Instant::now());
        match found {
            Ok(found) => {
                if known.failed.take().is_some() {
                    info!(name = self.text, "the name can be looked up again");
                }
                if *known.addresses != *found {
                    info!(name = self.text, addresses = ?found, "the name has these addresses");
                    known.addresses = found.into();
                }
                known.found = Some(now);
            }
            Err(error) => {
                let why = format!("{error:#}");
                if known.failed.is_none() {
                    let serve = if known.found.is_some() { LAST_KNOWN.as_secs() } else { 0 };
                    warn!(
                        name = self.text,
                        error = why,
                        last_addresses_serve_for_secs = serve,
                        "the name cannot be looked up"
                    );
                }
                known.failed = Some((now, why));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::advance;

    /// A resolver that answers what the test sets, and counts.
    struct Resolver {
        says: Arc<Mutex<Option<&'static str>>>,
        asked: Arc<AtomicUsize>,
        name: Arc<Name>,
    }

    impl Resolver {
        fn new() -> Self {
            let says: Arc<Mutex<Option<&'static str>>> = Arc::new(Mutex::new(Some("192.0.2.1:80")));
            let asked: Arc<AtomicUsize> = Arc::default();
            let (said, count) = (Arc::clone(&says), Arc::clone(&asked));
            let look_up: LookUp = Arc::new(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                let said = *said.lock();
                Box::pin(async move {
                    let said = said.ok_or_else(|| io::Error::other("the resolver is unavailable"))?;
                    Ok(said.split_terminator(' ').map(|one| one.parse().unwrap()).collect())
                })
            });
            Self { says, asked, name: Name::new("a.test:80".to_owned(), look_up) }
        }

        async fn addresses(&self) -> Result<String, String> {
            let found = self.name.addresses().await.map_err(|error| error.to_string())?;
            tokio::task::yield_now().await; // lets a look-up in the background run
            Ok(found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_address_is_used_that_is_older_than_its_bound() {
        let resolver = Resolver::new();
        assert_eq!(resolver.addresses().await.unwrap(), "192.0.2.1:80");
        *resolver.says.lock() = Some("192.0.2.9:80 192.0.2.2:80 192.0.2.2:80");
        advance(FRESH).await;
        assert_eq!(resolver.addresses().await.unwrap(), "192.0.2.1:80", "it is fresh");
        assert_eq!(resolver.asked.load(Ordering::Relaxed), 1);
        advance(OLDEST).await;
        assert_eq!(
            resolver.addresses().await.unwrap(),
            "192.0.2.2:80 192.0.2.9:80",
            "nobody asked meanwhile"
        );
        *resolver.says.lock() = Some("192.0.2.3:80");
        advance(FRESH + Duration::from_millis(1)).await;
        assert_eq!(resolver.addresses().await.unwrap(), "192.0.2.2:80 192.0.2.9:80");
        assert_eq!(
            resolver.addresses().await.unwrap(),
            "192.0.2.3:80",
            "it was looked up beside the request"
        );
        assert_eq!(resolver.asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_addresses_serve_for_a_while_without_a_resolver() {
        let resolver = Resolver::new();
        assert_eq!(resolver.addresses().await.unwrap(), "192.0.2.1:80");
        *resolver.says.lock() = None;
        advance(OLDEST * 2).await;
        assert_eq!(resolver.addresses().await.unwrap(), "192.0.2.1:80");
        for _ in 0..100 {
            resolver.addresses().await.unwrap();
        }
        assert_eq!(resolver.asked.load(Ordering::Relaxed), 2, "it is not asked all the time");
        advance(LAST_KNOWN).await;
        let error = resolver.addresses().await.unwrap_err();
        assert_eq!(error, "`a.test:80` cannot be looked up: the resolver is unavailable");
        *resolver.says.lock() = Some("192.0.2.4:80");
        advance(PAUSE).await;
        assert_eq!(resolver.addresses().await.unwrap(), "192.0.2.4:80");
        *resolver.says.lock() = Some("");
        advance(LAST_KNOWN).await;
        assert!(resolver.addresses().await.is_ok(), "a name without an address is a failure");
    }
}
