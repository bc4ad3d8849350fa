//! The retry budget: the share of load that retries may add, so that an upstream in trouble does not receive much more
//! than before. Each request pays its share in, each retry takes one out (Finagle's `RetryBudget`).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use policy::rules::retry::RetryRule;

/// A thousandth of a retry.
type Milli = u32;

/// What a budget holds at first, so that retries are possible under little load, too.
const RESERVE: Milli = 10_000;

/// What a budget holds at most, so that a long quiet time does not allow a storm of retries.
const MOST: Milli = 100_000;

/// The budgets of the upstreams.
#[derive(Default)]
pub struct Budgets(Mutex<HashMap<Arc<str>, Milli>>);

impl Budgets {
    fn with<T>(&self, upstream: &Arc<str>, work: impl FnOnce(&mut Milli) -> T) -> T {
        let mut all = self.0.lock();
        match all.get_mut(upstream) {
            Some(budget) => work(budget),
            None => work(all.entry(Arc::clone(upstream)).or_insert(RESERVE)),
        }
    }

    /// Pays in for a request that is sent to an upstream.
    pub fn pay_in(&self, upstream: &Arc<str>, rule: &RetryRule) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000")]
        let share = (rule.budget * 1e3) as Milli;
        self.with(upstream, |budget| *budget = (*budget + share).min(MOST));
    }

    /// Takes one retry. Returns whether there was enough for it.
    pub fn take(&self, upstream: &Arc<str>) -> bool {
        self.with(upstream, |budget| {
            let left = budget.checked_sub(1_000);
            *budget = left.unwrap_or(*budget);
            left.is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy::Policy;

    #[test]
    fn retries_add_no_more_than_their_share() {
        let text = "version = 1\n[retries.r]\nbudget = 0.1\n[[routes]]\nname = \"a\"\npath = \"/\"\nupstream = \"u\"\nretry = \"r\"\n";
        let policy = Policy::parse("p", text, None).unwrap();
        let rule = policy.routes.iter().next().unwrap().retry.clone().unwrap();
        let (budgets, upstream) = (Budgets::default(), Arc::from("u"));
        let retried = (0..1_000).filter(|_| {
            budgets.pay_in(&upstream, &rule);
            budgets.take(&upstream)
        });
        assert_eq!(retried.count(), 110, "a tenth, and the reserve");
    }
}
