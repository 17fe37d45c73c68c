//! Monthly databases: the account's own and the third party's, on both roads.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use kz_record_call::couch::{Couch, Server};
use kz_record_call::destination::DeliveryError;
use kz_record_call::destination::couchdb_write::{self, Kept, ReadBack, Road};
use serde_json::json;

use crate::promises;
use crate::support::{ACCOUNT, Case, Couchdb, Fault, Recording, TestResult, WAYS, World, check_schema};

promises![
    document_and_audio_are_stored_and_crossbar_lists_them,
    no_audio_at_all_is_stored_too,
    a_recording_that_is_delivered_twice_is_stored_once,
    four_workers_at_the_same_recording_store_it_once,
    another_recordings_document_is_never_overwritten,
    no_id_left_is_a_fault_of_the_recording,
    other_audio_of_the_same_recording_gets_a_document_of_its_own,
    a_third_party_gets_its_database_and_the_cluster_nothing,
    a_missing_monthly_database_is_told,
    a_month_that_somebody_made_up_does_not_hold_a_recording_up,
    fewer_copies_than_the_quorum_are_marked_and_read_back,
    a_document_without_its_audio_is_shown_to_nobody,
    what_a_dead_worker_left_half_done_is_gone_on_from,
    the_road_is_the_servers_or_after_two_failures_the_second,
];

async fn document_and_audio_are_stored_and_crossbar_lists_them(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(3_000_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        let stored = case.put(&recording).await?;
        ensure!(
            stored.road == Some(way.road) && !stored.below_quorum,
            "{way:?}: {stored:?}"
        );
        ensure!(stored.id == *recording.id() && stored.database == recording.database());
        let document = case.world.document(&recording).await?;
        ensure!(document["_rev"] == stored.rev, "{way:?}: {document:#}");
        check_schema(&document)?;
        ensure!(document["pvt_created"] == stored.created.gregorian_seconds());
        ensure!(document["pvt_recording"]["destination"] == case.destination());
        ensure!(document["pvt_recording"]["attempts"] == 1 && document["pvt_recording"]["state"] == "complete");
        let stub = &document["_attachments"]["front-desk.mp3"];
        ensure!(
            stub["content_type"] == "audio/mpeg" && stub["length"] == 3_000_000,
            "{way:?}: {document:#}"
        );
        ensure!(stub["digest"] == recording.audio.digests.couch().context("a digest")?);
        ensure!(
            case.world.audio(&recording).await? == recording.bytes,
            "{way:?}: other bytes"
        );
        let listed = case.world.listed(&recording.database()).await?;
        ensure!(listed == [recording.id().to_string()], "{way:?}: {listed:?}");
        case.finish().await?;
    }
    Ok(())
}

async fn no_audio_at_all_is_stored_too(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(0);
        let case = Case::new(&couchdb, way, &recording).await?;
        case.put(&recording).await?;
        ensure!(case.world.audio(&recording).await?.is_empty());
        case.finish().await?;
    }
    Ok(())
}

async fn a_recording_that_is_delivered_twice_is_stored_once(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(200_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        let first = case.put(&recording).await?;
        let second = case.put_after(&recording, 1).await?;
        ensure!(
            second.rev == first.rev && second.id == first.id,
            "{way:?}: {first:?} {second:?}"
        );
        ensure!(second.road.is_none(), "{way:?}: it was there already");
        let found = couchdb_write::find(
            &case.couch,
            &first.database,
            &first.id,
            recording.order.key,
            "front-desk.mp3",
        )
        .await?;
        ensure!(
            found
                == Kept::Whole {
                    rev: first.rev,
                    audio: Box::new(recording.audio.clone()),
                    deleted: false
                },
            "{way:?}: {found:?}"
        );
        case.finish().await?;
    }
    Ok(())
}

async fn four_workers_at_the_same_recording_store_it_once(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(400_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        let all = futures_util::future::join_all((0..4).map(|_| case.put(&recording))).await;
        let mut revs = Vec::new();
        for stored in all {
            revs.push(stored.with_context(|| format!("{way:?}"))?.rev);
        }
        let document = case.world.document(&recording).await?;
        ensure!(
            revs.iter().all(|rev| document["_rev"] == *rev),
            "{way:?}: {revs:?} {document:#}"
        );
        ensure!(case.world.audio(&recording).await? == recording.bytes);
        ensure!(case.world.listed(&recording.database()).await?.len() == 1);
        case.finish().await?;
    }
    Ok(())
}

