//! Whether a request that failed is sent again: what the policy says of it, while the client has been sent nothing, the
//! breaker agrees and the budget holds.

use std::time::Duration;

use pingora_core::protocols::http::ServerSession as Session;
use pingora_http::ResponseHeader;
use policy::rules::breaker::Outcome;
use policy::rules::retry::is_repeatable;
use policy::values::request::Headers;
use tracing::debug;

use crate::clock;
use crate::engine::Gateway;
use crate::http::fields::fields_of;
use crate::request::exchange::Exchange;
use crate::request::failure::has_begun;

/// Decides about another try after `outcome`; how long to wait is noted in the exchange.
pub(crate) fn try_again(
    gateway: &Gateway,
    session: &Session,
    exchange: &mut Exchange,
    outcome: Outcome,
    retry_after: Option<Duration>,
) -> bool {
    let Some(route) = exchange.admission.as_ref().map(|admission| std::sync::Arc::clone(&admission.route))
    else {
        return false;
    };
    let Some(rule) = route.retry.as_deref().filter(|_| may_be_repeated(session, exchange)) else {
        return false;
    };
    let Some(wait) = rule.again(exchange.tries, outcome, retry_after, rand::random()) else { return false };
    let over = exchange.first_try.map(|first| first.elapsed() + wait);
    if over.is_none_or(|over| over >= exchange.upstream_timeout()) {
        return false;
    }
    let why_not = refused(gateway, exchange, outcome);
    let count = |word| gateway.metrics.retries.with_label_values(&[&*route.upstream, word]).inc();
    if let Some(why_not) = why_not {
        count(why_not);
        return false;
    }
    count("made");
    debug!(tries = exchange.tries, wait_ms = wait.as_millis(), "sent again");
    exchange.next_try_in = Some(wait);
    true
}

/// Whether nothing stands in the way: the method, the body that is kept, an answer that has begun.
fn may_be_repeated(session: &Session, exchange: &Exchange) -> bool {
    let header = session.req_header();
    let fields = fields_of(header);
    !exchange.handshake
        && !has_begun(session)
        && !session.retry_buffer_truncated()
        && is_repeatable(header.method.as_str(), Headers::new(&fields))
}

/// The breaker and the budget, in this order: the failed try is told to the breaker, and the next one asks it again.
fn refused(gateway: &Gateway, exchange: &mut Exchange, outcome: Outcome) -> Option<&'static str> {
    let admission = exchange.admission.as_mut()?;
    let now = clock::steady();
    admission.pass.settle_early(outcome, now);
    match gateway.breakers.enter(admission.route.breaker.as_ref(), now) {
        Err(_) => Some("breaker_open"),
        Ok(_) if !gateway.retry_budgets.take(&admission.route.upstream) => Some("budget_spent"),
        Ok(pass) => {
            admission.pass = pass;
            None
        }
    }
}

/// What an upstream asks a client to wait: whole seconds, or a date.
pub(crate) fn retry_after(response: &ResponseHeader) -> Option<Duration> {
    let text = response.headers.get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // A date: how long that is does not matter, for no rule waits for as long as such dates mean.
    Some(Duration::MAX)
}
