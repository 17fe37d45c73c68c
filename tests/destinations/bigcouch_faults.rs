//! What happens to databases, and what becomes of recordings then; on both roads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kz_record_call::couch::Couch;
use kz_record_call::destination::DeliveryError;
use kz_record_call::destination::couchdb_write::{Job, Road, put};

use crate::promises;
use crate::support::{Case, Couchdb, Fault, Front, Recording, TestResult, WAYS, World, machine, whole_settings};

promises![
    an_answer_that_is_lost_is_looked_up_before_it_counts_as_a_failure,
    a_server_that_fails_is_the_targets_fault_and_tried_again,
    audio_that_arrives_changed_is_never_success,
    what_the_first_road_refuses_takes_the_second_and_then_is_the_recordings_fault,
    a_refusal_before_the_audio_is_read_loses_nothing,
    refused_credentials_are_the_targets_fault,
    an_upload_that_takes_long_but_moves_is_not_cut,
    a_server_that_stops_reading_is_given_up,
    a_server_that_is_down_is_told_and_nothing_is_lost,
    a_spool_that_is_gone_is_our_fault_not_the_servers,
];

async fn an_answer_that_is_lost_is_looked_up_before_it_counts_as_a_failure(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        for answer in [500, 502, 504] {
            let recording = Recording::of(120_000);
            let case = Case::new(&couchdb, way, &recording).await?;
            case.front.rule(move |seen, _| {
                let hurts = seen.is_multipart() || (seen.is_write() && !seen.is_attachment());
                if hurts { Fault::Answer(answer) } else { Fault::Pass }
            });
            // The second road looks after each step anyway, and gives up at a 5xx.
            let stored = match way.road {
                Road::First => case.put(&recording).await,
                Road::Second => {
                    let mut outcome = case.put(&recording).await;
                    for failures in 1..4 {
                        if outcome.is_err() {
                            outcome = case.put_after(&recording, failures).await;
                        }
                    }
                    outcome
                }
            };
            let stored = stored.with_context(|| format!("{way:?} {answer}"))?;
            ensure!(stored.id == *recording.id());
            ensure!(
                case.world.audio(&recording).await? == recording.bytes,
                "{way:?} {answer}"
            );
            ensure!(case.world.listed(&recording.database()).await?.len() == 1);
            case.finish().await?;
        }
    }
    Ok(())
}

async fn a_server_that_fails_is_the_targets_fault_and_tried_again(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        for status in [500, 502, 503] {
            let recording = Recording::of(1000);
            let case = Case::new(&couchdb, way, &recording).await?;
            case.front.rule(move |seen, _| {
                if seen.is_write() {
                    Fault::Refuse(status)
                } else {
                    Fault::Pass
                }
            });
            let error = case.put(&recording).await.err().context("stored")?;
            ensure!(matches!(error, DeliveryError::Target(_)), "{way:?} {status}: {error:?}");
            case.front.rule(|_, _| Fault::Pass);
            case.put_after(&recording, 1).await?;
            case.finish().await?;
        }
    }
    Ok(())
}

async fn audio_that_arrives_changed_is_never_success(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(500_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        case.front.rule(|seen, _| {
            if seen.is_multipart() || seen.is_attachment() {
                Fault::Corrupt
            } else {
                Fault::Pass
            }
        });
        for failures in 0..4 {
            let error = case.put_after(&recording, failures).await.err().context("stored")?;
            ensure!(
                matches!(error, DeliveryError::Corrupt(_) | DeliveryError::Target(_)),
                "{way:?} {failures}: {error:?}"
            );
            ensure!(
                case.world.listed(&recording.database()).await?.is_empty(),
                "{way:?}: it is shown"
            );
        }
        // Once only: what is uploaded again heals it.
        case.front.rule(|seen, before| {
            let hurts = (seen.is_multipart() || seen.is_attachment()) && before == 0;
            if hurts { Fault::Corrupt } else { Fault::Pass }
        });
        let mut outcome = case.put_after(&recording, 4).await;
        if outcome.is_err() {
            outcome = case.put_after(&recording, 5).await;
        }
        outcome.with_context(|| format!("{way:?}"))?;
        ensure!(case.world.audio(&recording).await? == recording.bytes, "{way:?}");
        case.finish().await?;
    }
    Ok(())
}

async fn what_the_first_road_refuses_takes_the_second_and_then_is_the_recordings_fault(
    couchdb: Arc<Couchdb>,
) -> TestResult {
    for way in WAYS {
        for status in [400, 413, 415] {
            let recording = Recording::of(20_000);
            let case = Case::new(&couchdb, way, &recording).await?;
            case.front.rule(move |seen, _| {
                if seen.is_write() {
                    Fault::Refuse(status)
                } else {
                    Fault::Pass
                }
            });
            let error = case.put(&recording).await.err().context("stored")?;
            ensure!(
                matches!(error, DeliveryError::Recording(_)),
                "{way:?} {status}: {error:?}"
            );
            case.front.rule(move |seen, _| {
                if seen.is_multipart() {
                    Fault::Refuse(status)
                } else {
                    Fault::Pass
                }
            });
            let stored = case.put(&recording).await?;
            ensure!(stored.road == Some(Road::Second), "{way:?} {status}: {stored:?}");
            ensure!(case.world.audio(&recording).await? == recording.bytes);
            case.finish().await?;
        }
    }
    Ok(())
}

