//! FreeSWITCH: `record_session` and its kin. Files are real; time need not pass.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    audio::{Audio, Format, Size},
    events,
    record::Role,
    state::{CallKey, Phase, Recording, State},
    wire::{Object, encode, text},
    world::World,
};

/// Where ecallmgr lets the switch record a media name: encoded, with an extension that it knows.
pub fn recording_path(folder: &Path, media_name: &str) -> PathBuf {
    let name = media_name.strip_prefix("local_stream://").unwrap_or(media_name);
    // A name that chooses its own folder is a violation found elsewhere; the simulator writes in its own only.
    let base = name.rsplit('/').next().unwrap_or(name);
    let known = [".mp3", ".mp4", ".wav"].into_iter().find(|ext| base.ends_with(ext));
    let root = base.strip_suffix(known.unwrap_or_default()).unwrap_or(base);
    folder.join(format!("{}{}", encode(root), known.unwrap_or(".mp3")))
}

/// A start as ecallmgr hands it over.
struct Start {
    id: String,
    name: String,
    path: PathBuf,
    format: Format,
    vars: BTreeMap<String, String>,
    limit_secs: u64,
    min_secs: String,
}

fn parse(world: &World, command: &Object) -> Option<Start> {
    let (id, name) = (text(command, "Media-Recording-ID")?, text(command, "Media-Name")?);
    let stereo = command
        .get("Channels-As-Stereo")
        .and_then(Value::as_bool)
        .unwrap_or(true);
    let rate = command
        .get("Record-Sample-Rate")
        .and_then(Value::as_u64)
        .and_then(|r| u32::try_from(r).ok());
    let rate = rate
        .filter(|r| (1..=192_000).contains(r))
        .unwrap_or(if stereo { 16_000 } else { 8_000 });
    let path = recording_path(&world.folder, name);
    let headers = [
        ("Name", Some(name)),
        ("Recorder", text(command, "Media-Recorder")),
        ("ID", Some(id)),
        ("Endpoint-ID", text(command, "Media-Recording-Endpoint-ID")),
        ("Origin", text(command, "Media-Recording-Origin")),
    ];
    let mut vars: BTreeMap<String, String> = headers
        .into_iter()
        .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())))
        .collect();
    if let Some(Value::Object(more)) = command.get("Recording-Variables") {
        for (key, value) in more {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            vars.insert(key.clone(), value);
        }
    }
    let limit = command.get("Time-Limit");
    let limit = limit
        .and_then(|l| l.as_u64().or_else(|| l.as_str().and_then(|s| s.parse().ok())))
        .unwrap_or(3_600);
    Some(Start {
        id: id.to_owned(),
        name: name.to_owned(),
        format: Format::of(&path.to_string_lossy(), rate, stereo),
        path,
        vars,
        limit_secs: if limit == 0 { 3_600 } else { limit },
        min_secs: text(command, "Record-Min-Sec").unwrap_or_default().to_owned(),
    })
}

/// `unshift Media-Recordings=…` and `record_session`.
pub fn start(world: &Arc<World>, leg: &str, command: &Object) {
    let Some(start) = parse(world, command) else {
        return;
    };
    let ignored = world.with(|s| {
        if let Some(name) = text(command, "Media-Name") {
            s.ordered.insert(name.to_owned());
        }
        let ignored = s.faults.ignore_starts > 0;
        s.faults.ignore_starts = s.faults.ignore_starts.saturating_sub(1);
        ignored
    });
    if ignored {
        let name = text(command, "Media-Name").unwrap_or_default();
        return world.note(Role::Switch, Some(leg), format!("fault: the start is ignored: {name}"));
    }
    if start.path.file_name().is_none_or(|n| n.len() > 255) {
        return world.note(
            Role::Switch,
            Some(leg),
            "the file cannot be opened: its name is too long",
        );
    }
    match world.with(|s| begin(world, s, leg, &start)) {
        Begun::NoChannel => world.note(
            Role::Switch,
            Some(leg),
            format!("no such channel: nothing is recorded: {}", start.name),
        ),
        Begun::Already => world.note(Role::Switch, Some(leg), format!("already recording {}", start.name)),
        Begun::Busy => retry(world.clone(), leg.to_owned(), start.path, command.clone()),
        Begun::Running(recording) => {
            if let Err(e) = recording.begun.write(&recording.path) {
                world.note(Role::Switch, Some(leg), format!("{}: {e}", recording.path.display()));
            }
            events::publish(world, leg, "RECORD_START", events::recording(world, &recording, false));
            // Only now may anybody end it.
            world.with(|s| {
                let opening = s.at_mut(&recording.path).filter(|r| r.phase == Phase::Opening);
                opening.map(|r| r.phase = Phase::Running)
            });
            limit(world, &recording);
            if world.options.files_grow {
                grow(world.clone(), *recording);
            }
        }
    }
}

