//! What was announced of a recording that was not kept.

use crate::kazoo::time::Moment;

use super::Entry;
use super::cause::{Cause, Outcome};
use super::fact::{Announcement, What};

impl Entry {
    /// Whether the outcome was announced with this cause: its announcer had concluded so itself. Another worker may have concluded otherwise
    /// at the same time, which changes nothing then.
    pub(super) fn has_told(&self, outcome: Outcome, cause: Cause) -> bool {
        let concluded = |by: &str, at: Moment| {
            let of_worker = self.facts().filter(|fact| fact.by == by && fact.at <= at);
            let mut conclusions = of_worker.filter_map(|fact| match fact.what {
                What::Concluded { outcome: of, cause } if of == outcome => Some(cause),
                _ => None,
            });
            conclusions.next_back()
        };
        let mut announced = self
            .facts()
            .filter(|fact| fact.what == What::Announced(Announcement::Outcome(outcome)))
            .map(|fact| concluded(&fact.by, fact.at));
        let first = announced.next();
        first == Some(Some(cause)) && announced.all(|other| other == Some(cause))
    }
}

#[cfg(test)]
mod tests {
    use crate::entry::fact::Fact;
    use crate::recording::identity::Key;

    use super::*;

    /// Two workers conclude the same recording without knowing of each other. What was told is told again only if it was another cause.
    #[test]
    fn a_conclusion_of_another_worker_announces_nothing_twice() {
        let failed = Announcement::Outcome(Outcome::Failed);
        for (announcer, is_told) in [("x", true), ("y", false)] {
            let mut entry = Entry::new(Key::of("call", "action"), "call");
            let facts = [("x", 1, Cause::CallGone), ("y", 2, Cause::NeverStarted)];
            for (by, second, cause) in facts {
                let outcome = Outcome::Failed;
                entry.add(Fact {
                    at: Moment::from_unix_seconds(second),
                    by: by.into(),
                    what: What::Concluded { outcome, cause },
                });
            }
            entry.add(Fact {
                at: Moment::from_unix_seconds(3),
                by: announcer.into(),
                what: What::Announced(failed),
            });
            assert_eq!(entry.outcome(), Some((Outcome::Failed, Cause::CallGone)));
            assert_eq!(entry.is_announced(failed), is_told, "{announcer}");
        }
    }
}
