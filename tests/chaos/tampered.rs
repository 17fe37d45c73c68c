//! Asks the oracle about evidence that was tampered with. An oracle that finds nothing wrong there could not have found it in the run.

use std::time::{Duration, Instant};

use crate::evidence::{Command, CommandFate, Document, Ending, Evidence, File, Held, Home, Object, Start, Turn};
use crate::oracle::judge;
use crate::oracle::turns::are_masks_known;
use crate::plan::{Account, What};
use crate::play::Verb;
use crate::strike::Struck;

/// Changes the evidence; `None` when there is nothing to change.
type Tamper = fn(&mut Evidence) -> Option<()>;

const TAMPERINGS: &[(&str, Tamper)] = &[
    ("an ending that nobody was told of", |e| {
        let label = kept(e, "account")?.label.clone();
        e.endings.retain(|ending| ending.label != label);
        Some(())
    }),
    ("a recording that rests for a file which its switch has", |e| {
        let key = kept(e, "account")?.key.clone();
        for ending in e.endings.iter_mut().filter(|ending| ending.key == key) {
            "parked".clone_into(&mut ending.outcome);
            "not_collected".clone_into(&mut ending.cause);
        }
        for story in e.stories.iter_mut().filter(|story| story.key == key) {
            "parked".clone_into(&mut story.outcome);
            "parked".clone_into(&mut story.state);
            "not_collected".clone_into(&mut story.cause);
        }
        Some(())
    }),
    ("a second ending", |e| {
        let again = Ending {
            msg_id: "another".into(),
            ..kept(e, "account")?.clone()
        };
        e.endings.push(again);
        Some(())
    }),
    ("an ending of something that nobody asked for", |e| {
        let other = Ending {
            msg_id: "another".into(),
            label: "nobody's".into(),
            ..kept(e, "account")?.clone()
        };
        e.endings.push(other);
        Some(())
    }),
    ("two recordings whose audio was swapped", |e| {
        let mut audio = e
            .documents
            .iter_mut()
            .filter(|document| document.audio.is_some())
            .map(|document| &mut document.audio);
        let (one, other) = (audio.next()?, audio.next()?);
        std::mem::swap(one, other);
        Some(())
    }),
    ("two recordings that were swapped altogether", |e| {
        let digests: Vec<String> = stored(e).take(2).map(|ending| ending.md5.clone()).collect();
        let [one, other] = digests.as_slice() else { return None };
        let swap = |md5: &mut String| {
            if md5 == one {
                other.clone_into(md5);
            } else if md5 == other {
                one.clone_into(md5);
            }
        };
        e.endings.iter_mut().for_each(|ending| swap(&mut ending.md5));
        let audio = e.documents.iter_mut().filter_map(|document| document.audio.as_mut());
        audio.for_each(|(md5, _)| swap(md5));
        Some(())
    }),
    ("audio that was cut, and called whole", |e| {
        let id = kept(e, "account")?.media_id.clone();
        let cut = Some(("cut".to_owned(), 7));
        document(e, &id)?.audio = cut;
        let ending = e.endings.iter_mut().find(|ending| ending.media_id == id)?;
        (ending.md5, ending.size) = ("cut".into(), Some(7));
        Some(())
    }),
    ("a document that is gone", |e| {
        let id = kept(e, "account")?.media_id.clone();
        e.documents.retain(|document| document.id != id);
        Some(())
    }),
    ("a document of nobody", |e| {
        let other = Document {
            id: "202601-nobody".into(),
            ..e.documents.first()?.clone()
        };
        e.documents.push(other);
        Some(())
    }),
    ("a document in another month's database", |e| {
        let id = kept(e, "account")?.media_id.clone();
        document(e, &id)?.database = "account/4b/a1/x-202001".into();
        Some(())
    }),
    ("an upload that never arrived", |e| {
        let label = kept(e, "url")?.label.clone();
        e.bodies.retain(|body| body.label != label);
        Some(())
    }),
    ("an upload that is another recording's", |e| {
        let label = kept(e, "url")?.label.clone();
        let other = e.bodies.iter_mut().find(|body| body.label != label)?;
        other.label = label;
        Some(())
    }),
    ("an upload to the store proxy that never arrived", |e| {
        let planned = |label: &str| {
            e.starts
                .iter()
                .any(|start| start.label == label && start.account == Account::Planned)
        };
        let mut kept = e.endings.iter().filter(|ending| ending.is_kept());
        let label = kept.find(|ending| planned(&ending.label))?.label.clone();
        e.bodies.retain(|body| body.label != label);
        Some(())
    }),
    ("an object that is not the recording's audio", |e| {
        let key = object_of(e)?;
        let object = e.objects.iter_mut().find(|object| object.key == key)?;
        "other".clone_into(&mut object.md5);
        Some(())
    }),
    ("an object that is gone", |e| {
        let key = object_of(e)?;
        e.objects.retain(|object| object.key != key);
        Some(())
    }),
    ("an object of nobody", |e| {
        e.objects.push(Object {
            key: "nobody's".into(),
            md5: "nobody's".into(),
            length: 7,
        });
        Some(())
    }),
    ("an outcome that the endpoint never got", |e| {
        let id = kept(e, "account")?.msg_id.clone();
        e.notices.retain(|notice| notice.id != id);
        Some(())
    }),
    ("an outcome that the endpoint got, and nobody else", |e| {
        let mut notice = e.notices.first()?.clone();
        "another".clone_into(&mut notice.id);
        e.notices.push(notice);
        Some(())
    }),
    ("a request to the endpoint that somebody forged", |e| {
        e.notices.first_mut()?.wrong = Some("no good signature".into());
        Some(())
    }),
    ("a file that nobody brought", |e| {
        let label = kept(e, "account")?.label.clone();
        let start = e.starts.iter_mut().find(|start| start.label == label)?;
        start.files.push(File {
            path: "forgotten.mp3".into(),
            md5: "forgotten".into(),
            millis: 1000,
            there: true,
            lost: false,
        });
        Some(())
    }),
    ("a file that the switch was never told to let go", |e| {
        let label = kept(e, "account")?.label.clone();
        let start = e.starts.iter_mut().find(|start| start.label == label)?;
        start.files.iter_mut().for_each(|file| file.there = true);
        Some(())
    }),
    ("a failure that is none", |e| {
        let id = kept(e, "account")?.media_id.clone();
        let ending = e.endings.iter_mut().find(|ending| ending.media_id == id)?;
        (ending.outcome, ending.cause) = ("failed".into(), "call_gone".into());
        Some(())
    }),
    ("audio that is said to be kept already, and is not", |e| {
        let id = kept(e, "account")?.media_id.clone();
        let ending = e.endings.iter_mut().find(|ending| ending.media_id == id)?;
        (ending.outcome, ending.cause) = ("discarded".into(), "already_kept".into());
        Some(())
    }),
    ("a recording that rests for ever", |e| {
        let id = kept(e, "account")?.media_id.clone();
        let ending = e.endings.iter_mut().find(|ending| ending.media_id == id)?;
        (ending.outcome, ending.cause) = ("parked".into(), "unreachable".into());
        Some(())
    }),
    ("a story that is not true", |e| {
        e.stories.first_mut()?.outcome = "lost".into();
        Some(())
    }),
    ("a story that is not closed", |e| {
        e.stories.first_mut()?.state = "announcing".into();
        Some(())
    }),
    ("a recording that explain does not know", |e| {
        let key = kept(e, "account")?.key.clone();
        let at = e.stories.iter().position(|story| story.key == key)?;
        e.stories.remove(at);
        Some(())
    }),
    ("an action without an answer", |e| {
        let first = e.starts.iter().filter_map(|start| start.asked_at).min()?;
        let calm = first.checked_sub(Duration::from_secs(60)).unwrap_or_else(Instant::now);
        e.unanswered.push(("an action".into(), calm));
        Some(())
    }),
    ("audio that is only in the hold", |e| {
        e.held.push(Held {
            name: "forgotten".into(),
            md5: "forgotten".into(),
        });
        Some(())
    }),
    ("a message left in a queue", |e| {
        e.left_over.push("a message".into());
        Some(())
    }),
];

