//! The hold: one contract for every kind of place, and what one kind alone must do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use kz_record_call::config::HoldKind;
use kz_record_call::destination::Source;
use kz_record_call::destination::url::http::Failure;
use kz_record_call::entry::fact::Holding;
use kz_record_call::hold::Hold;
use kz_record_call::kazoo::time::Moment;
use kz_record_call::ledger::Address;
use kz_record_call::recording::identity::MediaId;

use crate::promises;
use crate::support::{
    Case, Couchdb, Fault, Recording, Reply, Server, TestResult, WAYS, World, http_here, send, whole_settings,
};

promises![
    every_place_of_the_hold_keeps_its_contract,
    a_worker_without_a_hold_holds_nothing,
    what_a_dead_worker_left_half_written_is_not_held_by_a_folder,
    a_hold_with_too_few_copies_has_not_got_the_audio,
    a_damaged_copy_in_the_hold_is_replaced,
    a_damaged_copy_in_a_folder_reaches_no_url_whole,
];

struct Held {
    hold: Hold,
    config: kz_record_call::config::Hold,
    world: World,
    folder: Option<PathBuf>,
}

impl Held {
    fn of(couchdb: &Couchdb, kind: HoldKind) -> anyhow::Result<Self> {
        let world = World::empty(couchdb);
        let folder = std::env::temp_dir().join(format!("kz-record-call-hold-{}", uuid::Uuid::new_v4().simple()));
        let mut config = whole_settings(&[]).hold;
        config.kind = kind;
        config.folder = folder.join("below");
        let hold = Hold::new(&config, &world.config(&world.url), &world.couch())?;
        Ok(Self {
            hold,
            config,
            world,
            folder: (kind == HoldKind::Folder).then_some(folder),
        })
    }

    async fn put(&self, recording: &Recording) -> anyhow::Result<Holding> {
        let held = self
            .hold
            .put(&address(recording), now(), &recording.audio, &recording.file)
            .await?;
        Ok(held)
    }

    async fn read(&self, holding: &Holding) -> anyhow::Result<Vec<u8>> {
        let (mut all, mut stream) = (Vec::new(), self.hold.open(holding).await?);
        while let Some(chunk) = stream.next().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(all)
    }

    async fn finish(self) -> TestResult {
        if let Some(folder) = self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
        self.world.finish().await
    }
}

const KINDS: [HoldKind; 2] = [HoldKind::Couchdb, HoldKind::Folder];

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> Moment {
    Moment::from_unix_seconds(1_795_386_262)
}

fn address(recording: &Recording) -> Address {
    Address {
        month: MediaId::derived(recording.order.key, recording.order.asked_at).month(),
        call_id: recording.order.call_id.clone(),
        key: recording.order.key,
    }
}

/// What every place of the hold must keep to. A new implementation of `Store` is added to `KINDS`.
async fn every_place_of_the_hold_keeps_its_contract(couchdb: Arc<Couchdb>) -> TestResult {
    for kind in KINDS {
        macro_rules! clauses {
            ($($clause:ident),* $(,)?) => {
                $(
                    let held = Held::of(&couchdb, kind)?;
                    let kept = $clause(&held).await;
                    held.finish().await?;
                    kept.with_context(|| format!("{kind:?}: {}", stringify!($clause)))?;
                )*
            };
        }
        clauses![
            an_unused_hold_is_empty_and_answers,
            other_audio_of_a_recording_never_replaces_what_is_held,
            only_what_is_named_is_taken_out_of_the_hold,
            audio_that_is_held_twice_is_there_once,
            audio_that_is_not_what_was_to_be_held_is_not_held,
            what_is_held_since_yesterday_is_known_with_whose_it_is,
            what_is_held_counts_and_stays_until_it_is_removed,
            more_than_the_limit_is_refused,
        ];
    }
    Ok(())
}

async fn an_unused_hold_is_empty_and_answers(held: &Held) -> TestResult {
    let (hold, later) = (&held.hold, now().plus(DAY));
    ensure!(hold.is_there() && hold.bytes().await? == 0);
    ensure!(hold.older(later, None).await?.0.is_empty());
    hold.prepare(now(), later).await?;
    hold.drop_empty_days(later).await?;
    hold.remove_named("kz_record_call_hold-2026-11-01", "never-held.audio")
        .await?;
    ensure!(hold.bytes().await? == 0, "a look at an unused hold makes nothing");
    Ok(())
}

