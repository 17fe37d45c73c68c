//! Who stores the recordings of Kazoo's own recorder: Kazoo, the worker, both, or neither.

use crate::amqp::{AmqpError, Load, Probe};
use crate::config::{AdoptMode, Config};
use crate::kazoo::names::KAZOO_RECORDER_QUEUE;
use crate::system_config::Media;

use super::report::Rows;

const NAME: &str = "Kazoo's own recorder";

/// What an operator does so that Kazoo's own recorder does not run.
const SWITCH_OFF: &str = "set call_recording.workers to 0 in system_config/media, and restart media_mgr";

/// Whether Kazoo's own recorder runs on this broker, if the worker is to store in its place.
pub async fn runs(rows: &mut Rows, probe: &Probe, config: &Config) {
    if config.adopt.mode == AdoptMode::Off {
        return;
    }
    said(rows, probe.load(KAZOO_RECORDER_QUEUE).await);
}

fn said(rows: &mut Rows, load: Result<Option<Load>, AmqpError>) {
    match load {
        Ok(Some(load)) if load.consumers > 0 => rows.fail(
            NAME,
            format!(
                "runs: its queue {KAZOO_RECORDER_QUEUE} has {} consumers. The worker leaves Kazoo's own recordings to it, in spite of adopt.mode",
                load.consumers
            ),
            SWITCH_OFF,
        ),
        Ok(_) => rows.good(NAME, "does not run: the worker stores Kazoo's own recordings"),
        Err(error) => rows.fail(
            NAME,
            format!("may run: {error}. The worker leaves Kazoo's own recordings to it until RabbitMQ tells"),
            "give the user of amqp.uri permission to read the queue recordings; see docs/installing.md",
        ),
    }
}

/// What `call_recording.workers` in `system_config/media` means beside `adopt.mode`.
pub fn workers(rows: &mut Rows, media: &Media, config: &Config) {
    const WORKERS: &str = "call_recording.workers";
    match (config.adopt.mode, media.recorder_workers) {
        // Kazoo's own recorder stores, as ever.
        (AdoptMode::Off, 1..) => {}
        (AdoptMode::Off, 0) => rows.warn(
            WORKERS,
            "is 0, and adopt.mode is off: no program stores Kazoo's own recordings",
            "set adopt.mode to store on all workers of the zone, or remove call_recording.workers and restart media_mgr",
        ),
        (AdoptMode::Store, 0) => rows.good(WORKERS, "is 0, and adopt.mode is store: the worker stores Kazoo's own recordings"),
        (AdoptMode::Store, workers) => rows.warn(
            WORKERS,
            format!("is {workers}, and adopt.mode is store: Kazoo's own recorder runs as soon as media_mgr starts"),
            SWITCH_OFF,
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::Layers;

    use super::super::report::Level;
    use super::*;

    fn config(mode: &str) -> Config {
        let mode = [("KZ_RECORD_CALL__ADOPT__MODE".to_owned(), mode.to_owned())];
        Config::of(Layers::load(None, mode.into_iter()).unwrap()).unwrap()
    }

    #[test]
    fn both_and_neither_are_told_and_off_says_nothing() {
        for (mode, workers, level) in [
            ("off", json!(null), None),
            ("off", json!(3), None),
            ("off", json!(0), Some(Level::Warning)),
            ("store", json!(0), Some(Level::Good)),
            ("store", json!(null), Some(Level::Warning)),
            ("store", json!("2"), Some(Level::Warning)),
        ] {
            let media = Media::read(&json!({"default": {"call_recording": {"workers": workers}}}), "local");
            let mut rows = Rows::of("system_config/media");
            super::workers(&mut rows, &media, &config(mode));
            assert_eq!(rows.rows.first().map(|row| row.level), level, "{mode} {workers}");
        }
        let load = |consumers| Ok(Some(Load { messages: 0, consumers }));
        for (load, level) in [
            (load(1), Level::Failure),
            (load(0), Level::Good),
            (Ok(None), Level::Good),
            (Err(AmqpError::Ended("refused")), Level::Failure),
        ] {
            let mut rows = Rows::of("kazoo");
            said(&mut rows, load);
            assert_eq!(rows.rows[0].level, level);
        }
    }
}