/// The same, in evidence of a run in which nothing broke: that alone makes sentences too, which do not count.
const IN_PEACE: &[(&str, Tamper)] = &[
    ("a mask that the document does not tell", |e| {
        if let Some(id) = masked(e) {
            document(e, &id)?.masks.clear();
            return Some(());
        }
        // Where no recording of the run was masked for sure: one more mask that the switch obeyed.
        let (label, asked_at) = unmasked(e)?;
        e.turns.push(Turn {
            label,
            verb: Verb::Mask,
            asked_at,
            over_at: asked_at + A_MINUTE,
            commands: 1,
            ended_before: false,
        });
        Some(())
    }),
    (
        "a start that was never sent to the switch, and is told as never started",
        |e| {
            never_recorded(e, "never_started")?.commands.clear();
            Some(())
        },
    ),
    (
        "a start that was never sent to the switch, and is told as gone with its call",
        |e| {
            never_recorded(e, "call_gone")?.commands.clear();
            Some(())
        },
    ),
    (
        "a start that the switch took, excused by another one that it ignored",
        |e| {
            let start = never_recorded(e, "never_started")?;
            let (at, asked_at) = (start.over_at, start.asked_at?);
            start.commands = vec![Command {
                at: asked_at,
                fate: CommandFate::Taken,
            }];
            e.struck.push(Struck {
                what: What::IgnoreStarts(1),
                from: at,
                until: at,
                set: None,
            });
            Some(())
        },
    ),
    (
        "a delayed start that was never sent, and is told as never triggered",
        |e| {
            let start = never_recorded(e, "never_triggered")?;
            start.commands.clear();
            start.triggered = false;
            let label = start.label.clone();
            let ending = e.endings.iter_mut().find(|ending| ending.label == label)?;
            ending.outcome = "discarded".into();
            Some(())
        },
    ),
    ("a stop that was never sent", |e| ignored(e, Verb::Stop)),
    ("a mask that was never sent", |e| ignored(e, Verb::Mask)),
    ("an unmask that was never sent", |e| ignored(e, Verb::Unmask)),
    ("a mask that the document tells, and the switch did not do", |e| {
        let is_certain = |ending: &&Ending| {
            let start = e.starts.iter().find(|start| start.label == ending.label);
            start.is_some_and(|start| start.masks == 0 && are_masks_known(e, start, ending))
        };
        let id = stored(e).find(is_certain)?.media_id.clone();
        document(e, &id)?.masks = vec![true];
        Some(())
    }),
    ("audio at the third party that nobody had configured", |e| {
        // One of the time after a third party may belong there, as far as the oracle knows.
        let is_before = |ending: &&Ending| {
            let mut used = e.struck.iter().filter(|struck| struck.what == What::UseThirdParty);
            used.all(|used| ending.at < used.from)
        };
        let id = stored(e).find(is_before).or(kept(e, "account"))?.media_id.clone();
        document(e, &id)?.home = Home::ThirdParty;
        let ending = e.endings.iter_mut().find(|ending| ending.media_id == id)?;
        ending.destination = "third_party".into();
        Some(())
    }),
    (
        "audio at the account though the third party was configured all the time",
        |e| {
            let ending = kept(e, "account")?;
            let (label, at) = (ending.label.clone(), ending.at);
            let start = e.starts.iter().find(|start| start.label == label)?;
            let since = start.asked_at?.checked_sub(A_MINUTE)?;
            e.struck.push(Struck {
                what: What::UseThirdParty,
                from: since,
                until: at + A_MINUTE,
                set: Some((since, at + A_MINUTE)),
            });
            Some(())
        },
    ),
];

