//! The hold, in databases and in a folder: the same promises of both.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use kz_record_call::config::HoldKind;
use kz_record_call::destination::hold::Hold;
use kz_record_call::entry::fact::Holding;
use kz_record_call::kazoo::time::Moment;
use kz_record_call::ledger::Address;
use kz_record_call::recording::identity::MediaId;

use crate::promises;
use crate::support::{Case, Couchdb, Fault, Recording, TestResult, WAYS, World, whole_settings};

promises![
    other_audio_of_a_recording_never_replaces_what_is_held,
    only_what_is_named_is_taken_out_of_the_hold,
    audio_that_is_held_twice_is_there_once,
    audio_that_is_not_what_was_to_be_held_is_not_held,
    what_is_held_since_yesterday_is_known_with_whose_it_is,
    what_a_dead_worker_left_half_written_is_not_held_by_a_folder,
    a_hold_with_too_few_copies_has_not_got_the_audio,
];

struct Held {
    hold: Hold,
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
            world,
            folder: (kind == HoldKind::Folder).then_some(folder),
        })
    }

    async fn put(&self, recording: &Recording) -> anyhow::Result<Holding> {
        let held = self
            .hold
            .put(&address(recording), now(), &recording.audio, &recording.source)
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

async fn other_audio_of_a_recording_never_replaces_what_is_held(couchdb: Arc<Couchdb>) -> TestResult {
    for kind in KINDS {
        let held = Held::of(&couchdb, kind)?;
        let (first, second) = (Recording::of_call("c", 1000), Recording::of_call("c", 2000));
        let (one, two) = (held.put(&first).await?, held.put(&second).await?);
        ensure!(one.name != two.name, "{kind:?}: {one:?} {two:?}");
        ensure!(held.read(&one).await? == first.bytes, "{kind:?}: replaced");
        ensure!(held.read(&two).await? == second.bytes, "{kind:?}");
        held.finish().await?;
    }
    Ok(())
}

async fn only_what_is_named_is_taken_out_of_the_hold(couchdb: Arc<Couchdb>) -> TestResult {
    for kind in KINDS {
        let held = Held::of(&couchdb, kind)?;
        let (first, second) = (Recording::of_call("c", 1000), Recording::of_call("c", 2000));
        let (one, two) = (held.put(&first).await?, held.put(&second).await?);
        held.hold.remove(&one).await?;
        held.hold.remove(&one).await?;
        ensure!(held.read(&one).await.is_err(), "{kind:?}");
        ensure!(held.read(&two).await? == second.bytes, "{kind:?}");
        held.hold.remove_named(&two.place, &two.name).await?;
        ensure!(held.read(&two).await.is_err(), "{kind:?}");
        for name in ["../x", "a/b", ""] {
            let odd = Holding {
                name: name.into(),
                ..two.clone()
            };
            ensure!(held.hold.open(&odd).await.is_err(), "{kind:?}: {name}");
        }
        held.finish().await?;
    }
    Ok(())
}

async fn audio_that_is_held_twice_is_there_once(couchdb: Arc<Couchdb>) -> TestResult {
    for kind in KINDS {
        let (held, recording) = (Held::of(&couchdb, kind)?, Recording::of(30_000));
        let (one, again) = (held.put(&recording).await?, held.put(&recording).await?);
        ensure!(one == again, "{kind:?}: {one:?} {again:?}");
        ensure!(held.read(&one).await? == recording.bytes, "{kind:?}");
        held.hold.remove(&one).await?;
        ensure!(held.read(&again).await.is_err(), "{kind:?}");
        held.finish().await?;
    }
    Ok(())
}

async fn audio_that_is_not_what_was_to_be_held_is_not_held(couchdb: Arc<Couchdb>) -> TestResult {
    for kind in KINDS {
        let (held, mut recording) = (Held::of(&couchdb, kind)?, Recording::of(1000));
        recording.audio.digests = Recording::of(1000).audio.digests.clone();
        ensure!(held.put(&recording).await.is_err(), "{kind:?}");
        if let Some(folder) = &held.folder {
            let names: Vec<_> = std::fs::read_dir(folder.join("below"))?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<Result<_, _>>()?;
            let audio = names.iter().any(|name| name.to_string_lossy().ends_with(".audio"));
            ensure!(!audio, "{names:?}");
        }
        held.finish().await?;
    }
    Ok(())
}

async fn what_is_held_since_yesterday_is_known_with_whose_it_is(couchdb: Arc<Couchdb>) -> TestResult {
    for kind in KINDS {
        let (held, recording) = (Held::of(&couchdb, kind)?, Recording::of(1000));
        let holding = held.put(&recording).await?;
        ensure!(held.hold.older(now(), None).await?.0.is_empty(), "{kind:?}: today's");
        let tomorrow = now().plus(std::time::Duration::from_secs(86_400));
        let (older, _) = held.hold.older(tomorrow, None).await?;
        let (address_there, place, name) = older.first().context("nothing")?;
        ensure!(
            address_there.key == recording.order.key && address_there.call_id == recording.order.call_id,
            "{kind:?}"
        );
        ensure!(
            (place, name) == (&holding.place, &holding.name) && older.len() == 1,
            "{kind:?}: {place} {name}"
        );
        held.hold.remove_named(place, name).await?;
        ensure!(held.hold.older(tomorrow, None).await?.0.is_empty(), "{kind:?}");
        held.finish().await?;
    }
    Ok(())
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
    let days_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3 * 86_400);
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
    let held = hold.put(&whose, now(), &recording.audio, &recording.source);
    ensure!(held.await.is_err(), "one copy is none");
    case.front.rule(|_, _| Fault::Pass);
    let whose = address(&recording);
    let held = hold.put(&whose, now(), &recording.audio, &recording.source);
    held.await?;
    case.finish().await
}
