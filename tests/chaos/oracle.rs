//! Judges a run. It knows what was asked for, what the switch wrote, what was told and what is where; of the product's rules only what its
//! documents promise. Pure, so that it can be asked about evidence that was tampered with: see `tampered`.

mod causes;
mod places;
pub mod turns;

use std::collections::{BTreeMap, BTreeSet};

use crate::evidence::{Ending, Evidence, Start, Story};

/// All that is wrong, one sentence each. Empty: the promises were kept.
pub fn judge(evidence: &Evidence) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut of_start: BTreeMap<&str, Vec<&Ending>> = BTreeMap::new();
    for ending in &evidence.endings {
        of_start.entry(&ending.label).or_default().push(ending);
    }
    for start in &evidence.starts {
        let endings = of_start.remove(start.label.as_str()).unwrap_or_default();
        let mut say = |sentence: String| wrong.push(format!("{}: {sentence}", start.label));
        once(evidence, start, &endings, &mut say);
        missing(evidence, start, &endings, &mut say);
        invented(evidence, start, &endings, &mut say);
        for ending in &endings {
            if ending.is_kept() {
                places::kept(evidence, start, ending, &mut say);
            } else if ending.is_final() || rests(ending, &endings) {
                let reopened = is_reopened(ending, &endings);
                causes::told(evidence, start, ending, reopened, &mut say);
            }
        }
        left_on_switch(start, &endings, &mut say);
    }
    for (label, endings) in of_start {
        wrong.push(format!(
            "{} endings are of {label:?}, which nobody asked for",
            endings.len()
        ));
    }
    places::strangers(evidence, &mut wrong);
    stories(evidence, &mut wrong);
    notices(evidence, &mut wrong);
    answers(evidence, &mut wrong);
    turns::obeyed(evidence, &mut wrong);
    wrong.extend(evidence.left_over.iter().map(|what| format!("left over: {what}")));
    wrong
}

/// Recordings of one start: what the switch recorded under its name, and has to end once each.
fn by_key<'a>(endings: &[&'a Ending]) -> BTreeMap<&'a str, Vec<&'a Ending>> {
    let mut recordings: BTreeMap<&str, Vec<&Ending>> = BTreeMap::new();
    for ending in endings {
        recordings.entry(&ending.key).or_default().push(ending);
    }
    recordings
}

/// A start that was surely asked for ends, once; so does every recording that goes on from it.
fn once(evidence: &Evidence, start: &Start, endings: &[&Ending], say: &mut impl FnMut(String)) {
    let recordings = by_key(endings);
    let firsts = recordings
        .values()
        .filter(|told| told.iter().all(|e| e.continues.is_none()));
    match firsts.count() {
        1 => {}
        0 if !start.must_end() || causes::is_unheard_of(evidence, start) => {}
        0 => say("nothing was ever told of it".into()),
        more => say(format!("it ended {more} times, as recordings of different keys")),
    }
    for (key, told) in &recordings {
        let ended: Vec<String> = told
            .iter()
            .filter(|ending| ending.is_final() && !is_reopened(ending, told))
            .map(|ending| format!("{} ({})", ending.outcome, ending.cause))
            .collect();
        match ended.len() {
            1 => {}
            2.. if grew_between(start, told) || were_settings_changed(evidence, told) => {}
            // A file that the switch does not bring any more rests for an operator: `causes` judges whether it was lost.
            0 if told.iter().any(|ending| rests(ending, told)) => {}
            0 => say(format!("recording {key} is parked, and nothing else was told of it")),
            _ => say(format!("recording {key} ended more than once: {}", ended.join(", "))),
        }
        let goes_on_from = told.iter().find_map(|ending| ending.continues.as_deref());
        let known = |id: &str| {
            endings
                .iter()
                .any(|ending| ending.media_id == id && ending.key != **key)
        };
        if let Some(id) = goes_on_from.filter(|id| !known(id)) {
            say(format!("recording {key} goes on from {id}, of which nothing was told"));
        }
    }
}

/// Several workers heard its end in the moment in which an operator changed where it goes, and each has the settings of its own last look.
fn were_settings_changed(evidence: &Evidence, told: &[&Ending]) -> bool {
    let places: BTreeSet<&str> = told.iter().map(|ending| ending.destination.as_str()).collect();
    places.len() > 1 && told.iter().any(|ending| causes::settings_changed(evidence, ending.at))
}