/// How often something is written, and into what files: a great one would be written again and again.
const WRITES: Duration = Duration::from_millis(50);
const GROWS_TO: u64 = 4 << 20;

/// More comes into the file, until this stretch of recording ends.
fn grow(world: Arc<World>, recording: Recording) {
    tokio::spawn(async move {
        let mut written = recording.begun;
        let runs = |r: &Recording| r.running() && r.starts == recording.starts && !r.deleted;
        while written.len() < GROWS_TO {
            tokio::time::sleep(WRITES).await;
            // Nobody completes it meanwhile, nor is it made anew where it was taken away.
            let goes_on = world.with(|s| {
                let running = s.at_mut(&recording.path).filter(|r| runs(r))?;
                written = written.grown(&running.audio);
                running.begun = written.clone();
                let there = running.path.exists();
                there.then(|| written.write(&running.path)).transpose().ok().flatten()
            });
            if goes_on.is_none() {
                return;
            }
        }
    });
}

enum Begun {
    NoChannel,
    Already,
    /// The same file is just being closed.
    Busy,
    Running(Box<Recording>),
}

fn begin(world: &World, s: &mut State, leg: &str, start: &Start) -> Begun {
    let Some(channel) = s.legs.get_mut(leg).filter(|l| l.alive) else {
        return Begun::NoChannel;
    };
    channel.media_recordings.insert(0, start.id.clone());
    let call = channel.call;
    let size = session_size(world, s, call, start);
    let same_file = s.at_mut(&start.path);
    let fresh = |audio: Audio| Recording {
        id: start.id.clone(),
        name: start.name.clone(),
        path: start.path.clone(),
        node: world.options.switch_node.clone(),
        call_id: leg.to_owned(),
        call,
        phase: Phase::Opening,
        masked: false,
        masks: 0,
        starts: 1,
        length_ms: audio.millis(),
        begun: audio.begun(None),
        audio,
        vars: start.vars.clone(),
        limit_secs: start.limit_secs,
        min_secs: start.min_secs.clone(),
        cause: String::new(),
        started_at: Instant::now(),
        ended_at: None,
        deleted: false,
        moved: false,
    };
    let recording = match same_file {
        Some(r) if matches!(r.phase, Phase::Opening | Phase::Running) => return Begun::Already,
        Some(r) if r.phase == Phase::Ending => return Begun::Busy,
        Some(r) if !r.deleted => {
            let before = r.audio.clone();
            r.audio.append(&start.id, size);
            r.length_ms = r.audio.millis() - before.millis();
            r.begun = r.audio.begun(Some(&before));
            (r.phase, r.starts, r.ended_at, r.call_id, r.call) = (Phase::Opening, r.starts + 1, None, leg.into(), call);
            (r.vars, r.limit_secs, r.moved) = (start.vars.clone(), start.limit_secs, false);
            return Begun::Running(Box::new(r.clone()));
        }
        Some(gone) => fresh(gone.audio.next(&start.id, size)),
        None => fresh(Audio::new(&start.id, start.format, size)),
    };
    s.add(recording.clone());
    Begun::Running(Box::new(recording))
}

/// What will have been said when this recording ends; the switch's own limit cuts it when limits are enforced.
fn session_size(world: &World, s: &State, call: CallKey, start: &Start) -> Size {
    let size = s
        .calls
        .get(&call)
        .and_then(|c| c.options.size)
        .unwrap_or(world.options.size);
    match size {
        Size::Millis(ms) if world.options.limit_scale.is_some() => Size::Millis(ms.min(start.limit_secs * 1_000)),
        other => other,
    }
}