async fn other_audio_of_a_recording_never_replaces_what_is_held(held: &Held) -> TestResult {
    let (first, second) = (Recording::of_call("c", 1000), Recording::of_call("c", 2000));
    let (one, two) = (held.put(&first).await?, held.put(&second).await?);
    ensure!(one.name != two.name, "{one:?} {two:?}");
    ensure!(held.read(&one).await? == first.bytes, "replaced");
    ensure!(held.read(&two).await? == second.bytes);
    Ok(())
}

async fn only_what_is_named_is_taken_out_of_the_hold(held: &Held) -> TestResult {
    let (first, second) = (Recording::of_call("c", 1000), Recording::of_call("c", 2000));
    let (one, two) = (held.put(&first).await?, held.put(&second).await?);
    held.hold.remove(&one).await?;
    held.hold.remove(&one).await?;
    ensure!(held.read(&one).await.is_err());
    ensure!(held.read(&two).await? == second.bytes);
    held.hold.remove_named(&two.place, &two.name).await?;
    ensure!(held.read(&two).await.is_err());
    for name in ["../x", "a/b", ""] {
        let odd = Holding {
            name: name.into(),
            ..two.clone()
        };
        ensure!(held.hold.open(&odd).await.is_err(), "{name}");
    }
    Ok(())
}

async fn audio_that_is_held_twice_is_there_once(held: &Held) -> TestResult {
    let recording = Recording::of(30_000);
    let (one, again) = (held.put(&recording).await?, held.put(&recording).await?);
    ensure!(one == again, "{one:?} {again:?}");
    ensure!(held.read(&one).await? == recording.bytes);
    held.hold.remove(&one).await?;
    ensure!(held.read(&again).await.is_err());
    Ok(())
}

async fn audio_that_is_not_what_was_to_be_held_is_not_held(held: &Held) -> TestResult {
    let mut recording = Recording::of(1000);
    recording.audio.digests = Recording::of(1000).audio.digests.clone();
    ensure!(held.put(&recording).await.is_err());
    if let Some(folder) = &held.folder {
        let names: Vec<_> = std::fs::read_dir(folder.join("below"))?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<_, _>>()?;
        let audio = names.iter().any(|name| name.to_string_lossy().ends_with(".audio"));
        ensure!(!audio, "{names:?}");
    }
    Ok(())
}

async fn what_is_held_since_yesterday_is_known_with_whose_it_is(held: &Held) -> TestResult {
    let recording = Recording::of(1000);
    let holding = held.put(&recording).await?;
    ensure!(held.hold.older(now(), None).await?.0.is_empty(), "today's");
    let tomorrow = now().plus(DAY);
    let (older, _) = held.hold.older(tomorrow, None).await?;
    let (address_there, place, name) = older.first().context("nothing")?;
    ensure!(address_there.key == recording.order.key && address_there.call_id == recording.order.call_id);
    ensure!(
        (place, name) == (&holding.place, &holding.name) && older.len() == 1,
        "{place} {name}"
    );
    held.hold.remove_named(place, name).await?;
    ensure!(held.hold.older(tomorrow, None).await?.0.is_empty());
    Ok(())
}

async fn what_is_held_counts_and_stays_until_it_is_removed(held: &Held) -> TestResult {
    let recording = Recording::of(30_000);
    let holding = held.put(&recording).await?;
    ensure!(held.hold.bytes().await? > 0, "held audio takes bytes");
    for day in 0..9 {
        let later = now().plus(DAY * day);
        held.hold.prepare(later, later.plus(DAY)).await?;
        held.hold.drop_empty_days(later).await?;
    }
    ensure!(held.read(&holding).await? == recording.bytes, "dropped with its day");
    Ok(())
}

async fn more_than_the_limit_is_refused(held: &Held) -> TestResult {
    let mut config = held.config.clone();
    config.max_bytes = 999;
    let hold = Hold::new(&config, &held.world.config(&held.world.url), &held.world.couch())?;
    let recording = Recording::of(1000);
    let whose = address(&recording);
    let refused = hold.put(&whose, now(), &recording.audio, &recording.file);
    ensure!(refused.await.is_err_and(|error| error.reason() == "full"));
    Ok(())
}

