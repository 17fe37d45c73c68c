//! Whether what was kept is where it is said to be, byte by byte, and nothing else is there.

use std::time::{Duration, Instant};

use super::turns;
use crate::evidence::{Document, Ending, Evidence, Home, Start};
use crate::plan::{Account, What};
use crate::strike::Struck;
use crate::targets::Place;

/// Within this time of a change of the configuration every worker knows it.
const CONFIGURATION: Duration = Duration::from_secs(3);

/// A recording that is said to be kept.
pub fn kept(evidence: &Evidence, start: &Start, ending: &Ending, say: &mut impl FnMut(String)) {
    let may = match (start.server, start.account) {
        (Some(_), _) => ending.outcome == "delivered" && ending.destination == "url",
        (None, Account::Planned | Account::Native) => {
            ending.outcome == "stored" && ending.destination == "storage_plan"
        }
        // Which of the two depends on what was configured between its end on the switch and its end.
        (None, Account::Plain) => {
            ending.outcome == "stored"
                && match ending.destination.as_str() {
                    "account" => !was_third_party_throughout(evidence, start, ending),
                    "third_party" => was_third_party_once(evidence, start, ending),
                    _ => false,
                }
        }
    };
    if !may {
        say(format!(
            "it is {} at {}, where it does not belong",
            ending.outcome, ending.destination
        ));
    }
    let home = match ending.destination.as_str() {
        "third_party" => Home::ThirdParty,
        _ => Home::Ours,
    };
    let mine: Vec<&Document> = evidence
        .documents
        .iter()
        // Two accounts may have recordings of one id.
        .filter(|document| document.database.replace('/', "%2F") == ending.database)
        .filter(|document| document.id == ending.media_id && document.home == home)
        .collect();
    let [document] = mine.as_slice() else {
        return say(format!(
            "there are {} documents {} at {}",
            mine.len(),
            ending.media_id,
            ending.destination
        ));
    };
    described(evidence, start, ending, document, say);
    turns::masks(evidence, start, ending, document, say);
    let whole = Some((ending.md5.clone(), ending.size.unwrap_or_default()));
    match ending.destination.as_str() {
        "account" | "third_party" => {
            if document.audio != whole {
                say(format!("{} has {:?}, not {whole:?}", document.id, document.audio));
            }
        }
        "storage_plan" if start.account == Account::Native => {
            let key = document.object.as_deref().unwrap_or_default();
            let mut objects = evidence.objects.iter().filter(|object| object.key == key);
            let there = objects.next().map(|object| (object.md5.clone(), object.length));
            if there != whole {
                say(format!(
                    "{} tells of the object {key:?}, which is {there:?}, not {whole:?}",
                    document.id
                ));
            }
            if document.elsewhere != ending.size || document.audio.is_some() {
                say(format!(
                    "{} tells of {:?} bytes, not {:?}",
                    document.id, document.elsewhere, ending.size
                ));
            }
        }
        _ => {
            let place = start.server.map_or(Place::StoreProxy, Place::Server);
            let arrived = evidence.bodies.iter().any(|body| {
                body.place == place && body.label == start.label && body.md5 == ending.md5 && body.status == Some(200)
            });
            if !arrived {
                say(format!("{} never arrived at {place:?}", ending.md5));
            }
            if document.elsewhere != ending.size || document.audio.is_some() {
                say(format!(
                    "{} tells of {:?} bytes, not {:?}",
                    document.id, document.elsewhere, ending.size
                ));
            }
        }
    }
}

fn third_parties(evidence: &Evidence) -> impl Iterator<Item = &Struck> {
    evidence
        .struck
        .iter()
        .filter(|struck| struck.what == What::UseThirdParty)
}

/// Whether a worker may have found the third party configured when it stored this. One that cannot read the configuration goes on with what it
/// knows.
fn was_third_party_once(evidence: &Evidence, start: &Start, ending: &Ending) -> bool {
    let Some(ended_at) = start.ended_at else { return true };
    third_parties(evidence).any(|used| {
        let unread = configuration_was_unreadable(evidence, used.until, ending.at);
        used.from <= ending.at && (unread || ended_at <= used.until + CONFIGURATION)
    })
}

