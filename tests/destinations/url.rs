//! A recording for a user's URL, the whole way: its document before the first attempt, the audio, the document completed.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use kz_record_call::couch::Couch;
use kz_record_call::destination::DeliveryError;
use kz_record_call::destination::pending_document::{self, Placed};
use kz_record_call::destination::url::Target;
use kz_record_call::kazoo::time::Moment;
use kz_record_call::recording::document::Subject;
use kz_record_call::recording::order::Url;
use kz_record_call::recording::progress::{Elsewhere, Progress, State};
use kz_record_call::recording::settings::Method;
use serde_json::{Value, json};

use crate::promises;
use crate::support::{
    ACCOUNT, Couchdb, Fault, Front, Recording, Reply, Server, TestResult, World, check_schema, http_here, send_by,
};

promises![
    the_document_comes_first_and_is_completed_when_the_audio_is_there,
    kazoo_can_fetch_the_audio_from_where_the_document_says,
    the_document_is_made_once_whoever_comes_and_however_often,
    another_recordings_document_is_left_alone,
    an_edit_of_somebody_else_is_not_lost,
    a_document_that_is_gone_is_told,
    a_parked_recording_says_why_in_its_document,
    a_worker_that_gives_up_leaves_a_document_alone_that_another_completed,
    a_missing_monthly_database_is_told_here_too,
];

const PENDING: Progress<'_> = Progress {
    state: State::Pending,
    attempts: 0,
    cause: None,
};

const LATER: Moment = Moment::from_gregorian_seconds(63_962_611_000);

fn to(url: String, size: usize) -> Recording {
    let mut recording = Recording::of(size);
    recording.order.url = Url::Given(url);
    recording
}

async fn place(couch: &Couch, recording: &Recording) -> Result<Placed, DeliveryError> {
    pending_document::create(couch, &recording.ids, |id| recording.subject(id, "url"), &PENDING).await
}

/// What is known of it when its document is edited.
fn later<'a>(recording: &'a Recording, placed: &'a Placed) -> Subject<'a> {
    Subject {
        now: LATER,
        ..recording.subject(&placed.id, "url")
    }
}

/// As the flow does it.
async fn deliver(couch: &Couch, recording: &Recording, placed: &Placed, method: Method) -> anyhow::Result<Placed> {
    let Url::Given(given) = &recording.order.url else {
        anyhow::bail!("no url")
    };
    let order = &recording.order;
    let target = Target::parse(given)?.of_recording(&placed.document, ACCOUNT, order.format.extension(), None);
    let sent = send_by(&http_here(&[]), target.expose().as_str(), recording, method).await?;
    let at = Elsewhere {
        name: &order.media_name,
        url: sent.to.expose().as_str(),
        content_type: order.format.content_type(),
        length: recording.audio.size,
    };
    let progress = Progress {
        state: State::Complete,
        attempts: 1,
        cause: Some("complete"),
    };
    Ok(pending_document::complete(couch, placed, &later(recording, placed), &at, &progress).await?)
}

