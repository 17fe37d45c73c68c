//! Where audio is: on the switch, on its way, in the hold, at its destination.

use kz_record_call::entry::Entry;
use kz_record_call::entry::cause::{Cause, Outcome};
use kz_record_call::entry::fact::{CollectFailure, What};
use kz_record_call::lifecycle::{Input, State};
use kz_record_call::recording::identity::Key;

use crate::world::*;

impl World {
    pub fn there(&self, root: Key) -> Option<Content> {
        self.files
            .get(&root)
            .filter(|file| file.there)
            .map(|file| file.content.clone())
    }

    /// Whether the switch records into the file, as is seen where that is to be expected.
    pub fn is_written(&self, root: Key) -> bool {
        let again = self.orders.get(&root).is_some_and(|(order, _)| order.may_begin_again());
        again && self.files.get(&root).is_some_and(|file| file.running)
    }

    /// What a look finds: a recording that runs grows all the time.
    pub fn looked_at(&mut self, root: Key) -> Option<Content> {
        let file = self.files.get_mut(&root)?;
        if file.running {
            file.grow(7);
        }
        self.there(root)
    }

    pub fn held_of(&self, root: Key) -> impl Iterator<Item = &Content> {
        let of = root.to_string();
        let mine = self.held.iter().filter(move |(name, _)| name.starts_with(&of));
        mine.map(|(_, content)| content)
    }

    /// As the worker does: what is missing is looked for at its destination first.
    pub fn missing(&self, entry: &Entry, attempt: u32) -> Input {
        let destination = self.orders[&self.root(entry.key)].1;
        if self.delivered.contains_key(&entry.key) {
            return self.done(entry.key, destination);
        }
        let failure = if self.store_down {
            CollectFailure::Broken
        } else {
            CollectFailure::Missing
        };
        Input::Fact(What::CollectFailed {
            attempt,
            failure,
            why: "no file".into(),
        })
    }

    /// The point of no return: the switch deletes its file.
    pub fn release(&mut self, entry: &Entry) {
        let key = entry.key;
        let too_short = entry.outcome() == Some((Outcome::Discarded, Cause::TooShort));
        let root = self.root(key);
        // What is gone already is nowhere else to be deleted.
        let safe = self.there(root).is_none_or(|there| {
            let family = self.delivered.iter().filter(|(member, _)| self.root(**member) == root);
            let mut safe = family.flat_map(|(_, all)| all).chain(self.held_of(root));
            safe.any(|content| *content == there)
        });
        if !safe && !too_short {
            self.tell_all();
        }
        assert!(
            safe || too_short,
            "the switch was told to delete audio that is nowhere else: {key}"
        );
        self.note(format!(
            "the switch is told to let {root} go, by {key}, {}: {:?}",
            State::of(entry).name(),
            entry.facts().iter().map(|fact| fact.what.kind()).collect::<Vec<_>>()
        ));
        if self.files[&root].running {
            self.tell_all();
        }
        let file = self.files.get_mut(&root).unwrap();
        assert!(!file.running, "a file is deleted while it is being written: {key}");
        file.there = false;
    }
}
