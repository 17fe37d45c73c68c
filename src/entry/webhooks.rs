//! What an entry says of the notices that endpoints of operators must get.
//!
//! The debt is separate from the recording's state: a recording is closed while an endpoint is down. Each endpoint gets the notices of a
//! recording in the order of their outcomes.

use serde::{Deserialize, Serialize};

use crate::kazoo::time::Moment;

use super::Entry;
use super::cause::{Cause, Outcome};
use super::fact::What;

/// An outcome that endpoints must get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owed {
    pub n: u32,
    /// The id of the notice. It is the same at each attempt and at each endpoint, and the id of the AMQP event.
    pub id: String,
    pub outcome: Outcome,
    pub cause: Cause,
    /// The names of the endpoints in the settings.
    pub endpoints: Vec<String>,
}

/// A notice for one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    pub endpoint: String,
    pub n: u32,
    pub id: String,
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    #[serde(flatten)]
    pub notice: Given,
    pub attempt: u32,
    pub why: String,
    /// The endpoint asked for this delay, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

/// A notice, after so many attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempted {
    #[serde(flatten)]
    pub notice: Given,
    pub attempt: u32,
}

/// A notice that an endpoint has not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debt {
    pub notice: Given,
    pub outcome: Outcome,
    pub cause: Cause,
    pub since: Moment,
    /// Attempts in all.
    pub attempts: u32,
    /// Attempts since an operator last retried it.
    pub tries: u32,
    /// The last attempt: when it was, and the delay that the endpoint asked for, in seconds.
    pub failed: Option<(Moment, u64)>,
    /// When an operator last retried it.
    pub retried: Option<Moment>,
    pub is_parked: bool,
}

/// A notice this many outcomes before one that the endpoint has accepted counts as accepted: notices go out in order. Of a very long event log
/// the facts in the middle are dropped, and an endpoint must not get old notices again for that.
const LONG_AGO: u32 = 3;

/// Endpoints that the settings may have. With more of them, an entry could drop facts that still count.
pub const MOST_ENDPOINTS: usize = 8;

impl Entry {
    /// The notices that endpoints have not accepted, in order.
    pub fn webhooks(&self) -> Vec<Debt> {
        let mut owed: Vec<(Moment, &Owed)> = self
            .facts()
            .filter_map(|fact| match &fact.what {
                What::WebhooksOwed(owed) => Some((fact.at, owed.as_ref())),
                _ => None,
            })
            .collect();
        owed.sort_by(|(_, one), (_, other)| (one.n, &one.id).cmp(&(other.n, &other.id)));
        let mut debts: Vec<Debt> = Vec::new();
        for (since, owed) in owed {
            for endpoint in &owed.endpoints {
                let notice = Given {
                    endpoint: endpoint.clone(),
                    n: owed.n,
                    id: owed.id.clone(),
                };
                // Two workers may have published the same outcome.
                let is_known = debts.iter().any(|debt| debt.notice.is_same(&notice));
                debts.extend((!is_known).then(|| self.debt(notice, owed, since)).flatten());
            }
        }
        debts
    }

    /// The next notice that an endpoint must get.
    pub fn next_webhook(&self, endpoint: &str) -> Option<Debt> {
        let mut debts = self.webhooks().into_iter();
        debts.find(|debt| debt.notice.endpoint == endpoint && !debt.is_parked)
    }

    fn debt(&self, notice: Given, owed: &Owed, since: Moment) -> Option<Debt> {
        let later = notice.n.saturating_add(LONG_AGO);
        let (mut attempts, mut parked, mut retried_after) = (0, 0, 0);
        let (mut failed, mut retried, mut is_settled, mut is_old) = (None, None, false, false);
        for fact in self.facts() {
            match &fact.what {
                What::WebhookSent(sent) if sent.endpoint == notice.endpoint => {
                    is_settled |= sent.is_same(&notice);
                    is_old |= sent.n >= later;
                }
                What::WebhookFailed(refused) if refused.notice.is_same(&notice) && refused.attempt > attempts => {
                    attempts = refused.attempt;
                    failed = Some((fact.at, refused.retry_after_s.unwrap_or(0)));
                }
                What::WebhookParked(given_up) if given_up.notice.is_same(&notice) => {
                    parked = parked.max(given_up.attempt);
                }
                What::WebhookRetried(again) if again.notice.is_same(&notice) && again.attempt > retried_after => {
                    retried_after = again.attempt;
                    retried = Some(fact.at);
                }
                _ => {}
            }
        }
        let is_parked = parked > retried_after;
        (!is_settled && (is_parked || !is_old)).then(|| Debt {
            notice,
            outcome: owed.outcome,
            cause: owed.cause,
            since,
            attempts: attempts.max(parked).max(retried_after),
            tries: attempts.saturating_sub(retried_after),
            failed: failed.filter(|_| attempts > retried_after),
            retried,
            is_parked,
        })
    }
}