async fn the_document_comes_first_and_is_completed_when_the_audio_is_there(couchdb: Arc<Couchdb>) -> TestResult {
    for (method, verb) in [(Method::Put, "PUT"), (Method::Post, "POST")] {
        let server = Server::always(Reply::Status(201)).await;
        let recording = to(server.url("/in/"), 500_000);
        let world = World::with_database_of(&couchdb, &recording).await?;
        let couch = world.couch();
        let placed = place(&couch, &recording).await?;
        ensure!(server.asked() == 0);
        let before = world.document(&recording).await?;
        check_schema(&before)?;
        ensure!(before["_rev"] == placed.rev && before["pvt_recording"]["state"] == "pending");
        ensure!(before.get("_attachments").is_none() && before.get("pvt_attachments").is_none());
        ensure!(before["url"] == server.url("/in/"), "{before:#}");
        ensure!(!placed.is_complete());
        let done = deliver(&couch, &recording, &placed, method).await?;
        let found = pending_document::find(&couch, &placed.database, &placed.id, placed.key).await?;
        let found = found.context("not found")?;
        ensure!(found.is_complete() && found.rev == done.rev && found.created == placed.created);
        // A worker that comes later finds it done.
        ensure!(place(&couch, &recording).await?.is_complete());
        let received = server.received();
        let name = format!("/in/call_recording_{}.mp3?from=1000%40acme", recording.order.call_id);
        // The call's id is the document's, which is the end's: the recording has moved to another leg in this fixture.
        let call_id = before["call_id"].as_str().context("no call_id")?;
        ensure!(received.len() == 1 && received[0].method.as_str() == verb);
        ensure!(
            received[0].path.starts_with(&name) && call_id == recording.order.call_id,
            "{}",
            received[0].path
        );
        ensure!(received[0].digests == recording.audio.digests);
        let query = format!("&account_id={ACCOUNT}&owner_id=9d8c7b6a5f4e3d2c1b0a998877665544&start=63962610332&");
        ensure!(received[0].path.contains(&query), "{}", received[0].path);
        let after = world.document(&recording).await?;
        check_schema(&after)?;
        ensure!(after["_rev"] == done.rev && done.rev != placed.rev);
        ensure!(after["pvt_recording"]["state"] == "complete" && after["pvt_recording"]["attempts"] == 1);
        ensure!(after["pvt_created"] == before["pvt_created"]);
        ensure!(after["pvt_modified"] == LATER.gregorian_seconds());
        let expected = json!({"front-desk.mp3": {
            "content_type": "audio/mpeg", "length": 500_000, "stub": false,
            "handler": {"kz_att_http": {"url": format!("{}#", server.url(&received[0].path))}},
        }});
        ensure!(after["pvt_attachments"] == expected, "{after:#}");
        let listed = world.listed(&recording.database()).await?;
        ensure!(listed == [recording.id().to_string()], "{listed:?}");
        world.finish().await?;
    }
    Ok(())
}

async fn kazoo_can_fetch_the_audio_from_where_the_document_says(couchdb: Arc<Couchdb>) -> TestResult {
    // After redirects, and with the credentials that were sent there.
    let server = Server::with(|_, path, _| {
        if path.starts_with("/final") {
            Reply::Status(200)
        } else {
            Reply::Redirect(302, "/final/audio?id=7".into())
        }
    })
    .await;
    let recording = to(format!("http://u:p@{}/in?key=", server.address), 1000);
    let world = World::with_database_of(&couchdb, &recording).await?;
    let couch = world.couch();
    let placed = place(&couch, &recording).await?;
    deliver(&couch, &recording, &placed, Method::Put).await?;
    let first = &server.received()[0].path;
    ensure!(first.starts_with("/in?key=call_recording_"), "{first}");
    let document = world.document(&recording).await?;
    let url = &document["pvt_attachments"]["front-desk.mp3"]["handler"]["kz_att_http"]["url"];
    ensure!(
        *url == format!("http://u:p@{}/final/audio?id=7#", server.address),
        "{url}"
    );
    // As kz_att_http makes a request of it: what it appends is never sent.
    let url = url.as_str().context("no url")?;
    let fetched = url::Url::parse(&format!("{url}4ba1/9d8c/{}/front-desk.mp3", recording.id()))?;
    ensure!(
        fetched.path() == "/final/audio" && fetched.query() == Some("id=7"),
        "{fetched}"
    );
    world.finish().await
}

async fn the_document_is_made_once_whoever_comes_and_however_often(couchdb: Arc<Couchdb>) -> TestResult {
    let recording = to("http://h/in".into(), 10);
    let world = World::with_database_of(&couchdb, &recording).await?;
    let front = Front::of(&world.url, None).await;
    let couch = Couch::new(&world.config(&front.url))?;
    // The first answer is lost.
    front.rule(|seen, before| {
        if seen.is_write() && before == 0 {
            Fault::Answer(502)
        } else {
            Fault::Pass
        }
    });
    let first = place(&couch, &recording).await?;
    front.rule(|_, _| Fault::Pass);
    let all = futures_util::future::join_all((0..8).map(|_| place(&couch, &recording))).await;
    for placed in all {
        let placed = placed?;
        ensure!(placed.rev == first.rev && placed.id == first.id);
        ensure!(placed.document.get("call_id") == first.document.get("call_id"));
    }
    ensure!(world.listed(&recording.database()).await?.len() == 1);
    world.finish().await
}

