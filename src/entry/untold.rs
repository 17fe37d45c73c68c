//! Parts of which no event told. A file that is not the safe audio of its recording shows them.

use crate::kazoo::time::Moment;
use crate::recording::ending::Told;

use super::Entry;
use super::fact::{Fact, What};

impl Entry {
    /// The start of a part that no event reported, and the file proves: the file is not the safe audio of this recording any more. `None`
    /// if a known later part accounts for that, or if no later part can exist.
    pub fn untold_start(&self) -> Option<Told> {
        if self.goes_on() || !self.order()?.may_begin_again() {
            return None;
        }
        let ends = self.parts().into_iter().filter_map(|part| part.ended);
        // The only end may be presumed.
        let last = ends.max_by_key(|told| told.order()).or(self.ended())?;
        let just_after = |micros: i64| micros.saturating_add(1);
        Some(Told {
            at: Moment::from_unix_micros(just_after(last.at.unix_micros())),
            stamp: last.stamp.map(just_after),
            length_ms: None,
            completion_cause: None,
            ..last.clone()
        })
    }

    /// The same, if the start leads to a part of its own: otherwise nothing would follow from it, and the file would be asked for without a
    /// pause.
    pub fn untold_part(&self) -> Option<Told> {
        let told = self.untold_start()?;
        let mut with = self.clone();
        let (at, by) = (self.facts().map(|fact| fact.at).max()?, String::new());
        with.add(Fact {
            at,
            by,
            what: What::Started(Box::new(told.clone())),
        });
        (with.goes_on() && !self.is_of_one_before(&told)).then_some(told)
    }
}