async fn another_recordings_document_is_never_overwritten(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let others = Recording::of(50_000).with_id("202611-always-the-same");
        let case = Case::new(&couchdb, way, &others).await?;
        case.put(&others).await?;
        let recording = Recording::of(60_000).with_id("202611-always-the-same");
        let stored = case.put(&recording).await?;
        ensure!(stored.id == recording.ids[1], "{way:?}: {stored:?}");
        let document = case.world.get(&stored.database, stored.id.as_str()).await?;
        let document = document.context("no document")?;
        check_schema(&document)?;
        ensure!(document["pvt_recording"]["media_id"] == "202611-always-the-same");
        ensure!(case.world.audio(&others).await? == others.bytes, "{way:?}: overwritten");
        ensure!(case.world.listed(&recording.database()).await?.len() == 2);
        // A document of nobody's, such as somebody's by hand, is left alone as well.
        let id = "202611-by-hand";
        case.world
            .put(&recording.database(), id, &json!({"by": "hand"}))
            .await?;
        let third = Recording::of(1000).with_id(id);
        let stored = case.put(&third).await?;
        ensure!(stored.id == third.ids[1], "{way:?}: {stored:?}");
        case.finish().await?;
    }
    Ok(())
}

async fn no_id_left_is_a_fault_of_the_recording(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(1000);
        let case = Case::new(&couchdb, way, &recording).await?;
        let taken = json!({"pvt_type": "call_recording"});
        case.world
            .put(&recording.database(), recording.id().as_str(), &taken)
            .await?;
        let error = case.put(&recording).await.err().context("stored")?;
        ensure!(matches!(error, DeliveryError::Recording(_)), "{way:?}: {error:?}");
        case.finish().await?;
    }
    Ok(())
}

async fn other_audio_of_the_same_recording_gets_a_document_of_its_own(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let one = Recording::of_call("a call", 100_000);
        let other = Recording::of_call("a call", 300_000).with_another_id();
        let case = Case::new(&couchdb, way, &one).await?;
        case.put(&one).await?;
        let stored = case.put(&other).await?;
        ensure!(
            stored.id == other.ids[1] && stored.id != *one.id(),
            "{way:?}: {stored:?}"
        );
        ensure!(
            case.world.audio(&one).await? == one.bytes,
            "{way:?}: it was overwritten"
        );
        let listed = case.world.listed(&one.database()).await?;
        ensure!(listed.len() == 2, "{way:?}: {listed:?}");
        let again = case.put(&other).await?;
        ensure!(again.id == stored.id && again.road.is_none(), "{way:?}: {again:?}");
        case.finish().await?;
    }
    Ok(())
}

async fn a_third_party_gets_its_database_and_the_cluster_nothing(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS.into_iter().filter(|way| way.third_party) {
        let recording = Recording::of(100_000);
        let case = Case::of(World::empty(&couchdb), way).await?;
        let stored = case.put(&recording).await?;
        ensure!(case.world.databases().await? == [recording.database()]);
        ensure!(stored.database == recording.database());
        ensure!(case.world.audio(&recording).await? == recording.bytes);
        let (again, other) = (case.put(&recording).await?, Recording::of(10));
        ensure!(again.rev == stored.rev);
        case.put(&other).await?;
        case.finish().await?;
    }
    // Its credentials are its own.
    let world = World::empty(&couchdb);
    let stranger = Server::parse(&world.url.replace("admin:secret", "admin:wrong"), 5984)?;
    let couch = Couch::elsewhere(&stranger, &world.config(&world.url))?;
    let error = couch.create_database("x").await.err().context("let in")?;
    ensure!(
        error.status() == Some(401) && !error.to_string().contains("wrong"),
        "{error}"
    );
    world.finish().await
}

async fn a_missing_monthly_database_is_told(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS.into_iter().filter(|way| !way.third_party) {
        for size in [0, 1000, 5_000_000] {
            let recording = Recording::of(size);
            let case = Case::of(World::empty(&couchdb), way).await?;
            let error = case.put(&recording).await.err().context("stored")?;
            ensure!(
                error == DeliveryError::NoDatabase(recording.database()),
                "{way:?} {size}: {error:?}"
            );
            ensure!(case.world.databases().await?.is_empty(), "{way:?}: it was made");
            case.finish().await?;
        }
    }
    Ok(())
}

async fn a_month_that_somebody_made_up_does_not_hold_a_recording_up(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS.into_iter().filter(|way| !way.third_party) {
        let recording = Recording::of(1000).with_id("201901-constant");
        let case = Case::of(World::empty(&couchdb), way).await?;
        let database = recording.subject(&recording.ids[1], "account").database();
        case.world.create_database(&database).await?;
        let stored = case.put(&recording).await?;
        ensure!(
            stored.id == recording.ids[1] && stored.database == database,
            "{way:?}: {stored:?}"
        );
        case.finish().await?;
    }
    Ok(())
}