/// Two workers that did not hear of each other kept its file, and the switch had recorded the next part in between. Each told of its own document.
fn grew_between(start: &Start, told: &[&Ending]) -> bool {
    let kept: Vec<&&Ending> = told.iter().filter(|ending| ending.is_final()).collect();
    let different = |what: fn(&Ending) -> &str| kept.iter().map(|ending| what(ending)).collect::<BTreeSet<_>>().len();
    kept.iter()
        .all(|ending| ending.is_kept() && start.wholes.contains(&ending.md5))
        && different(|ending| &ending.media_id) == kept.len()
        && different(|ending| &ending.md5) == kept.len()
}

/// What never started, as far as was heard, has failed, and is open again when it does start after all: then its own end counts.
fn is_reopened(ending: &Ending, told: &[&Ending]) -> bool {
    let unheard = ["never_started", "call_gone", "start_refused"].contains(&ending.cause.as_str());
    let later = |other: &&Ending| other.key == ending.key && other.is_kept() && other.at > ending.at;
    ending.outcome == "failed" && unheard && told.iter().any(later)
}

/// Whether it rests for good, as was told last: a file that the switch does not bring any more is an operator's.
fn rests(ending: &Ending, told: &[&Ending]) -> bool {
    let mut others = told.iter().filter(|other| other.key == ending.key);
    ending.outcome == "parked"
        && ending.cause == "not_collected"
        && others.all(|other| !other.is_final() && other.at <= ending.at)
}

impl Start {
    /// Whether it must end: the broker has its action, or the switch a file of it.
    fn must_end(&self) -> bool {
        self.routed == Some(true) || !self.files.is_empty()
    }
}

/// All audio that the switch wrote is kept somewhere, or it was told why not.
fn missing(evidence: &Evidence, start: &Start, endings: &[&Ending], say: &mut impl FnMut(String)) {
    for file in &start.files {
        let kept = endings.iter().any(|ending| ending.is_kept() && ending.md5 == file.md5);
        let told = endings
            .iter()
            .any(|ending| causes::accounts_for(evidence, start, file, ending));
        if !kept && !told && !causes::is_unheard_of(evidence, start) {
            say(format!(
                "{} ({} ms) is kept nowhere, and nobody said so: {}",
                file.path,
                file.millis,
                summary(endings)
            ));
        }
    }
}

/// What is kept is the audio of this start, whole, and no audio is kept twice. One document can be told of twice: see docs/limits.md.
fn invented(evidence: &Evidence, start: &Start, endings: &[&Ending], say: &mut impl FnMut(String)) {
    let mut seen = BTreeSet::new();
    for ending in endings.iter().filter(|ending| ending.is_kept()) {
        if !start.wholes.contains(&ending.md5) {
            say(format!(
                "{} was kept as {} ({}, {:?} bytes), which is not what the switch wrote",
                ending.md5, ending.media_id, ending.cause, ending.size
            ));
        }
        if ending.findings != (ending.cause == "suspect_audio") {
            say(format!(
                "{} is {} with findings: {}",
                ending.media_id, ending.cause, ending.findings
            ));
        }
        // A continuation is longer than told if the part before is in its file too: its worker died before the switch let that go.
        if ending.findings && !start.vanished && ending.continues.is_none() {
            say(format!("{} is said to be suspect, and is not", ending.media_id));
        }
        let document = (&ending.media_id, &ending.md5);
        let is_again = !seen.contains(&document) && seen.iter().any(|(_, md5)| *md5 == &ending.md5);
        // Of parts of one file, two workers that do not hear of each other can each keep what both have.
        let parted = start.wholes.len() > 1
            && start.asked_at.is_some_and(|from| {
                causes::ledger_failed(evidence, from, ending.at) || causes::hindered(evidence, from, ending.at)
            });
        if is_again && !parted && !were_settings_changed(evidence, endings) {
            say(format!("the same audio is kept twice: {}", summary(endings)));
        }
        seen.insert(document);
    }
}

/// Where audio is safe the switch has let its file go.
fn left_on_switch(start: &Start, endings: &[&Ending], say: &mut impl FnMut(String)) {
    for file in start.files.iter().filter(|file| file.there) {
        if endings.iter().any(|ending| ending.is_kept() && ending.md5 == file.md5) {
            say(format!("{} is kept, and still on the switch", file.path));
        }
    }
}

