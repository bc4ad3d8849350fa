//! The rollback: a policy that leaves its band while it is on trial is replaced by the one before it, and does not
//! return by itself.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use policy::document::Fault;
use tracing::{error, info, warn};

use super::Reloader;
use crate::live_policy::canary::Verdict;
use crate::live_policy::files::{lines, whole_file};
use crate::live_policy::in_force::PolicyInForce;
use crate::live_policy::loaded::Loaded;

/// The file in the state directory with the digest of the last policy that failed its trial.
const ROLLED_BACK: &str = "policy.rolled-back";

/// How often a trial is judged.
const LOOK: Duration = Duration::from_secs(1);

impl Reloader {
    /// Judges the policy in force at intervals, forever.
    pub async fn watch_trials(self: Arc<Self>, live: Arc<PolicyInForce>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let (reloader, live) = (Arc::clone(&self), Arc::clone(&live));
            let _ = tokio::task::spawn_blocking(move || reloader.look_at_trial(&live)).await;
        }
    }

    /// Judges the policy in force, if it is on trial.
    pub(crate) fn look_at_trial(&self, live: &PolicyInForce) {
        let _one_at_a_time = self.reloading.lock();
        let in_force = live.policy();
        match self.canary.look(&in_force) {
            None => {}
            Some(Verdict::Stood) => {
                info!(sha256 = in_force.sha256, "the policy has stood its trial");
                self.keep_for_a_restart(&in_force);
            }
            Some(Verdict::Left(departure, before)) => {
                self.roll_back(live, &in_force, before, &departure);
            }
        }
    }

    /// Replaces `candidate`, which has left its band, by `before`, with the current overrides and deny lists. The file
    /// is not read again until it changes, or an operator asks for it.
    fn roll_back(&self, live: &PolicyInForce, candidate: &Loaded, before: Arc<Loaded>, departure: &str) {
        let fault = Fault {
            file: candidate.file.clone(),
            line: 1,
            column: 1,
            key: "canary".to_owned(),
            message: format!("rolled back: {departure}"),
        };
        error!(%fault, sha256 = candidate.sha256, back_to = before.sha256, "the policy did not stand its trial");
        let anew = self.judge(Path::new(&before.file), &before.text);
        let before = match anew.and_then(|loaded| loaded.adopted(&self.keys)) {
            Ok(loaded) => Arc::new(Loaded { counts: Arc::clone(&before.counts), ..loaded }),
            Err(faults) => {
                warn!(
                    faults = lines(&faults),
                    "the policy that is put back stays as it was: overrides do not fit it"
                );
                let _ = self.keys.adopt(&before.rules);
                before
            }
        };
        self.state.keep(ROLLED_BACK, candidate.sha256.as_bytes());
        live.audit("policy_roll_back", candidate, &before);
        self.metrics.policy_reloads.with_label_values(&["rolled_back"]).inc();
        self.note_in_force(&before);
        live.replace(before);
        self.note_refusal(vec![fault]);
    }

    /// The gateway does not start with a policy that was rolled back.
    pub(super) fn unless_rolled_back(&self, loaded: Loaded) -> Result<Loaded, Vec<Fault>> {
        let rolled_back = self.state.read(ROLLED_BACK, 1_024).unwrap_or_default();
        if rolled_back == loaded.sha256.as_bytes() {
            let error = anyhow::anyhow!("it was rolled back: change it, or POST /admin/policy/reload");
            return Err(vec![whole_file(&self.file, &error)]);
        }
        Ok(loaded)
    }

    /// Another policy is in force, so an earlier rollback does not matter any more.
    pub(super) fn forget_rollback(&self) {
        self.state.remove(ROLLED_BACK);
    }
}
