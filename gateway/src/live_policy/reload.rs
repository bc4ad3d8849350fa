//! Replaces the policy in force by another one.
//!
//! The file's directory is watched, because editors and `ConfigMaps` replace files instead of writing into them. A new
//! text is parsed, validated and tested by its own tests. Only then it comes into force, in one step. A refused text is
//! reported by `/admin/policy`, by metrics and in the log, and the last good policy stays in force. It is also stored
//! in the state directory, so that a restart with a broken file still serves. The policy's deny files are watched as
//! well, and overrides are applied to every text before it is judged.

mod rollback;
mod watch;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use policy::Policy;
use policy::document::Fault;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tracing::{error, info};

use crate::clock;
use crate::identity::keys::Keys;
use crate::live_policy::canary::Canary;
use crate::live_policy::deny_lists::{DenyLists, Lists};
use crate::live_policy::files::{folder_of, lines, read, whole_file};
use crate::live_policy::in_force::PolicyInForce;
use crate::live_policy::loaded::Loaded;
use crate::live_policy::named::Named;
use crate::observe::metrics::Metrics;
use crate::state::directory::StateDir;
use crate::state::overrides::{Override, lay_over, without_lines};
use crate::state::replicated_state::ReplicatedState;
use crate::state::store::{Change, Topic};

/// The file in the state directory with the text of the last good policy.
const LAST_GOOD: &str = "policy.last-good.toml";

/// What happens when a text is refused while the gateway serves.
const STAYS: &str = "the one in force stays";

/// A refusal to reload, as `/admin/policy` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ReloadRefusal {
    /// When, RFC 3339.
    pub at: String,
    /// Why.
    pub faults: Vec<Fault>,
}

impl ReloadRefusal {
    fn now(faults: Vec<Fault>) -> Self {
        Self { at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(), faults }
    }
}

/// Reads policies and puts them in force.
pub struct Reloader {
    file: PathBuf,
    state: Arc<StateDir>,
    lists: DenyLists,
    upstreams: Vec<String>,
    keys: Arc<Keys>,
    replicated_state: Arc<ReplicatedState>,
    metrics: Metrics,
    /// Puts the last policy back when this one leaves its band.
    pub canary: Canary,
    refused_policy: Mutex<Option<ReloadRefusal>>,
    refused_lists: Mutex<Option<ReloadRefusal>>,
    /// The deny files of a policy that was refused because of them.
    waits_for: Mutex<Vec<String>>,
    /// The text that was read last, good or not. It is not judged again.
    last_seen: Mutex<Option<Result<String, String>>>,
    /// The files in the policy's folder whose changes count.
    watched: Arc<Mutex<HashSet<OsString>>>,
    /// Held from reading to putting in force, so that an older text never replaces a newer one.
    reloading: Mutex<()>,
}

impl Reloader {
    /// A reloader of `file`.
    pub fn new(
        file: PathBuf,
        state: Arc<StateDir>,
        upstreams: Vec<String>,
        keys: Arc<Keys>,
        replicated_state: Arc<ReplicatedState>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let lists = DenyLists::new(folder_of(&file), Arc::clone(&state));
        Arc::new(Self {
            file,
            state,
            lists,
            upstreams,
            keys,
            replicated_state,
            metrics,
            canary: Canary::default(),
            refused_policy: Mutex::default(),
            refused_lists: Mutex::default(),
            waits_for: Mutex::default(),
            last_seen: Mutex::default(),
            watched: Arc::default(),
            reloading: Mutex::default(),
        })
    }

    /// The policy to start with: the file, or the last good policy if the file is refused. An error if there is
    /// neither.
    pub fn first(&self) -> anyhow::Result<Arc<Loaded>> {
        if !self.file.exists() {
            // This is more likely a wrong name than a broken policy.
            bail!("policy.file: cannot read `{}`: there is no such file", self.file.display());
        }
        let judged = self.read_file().and_then(|text| self.judge(&self.file, &text)?.adopted(&self.keys));
        let faults = match judged.and_then(|loaded| self.unless_rolled_back(loaded)) {
            Ok(loaded) => {
                let loaded = self.accept(loaded);
                self.keep_for_a_restart(&loaded);
                return Ok(loaded);
            }
            Err(faults) => faults,
        };
        let (loaded, what) = self
            .fallbacks()
            .into_iter()
            .find_map(|(what, loaded)| Some((loaded?, what)))
            .with_context(|| format!("the policy is refused\n{}", lines(&faults)))?;
        self.refuse(faults, &format!("starting with {what}"));
        let loaded = Arc::new(loaded);
        self.note_in_force(&loaded);
        Ok(loaded)
    }

