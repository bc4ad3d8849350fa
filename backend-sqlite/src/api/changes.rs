//! `/internal/changes`: gateways follow the log of changes.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use protocol::feed::News;
use serde::Deserialize;

use crate::http::app::App;
use crate::http::extract::Query;
use crate::model::changes;
use crate::problem::Result;

/// How long a question waits for news before the response says that there is none.
const WAIT: Duration = Duration::from_secs(1);

/// How often the log is looked at meanwhile: another program may have made a change.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Since {
    /// The last change that the gateway has applied; none when it starts.
    revision: Option<i64>,
    /// Of which run of this program that is a number. The database may have been restored to an earlier state since.
    run: Option<String>,
    /// Instead: the tokens that are revoked, from this change on. The rest of a reset.
    revoked_after: Option<i64>,
    /// Which gateway it is.
    replica: String,
}

/// `GET /internal/changes?revision=N&run=RUN&replica=ID`: answers at once when there has been a change after N, else
/// within a second.
pub(crate) async fn feed(State(app): State<App>, Query(since): Query<Since>) -> Result<Json<News>> {
    let followers = app.database.followers();
    let _following = followers.asks(&since.replica, since.revision.unwrap_or_default());
    let deadline = Instant::now() + WAIT;
    let mut commits = followers.commits();
    if let Some(after) = since.revoked_after {
        let run = followers.run().to_owned();
        let rest = app.database.read(move |transaction| changes::revoked_after(transaction, after, run));
        return Ok(Json(rest.await?));
    }
    let known = since.revision.filter(|_| since.run.as_deref() == Some(followers.run()));
    loop {
        let run = followers.run().to_owned();
        let news = app.database.read(move |transaction| changes::news_since(transaction, known, run)).await?;
        if news.reset || !news.changes.is_empty() || Instant::now() >= deadline {
            return Ok(Json(news));
        }
        let _ = tokio::time::timeout(LOOK_EVERY, commits.changed()).await;
    }
}