/// Whether every worker must have known, from the end of the recording on the switch on, that it belongs to the third party.
fn was_third_party_throughout(evidence: &Evidence, start: &Start, ending: &Ending) -> bool {
    let Some(ended_at) = start.ended_at else { return false };
    third_parties(evidence)
        .filter_map(|used| used.set)
        .any(|(since, until)| {
            let unread = configuration_was_unreadable(evidence, since, since + CONFIGURATION);
            // A change that the database took late overlaps with the next one, and takes it back.
            let mut others = third_parties(evidence).filter_map(|used| used.set);
            let undone = others.any(|(_, end)| since < end && end < until && end <= ending.at);
            !unread && !undone && since + CONFIGURATION <= ended_at && ending.at <= until
        })
}

/// Whether the workers could not read the configuration for some of this time, or stood still.
fn configuration_was_unreadable(evidence: &Evidence, from: Instant, until: Instant) -> bool {
    let hides = |what: What| {
        matches!(
            what,
            What::Database(_) | What::OddDatabase(_) | What::StopDatabase { .. } | What::Freeze(_)
        )
    };
    let mut struck = evidence.struck.iter().filter(|struck| hides(struck.what));
    struck.any(|struck| struck.from <= until && from <= struck.until + CONFIGURATION)
}

/// Whether the document is this recording's: its own, or one that was put beside what it goes on from, by a worker that knew of no later part. Of several
/// parts the first one's worker may have known none.
fn is_of(evidence: &Evidence, document: &Document, ending: &Ending) -> bool {
    let goes_on_from = |ending: &Ending| {
        let id = ending.continues.as_ref()?;
        evidence
            .endings
            .iter()
            .find(|other| other.media_id == *id && other.key != ending.key)
    };
    let ancestors = std::iter::successors(Some(ending), |ending| goes_on_from(ending)).take(evidence.endings.len());
    ancestors.into_iter().any(|ancestor| ancestor.key == document.key)
}

/// Its document says what is true, where Kazoo looks for it.
fn described(evidence: &Evidence, start: &Start, ending: &Ending, document: &Document, say: &mut impl FnMut(String)) {
    let Document { id, database, .. } = document;
    if document.label != start.label || !is_of(evidence, document, ending) {
        say(format!(
            "{id} is of {} {}, not {}",
            document.label, document.key, ending.key
        ));
    }
    let month = id.get(..6).unwrap_or_default();
    if !database.ends_with(&format!("-{month}")) || database.replace('/', "%2F") != ending.database {
        say(format!("{id} is in {database}; told was {}", ending.database));
    }
    if !document.listed {
        say(format!("{id} is not listed in {database}"));
    }
    let complete = document.state == "complete" && document.cause == ending.cause;
    if !complete {
        say(format!("{id} says that it is {} ({})", document.state, document.cause));
    }
}

/// A lease is no lock, and what is harmless twice may be done twice. When an operator sets or takes away the third party while a recording is in
/// hand, two workers may each decide by the configuration that they know, or the second because the first died before it could write anything
/// down: then both places have the same audio.
fn is_second_of_two(evidence: &Evidence, document: &Document, ending: &Ending) -> bool {
    let start = evidence.starts.iter().find(|start| start.label == ending.label);
    let Some(asked_at) = start.and_then(|start| start.asked_at) else {
        return false;
    };
    let same = document.audio.as_ref().is_some_and(|(md5, _)| *md5 == ending.md5);
    let one_of_both = match ending.destination.as_str() {
        "account" => document.home == Home::ThirdParty,
        "third_party" => document.home == Home::Ours,
        _ => false,
    };
    let changed = evidence
        .struck
        .iter()
        .filter(|struck| struck.what == What::UseThirdParty)
        .flat_map(|struck| [struck.from, struck.until])
        .any(|at| {
            let unread = asked_at >= at && configuration_was_unreadable(evidence, at, asked_at);
            at <= ending.at && (unread || asked_at <= at + CONFIGURATION)
        });
    same && one_of_both && changed
}

