//! FreeSWITCH: `record_session` and its kin. Files are real; time need not pass.

mod start;
mod writer;

pub use start::start;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    audio::{Format, Size},
    events::{self, Event},
    record::Role,
    state::{Phase, Recording, State},
    wire::encode,
    world::World,
};

/// How much later the second of two events that crossed reaches the broker: 5 ms on a real one, as a rule.
const CROSSED: Duration = Duration::from_millis(5);

/// Where ecallmgr lets the switch record a media name: encoded, with an extension that it knows.
pub fn recording_path(folder: &Path, media_name: &str) -> PathBuf {
    let name = media_name.strip_prefix("local_stream://").unwrap_or(media_name);
    // A name that chooses its own folder is a violation found elsewhere; the simulator writes in its own only.
    let base = name.rsplit('/').next().unwrap_or(name);
    let known = [".mp3", ".mp4", ".wav"].into_iter().find(|ext| base.ends_with(ext));
    let root = base.strip_suffix(known.unwrap_or_default()).unwrap_or(base);
    folder.join(format!("{}{}", encode(root), known.unwrap_or(".mp3")))
}

/// `stop_record_session`: by full path on that channel; nothing found is no error.
pub fn stop(world: &Arc<World>, leg: &str, path: &Path) {
    if !world.look(|s| s.at(path).is_some_and(|r| reachable(r, leg))) {
        return world.note(
            Role::Switch,
            Some(leg),
            format!("stop finds nothing to stop: {}", path.display()),
        );
    }
    let (world, path) = (world.clone(), path.to_owned());
    tokio::spawn(async move { finish(&world, &path, "success-maxtime", None).await });
}

/// `record_session_mask` and `record_session_unmask`.
pub fn mask(world: &World, leg: &str, path: &Path, masked: bool) {
    let found = world.with(|s| {
        let recording = s.at_mut(path).filter(|r| reachable(r, leg))?;
        recording.masks += u32::from(masked && !recording.masked);
        recording.masked = masked;
        let at = recording.position(Instant::now(), world.options.time_scale);
        recording.audio.mute(masked, at);
        Some(())
    });
    let what = if masked { "masked" } else { "unmasked" };
    let result = if found.is_some() { "" } else { ": nothing found" };
    world.note(Role::Switch, Some(leg), format!("{what} {}{result}", path.display()));
}

/// A moved recording keeps running, but its new channel does not know it by its path.
fn reachable(recording: &Recording, leg: &str) -> bool {
    recording.running() && !recording.moved && recording.call_id == leg
}

/// Ends a running recording: the file is completed, then `RECORD_STOP` goes out under the leg that records now. Returns
/// when both are done, also when somebody else had begun to end it.
pub async fn finish(world: &Arc<World>, path: &Path, cause: &str, stamp: Option<u64>) {
    if let Some(stop) = close(world, path, cause, stamp).await {
        tell(world, path, stop);
    }
}

/// The same without the event, which is returned.
async fn close(world: &Arc<World>, path: &Path, cause: &str, stamp: Option<u64>) -> Option<Event> {
    let opened = |s: &State| s.at(path).is_none_or(|r| r.phase != Phase::Opening).then_some(());
    let _ = world
        .wait_for("the file's creation", Duration::from_secs(60), opened)
        .await;
    let mine = world.with(|s| {
        let full = s.faults.disk_full;
        let quiet = s.at(path).and_then(|r| s.calls.get(&r.call)).is_some_and(|c| c.quiet);
        let recording = s.at_mut(path).filter(|r| r.running())?;
        end(recording, cause, quiet, full, world.options.time_scale);
        Some(recording.clone())
    });
    let Some(recording) = mine else {
        let _ = world
            .wait_for("the end of a recording", Duration::from_secs(300), |s| {
                s.at(path).is_none_or(Recording::ended).then_some(())
            })
            .await;
        return None;
    };
    let (ended, leg) = (recording.clone(), &recording.call_id);
    let written = tokio::task::spawn_blocking(move || ended.complete()).await;
    if !matches!(written, Ok(Ok(()))) {
        world.note(
            Role::Switch,
            Some(leg),
            format!("{}: not written", recording.path.display()),
        );
    }
    // It may have moved, or been taken away, while the file was written.
    let now = world.with(|s| {
        let now = s.at(path).filter(|r| r.phase == Phase::Ending)?.clone();
        if let Some(leg) = s.legs.get_mut(&now.call_id) {
            leg.last_file = events::file_variables(&now);
        }
        Some(now)
    });
    // Not if the switch was killed meanwhile.
    let now = now?;
    let mut extra = events::recording(world, &now, events::file_variables(&now));
    (extra["Length"], extra["Silence-Terminated"]) = (json!(now.length_ms.to_string()), json!(false));
    let stamp = stamp.unwrap_or_else(|| events::stamp(world));
    Event::of(world, &now.call_id, "RECORD_STOP", events::stamped(extra, stamp))
}

fn tell(world: &Arc<World>, path: &Path, stop: Event) {
    stop.publish(world);
    world.with(|s| {
        if let Some(r) = s.at_mut(path).filter(|r| r.phase == Phase::Ending) {
            (r.phase, r.ended_at) = (Phase::Ended, Some(Instant::now()));
        }
    });
}

