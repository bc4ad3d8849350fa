//! What is known of a request so far, also of one that is refused: the access log, the metrics, `/admin/top` and
//! `gateway explain` read it.

use std::sync::Arc;

use crate::routes::Route;
use crate::rules::authenticate::Subject;
use crate::rules::client::Client;
use crate::values::stage::{Stage, Trail};

/// How far a request came, and what was found on the way.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// What each stage found.
    pub trail: Trail,
    /// Who is at the other end, once that is known.
    pub client: Option<Client>,
    /// The route, once it was found.
    pub route: Option<Arc<Route>>,
    /// Who is asking, once it was proved.
    pub subject: Option<Subject>,
}

impl Progress {
    /// Notes what `stage` found and hands the verdict on.
    pub(crate) fn stage<T, E>(&mut self, stage: Stage, verdict: Result<T, E>) -> Result<T, E> {
        self.trail.stage(stage, verdict)
    }

    /// Notes who is at the other end.
    pub(crate) fn client<E>(&mut self, stage: Stage, found: Result<Client, E>) -> Result<Client, E> {
        let client = self.stage(stage, found)?;
        self.client = Some(client);
        Ok(client)
    }

    /// Notes where the request goes.
    pub(crate) fn route<E>(&mut self, stage: Stage, found: Result<Arc<Route>, E>) -> Result<Arc<Route>, E> {
        let route = self.stage(stage, found)?;
        self.route = Some(Arc::clone(&route));
        Ok(route)
    }

    /// Notes who is asking.
    pub(crate) fn subject<E>(&mut self, stage: Stage, found: Result<Subject, E>) -> Result<Subject, E> {
        let subject = self.stage(stage, found)?;
        self.subject = Some(subject.clone());
        Ok(subject)
    }
}
