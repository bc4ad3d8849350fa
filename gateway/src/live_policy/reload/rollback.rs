//! The way back: a policy that leaves its band while it is on trial makes room for the one before it, and does not come
//! back by itself.

use std::path::Path;
use std::sync::Arc;

use policy::document::Fault;
use tracing::{error, info, warn};

use super::{Loaded, Reloader, audit};
use crate::engine::Gateway;
use crate::live_policy::canary::Verdict;
use crate::live_policy::files::{lines, whole_file};

/// In the state directory: the digest of the last policy that did not stand its trial.
const ROLLED_BACK: &str = "policy.rolled-back";

impl Reloader {
    /// Looks at the policy in force, which may be on trial.
    pub(crate) fn look_at_trial(&self, gateway: &Gateway) {
        let _one_at_a_time = self.reloading.lock();
        let in_force = gateway.policy();
        match self.canary.look(&in_force) {
            None => {}
            Some(Verdict::Stood) => {
                info!(sha256 = in_force.sha256, "the policy has stood its trial");
                self.keep_for_a_restart(&in_force);
            }
            Some(Verdict::Left(departure, before)) => {
                self.roll_back(gateway, &in_force, before, &departure);
            }
        }
    }

    /// Puts `before` back in the place of `candidate`, which has left its band, with the overrides and deny lists that
    /// hold now. The file is not read again until it changes, or an operator says so.
    fn roll_back(&self, gateway: &Gateway, candidate: &Loaded, before: Arc<Loaded>, departure: &str) {
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
        audit(gateway, "policy_roll_back", candidate, &before);
        self.metrics.policy_reloads.with_label_values(&["rolled_back"]).inc();
        self.note_in_force(&before);
        gateway.put_in_force(before);
        self.note_refusal(vec![fault]);
    }

    /// A policy that was rolled back is no policy to start with.
    pub(super) fn unless_rolled_back(&self, loaded: Loaded) -> Result<Loaded, Vec<Fault>> {
        let rolled_back = self.state.read(ROLLED_BACK, 1_024).unwrap_or_default();
        if rolled_back == loaded.sha256.as_bytes() {
            let error = anyhow::anyhow!("it was rolled back: change it, or POST /admin/policy/reload");
            return Err(vec![whole_file(&self.file, &error)]);
        }
        Ok(loaded)
    }

    /// Another policy has been taken: whatever was rolled back before it is history.
    pub(super) fn forget_rollback(&self) {
        self.state.remove(ROLLED_BACK);
    }
}
