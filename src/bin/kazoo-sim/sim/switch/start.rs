//! `record_session`: how a recording begins.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    super::{
        audio::{Audio, Format, Size},
        events,
        record::Role,
        state::{CallKey, Clockwork, Phase, Recording, Silence, State},
        wire::{Object, text},
        world::World,
    },
    recording_path, writer,
};

/// A start as ecallmgr hands it over.
struct Start {
    id: String,
    name: String,
    path: PathBuf,
    format: Format,
    vars: BTreeMap<String, String>,
    limit_secs: u64,
    min_secs: String,
    append: bool,
}

fn parse(world: &World, command: &Object) -> Option<Start> {
    let (id, name) = (text(command, "Media-Recording-ID")?, text(command, "Media-Name")?);
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
    // The recording's own variables are read before what the command set for its channel.
    let stereo = match vars.get("RECORD_STEREO") {
        Some(value) => value == "true",
        None => command
            .get("Channels-As-Stereo")
            .and_then(Value::as_bool)
            .unwrap_or(true),
    };
    let rate = command
        .get("Record-Sample-Rate")
        .and_then(Value::as_u64)
        .and_then(|r| u32::try_from(r).ok())
        .unwrap_or(if stereo { 16_000 } else { 8_000 });
    let limit = command.get("Time-Limit");
    let limit = limit
        .and_then(|l| l.as_u64().or_else(|| l.as_str().and_then(|s| s.parse().ok())))
        .unwrap_or(3_600);
    Some(Start {
        id: id.to_owned(),
        name: name.to_owned(),
        format: Format::of(&path.to_string_lossy(), rate, stereo),
        path,
        append: vars.get("RECORD_APPEND").is_none_or(|value| value != "false"),
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
    let note = |text: String| world.note(Role::Switch, Some(leg), text);
    if ignored {
        let name = text(command, "Media-Name").unwrap_or_default();
        return note(format!("fault: the start is ignored: {name}"));
    }
    if start.path.file_name().is_none_or(|n| n.len() > 255) {
        return note("the file cannot be opened: its name is too long".into());
    }
    if !world.with(|s| hears(s, leg)) {
        return note("nobody has answered that leg: nothing is recorded".into());
    }
    progress(world, leg);
    match world.with(|s| begin(world, s, leg, &start)) {
        Begun::NoChannel => note(format!("no such channel: nothing is recorded: {}", start.name)),
        Begun::Already => note(format!("already recording {}", start.name)),
        Begun::Elsewhere(other) => {
            let words = format!(
                "{} is being recorded on {other}: both would write into one file",
                start.name
            );
            world.violate("one-file-two-legs", words, leg);
        }
        Begun::Busy => retry(world.clone(), leg.to_owned(), start.path, command.clone()),
        Begun::Running(recording, old_file) => {
            if let Err(e) = recording.begun.write(&recording.path) {
                note(format!("{}: {e}", recording.path.display()));
            }
            events::publish(
                world,
                leg,
                "RECORD_START",
                events::recording(world, &recording, old_file),
            );
            let raw = json!({"Application-Name": "record_call", "Application-Response": "_none_",
                "Raw-Application-Name": "record_session"});
            events::publish(world, leg, "CHANNEL_EXECUTE_COMPLETE", raw);
            // Only now may anybody end it.
            world.with(|s| {
                let opening = s.at_mut(&recording.path).filter(|r| r.phase == Phase::Opening);
                opening.map(|r| r.phase = Phase::Running)
            });
            writer::drive(world.clone(), &recording);
        }
    }
}

/// A leg that was called and has not answered is not recorded, and nobody is told.
fn hears(s: &State, leg: &str) -> bool {
    let Some(channel) = s.legs.get(leg) else { return true };
    channel.answered || channel.inbound
}

/// The switch answers 183 to a caller whom it records while it rings.
fn progress(world: &Arc<World>, leg: &str) {
    let first = world.with(|s| {
        let channel = s.legs.get_mut(leg).filter(|l| l.alive && !l.answered && !l.early)?;
        channel.early = true;
        Some(())
    });
    if first.is_some() {
        events::publish(world, leg, "CHANNEL_PROGRESS_MEDIA", json!({}));
    }
}

enum Begun {
    NoChannel,
    Already,
    /// Another leg records into that file.
    Elsewhere(String),
    /// The same file is just being closed.
    Busy,
    /// With what the channel tells of the recording before.
    Running(Box<Recording>, Object),
}

fn begin(world: &World, s: &mut State, leg: &str, start: &Start) -> Begun {
    let Some(channel) = s.legs.get_mut(leg).filter(|l| l.alive) else {
        return Begun::NoChannel;
    };
    channel.media_recordings.insert(0, start.id.clone());
    let (call, old_file, vars) = (channel.call, channel.last_file.clone(), channel.vars.clone());
    let size = session_size(world, s, call, start);
    let fresh = |audio: Audio| Recording {
        id: start.id.clone(),
        name: start.name.clone(),
        path: start.path.clone(),
        node: world.options.switch_node.clone(),
        call_id: leg.to_owned(),
        origin: leg.to_owned(),
        call,
        phase: Phase::Opening,
        masked: false,
        masks: 0,
        starts: 1,
        length_ms: audio.last_millis(),
        begun: audio.open_at(0),
        audio,
        size,
        clock: Clockwork::default(),
        limit_at: Instant::now(),
        silence: Silence::default(),
        append: start.append,
        vars: start.vars.clone(),
        limit_secs: start.limit_secs,
        min_secs: start.min_secs.clone(),
        cause: String::new(),
        started_at: Instant::now(),
        ended_at: None,
        deleted: false,
        unlinked: false,
        moved: false,
    };
    let mut recording = match s.at_mut(&start.path) {
        Some(r) if matches!(r.phase, Phase::Opening | Phase::Running) => {
            // Where it has moved away from, its name is still taken.
            return if [&r.call_id, &r.origin].contains(&&leg.to_owned()) {
                Begun::Already
            } else {
                Begun::Elsewhere(r.call_id.clone())
            };
        }
        Some(r) if r.phase == Phase::Ending => return Begun::Busy,
        Some(r) if !r.deleted && start.append => {
            let mut more = r.clone();
            more.audio.append(&start.id, size);
            more.begun = more.audio.open_at(0);
            let starts = more.starts + 1;
            let audio = more.audio.clone();
            Recording {
                starts,
                begun: more.begun,
                started_at: r.started_at,
                id: r.id.clone(),
                masks: r.masks,
                ..fresh(audio)
            }
        }
        Some(before) => fresh(before.audio.next(&start.id, size)),
        None => fresh(Audio::new(&start.id, start.format, size)),
    };
    if size == Size::Lasting {
        // Nobody knows how much it will be: it is masked, grows and is held as the clock says.
        recording.audio.set_last(u64::from(u32::MAX));
    }
    recording.silence = silence(&start.vars, &vars);
    recording.limit_at = limit_at(world, start.limit_secs);
    let known = s.at_mut(&start.path).filter(|_| recording.starts > 1);
    match known {
        Some(known) => *known = recording.clone(),
        None => s.add(recording.clone()),
    }
    s.set_clocks();
    Begun::Running(Box::new(recording), old_file)
}

/// The limit is kept by a clock of whole seconds: it strikes up to a second early.
fn limit_at(world: &World, secs: u64) -> Instant {
    let passed = Duration::from_micros(world.clock().unix_micros() % 1_000_000);
    Instant::now() + world.lasting(Duration::from_secs(secs).saturating_sub(passed))
}

/// By the recording's own variables, else the channel's.
fn silence(own: &BTreeMap<String, String>, channel: &BTreeMap<String, String>) -> Silence {
    const USUAL_THRESHOLD: u64 = 200;
    let number = |key: &str| {
        let value = own.get(key).or_else(|| channel.get(key));
        value.and_then(|v| v.parse::<u64>().ok())
    };
    let initial_ms = number("RECORD_INITIAL_TIMEOUT_MS").unwrap_or(0);
    let final_ms = number("RECORD_FINAL_TIMEOUT_MS").unwrap_or(0);
    let looked_for = initial_ms + final_ms > 0;
    Silence {
        threshold: number("RECORD_SILENCE_THRESHOLD").unwrap_or(if looked_for { USUAL_THRESHOLD } else { 0 }),
        initial_ms,
        final_ms,
        ..Silence::default()
    }
}

/// What will have been said when this recording ends; no more than the limit lets in.
fn session_size(world: &World, s: &State, call: CallKey, start: &Start) -> Size {
    let size = s
        .calls
        .get(&call)
        .and_then(|c| c.options.size)
        .unwrap_or(world.options.size);
    match size {
        Size::Millis(ms) => Size::Millis(ms.min(start.limit_secs * 1_000)),
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