/// The recording's last moment: what is in it then is settled.
fn end(recording: &mut Recording, cause: &str, quiet: bool, full: Option<u64>, scale: f64) {
    let now = Instant::now();
    recording.clock.run(false, now);
    recording.phase = Phase::Ending;
    if recording.size == Size::Lasting {
        let samples = recording.position(now, scale);
        recording.audio.set_last(samples);
    }
    recording.length_ms = recording.audio.last_millis();
    let unheard = recording.silence.threshold > 0 && !recording.silence.spoke && quiet;
    recording.cause = match cause {
        "success-silence" if unheard => "no-input-timeout",
        other => other,
    }
    .to_owned();
    if let Some(bytes) = full.filter(|bytes| *bytes < recording.audio.len()) {
        recording.audio.fill(bytes);
        // Only of a WAV is it noticed, and only now.
        if let Format::Wav { .. } = recording.audio.format {
            "uri-failure".clone_into(&mut recording.cause);
            let frame = u64::from(recording.audio.format.channels()) * 2 * recording.audio.format.rate() / 1_000;
            recording.length_ms = recording.length_ms.min(bytes.saturating_sub(44) / frame.max(1));
        }
    }
    let min_ms = recording.min_secs.parse::<u64>().unwrap_or(0) * 1_000;
    if !recording.append && recording.length_ms < min_ms {
        "input-too-short".clone_into(&mut recording.cause);
        recording.deleted = true;
    }
}

/// Ends a channel: its recordings first, then its `CHANNEL_DESTROY`; all in one of the switch's ticks. An ecallmgr publishes each event from a
/// process of its own, so some of them reach the broker in the other order.
pub async fn hangup(world: &Arc<World>, leg: &str, cause: &str) {
    let (running, ended, crosses) = world.with(|s| {
        let mine = |r: &&Recording| r.call_id == leg && !r.ended();
        let running: Vec<PathBuf> = s.recordings.iter().filter(mine).map(|r| r.path.clone()).collect();
        if let Some(leg) = s.legs.get_mut(leg) {
            leg.hanging_up = true;
        }
        s.hangups += 1;
        let crosses = world.options.crosses(s.hangups);
        (running, s.legs.get(leg).is_none_or(|l| !l.alive), crosses)
    });
    let stamp = events::stamp(world);
    let mut late = Vec::new();
    for path in running {
        match close(world, &path, "success-silence", Some(stamp)).await {
            Some(stop) if crosses && !ended => late.push((path, stop)),
            Some(stop) => tell(world, &path, stop),
            None => {}
        }
    }
    if !ended {
        destroy(world, leg, cause, stamp);
    }
    if !late.is_empty() {
        tokio::time::sleep(CROSSED).await;
    }
    for (path, stop) in late {
        tell(world, &path, stop);
    }
}

/// The channel's end.
fn destroy(world: &Arc<World>, leg: &str, cause: &str, stamp: u64) {
    let gone = world.with(|s| {
        let channel = s.legs.get_mut(leg).filter(|l| l.alive)?;
        channel.alive = false;
        let ids = channel.media_recordings.clone();
        Some(((!ids.is_empty()).then_some(ids), channel.bridged, channel.answered))
    });
    let Some((recordings, bridged, answered)) = gone else {
        return;
    };
    let extra = json!({
        "Hangup-Cause": cause,
        "Hangup-Code": "sip:200",
        "Disposition": if bridged { "SUCCESS" } else { "ANSWER" },
        "Duration-Seconds": 72,
        "Ringing-Seconds": 4,
        "Billing-Seconds": if answered { 68 } else { 0 },
        "Media-Recordings": recordings,
    });
    events::publish(world, leg, "CHANNEL_DESTROY", events::stamped(extra, stamp));
}

/// Ends a recording of which no event tells. Blocking.
pub fn close_unheard(world: &World, path: &Path) {
    world.with(|s| {
        let full = s.faults.disk_full;
        let Some(recording) = s.at_mut(path).filter(|r| !r.ended()) else {
            return;
        };
        end(recording, "success-silence", false, full, world.options.time_scale);
        let _ = recording.complete();
        (recording.phase, recording.ended_at) = (Phase::Ended, Some(Instant::now()));
    });
}

/// The switch dies with all its calls: no event, and of files what had been written.
pub fn die(world: &World) {
    world.deaths.send_modify(|n| *n += 1);
    world.with(|s| {
        s.legs.values_mut().for_each(|l| l.alive = false);
        let now = Instant::now();
        for recording in s.recordings.iter_mut().filter(|r| !r.ended()) {
            recording.clock.run(false, now);
            recording.audio = recording.begun.clone();
            recording.length_ms = recording.audio.last_millis();
            (recording.phase, recording.ended_at) = (Phase::Ended, Some(now));
            // Its last buffers went with it, whatever was being written.
            let _ = recording.complete();
        }
        s.calls.values_mut().for_each(|c| {
            c.control.dead_from.get_or_insert(now);
        });
    });
    world.note(Role::Switch, None, "the switch is killed");
}

impl Recording {
    /// Brings the file into its last state. Blocking.
    fn complete(&self) -> std::io::Result<()> {
        if self.unlinked {
            return Ok(());
        }
        if self.deleted {
            return std::fs::remove_file(&self.path);
        }
        self.audio.write(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_as_ecallmgr_makes_them() {
        let path = |name| recording_path(Path::new("/tmp"), name).to_string_lossy().into_owned();
        assert_eq!(path("call 1@home.mp3"), "/tmp/call+1%40home.mp3");
        assert_eq!(path("9d1f.wav"), "/tmp/9d1f.wav");
        assert_eq!(path("x"), "/tmp/x.mp3");
        assert_eq!(path("a.ogg"), "/tmp/a%2Eogg.mp3");
        assert_eq!(path("../../etc/passwd"), "/tmp/passwd.mp3");
    }
}