fn summary(endings: &[&Ending]) -> String {
    let told: Vec<String> = endings
        .iter()
        .map(|e| format!("{} {} {} ({})", e.key, e.outcome, e.cause, e.md5))
        .collect();
    told.join("; ")
}

/// What `explain` tells is what was announced, of every recording, and of no other.
fn stories(evidence: &Evidence, wrong: &mut Vec<String>) {
    let mut finals: Vec<&Ending> = evidence.endings.iter().filter(|ending| ending.is_final()).collect();
    // Of one that was open again the last counts.
    finals.sort_by_key(|ending| ending.at);
    let told: BTreeMap<&str, &Ending> = finals.into_iter().map(|ending| (ending.key.as_str(), ending)).collect();
    for Story {
        key,
        state,
        outcome,
        cause,
        call_id,
        ..
    } in &evidence.stories
    {
        match told.get(key.as_str()) {
            Some(ending)
                if (&ending.outcome, &ending.cause) == (outcome, cause)
                    && (ending.call_id == *call_id || has_two_legs(evidence, ending)) =>
            {
                if state != outcome {
                    wrong.push(format!("{}: explain says that it is {state}, not closed", ending.label));
                }
            }
            Some(ending) => wrong.push(format!(
                "{}: explain tells {outcome} {cause} of {call_id}, announced was {} {}",
                ending.label, ending.outcome, ending.cause
            )),
            // It rests: what was announced of that is judged with its recording.
            None if cause == "not_collected" && state == "parked" && outcome.is_empty() && evidence.rests(key) => {}
            None => wrong.push(format!("explain tells {outcome} {cause} of {key}, never announced")),
        }
    }
    let known: BTreeSet<&str> = evidence.stories.iter().map(|story| story.key.as_str()).collect();
    for (key, ending) in told.iter().filter(|(key, _)| !known.contains(**key)) {
        wrong.push(format!("{}: explain does not know {key}", ending.label));
    }
}

/// Of a recording that Kazoo began by itself and that moved, two workers may know two legs: it is stored once, and told once for each leg.
fn has_two_legs(evidence: &Evidence, ending: &Ending) -> bool {
    let mut starts = evidence.starts.iter();
    starts.any(|start| start.label == ending.label && start.kazoos.is_some())
}

/// The endpoint got the outcome of every recording that is closed, and nothing that was not announced.
fn notices(evidence: &Evidence, wrong: &mut Vec<String>) {
    for notice in &evidence.notices {
        let of = |ending: &&Ending| ending.msg_id == notice.id;
        let announced = evidence.endings.iter().find(of);
        // A notice tells what is known when it is sent: of a recording that two workers delivered, perhaps the other one's document.
        let is_its = |ending: &Ending| {
            let mut all = evidence.endings.iter().filter(|other| other.key == ending.key);
            ending.outcome == notice.outcome && all.any(|other| other.media_id == notice.media_id)
        };
        let same = announced.is_some_and(is_its);
        if let Some(why) = &notice.wrong {
            wrong.push(format!("the endpoint got a request that is not genuine: {why}"));
        } else if !same {
            wrong.push(format!(
                "the endpoint got {} of {} ({}), and announced was {:?}",
                notice.outcome, notice.media_id, notice.id, announced
            ));
        }
    }
    for story in evidence.stories.iter().filter(|story| !story.outcome.is_empty()) {
        // Of one that was open again the last outcome counts.
        let mine = evidence
            .endings
            .iter()
            .filter(|ending| ending.key == story.key && ending.is_final());
        let Some(last) = mine.max_by_key(|ending| ending.at) else {
            continue;
        };
        if !evidence.notices.iter().any(|notice| notice.id == last.msg_id) {
            wrong.push(format!(
                "{}: the endpoint never got {} ({})",
                last.label, last.outcome, last.msg_id
            ));
        }
    }
}

impl Evidence {
    /// Whether it was told that a recording rests.
    fn rests(&self, key: &str) -> bool {
        let told: Vec<&Ending> = self.endings.iter().filter(|ending| ending.key == key).collect();
        told.iter().any(|ending| rests(ending, &told))
    }
}

/// Every action was answered, but those whose answer went with a broker.
fn answers(evidence: &Evidence, wrong: &mut Vec<String>) {
    for (action, sent_at) in &evidence.unanswered {
        if !causes::broker_was_away(evidence, *sent_at) {
            wrong.push(format!("{action} was never answered"));
        }
    }
}