impl Given {
    /// Whether both are one notice for one endpoint. Two workers may have given it different numbers.
    fn is_same(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint && self.id == other.id
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::entry::fact::Fact;
    use crate::recording::identity::Key;

    use super::*;

    fn at(second: i64) -> Moment {
        Moment::from_unix_seconds(1_795_386_262 + second)
    }

    fn entry(facts: impl IntoIterator<Item = What>) -> Entry {
        let mut entry = Entry::new(Key::of("call", "action"), "call");
        for (second, what) in (0..).zip(facts) {
            let by = "w".into();
            entry.add(Fact {
                at: at(second),
                by,
                what,
            });
        }
        entry
    }

    fn owed(n: u32, endpoints: &[&str]) -> What {
        What::WebhooksOwed(Box::new(Owed {
            n,
            id: format!("id{n}"),
            outcome: Outcome::Parked,
            cause: Cause::Refused,
            endpoints: endpoints.iter().map(|&name| name.into()).collect(),
        }))
    }

    fn given(endpoint: &str, n: u32) -> Given {
        Given {
            endpoint: endpoint.into(),
            n,
            id: format!("id{n}"),
        }
    }

    fn failed(endpoint: &str, n: u32, attempt: u32) -> What {
        What::WebhookFailed(Refused {
            notice: given(endpoint, n),
            attempt,
            why: "why".into(),
            retry_after_s: None,
        })
    }

    fn after(endpoint: &str, n: u32, attempt: u32) -> Attempted {
        Attempted {
            notice: given(endpoint, n),
            attempt,
        }
    }

    #[test]
    fn each_endpoint_gets_each_notice_in_order_until_it_has_accepted_it() {
        let next = |entry: &Entry, endpoint| entry.next_webhook(endpoint).map(|debt| debt.notice.n);
        let mut facts = vec![owed(1, &["a", "b"]), owed(2, &["a"])];
        let both = entry(facts.clone());
        assert_eq!(
            (next(&both, "a"), next(&both, "b"), next(&both, "c")),
            (Some(1), Some(1), None)
        );
        facts.push(What::WebhookSent(given("a", 1)));
        let one = entry(facts.clone());
        assert_eq!((next(&one, "a"), next(&one, "b")), (Some(2), Some(1)));
        facts.extend([What::WebhookSent(given("b", 1)), What::WebhookSent(given("a", 2))]);
        assert_eq!(entry(facts).webhooks(), []);
    }

    #[test]
    fn a_parked_notice_holds_up_no_later_one_and_counts_anew_when_it_is_retried() {
        let mut facts = vec![owed(1, &["a"]), failed("a", 1, 1), failed("a", 1, 2)];
        let debt = entry(facts.clone()).next_webhook("a").unwrap();
        assert_eq!((debt.attempts, debt.tries, debt.failed), (2, 2, Some((at(2), 0))));
        facts.extend([What::WebhookParked(after("a", 1, 2)), owed(2, &["a"])]);
        let rests = entry(facts.clone());
        assert!(rests.webhooks()[0].is_parked);
        assert_eq!(rests.next_webhook("a").unwrap().notice.n, 2);
        facts.push(What::WebhookRetried(after("a", 1, 2)));
        let again = entry(facts.clone()).next_webhook("a").unwrap();
        assert_eq!((again.notice.n, again.attempts, again.tries), (1, 2, 0));
        assert_eq!((again.retried, again.failed), (Some(at(5)), None));
        facts.extend([failed("a", 1, 3), What::WebhookParked(after("a", 1, 3))]);
        assert!(entry(facts).webhooks()[0].is_parked);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// An entry drops the middle of its log. What an endpoint has accepted, it never gets again; the newest outcome it always gets.
        #[test]
        fn no_length_of_the_log_makes_a_notice_come_again_or_get_lost(outcomes in 1..60u32, endpoints in 1..=MOST_ENDPOINTS) {
            let names: Vec<String> = (0..endpoints).map(|n| format!("e{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut entry = Entry::new(Key::of("call", "action"), "call");
            let mut second = 0;
            let mut add = |entry: &mut Entry, what| {
                second += 1;
                entry.add(Fact { at: at(second), by: "w".into(), what });
            };
            for n in 1..=outcomes {
                add(&mut entry, owed(n, &names));
                for name in &names {
                    prop_assert_eq!(entry.next_webhook(name).map(|debt| debt.notice.n), Some(n));
                    add(&mut entry, failed(name, n, 1));
                    prop_assert_eq!(entry.next_webhook(name).map(|debt| debt.attempts), Some(1));
                    add(&mut entry, What::WebhookSent(given(name, n)));
                }
                prop_assert_eq!(entry.webhooks(), vec![]);
            }
        }
    }
}