const A_MINUTE: Duration = Duration::from_secs(60);

/// Makes one that was recorded and kept into one of which the switch has nothing, and that says so. It was asked for long before its call's end.
fn never_recorded<'a>(e: &'a mut Evidence, cause: &str) -> Option<&'a mut Start> {
    let ending = kept(e, "account").filter(|ending| ending.continues.is_none())?;
    let (label, id) = (ending.label.clone(), ending.media_id.clone());
    e.documents.retain(|document| document.id != id);
    for ending in e.endings.iter_mut().filter(|ending| ending.label == label) {
        (ending.outcome, ending.cause) = ("failed".into(), cause.into());
        (ending.destination, ending.md5, ending.size) = (String::new(), String::new(), None);
    }
    let start = e.starts.iter_mut().find(|start| start.label == label)?;
    start.files.clear();
    Some(start)
}

/// One that the switch obeyed.
fn ignored(e: &mut Evidence, verb: Verb) -> Option<()> {
    let mut turns = e.turns.iter_mut();
    let turn = turns.find(|turn| turn.verb == verb && turn.commands > 0)?;
    (turn.commands, turn.ended_before) = (0, false);
    Some(())
}

/// The id of a document that tells of a mask.
/// A recording whose document tells of a mask. Its commands came well before its end from now on, so that the oracle judges them.
fn masked(evidence: &mut Evidence) -> Option<String> {
    for turn in &mut evidence.turns {
        turn.over_at = turn.over_at.max(turn.asked_at + Duration::from_secs(1));
    }
    let ending = evidence
        .endings
        .iter()
        .filter(|ending| ending.is_kept())
        .filter(|ending| {
            // Not one that was told as not obeyed.
            let mut documents = evidence.documents.iter();
            documents.any(|document| document.id == ending.media_id && !document.masks.is_empty())
        })
        .filter(|ending| {
            let mut starts = evidence.starts.iter();
            starts.any(|start| start.label == ending.label && are_masks_known(evidence, start, ending))
        })
        .find(|ending| {
            let turns = evidence.turns.iter();
            let mut mine = turns.filter(|turn| turn.label == ending.label && turn.commands > 0);
            mine.any(|turn| turn.verb == Verb::Mask) && ending.continues.is_none()
        })?;
    Some(ending.media_id.clone())
}