fn retry(world: Arc<World>, leg: String, path: PathBuf, command: Object) {
    tokio::spawn(async move {
        let closed = world.wait_for("the file's end", Duration::from_secs(60), |s| {
            s.recordings
                .iter()
                .rev()
                .find(|r| r.path == path)
                .filter(|r| r.ended())
                .map(drop)
        });
        if closed.await.is_ok() {
            start(&world, &leg, &command);
        }
    });
}

fn limit(world: &Arc<World>, recording: &Recording) {
    let Some(scale) = world.options.limit_scale else {
        return;
    };
    let (world, path, begun) = (world.clone(), recording.path.clone(), recording.starts);
    let real = Duration::from_secs_f64(Duration::from_secs(recording.limit_secs).as_secs_f64() * scale);
    tokio::spawn(async move {
        tokio::time::sleep(real).await;
        if world.look(|s| {
            s.recordings
                .iter()
                .any(|r| r.path == path && r.running() && r.starts == begun)
        }) {
            world.note(Role::Switch, None, format!("time limit: {}", path.display()));
            finish(&world, &path, "success-maxtime").await;
        }
    });
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
    tokio::spawn(async move { finish(&world, &path, "success-maxtime").await });
}

/// `record_session_mask` and `record_session_unmask`.
pub fn mask(world: &World, leg: &str, path: &Path, masked: bool) {
    let found = world.with(|s| {
        let recording = s.at_mut(path).filter(|r| reachable(r, leg))?;
        recording.masks += u32::from(masked && !recording.masked);
        recording.masked = masked;
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
pub async fn finish(world: &Arc<World>, path: &Path, cause: &str) {
    let opened = |s: &State| s.at(path).is_none_or(|r| r.phase != Phase::Opening).then_some(());
    let _ = world
        .wait_for("the file's creation", Duration::from_secs(60), opened)
        .await;
    let mine = world.with(|s| {
        let recording = s.at_mut(path).filter(|r| r.running())?;
        recording.phase = Phase::Ending;
        cause.clone_into(&mut recording.cause);
        Some(recording.clone())
    });
    let Some(recording) = mine else {
        let _ = world
            .wait_for("the end of a recording", Duration::from_secs(300), |s| {
                s.at(path).is_none_or(Recording::ended).then_some(())
            })
            .await;
        return;
    };
    let (audio, file) = (recording.audio.clone(), recording.path.clone());
    let written = tokio::task::spawn_blocking(move || audio.write(&file)).await;
    if !matches!(written, Ok(Ok(()))) {
        world.note(
            Role::Switch,
            Some(&recording.call_id),
            format!("{}: not written", recording.path.display()),
        );
    }
    // It may have moved while the file was written.
    let leg = world.look(|s| {
        s.recordings
            .iter()
            .rev()
            .find(|r| r.path == path)
            .map(|r| r.call_id.clone())
    });
    let leg = leg.unwrap_or_else(|| recording.call_id.clone());
    events::publish(world, &leg, "RECORD_STOP", events::recording(world, &recording, true));
    world.with(|s| {
        if let Some(r) = s.at_mut(path) {
            (r.phase, r.ended_at) = (Phase::Ended, Some(Instant::now()));
        }
    });
}

/// Ends a channel: its recordings first, then its `CHANNEL_DESTROY`.
pub async fn hangup(world: &Arc<World>, leg: &str, cause: &str) {
    let (running, ended) = world.look(|s| {
        let mine = |r: &&Recording| r.call_id == leg && !r.ended();
        let running: Vec<PathBuf> = s.recordings.iter().filter(mine).map(|r| r.path.clone()).collect();
        (running, s.legs.get(leg).is_none_or(|l| !l.alive))
    });
    for path in running {
        finish(world, &path, "success-silence").await;
    }
    if ended {
        return;
    }
    let recordings = world.with(|s| {
        let channel = s.legs.get_mut(leg)?;
        channel.alive = false;
        Some(channel.media_recordings.join("|:"))
    });
    let recordings = recordings.filter(|r| !r.is_empty()).map(|r| format!("ARRAY::{r}"));
    let extra = json!({
        "Hangup-Cause": cause,
        "Hangup-Code": "sip:200",
        "Disposition": "SUCCESS",
        "Duration-Seconds": 72,
        "Ringing-Seconds": 4,
        "Billing-Seconds": 68,
        "Media-Recordings": recordings,
    });
    events::publish(world, leg, "CHANNEL_DESTROY", extra);
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
