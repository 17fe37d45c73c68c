//! While it records: the file grows in the switch's steps, limits strike, silence ends it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{
        audio::Format,
        record::Role,
        state::{Recording, State},
        world::World,
    },
    finish,
};

/// One packet.
const STEP: Duration = Duration::from_millis(20);
/// So long nothing comes into a new WAV.
const FIRST: Duration = Duration::from_millis(350);
/// So many recordings are written at the switch's own pace; with more, the machine that plays it would do nothing else.
const FEW: usize = 16;

/// Goes along with this stretch of recording until it ends.
pub fn drive(world: Arc<World>, recording: &Recording) {
    let (path, starts) = (recording.path.clone(), recording.starts);
    tokio::spawn(async move {
        loop {
            let crowd = world.look(|s| s.recordings.iter().filter(|r| r.running()).count() / FEW);
            let pause = world.lasting(STEP) * u32::try_from(crowd + 1).unwrap_or(u32::MAX);
            tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
            let step = |s: &mut State| step(&world, s, &path, starts);
            let next = if crowd == 0 {
                world.with(step)
            } else {
                world.quietly(step)
            };
            match next {
                Next::Over => return,
                Next::On => {}
                Next::Ends(cause, why) => {
                    world.note(Role::Switch, None, format!("{why}: {}", path.display()));
                    return finish(&world, &path, cause, None).await;
                }
            }
        }
    });
}

enum Next {
    On,
    Over,
    Ends(&'static str, &'static str),
}

fn step(world: &World, s: &mut State, path: &Path, starts: u32) -> Next {
    let now = Instant::now();
    let Some(recording) = s.at(path).filter(|r| r.running() && r.starts == starts) else {
        return Next::Over;
    };
    if s.legs.get(&recording.call_id).is_some_and(|l| l.held) {
        // No packet comes by: nothing is written, and nobody looks at the clock.
        return Next::On;
    }
    let quiet = s.calls.get(&recording.call).is_some_and(|c| c.quiet);
    let full = s.faults.disk_full.unwrap_or(u64::MAX);
    let Some(recording) = s.at_mut(path) else {
        return Next::Over;
    };
    if world.options.files_grow && !recording.deleted {
        write(world, recording, now, full);
    }
    if now >= recording.limit_at {
        return Next::Ends("success-maxtime", "time limit");
    }
    silence(recording, quiet, now, world.options.time_scale)
}

fn write(world: &World, recording: &mut Recording, now: Instant, full: u64) {
    let wav = matches!(recording.audio.format, Format::Wav { .. });
    if wav && recording.clock.ran(now) < world.lasting(FIRST) {
        return;
    }
    let samples = recording.position(now, world.options.time_scale);
    let grown = recording.audio.open_at(samples);
    let (before, after) = (recording.begun.len(), grown.len());
    // Nobody makes it anew where it was taken away.
    if after > before && after <= full && (recording.path.exists() && grown.extend(&recording.path, before).is_ok()) {
        recording.begun = grown;
    }
}

fn silence(recording: &mut Recording, quiet: bool, now: Instant, scale: f64) -> Next {
    let ran = recording.clock.ran(now);
    let silence = &mut recording.silence;
    if silence.threshold == 0 {
        return Next::On;
    }
    if !quiet {
        (silence.spoke, silence.quiet_since) = (true, None);
        return Next::On;
    }
    let since = *silence.quiet_since.get_or_insert(ran);
    let lasts = |ms: u64| ms > 0 && ran.saturating_sub(since) >= Duration::from_millis(ms).mul_f64(scale);
    if !silence.spoke && lasts(silence.initial_ms) {
        return Next::Ends("no-input-timeout", "nobody said anything");
    }
    if silence.spoke && lasts(silence.final_ms) {
        return Next::Ends("success-silence", "silence");
    }
    Next::On
}