/// The label of a recording that was kept and never masked, and when it was asked for.
fn unmasked(evidence: &Evidence) -> Option<(String, Instant)> {
    let is_plain = |ending: &&Ending| {
        let mut documents = evidence.documents.iter();
        let mut turns = evidence.turns.iter();
        ending.is_kept()
            && documents.any(|document| document.id == ending.media_id && document.masks.is_empty())
            && !turns.any(|turn| turn.label == ending.label && turn.verb != Verb::Stop)
    };
    evidence.endings.iter().filter(is_plain).find_map(|ending| {
        let start = evidence.starts.iter().find(|start| start.label == ending.label)?;
        are_masks_known(evidence, start, ending).then_some((start.label.clone(), start.asked_at?))
    })
}

/// Whether the oracle says something that it does not say of the honest evidence.
fn found(honest: &[String], changed: &Evidence) -> bool {
    judge(changed).iter().any(|sentence| !honest.contains(sentence))
}

/// What the oracle did not find, or could not be asked about.
pub fn overlooked(evidence: &Evidence) -> Vec<String> {
    let mut overlooked = tampered_with(TAMPERINGS, evidence);
    let mut peace = evidence.clone();
    peace.struck.clear();
    overlooked.extend(tampered_with(IN_PEACE, &peace));
    overlooked
}

fn tampered_with(tamperings: &[(&str, Tamper)], evidence: &Evidence) -> Vec<String> {
    let honest = judge(evidence);
    let mut overlooked = Vec::new();
    for (what, tamper) in tamperings {
        let mut changed = evidence.clone();
        match tamper(&mut changed) {
            None => overlooked.push(format!("nothing in this run could be made into {what}")),
            Some(()) if !found(&honest, &changed) => overlooked.push(format!("the oracle overlooks {what}")),
            Some(()) => {}
        }
    }
    overlooked
}

pub fn count() -> usize {
    TAMPERINGS.len() + IN_PEACE.len()
}

fn stored(evidence: &Evidence) -> impl Iterator<Item = &Ending> {
    let kept = evidence.endings.iter().filter(|ending| ending.is_kept());
    kept.filter(|ending| ending.destination == "account")
}

/// A recording that is kept at this destination.
fn kept<'a>(evidence: &'a Evidence, destination: &str) -> Option<&'a Ending> {
    let mut kept = evidence.endings.iter().filter(|ending| ending.is_kept());
    kept.find(|ending| ending.destination == destination)
}

/// The object of a recording that is kept in the object store.
fn object_of(evidence: &Evidence) -> Option<String> {
    let kept = evidence.endings.iter().filter(|ending| ending.is_kept());
    let ids: Vec<&str> = kept.map(|ending| ending.media_id.as_str()).collect();
    let of_kept = evidence
        .documents
        .iter()
        .filter(|document| ids.contains(&document.id.as_str()));
    of_kept.filter_map(|document| document.object.clone()).next()
}

fn document<'a>(evidence: &'a mut Evidence, id: &str) -> Option<&'a mut Document> {
    evidence.documents.iter_mut().find(|document| document.id == id)
}
