//! Who stores the recordings of Kazoo's own recorder: Kazoo, the worker, both, or neither.

use serde_json::Value;

use crate::amqp::{AmqpError, Load, Probe};
use crate::config::{AdoptMode, Config};
use crate::kazoo::names::{KAZOO_4_RECORDER_QUEUE, KAZOO_RECORDER_QUEUE};
use crate::system_config::{Media, ROUNDS, Tries};

use super::report::Rows;

const NAME: &str = "Kazoo's own recorder";

/// What an operator does so that Kazoo's own recorder does not run.
const SWITCH_OFF: &str = "set call_recording.workers to 0 in system_config/media, and restart media_mgr";

/// Whether Kazoo's own recorder runs on this broker, if the worker is to store in its place.
pub async fn runs(rows: &mut Rows, probe: &Probe, config: &Config) {
    if config.adopt.mode == AdoptMode::Off {
        return;
    }
    let load = probe.load(KAZOO_RECORDER_QUEUE).await;
    if config.adopt.mode == AdoptMode::Store {
        return said(rows, load);
    }
    let is_4 = probe.load(KAZOO_4_RECORDER_QUEUE).await;
    let is_4 = matches!(is_4, Ok(Some(load)) if load.consumers > 0);
    watched(rows, load, is_4);
}

/// The same, if the worker watches. `is_4`: Kazoo 4's recorder of endpoints runs.
fn watched(rows: &mut Rows, load: Result<Option<Load>, AmqpError>, is_4: bool) {
    match load {
        Ok(Some(load)) if load.consumers > 0 => rows.good(NAME, "runs, and the worker watches what it stores"),
        _ if is_4 => rows.good(NAME, "runs, as in Kazoo 4, and the worker watches what it stores"),
        Ok(_) => rows.fail(
            NAME,
            format!("does not run: its queue {KAZOO_RECORDER_QUEUE} has no consumers, and no program stores Kazoo's own recordings"),
            "start media_mgr, or set adopt.mode to store; see docs/adopt.md",
        ),
        Err(error) => rows.warn(
            NAME,
            format!("is unknown: {error}"),
            "give the user of amqp.uri permission to read the queue recordings; see docs/installing.md",
        ),
    }
}

/// For how long Kazoo's own recorder tries, beside `adopt.give_up_s`. `call_command`: the document in `system_config`.
pub fn patience(rows: &mut Rows, media: &Media, call_command: &Value, config: &Config) {
    if !config.adopt.mode.watches() {
        return;
    }
    const GIVE_UP: &str = "adopt.give_up_s";
    let rounds = media.storage_retry_times.unwrap_or(ROUNDS);
    let longest = Tries::read(call_command).longest(rounds);
    match config.adopt.give_up {
        Some(given) if given < longest => rows.warn(
            GIVE_UP,
            format!(
                "is {}, and Kazoo's own recorder can try for {} s: the worker may report or store what Kazoo's own recorder still stores",
                given.as_secs(),
                longest.as_secs()
            ),
            "set adopt.give_up_s to 0",
        ),
        Some(given) => rows.good(GIVE_UP, format!("is {}", given.as_secs())),
        None => rows.good(GIVE_UP, format!("is {}, by Kazoo's settings; accounts can have other ones", longest.as_secs())),
    }
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
        (AdoptMode::Watch | AdoptMode::Rescue, 1..) => {}
        (AdoptMode::Watch | AdoptMode::Rescue, 0) => rows.warn(
            WORKERS,
            "is 0, and the worker only watches: no program stores Kazoo's own recordings as soon as media_mgr starts",
            "remove call_recording.workers and restart media_mgr, or set adopt.mode to store",
        ),
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
            ("watch", json!(null), None),
            ("rescue", json!(0), Some(Level::Warning)),
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
        for (load, is_4, level) in [
            (load(1), false, Level::Good),
            (load(0), false, Level::Failure),
            (Ok(None), false, Level::Failure),
            (Ok(None), true, Level::Good),
            (Err(AmqpError::Ended("refused")), false, Level::Warning),
        ] {
            let mut rows = Rows::of("kazoo");
            watched(&mut rows, load, is_4);
            assert_eq!(rows.rows[0].level, level);
        }
    }

    #[test]
    fn a_worker_that_is_less_patient_than_kazoo_is_told() {
        let media = Media::read(&json!({}), "local");
        let level = |given: &str| {
            let settings = [("MODE", "rescue"), ("GIVE_UP_S", given)];
            let settings = settings.map(|(key, value)| (format!("KZ_RECORD_CALL__ADOPT__{key}"), value.to_owned()));
            let config = Config::of(Layers::load(None, settings.into_iter()).unwrap()).unwrap();
            let mut rows = Rows::of("system_config/media");
            patience(&mut rows, &media, &json!({}), &config);
            rows.rows[0].level
        };
        assert_eq!(level("0"), Level::Good);
        assert_eq!(level("12299"), Level::Warning);
        assert_eq!(level("12300"), Level::Good);
    }
}
