//! Decisions about notices to operators' endpoints: which endpoints get one, when, and when the attempts are over.

use std::time::Duration;

use crate::entry::Entry;
use crate::entry::cause::Outcome;
use crate::entry::fact::{Announcement, What};
use crate::entry::webhooks::{Attempted, Debt, Owed, Refused};
use crate::kazoo::time::Moment;

use super::Policy;
use super::schedule::spread;

/// What the settings say of endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    pub endpoints: Vec<Hook>,
    /// Delays after the first, second … failure. After one failure more the notice is parked.
    pub retry: Vec<Duration>,
    /// The worker that published an outcome sends the notice at once. Any worker sends it after this time.
    pub head_start: Duration,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub name: String,
    /// Empty: all outcomes.
    pub outcomes: Vec<String>,
    /// Empty: all accounts, and recordings without one.
    pub accounts: Vec<String>,
}

/// The longest delay that an endpoint's `Retry-After` can ask for.
const MAX_RETRY_AFTER: u64 = 12 * 3600;

impl Hook {
    fn wants(&self, outcome: Outcome, account_id: Option<&str>) -> bool {
        let of_account = |wanted: &String| Some(wanted.as_str()) == account_id;
        (self.outcomes.is_empty() || self.outcomes.iter().any(|wanted| wanted == outcome.name()))
            && (self.accounts.is_empty() || self.accounts.iter().any(of_account))
    }
}

/// The fact that follows when the broker confirms an outcome: the endpoints that must get it too. `entry` does not have `announced` yet.
pub(super) fn owed(entry: &Entry, announced: &What, policy: &Policy) -> Option<What> {
    let outcome = match announced {
        What::Announced(Announcement::Outcome(outcome)) => *outcome,
        What::RestAnnounced { .. } => Outcome::Parked,
        What::CauseAnnounced { .. } => entry.outcome()?.0,
        _ => return None,
    };
    let wanted = policy.hooks.endpoints.iter();
    let wanted = wanted.filter(|hook| hook.wants(outcome, entry.account_id()));
    let endpoints: Vec<String> = wanted.map(|hook| hook.name.clone()).collect();
    if endpoints.is_empty() {
        return None;
    }
    Some(What::WebhooksOwed(Box::new(Owed {
        n: entry.next_number("webhooks_owed"),
        id: entry.notice_id(Announcement::Outcome(outcome))?,
        outcome,
        cause: entry.cause_of(outcome)?,
        endpoints,
    })))
}

/// When each endpoint must get its next notice.
pub fn webhooks_due(entry: &Entry, policy: &Policy) -> Vec<(String, Moment)> {
    let mut due: Vec<(String, Moment)> = Vec::new();
    for debt in entry.webhooks().iter().filter(|debt| !debt.is_parked) {
        let endpoint = &debt.notice.endpoint;
        if !due.iter().any(|(known, _)| known == endpoint) {
            due.push((endpoint.clone(), due_at(entry, debt, policy)));
        }
    }
    due
}

/// When a notice is sent next.
pub fn due_at(entry: &Entry, debt: &Debt, policy: &Policy) -> Moment {
    match (debt.failed, debt.retried) {
        (Some((at, asked)), _) => {
            let asked = Duration::from_secs(asked.min(MAX_RETRY_AFTER));
            let pause = pause(policy, debt.tries);
            at.plus(pause.mul_f64(spread(entry, debt.attempts, policy)).max(asked))
        }
        (None, Some(retried)) => retried,
        (None, None) => debt.since.plus(policy.hooks.head_start),
    }
}

/// The facts that follow from a failed attempt.
pub fn refused(debt: &Debt, why: String, retry_after_s: Option<u64>, policy: &Policy) -> Vec<What> {
    let (notice, attempt) = (debt.notice.clone(), debt.attempts.saturating_add(1));
    let failed = What::WebhookFailed(Refused {
        notice: notice.clone(),
        attempt,
        why,
        retry_after_s,
    });
    let most = policy.hooks.retry.len();
    let is_last = usize::try_from(debt.tries).unwrap_or(usize::MAX) >= most;
    let parked = is_last.then_some(What::WebhookParked(Attempted { notice, attempt }));
    std::iter::once(failed).chain(parked).collect()
}

/// The facts of an operator's retry of all parked notices.
pub fn retried(entry: &Entry) -> Vec<What> {
    let parked = entry.webhooks().into_iter().filter(|debt| debt.is_parked);
    let again = |debt: Debt| {
        What::WebhookRetried(Attempted {
            notice: debt.notice,
            attempt: debt.attempts,
        })
    };
    parked.map(again).collect()
}