async fn a_worker_without_a_hold_holds_nothing(couchdb: Arc<Couchdb>) -> TestResult {
    let (held, recording) = (Held::of(&couchdb, HoldKind::None)?, Recording::of(1000));
    ensure!(!held.hold.is_there() && held.put(&recording).await.is_err());
    ensure!(held.hold.bytes().await? == 0 && held.hold.older(now().plus(DAY), None).await?.0.is_empty());
    held.hold.remove_named("anywhere", "anything").await?;
    held.hold.drop_empty_days(now()).await?;
    held.finish().await
}

async fn what_a_dead_worker_left_half_written_is_not_held_by_a_folder(couchdb: Arc<Couchdb>) -> TestResult {
    let (held, recording) = (Held::of(&couchdb, HoldKind::Folder)?, Recording::of(1000));
    held.put(&recording).await?;
    let before = held.hold.bytes().await?;
    ensure!((1000..2000).contains(&before), "{before}");
    let folder = held.folder.clone().context("a folder")?.join("below");
    let (old, new) = (folder.join("x.audio.part-1"), folder.join("y.audio.part-2"));
    for part in [&old, &new] {
        std::fs::write(part, vec![0; 5_000_000])?;
    }
    let days_ago = std::time::SystemTime::now() - DAY * 3;
    std::fs::File::options()
        .write(true)
        .open(&old)?
        .set_modified(days_ago)?;
    ensure!(held.hold.bytes().await? == before, "counted for ever");
    held.hold.drop_empty_days(now()).await?;
    ensure!(
        !old.exists() && new.exists(),
        "another worker may be writing the second"
    );
    held.finish().await
}

async fn a_hold_with_too_few_copies_has_not_got_the_audio(couchdb: Arc<Couchdb>) -> TestResult {
    let recording = Recording::of(1000);
    let case = Case::new(&couchdb, WAYS[0], &recording).await?;
    let config = whole_settings(&[]).hold;
    let hold = Hold::new(&config, &case.world.config(&case.front.url), &case.couch)?;
    case.front.rule(|seen, _| {
        if seen.is_multipart() {
            Fault::Answer(202)
        } else {
            Fault::Pass
        }
    });
    let whose = address(&recording);
    let held = hold.put(&whose, now(), &recording.audio, &recording.file);
    ensure!(held.await.is_err(), "one copy is none");
    case.front.rule(|_, _| Fault::Pass);
    let whose = address(&recording);
    let held = hold.put(&whose, now(), &recording.audio, &recording.file);
    held.await?;
    case.finish().await
}

/// The server took the document, and lost its audio.
async fn a_damaged_copy_in_the_hold_is_replaced(couchdb: Arc<Couchdb>) -> TestResult {
    let held = Held::of(&couchdb, HoldKind::Couchdb)?;
    let recording = Recording::of(1000);
    let holding = held.put(&recording).await?;
    held.hold.remove_named(&holding.place, &holding.name).await?;
    let couch = held.world.couch();
    let damaged = serde_json::json!({"call_id": recording.order.call_id});
    couch.put_document(&holding.place, &holding.name, &damaged).await?;
    let again = held.put(&recording).await?;
    ensure!(again == holding, "{again:?}");
    ensure!(held.read(&again).await? == recording.bytes);
    held.finish().await
}

/// One bit of a disk has changed. The length is the same, and a URL has no digest to compare.
async fn a_damaged_copy_in_a_folder_reaches_no_url_whole(couchdb: Arc<Couchdb>) -> TestResult {
    let held = Held::of(&couchdb, HoldKind::Folder)?;
    let folder = held.folder.clone().context("a folder")?.join("below");
    for size in [1000, 1_000_000] {
        let mut recording = Recording::of(size);
        let holding = held.put(&recording).await?;
        recording.source = Source::held(held.hold.clone(), holding.clone());
        let server = Server::always(Reply::Status(200)).await;
        send(&http_here(&[]), &server.url("/good"), &recording).await?;
        let mut copy = std::fs::read(folder.join(&holding.name))?;
        copy[7] ^= 1;
        std::fs::write(folder.join(&holding.name), copy)?;
        let error = send(&http_here(&[]), &server.url("/damaged"), &recording).await;
        let error = error.err().context("delivered")?;
        ensure!(matches!(error.kind, Failure::Source(_)), "{error}");
        let received = server.received();
        ensure!(
            received.len() == 1 && received[0].digests == recording.audio.digests,
            "{received:?}"
        );
    }
    held.finish().await
}