async fn fewer_copies_than_the_quorum_are_marked_and_read_back(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(10_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        case.front.rule(|seen, _| {
            if seen.is_write() {
                Fault::Answer(202)
            } else {
                Fault::Pass
            }
        });
        let stored = case.put(&recording).await?;
        ensure!(stored.below_quorum, "{way:?}: {stored:?}");
        case.front.rule(|_, _| Fault::Pass);
        let key = recording.order.key;
        let read_back = || {
            couchdb_write::read_back(
                &case.couch,
                &stored.database,
                &stored.id,
                (key, false),
                ("front-desk.mp3", &recording.audio),
            )
        };
        ensure!(
            read_back().await?
                == ReadBack::Whole {
                    rev: stored.rev.clone()
                }
        );
        // The copy was on a node that is gone.
        case.world.delete(&stored.database, stored.id.as_str()).await?;
        ensure!(matches!(read_back().await?, ReadBack::Lost(_)), "{way:?}");
        let again = case.put(&recording).await?;
        ensure!(
            read_back().await? == ReadBack::Whole { rev: again.rev },
            "{way:?}: stored again"
        );
        case.finish().await?;
    }
    Ok(())
}

async fn a_document_without_its_audio_is_shown_to_nobody(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(100_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        // Whatever brings audio fails.
        case.front.rule(|seen, _| {
            if seen.is_multipart() || seen.is_attachment() {
                Fault::Refuse(500)
            } else {
                Fault::Pass
            }
        });
        for failures in 0..4 {
            let error = case.put_after(&recording, failures).await.err().context("stored")?;
            ensure!(matches!(error, DeliveryError::Target(_)), "{way:?}: {error:?}");
            ensure!(case.world.listed(&recording.database()).await?.is_empty(), "{way:?}");
        }
        case.front.rule(|_, _| Fault::Pass);
        case.put_after(&recording, 4).await?;
        ensure!(case.world.listed(&recording.database()).await?.len() == 1, "{way:?}");
        ensure!(case.world.audio(&recording).await? == recording.bytes, "{way:?}");
        case.finish().await?;
    }
    Ok(())
}

async fn what_a_dead_worker_left_half_done_is_gone_on_from(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        // After the first, second and third request of the second road.
        for steps in 1..=3 {
            let recording = Recording::of(70_000);
            let case = Case::new(&couchdb, way, &recording).await?;
            let died = |seen: &crate::support::Seen, before: usize| match (seen.is_write(), before) {
                (false, _) => Fault::Pass,
                (true, _) => Fault::Refuse(503),
            };
            let second = Case::of(
                World::with_prefix(&couchdb, &case.world.prefix),
                crate::support::Way {
                    road: Road::Second,
                    ..way
                },
            )
            .await?;
            let count = std::sync::atomic::AtomicUsize::new(0);
            second.front.rule(move |seen, before| {
                let done = count.load(std::sync::atomic::Ordering::SeqCst);
                if seen.is_write() && done >= steps {
                    return died(seen, before);
                }
                if seen.is_write() {
                    count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
                Fault::Pass
            });
            let outcome = second.put(&recording).await;
            ensure!(outcome.is_ok() == (steps == 3), "{way:?} {steps}: {outcome:?}");
            let stored = case.put(&recording).await?;
            ensure!(stored.id == *recording.id(), "{way:?} {steps}: {stored:?}");
            ensure!(
                case.world.audio(&recording).await? == recording.bytes,
                "{way:?} {steps}"
            );
            ensure!(case.world.listed(&recording.database()).await?.len() == 1);
            check_schema(&case.world.document(&recording).await?)?;
            case.finish().await?;
        }
    }
    Ok(())
}

async fn the_road_is_the_servers_or_after_two_failures_the_second(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        for failures in 0..3 {
            let recording = Recording::of(1000);
            let case = Case::new(&couchdb, way, &recording).await?;
            let stored = case.put_after(&recording, failures).await?;
            let expected = if failures >= 2 { Road::Second } else { way.road };
            ensure!(stored.road == Some(expected), "{way:?} {failures}: {stored:?}");
            let writes = case.front.writes();
            let multipart = writes.iter().filter(|seen| seen.is_multipart()).count();
            let attachments = writes.iter().filter(|seen| seen.is_attachment()).count();
            match expected {
                Road::First => ensure!((multipart, writes.len()) == (1, 1), "{writes:?}"),
                Road::Second => ensure!((multipart, attachments, writes.len()) == (0, 1, 3), "{writes:?}"),
            }
            case.finish().await?;
        }
    }
    ensure!(ACCOUNT.len() == 32);
    Ok(())
}