/// The delay after so many failures.
fn pause(policy: &Policy, failures: u32) -> Duration {
    let all = &policy.hooks.retry;
    let index = usize::try_from(failures.saturating_sub(1)).unwrap_or(usize::MAX);
    all.get(index).or(all.last()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use crate::entry::cause::Cause;
    use crate::entry::fact::Fact;
    use crate::entry::webhooks::Given;
    use crate::lifecycle::tests::{order, policy};
    use crate::lifecycle::{Case, Hand, Input, State, step};

    use super::*;

    const ACCOUNT: &str = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4";

    fn hook(name: &str, outcomes: &[&str], accounts: &[&str]) -> Hook {
        let texts = |all: &[&str]| all.iter().map(|&text| text.to_owned()).collect();
        Hook {
            name: name.into(),
            outcomes: texts(outcomes),
            accounts: texts(accounts),
        }
    }

    fn hooked(endpoints: Vec<Hook>) -> Policy {
        let hooks = Hooks {
            endpoints,
            retry: [5, 60].map(Duration::from_secs).to_vec(),
            head_start: Duration::from_secs(30),
        };
        Policy {
            hooks,
            jitter: 0,
            ..policy()
        }
    }

    fn at(second: u64) -> Moment {
        order().asked_at.plus(Duration::from_secs(second))
    }

    fn failed_case(policy: &Policy) -> Case {
        let mut case = Case {
            entry: Entry::of_order(order(), "w"),
            hand: Hand::Empty,
            informed: true,
        };
        let (outcome, cause) = (Outcome::Failed, Cause::CallGone);
        step(
            &mut case,
            Input::Fact(What::Concluded { outcome, cause }),
            at(1),
            policy,
        );
        let announced = What::Announced(Announcement::Outcome(outcome));
        step(&mut case, Input::Fact(announced), at(2), policy);
        case
    }

    /// With the settings as they are delivered. A breaker delays an attempt by `destination.longest_pause_ms` at most.
    #[test]
    fn an_endpoint_that_is_down_for_a_day_gets_every_notice_afterwards() {
        const DAY: u64 = 86_400;
        let layers = crate::config::Layers::load(None, std::iter::empty()).unwrap();
        let settings = crate::config::Config::of(layers).unwrap();
        for jitter in [0, 20] {
            let mut policy = hooked(vec![hook("archive", &[], &[])]);
            policy.hooks.retry.clone_from(&settings.webhooks.retry);
            policy.jitter = jitter;
            let mut entry = failed_case(&policy).entry;
            let (begun, late) = (at(2), settings.destination.longest_pause);
            let mut attempts = 0;
            let came = loop {
                let debt = entry.next_webhook("archive").expect("parked");
                let now = due_at(&entry, &debt, &policy).plus(late);
                if now.since(begun) > Duration::from_secs(DAY) {
                    break now;
                }
                attempts += 1;
                for what in refused(&debt, "answered 503".into(), None, &policy) {
                    entry.add(Fact {
                        at: now,
                        by: "w".into(),
                        what,
                    });
                }
                // The recording itself is over, whatever the endpoint does.
                assert_eq!(State::of(&entry), State::Failed);
            };
            assert!(attempts >= 6, "{attempts}");
            assert!(came.since(begun) < Duration::from_secs(2 * DAY), "{came:?}");
        }
    }

    #[test]
    fn a_published_outcome_is_owed_to_the_endpoints_that_want_it_and_holds_nothing_open() {
        let policy = hooked(vec![
            hook("all", &[], &[]),
            hook("stored", &["stored", "delivered"], &[]),
            hook("mine", &["failed"], &[ACCOUNT]),
            hook("theirs", &[], &["f".repeat(32).as_str()]),
        ]);
        let entry = failed_case(&policy).entry;
        assert_eq!(State::of(&entry), State::Failed);
        let debts = entry.webhooks();
        let to: Vec<&str> = debts.iter().map(|debt| debt.notice.endpoint.as_str()).collect();
        assert_eq!(to, ["all", "mine"]);
        assert_eq!((debts[0].outcome, debts[0].cause), (Outcome::Failed, Cause::CallGone));
        assert_eq!(
            Some(&debts[0].notice.id),
            entry.notice_id(Announcement::Outcome(Outcome::Failed)).as_ref()
        );
        let due = webhooks_due(&entry, &policy);
        assert_eq!(due, [("all".to_owned(), at(32)), ("mine".to_owned(), at(32))]);
        assert_eq!(
            crate::lifecycle::due(&entry, at(9), &policy),
            None,
            "no timer of the recording"
        );
    }

    #[test]
    fn without_an_endpoint_nothing_is_noted() {
        let entry = failed_case(&hooked(Vec::new())).entry;
        assert_eq!(entry, failed_case(&policy()).entry);
        assert!(entry.facts().all(|fact| !fact.what.kind().starts_with("webhook")));
    }

    #[test]
    fn attempts_wait_longer_and_longer_and_are_over_in_the_end() {
        let policy = hooked(vec![hook("a", &[], &[])]);
        let mut entry = failed_case(&policy).entry;
        let fail = |entry: &mut Entry, second, asked| {
            let debt = entry.next_webhook("a").unwrap();
            for what in refused(&debt, "why".into(), asked, &policy) {
                let by = "w".into();
                entry.add(Fact {
                    at: at(second),
                    by,
                    what,
                });
            }
            webhooks_due(entry, &policy).first().map(|(_, due)| *due)
        };
        assert_eq!(fail(&mut entry, 40, None), Some(at(45)));
        assert_eq!(
            fail(&mut entry, 50, Some(600)),
            Some(at(650)),
            "the endpoint asked for longer"
        );
        assert_eq!(fail(&mut entry, 700, None), None, "parked");
        assert_eq!(State::of(&entry), State::Failed);
        for what in retried(&entry) {
            let by = "operator".into();
            entry.add(Fact { at: at(900), by, what });
        }
        assert_eq!(webhooks_due(&entry, &policy)[0].1, at(900));
        assert_eq!(fail(&mut entry, 901, None), Some(at(906)), "the schedule begins again");
        let debt = entry.next_webhook("a").unwrap();
        entry.add(Fact {
            at: at(950),
            by: "w".into(),
            what: What::WebhookSent(Given { ..debt.notice }),
        });
        assert!(entry.webhooks().is_empty() && retried(&entry).is_empty());
    }
}