async fn another_recordings_document_is_left_alone(couchdb: Arc<Couchdb>) -> TestResult {
    let id = "202611-always-the-same";
    let others = to("http://h/in".into(), 10).with_id(id);
    let world = World::with_database_of(&couchdb, &others).await?;
    let couch = world.couch();
    place(&couch, &others).await?;
    let recording = to("http://h/in".into(), 10).with_id(id);
    let placed = place(&couch, &recording).await?;
    ensure!(placed.id == recording.ids[1], "{placed:?}");
    let stranger = Placed {
        id: others.ids[0].clone(),
        ..placed
    };
    let error = pending_document::note(&couch, &stranger, &later(&recording, &stranger), &PENDING)
        .await
        .err()
        .context("edited")?;
    ensure!(matches!(error, DeliveryError::Corrupt(_)), "{error:?}");
    world.finish().await
}

async fn an_edit_of_somebody_else_is_not_lost(couchdb: Arc<Couchdb>) -> TestResult {
    let server = Server::always(Reply::Status(200)).await;
    let recording = to(server.url("/in"), 10);
    let world = World::with_database_of(&couchdb, &recording).await?;
    let couch = world.couch();
    let placed = place(&couch, &recording).await?;
    let (database, id) = (recording.database(), recording.id().to_string());
    world
        .edit(&database, &id, |document| document["user_metadata"] = json!("kept"))
        .await?;
    deliver(&couch, &recording, &placed, Method::Put).await?;
    let document = world.document(&recording).await?;
    ensure!(document["user_metadata"] == "kept" && document["pvt_attachments"] != Value::Null);
    world.finish().await
}

async fn a_document_that_is_gone_is_told(couchdb: Arc<Couchdb>) -> TestResult {
    let recording = to("http://h/in".into(), 10);
    let world = World::with_database_of(&couchdb, &recording).await?;
    let couch = world.couch();
    let placed = place(&couch, &recording).await?;
    world.delete(&recording.database(), recording.id().as_str()).await?;
    let error = pending_document::note(&couch, &placed, &later(&recording, &placed), &PENDING)
        .await
        .err()
        .context("edited")?;
    ensure!(error.to_string().contains("gone"), "{error}");
    world.finish().await
}

async fn a_parked_recording_says_why_in_its_document(couchdb: Arc<Couchdb>) -> TestResult {
    let recording = to("http://h/in".into(), 10);
    let world = World::with_database_of(&couchdb, &recording).await?;
    let couch = world.couch();
    let placed = place(&couch, &recording).await?;
    let parked = Progress {
        state: State::Parked,
        attempts: 12,
        cause: Some("url_refuses"),
    };
    pending_document::park(&couch, &placed, &later(&recording, &placed), &parked).await?;
    let document = world.document(&recording).await?;
    check_schema(&document)?;
    ensure!(document["pvt_recording"]["state"] == "parked" && document["pvt_recording"]["cause"] == "url_refuses");
    ensure!(document["pvt_recording"]["attempts"] == 12);
    world.finish().await
}

async fn a_worker_that_gives_up_leaves_a_document_alone_that_another_completed(couchdb: Arc<Couchdb>) -> TestResult {
    let server = Server::always(Reply::Status(200)).await;
    let recording = to(server.url("/in"), 10);
    let world = World::with_database_of(&couchdb, &recording).await?;
    let couch = world.couch();
    let placed = place(&couch, &recording).await?;
    let done = deliver(&couch, &recording, &placed, Method::Put).await?;
    let parked = Progress {
        state: State::Parked,
        attempts: 1,
        cause: Some("unreachable"),
    };
    let left = pending_document::park(&couch, &placed, &later(&recording, &placed), &parked).await?;
    ensure!(left.rev == done.rev && left.is_complete(), "{left:?}");
    let document = world.document(&recording).await?;
    ensure!(document["_rev"] == done.rev && document["pvt_recording"]["state"] == "complete");
    world.finish().await
}

async fn a_missing_monthly_database_is_told_here_too(couchdb: Arc<Couchdb>) -> TestResult {
    let recording = to("http://h/in".into(), 10);
    let world = World::empty(&couchdb);
    let error = place(&world.couch(), &recording).await.err().context("placed")?;
    ensure!(error == DeliveryError::NoDatabase(recording.database()), "{error:?}");
    world.finish().await
}