/// A database that broke, or a worker that died, had stored a part and could not say so; the switch recorded on into its file, and the longer
/// audio went beside: of two audios of one recording neither is given up.
fn is_before_it_grew(evidence: &Evidence, document: &Document, ending: &Ending) -> bool {
    let start = evidence.starts.iter().find(|start| start.label == ending.label);
    let Some((start, asked_at)) = start.and_then(|start| Some((start, start.asked_at?))) else {
        return false;
    };
    // Audio of a storage plan is elsewhere; its document tells the digest.
    let of_plan = || document.elsewhere.and(document.told_md5.as_ref());
    let audio = document.audio.as_ref().map(|(md5, _)| md5).or_else(of_plan);
    let whole = audio.is_some_and(|md5| start.wholes.contains(md5) && *md5 != ending.md5);
    let broke = |what: What| {
        matches!(
            what,
            What::Database(_) | What::OddDatabase(_) | What::StopDatabase { .. } | What::Kill(_)
        )
    };
    let meanwhile = |struck: &&Struck| struck.from <= ending.at && struck.until >= asked_at;
    let mut struck = evidence.struck.iter().filter(meanwhile);
    whole && struck.any(|struck| broke(struck.what))
}

/// A worker that died, or did not get through, had begun to store it at the third party, and that was taken out of the settings: no worker can tidy
/// up there. Nor does it mislead anybody: a third party has none of Kazoo's views.
fn is_left_half_done(evidence: &Evidence, document: &Document, ending: &Ending) -> bool {
    let start = evidence.starts.iter().find(|start| start.label == ending.label);
    document.state == "pending"
        && document.home == Home::ThirdParty
        && ending.destination != "third_party"
        && start.is_some_and(|start| was_third_party_once(evidence, start, ending))
}

/// What is at a destination, and is of nobody.
pub fn strangers(evidence: &Evidence, wrong: &mut Vec<String>) {
    for document in &evidence.documents {
        let Document { id, label, home, .. } = document;
        let told = evidence.endings.iter().any(|ending| {
            let there = (ending.destination == "third_party") == (*home == Home::ThirdParty);
            let mine = ending.is_kept() && is_of(evidence, document, ending);
            let told = ending.media_id == *id && there;
            mine && (told
                || is_second_of_two(evidence, document, ending)
                || is_before_it_grew(evidence, document, ending)
                || is_left_half_done(evidence, document, ending))
        });
        if !told {
            wrong.push(format!(
                "{label}: {id} at {home:?} was never told of ({}, {})",
                document.state, document.key
            ));
        }
    }
    // Two workers that did not see each other may have held the same twice: that is thrown away a day later. What is kept nowhere else is not.
    for copy in &evidence.held {
        let is_kept = |md5: &str| {
            evidence
                .endings
                .iter()
                .any(|ending| ending.is_kept() && ending.md5 == md5)
        };
        // A copy that too few nodes took counts as refused. Then the file grew, and all of it was kept.
        let grew =
            |start: &Start| start.wholes.contains(&copy.md5) && start.files.iter().any(|file| is_kept(&file.md5));
        let kept = is_kept(&copy.md5) || evidence.starts.iter().any(grew);
        if !kept {
            wrong.push(format!("{} is held, and kept nowhere else", copy.name));
        }
    }
    for object in &evidence.objects {
        let mine = |start: &&Start| start.account == Account::Native && start.wholes.contains(&object.md5);
        if !evidence.starts.iter().any(|start| mine(&start)) {
            wrong.push(format!(
                "the object {} has {} bytes ({}) that are no recording of a plan's account",
                object.key, object.length, object.md5
            ));
        }
    }
    for body in &evidence.bodies {
        let start = evidence.starts.iter().find(|start| start.label == body.label);
        if !start.is_some_and(|start| start.wholes.contains(&body.md5)) {
            wrong.push(format!(
                "{}: {:?} received {} bytes ({}) that are not its audio",
                body.label, body.place, body.length, body.md5
            ));
        }
    }
}
