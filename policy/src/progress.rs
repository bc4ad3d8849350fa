//! What is known of a request so far, even if it is refused. The access log, the metrics, `/admin/top` and
//! `gateway explain` read it.

use std::sync::Arc;

use crate::routes::Route;
use crate::rules::authenticate::Subject;
use crate::rules::client::Client;
use crate::values::stage::{Stage, Trail};

/// How far a request came, and what each stage found.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The finding of each stage.
    pub trail: Trail,
    /// The client, once it is known.
    pub client: Option<Client>,
    /// The route, once it is known.
    pub route: Option<Arc<Route>>,
    /// The subject, once it is proved.
    pub subject: Option<Subject>,
}

impl Progress {
    /// Notes the finding of `stage` and returns the verdict.
    pub(crate) fn stage<T, E>(&mut self, stage: Stage, verdict: Result<T, E>) -> Result<T, E> {
        self.trail.stage(stage, verdict)
    }

    /// Notes the client.
    pub(crate) fn client<E>(&mut self, stage: Stage, found: Result<Client, E>) -> Result<Client, E> {
        let client = self.stage(stage, found)?;
        self.client = Some(client);
        Ok(client)
    }

    /// Notes the route.
    pub(crate) fn route<E>(&mut self, stage: Stage, found: Result<Arc<Route>, E>) -> Result<Arc<Route>, E> {
        let route = self.stage(stage, found)?;
        self.route = Some(Arc::clone(&route));
        Ok(route)
    }

    /// Notes the subject.
    pub(crate) fn subject<E>(&mut self, stage: Stage, found: Result<Subject, E>) -> Result<Subject, E> {
        let subject = self.stage(stage, found)?;
        self.subject = Some(subject.clone());
        Ok(subject)
    }
}
