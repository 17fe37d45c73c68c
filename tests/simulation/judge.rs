//! The judge: knows only what was asked, what the switch has, and what the targets have.

use std::collections::BTreeMap;

use kz_record_call::entry::cause::{Cause, Outcome};
use kz_record_call::recording::identity::Key;

use crate::world::*;

impl World {
    /// Knows only what was asked, what the switch has, and what the targets have; the ledger's word must agree.
    pub fn judge(&self) {
        for root in self.orders.keys() {
            let family: Vec<Key> = self
                .orders
                .keys()
                .chain(self.roots.keys())
                .copied()
                .filter(|key| self.root(*key) == *root)
                .collect();
            let mut safe: BTreeMap<u32, u64> = BTreeMap::new();
            for key in &family {
                self.judge_one(*key, *root);
                let delivered = self.delivered.get(key).into_iter().flatten();
                for (part, size) in delivered.chain(self.held_of(*root)).flatten() {
                    let known = safe.entry(*part).or_default();
                    *known = (*known).max(*size);
                }
            }
            let Some(file) = self.files.get(root) else { continue };
            for (part, size) in file.content.iter().filter(|_| file.there) {
                let known = safe.entry(*part).or_default();
                *known = (*known).max(*size);
            }
            // What was too short to be kept may be gone.
            let short = family.iter().any(|key| {
                let entry = self.store[0][key].entry.as_ref().unwrap();
                entry.outcome() == Some((Outcome::Discarded, Cause::TooShort))
            });
            if !short {
                assert_eq!(safe, file.recorded, "not all of {root} is somewhere");
            }
        }
    }

    pub fn judge_one(&self, key: Key, root: Key) {
        let entry = self.store[0][&key].entry.as_ref().unwrap();
        let file = self.files.get(&root);
        let newer = self.newer.get(&key).copied().unwrap_or(0).min(32);
        assert_eq!(
            entry.of_other_versions(),
            newer as usize,
            "what a newer version wrote is lost: {key}"
        );
        let told = self.announced.get(&key).cloned().unwrap_or_default();
        assert!(!told.is_empty(), "nobody was told of {key}");
        assert!(self.documents.get(&key).copied().unwrap_or(0) <= 1);
        let on_switch = file.is_some_and(|file| file.there);
        match (entry.outcome(), entry.parked()) {
            (Some((Outcome::Stored | Outcome::Delivered, _)), _) => {
                // Or beside what it goes on from, by a worker that knew nothing of it.
                let mut family = self.delivered.iter().filter(|(other, _)| self.root(**other) == root);
                let beside = key != root && family.any(|(_, contents)| contents.len() > 1);
                assert!(beside || self.delivered.contains_key(&key), "it is not there: {key}");
                assert!(entry.held().is_none(), "the hold is not emptied: {key}");
                // Nothing is left behind that nobody needs, unless the switch could not be reached for long.
                let tidied = entry.tidied().count();
                let delivered = self.delivered.get(&key).cloned().unwrap_or_default();
                let left = on_switch && delivered.contains(&self.there(root).unwrap());
                assert!(!left || tidied >= 6, "the file of {key} is left on the switch");
            }
            (Some((Outcome::Discarded, Cause::TooShort)), _) => {
                let order = &self.orders[&root].0;
                assert!(order.min_sec > 0, "{key}");
            }
            (None, Some(_)) => {
                let tried = entry.failures().count() + entry.postponed().count() + entry.panics().count();
                assert!(tried > 0, "moved on, and parked again without an attempt: {key}");
                let held = entry
                    .held()
                    .is_some_and(|holding| self.held.contains_key(&holding.name));
                let kept = held || on_switch || self.delivered.contains_key(&key);
                // Of a part, the family tells: two workers that knew nothing of each other may both have brought it.
                assert!(kept || key != root, "parked, and its audio is nowhere: {key}");
            }
            // A part that another worker, which knew nothing of it, stored with its recording: its audio is accounted for there.
            (Some((Outcome::Failed, Cause::FileGone)), _) if key != root => {}
            (Some((Outcome::Failed, cause)), _) => {
                assert!(
                    file.is_none(),
                    "a recording that was made is given up as {cause}: {key}"
                );
            }
            other => panic!("{key} ended as {other:?}"),
        }
    }
}
