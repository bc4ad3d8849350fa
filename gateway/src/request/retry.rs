//! Decides whether a failed request is sent again: the policy allows it, nothing was sent to the client, the breaker
//! permits it, and the retry budget is not used up.

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

/// Decides about another try after `outcome`. The exchange notes how long to wait.
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

/// Whether the request can be repeated: by its method, because its body is stored, and because no answer has begun.
fn may_be_repeated(session: &Session, exchange: &Exchange) -> bool {
    let header = session.req_header();
    let fields = fields_of(header);
    !exchange.handshake
        && !has_begun(session)
        && !session.retry_buffer_truncated()
        && is_repeatable(header.method.as_str(), Headers::new(&fields))
}

/// Asks the breaker and the budget, in this order. The failed try is reported to the breaker first, and the next try
/// needs its permission.
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

/// The wait that an upstream asks for: whole seconds, or a date.
pub(crate) fn retry_after(response: &ResponseHeader) -> Option<Duration> {
    let text = response.headers.get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // A date. Its exact value does not matter, because no rule waits as long as such dates mean.
    Some(Duration::MAX)
}