    /// What to start with when the file with the overrides is refused.
    fn fallbacks(&self) -> [(&'static str, Option<Loaded>); 4] {
        let kept = self.state.path(LAST_GOOD);
        let usable =
            |loaded: Result<Loaded, Vec<Fault>>| loaded.and_then(|loaded| loaded.adopted(&self.keys)).ok();
        let without = || {
            let loaded = usable(self.judge_with(&self.file, &self.read_file().ok()?, &[]))?;
            self.unless_rolled_back(loaded).ok()
        };
        let last_good = || usable(self.judge(&kept, &read(&kept).ok()?));
        let last_good_without = || usable(self.judge_with(&kept, &read(&kept).ok()?, &[]));
        let with_last_lists = || {
            self.lists.reject_all();
            let judged = usable(self.judge(&self.file, &self.read_file().ok()?))?;
            self.unless_rolled_back(judged).ok()
        };
        [
            ("the last good deny files", with_last_lists()),
            ("the file without the overrides", without()),
            ("the last good one", last_good()),
            ("the last good one without the overrides", last_good_without()),
        ]
    }

    fn read_file(&self) -> Result<String, Vec<Fault>> {
        let text = read(&self.file);
        *self.last_seen.lock() = Some(text.as_ref().map(Clone::clone).map_err(|error| format!("{error:#}")));
        text.map_err(|error| vec![whole_file(&self.file, &error)])
    }

    /// Judges a text with the overrides in force, without putting it in force.
    pub fn judge(&self, file: &Path, text: &str) -> Result<Loaded, Vec<Fault>> {
        self.judge_with(file, text, &self.overrides())
    }

    /// Judges a text that does not come from the policy's file. Only the file may name files and addresses.
    pub fn judge_foreign(&self, live: &PolicyInForce, text: &str) -> Result<Loaded, Vec<Fault>> {
        let allowed = live.policy().named.clone();
        self.judge_within(Path::new("policy.toml"), text, &self.overrides(), Some(&allowed))
    }

    /// Judges a text with `overrides`. The text is judged alone first, so that its faults have their lines.
    pub fn judge_with(&self, file: &Path, text: &str, overrides: &[Override]) -> Result<Loaded, Vec<Fault>> {
        self.judge_within(file, text, overrides, None)
    }

    fn judge_within(
        &self,
        file: &Path,
        text: &str,
        overrides: &[Override],
        allowed: Option<&Named>,
    ) -> Result<Loaded, Vec<Fault>> {
        let name = file.display().to_string();
        let (mut rules, mut lists) = self.read_rules(&name, text, allowed)?;
        rules.run_tests(&name, text)?;
        let named = Named::by(&rules);
        if !overrides.is_empty() {
            let merged = lay_over(text, overrides)?;
            let judged = self.read_rules(&name, &merged, Some(&named)).and_then(|(rules, lists)| {
                rules.run_tests(&name, &merged)?;
                Ok((rules, lists))
            });
            (rules, lists) = judged.map_err(without_lines)?;
        }
        let sha256 = Sha256::digest(text.as_bytes())
            .iter()
            .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        let loaded_at = SystemTime::now();
        Ok(Loaded {
            rules,
            sha256,
            file: name,
            loaded_at,
            text: text.to_owned(),
            lists,
            named,
            counts: Arc::default(),
        })
    }

    /// The rules in `text`. Only files that `allowed` covers are read.
    fn read_rules(
        &self,
        name: &str,
        text: &str,
        allowed: Option<&Named>,
    ) -> Result<(Policy, Lists), Vec<Fault>> {
        let mut rules = Policy::parse(name, text, Some(&self.upstreams))?;
        if let Some(allowed) = allowed {
            allowed.cover(&rules, name, text)?;
        }
        let read = self.lists.read(&mut rules);
        let names = &rules.blocks.deny_files;
        let lists = read.inspect_err(|_| {
            // Not when they are too many together, because then no single list is the cause.
            if !self.lists.look(names).1.is_empty() {
                self.waits_for.lock().clone_from(names);
            }
        })?;
        Ok((rules, lists))
    }

    /// The overrides in force.
    pub fn overrides(&self) -> Vec<Override> {
        let holding = self.replicated_state.holding(Topic::Overrides, clock::wall());
        let pair = |change: Change| Some((change.key, change.value?));
        let mut overrides: Vec<_> = holding.into_iter().filter_map(pair).collect();
        overrides.sort_by(|(one, _), (other, _)| one.cmp(other));
        overrides
    }

    /// Judges the text in force with other overrides, without putting them in force.
    pub fn try_overrides(&self, live: &PolicyInForce, overrides: &[Override]) -> Result<(), Vec<Fault>> {
        let in_force = live.policy();
        let judged = self.judge_with(Path::new(&in_force.file), &in_force.text, overrides)?;
        self.keys.check(&judged.rules).map_err(|error| vec![whole_file(&self.file, &error)])
    }

    /// Judges the text in force again whenever overrides change, forever.
    pub async fn follow_overrides(self: Arc<Self>, live: Arc<PolicyInForce>) {
        loop {
            live.overrides_changed.notified().await;
            let (reloader, live) = (Arc::clone(&self), Arc::clone(&live));
            let _ = tokio::task::spawn_blocking(move || reloader.apply_overrides(&live)).await;
        }
    }

    /// Puts the text in force again, with the current overrides.
    pub fn apply_overrides(&self, live: &PolicyInForce) {
        self.lay_anew(live, "the overrides");
    }

    /// Puts the text in force again because `what` has changed. Other replicas may accept overrides that this one
    /// refuses, because its file differs. It remains the same policy: its counts and a trial continue.
    fn lay_anew(&self, live: &PolicyInForce, what: &str) {
        let _one_at_a_time = self.reloading.lock();
        let in_force = live.policy();
        let judged = self.judge(Path::new(&in_force.file), &in_force.text);
        match judged.and_then(|loaded| loaded.adopted(&self.keys)) {
            Ok(mut loaded) => {
                loaded.counts = Arc::clone(&in_force.counts);
                self.note_in_force(&loaded);
                live.audit("policy_refresh", &in_force, &loaded);
                info!(what, overrides = self.overrides().len(), "policy in force with what has changed");
                live.replace(Arc::new(loaded));
                let read = self.last_seen.lock().clone();
                if read.is_some_and(|read| read.as_deref() == Ok(&*in_force.text)) {
                    *self.refused_policy.lock() = None; // no text is refused any more
                }
            }
            Err(faults) => {
                self.lists.reject(&in_force.rules.blocks.deny_files, &faults);
                self.refuse(faults, STAYS);
            }
        }
        self.note_lists(&live.policy().lists);
    }

    /// Reads the file and puts it in force, or returns why not.
    pub fn reload(&self, live: &PolicyInForce) -> Result<(), Vec<Fault>> {
        let _one_at_a_time = self.reloading.lock();
        self.waits_for.lock().clear();
        let judged = self.read_file().and_then(|text| self.judge(&self.file, &text)?.adopted(&self.keys));
        match judged {
            Ok(mut loaded) => {
                let before = live.policy();
                if before.sha256 == loaded.sha256 {
                    loaded.counts = Arc::clone(&before.counts);
                } else if !self.canary.begin(&before, &loaded) {
                    self.keep_for_a_restart(&loaded);
                }
                let loaded = self.accept(loaded);
                live.audit("policy_reload", &before, &loaded);
                live.replace(loaded);
                *self.refused_policy.lock() = None;
                self.note_lists(&live.policy().lists);
                Ok(())
            }
            Err(faults) => {
                self.refuse(faults.clone(), STAYS);
                self.note_lists(&live.policy().lists);
                Err(faults)
            }
        }
    }

    /// The last refusal, of the file or else of the lists that it names. `None` if a good policy came after it.
    pub fn last_refusal(&self) -> Option<ReloadRefusal> {
        let of_the_file = self.refused_policy.lock().clone();
        of_the_file.or_else(|| self.refused_lists.lock().clone())
    }

    /// Notes the faults of the lists of the policy in force. It uses their last good lists.
    fn note_lists(&self, lists: &Lists) {
        let faults = self.lists.faults(lists);
        let mut refused = self.refused_lists.lock();
        if faults.is_empty() {
            *refused = None;
        } else if refused.as_ref().is_none_or(|known| known.faults != faults) {
            self.metrics.policy_reloads.with_label_values(&["refused"]).inc();
            *refused = Some(ReloadRefusal::now(faults));
        }
        let is_refused = refused.is_some();
        drop(refused); // no code holds two locks at once
        let is_refused = is_refused || self.refused_policy.lock().is_some();
        self.metrics.policy_refused.set(i64::from(is_refused));
    }

    /// Stores the text in force. A restart uses it if the file is refused then.
    fn keep_for_a_restart(&self, loaded: &Loaded) {
        self.lists.keep_only(&loaded.lists);
        self.state.keep(LAST_GOOD, loaded.text.as_bytes());
    }

    fn accept(&self, loaded: Loaded) -> Arc<Loaded> {
        self.metrics.policy_reloads.with_label_values(&["accepted"]).inc();
        self.forget_rollback();
        let loaded = Arc::new(loaded);
        self.note_in_force(&loaded);
        info!(sha256 = loaded.sha256, file = loaded.file, "policy in force");
        loaded
    }

    fn note_in_force(&self, loaded: &Loaded) {
        let name = |path: &Path| path.file_name().map(OsStr::to_owned);
        self.lists.hold(&loaded.lists);
        self.note_lists(&loaded.lists);
        let lists = loaded.lists.iter().filter_map(|(list, _)| name(Path::new(list)));
        *self.watched.lock() = lists.chain(name(&self.file)).collect();
        self.metrics.policy_info.reset();
        self.metrics.policy_info.with_label_values(&[&loaded.sha256]).set(1);
        let at = loaded.loaded_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.metrics.policy_last_reload.set(i64::try_from(at).unwrap_or(i64::MAX));
    }

    /// Reports `faults`, and what is done instead.
    fn refuse(&self, faults: Vec<Fault>, instead: &str) {
        self.metrics.policy_reloads.with_label_values(&["refused"]).inc();
        for fault in &faults {
            error!(%fault, "the policy is refused: {instead}");
        }
        self.note_refusal(faults);
    }

    fn note_refusal(&self, faults: Vec<Fault>) {
        *self.refused_policy.lock() = Some(ReloadRefusal::now(faults));
        self.metrics.policy_refused.set(1);
    }
}
