//! Where the audio of a recording is, in words.

use crate::entry::Entry;
use crate::entry::cause::Cause;
use crate::entry::fact::Destination;

use super::without_secrets;

/// Each place that has the audio, and what the audio is.
pub fn places(entry: &Entry) -> Vec<String> {
    let mut places = Vec::new();
    if let Some(delivery) = entry.delivery() {
        let document = &delivery.document;
        places.push(match (delivery.destination, entry.uploaded()) {
            (Destination::Url, Some(url)) => format!(
                "{}; its document {} in {}",
                without_secrets(url),
                document.id,
                document.database
            ),
            _ => format!(
                "{}: document {} in {}",
                delivery.destination.describe().words,
                document.id,
                document.database
            ),
        });
    }
    if let Some(holding) = entry.held() {
        places.push(format!(
            "the hold: {}/{}, {} bytes",
            holding.place, holding.name, holding.size
        ));
    }
    if places.is_empty() {
        places.push(on_the_switch(entry));
    }
    // Judged by all that is known now: the switch may have reported the length after the audio
    // arrived.
    if let Some(audio) = entry.judged_audio() {
        places.push(format!(
            "{} bytes, md5 {}, sha256 {}",
            audio.size, audio.digests.md5, audio.digests.sha256
        ));
        if let Some(written) = &audio.as_written {
            let (md5, sha256) = (&written.md5, &written.sha256);
            places.push(format!(
                "its header was repaired; the switch wrote md5 {md5}, sha256 {sha256}"
            ));
        }
        if audio.is_suspect() {
            let names: Vec<&str> = audio.findings.iter().map(|finding| finding.name()).collect();
            places.push(format!("findings: {}", names.join(", ")));
        }
    }
    places
}

/// Where the switch's file is, for audio that is nowhere else.
fn on_the_switch(entry: &Entry) -> String {
    let gone = entry.outcome().is_some_and(|(_, cause)| cause == Cause::FileGone);
    let Some((node, path)) = switch_file(entry) else {
        return "unknown: no event named a file on a switch".into();
    };
    let before = entry.order().and_then(|order| order.continues.as_ref());
    if let Some(before) = before.filter(|_| entry.is_already_kept()) {
        format!("in the recording that this one continues, {}", before.media_id)
    } else if entry.is_let_go() {
        format!("none left: the switch {node} was told to delete its file {path}")
    } else if gone {
        format!("none left: the switch {node} has no file {path}")
    } else {
        format!("on the switch {node}: {path}, unless it was deleted there")
    }
}

/// The switch that recorded, and the file's path there.
fn switch_file(entry: &Entry) -> Option<(&str, &str)> {
    let told = entry.told_end().or(entry.ended()).or(entry.started())?;
    told.node.as_deref().zip(told.path.as_deref())
}

/// What becomes of a recording that an operator discards, in words: what a worker removes, and what no worker removes.
pub fn after_discarding(entry: &Entry) -> Vec<String> {
    let file = switch_file(entry).filter(|_| entry.owes_release());
    let Some((node, path)) = file else {
        return what_stays(entry);
    };
    let goes =
        format!("removed by a worker: file {path} on the switch {node}, unless the switch recorded more into it");
    std::iter::once(goes).chain(elsewhere(entry)).collect()
}

/// What remains of a recording, in words: everything that no worker removes.
pub fn what_stays(entry: &Entry) -> Vec<String> {
    let file = switch_file(entry).filter(|_| !entry.is_let_go());
    let file = file.map(|(node, path)| format!("not removed: file {path} on the switch {node}"));
    file.into_iter().chain(elsewhere(entry)).collect()
}

/// What remains of a recording without a delivery elsewhere than on its switch.
fn elsewhere(entry: &Entry) -> impl Iterator<Item = String> {
    let document = entry
        .documented()
        .map(|document| format!("not removed: document {} in {}", document.id, document.database));
    let audio = entry
        .uploaded()
        .map(|url| format!("not removed: audio at {}", without_secrets(url)));
    document.into_iter().chain(audio)
}