async fn a_refusal_before_the_audio_is_read_loses_nothing(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(20_000_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        let hurts = way.road == Road::First;
        case.front.rule(
            move |seen, before| match (seen.is_multipart(), seen.is_attachment(), before) {
                (true, ..) if hurts => Fault::Early(413),
                (_, true, 0) if !hurts => Fault::Early(500),
                _ => Fault::Pass,
            },
        );
        let mut outcome = case.put(&recording).await;
        for failures in 1..3 {
            if let Err(error) = &outcome {
                // The answer may be lost to the reset of the connection.
                ensure!(matches!(error, DeliveryError::Target(_)), "{way:?}: {error:?}");
                outcome = case.put_after(&recording, failures).await;
            }
        }
        ensure!(outcome?.road == Some(Road::Second), "{way:?}");
        ensure!(case.world.audio(&recording).await? == recording.bytes, "{way:?}");
        case.finish().await?;
    }
    Ok(())
}

async fn refused_credentials_are_the_targets_fault(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(1000);
        let case = Case::new(&couchdb, way, &recording).await?;
        case.front.rule(|seen, _| {
            if seen.is_write() {
                Fault::Refuse(401)
            } else {
                Fault::Pass
            }
        });
        let error = case.put(&recording).await.err().context("stored")?;
        ensure!(matches!(error, DeliveryError::Target(_)), "{way:?}: {error:?}");
        ensure!(!error.to_string().contains("secret"), "{error}");
        case.finish().await?;
    }
    Ok(())
}

/// Bytes a second that are slow, though they leave no silence: buffers on the way hold some megabytes.
const SLOW: u64 = 8_000_000;

/// A client that bears three seconds of silence.
fn impatient(world: &World, front: &Front) -> anyhow::Result<Couch> {
    let changes = [
        ("COUCHDB__URL", front.url.as_str()),
        ("COUCHDB__DATABASE_PREFIX", &world.prefix),
        ("COUCHDB__READ_TIMEOUT_MS", "3000"),
    ];
    let changes = changes.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Ok(Couch::new(&whole_settings(&changes).couchdb)?)
}

async fn put_impatiently(case: &Case, recording: &Recording) -> anyhow::Result<Result<(), DeliveryError>> {
    let couch = impatient(&case.world, &case.front)?;
    let job = Job {
        audio: &recording.audio,
        source: &recording.source,
        ids: &recording.ids,
        subject: |id| recording.subject(id, "account"),
        progress: None,
        failures: 0,
        untouched: false,
        create_database: false,
    };
    Ok(put(&couch, &job).await.map(drop))
}

async fn an_upload_that_takes_long_but_moves_is_not_cut(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS.into_iter().filter(|way| !way.third_party) {
        let recording = Recording::of(36_000_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        case.front.rule(|seen, _| {
            if seen.is_multipart() || seen.is_attachment() {
                Fault::Slow(SLOW)
            } else {
                Fault::Pass
            }
        });
        let begun = Instant::now();
        put_impatiently(&case, &recording).await??;
        ensure!(
            begun.elapsed() > Duration::from_secs(4),
            "it was not slow: {:?}",
            begun.elapsed()
        );
        ensure!(case.world.audio(&recording).await? == recording.bytes, "{way:?}");
        case.finish().await?;
    }
    Ok(())
}

async fn a_server_that_stops_reading_is_given_up(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS.into_iter().filter(|way| !way.third_party) {
        for fault in [Fault::Stall, Fault::Hang] {
            let recording = Recording::of(20_000_000);
            let case = Case::new(&couchdb, way, &recording).await?;
            case.front.rule(move |seen, _| {
                if seen.is_multipart() || seen.is_attachment() {
                    fault
                } else {
                    Fault::Pass
                }
            });
            let begun = Instant::now();
            let outcome = put_impatiently(&case, &recording).await?;
            let (took, limit) = (begun.elapsed(), machine::allows(Duration::from_secs(60), begun));
            ensure!(took < limit, "{took:?}");
            // The server may have stored what it never answered: then looking shows it.
            match (fault, outcome) {
                (Fault::Hang, Ok(())) | (_, Err(DeliveryError::Target(_))) => {}
                (_, other) => anyhow::bail!("{way:?} {fault:?}: {other:?}"),
            }
            case.front.rule(|_, _| Fault::Pass);
            case.put_after(&recording, 1).await?;
            ensure!(case.world.audio(&recording).await? == recording.bytes, "{way:?}");
            case.finish().await?;
        }
    }
    Ok(())
}

async fn a_server_that_is_down_is_told_and_nothing_is_lost(couchdb: Arc<Couchdb>) -> TestResult {
    let recording = Recording::of(1000);
    let world = World::empty(&couchdb);
    let couch = Couch::new(&world.config("http://127.0.0.1:1"))?;
    let job = Job {
        audio: &recording.audio,
        source: &recording.source,
        ids: &recording.ids,
        subject: |id| recording.subject(id, "account"),
        progress: None,
        failures: 0,
        untouched: false,
        create_database: true,
    };
    let error = put(&couch, &job).await.err().context("stored")?;
    ensure!(matches!(error, DeliveryError::Target(_)), "{error:?}");
    ensure!(error.to_string().contains("cannot connect"), "{error}");
    drop(recording.source.open().await?);
    world.finish().await
}

async fn a_spool_that_is_gone_is_our_fault_not_the_servers(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(1000);
        let case = Case::new(&couchdb, way, &recording).await?;
        recording.lose_spool();
        let error = case.put(&recording).await.err().context("stored")?;
        ensure!(matches!(error, DeliveryError::Source(_)), "{way:?}: {error:?}");
        ensure!(case.world.listed(&recording.database()).await?.is_empty(), "{way:?}");
        case.finish().await?;
    }
    Ok(())
}
