//! A recording with its audio in a spool, as the flow has it when it delivers.

use std::io::Write as _;
use std::path::PathBuf;

use kz_record_call::destination::Source;
use kz_record_call::ingest::{Spool, SpoolFile};
use kz_record_call::kazoo::envelope::Envelope;
use kz_record_call::kazoo::event::RecordEvent;
use kz_record_call::kazoo::time::Moment;
use kz_record_call::recording::audio::Audio;
use kz_record_call::recording::digest::Hasher;
use kz_record_call::recording::document::Subject;
use kz_record_call::recording::ending::Told;
use kz_record_call::recording::format::Format;
use kz_record_call::recording::identity::{Key, MediaId};
use kz_record_call::recording::order::{Order, Url};
use kz_record_call::recording::settings::Method;

pub const ACCOUNT: &str = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4";

/// When the recording of the fixture ended.
pub const ENDED: Moment = Moment::from_gregorian_seconds(63_962_610_391);

pub struct Recording {
    pub order: Order,
    pub told: Told,
    pub audio: Audio,
    pub source: Source,
    /// What `source` reads.
    pub file: SpoolFile,
    pub bytes: Vec<u8>,
    pub ids: Vec<MediaId>,
    dir: PathBuf,
    _spool: Spool,
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Recording {
    /// A recording of `size` bytes, of a call of its own.
    pub fn of(size: usize) -> Self {
        Self::of_call(&uuid::Uuid::new_v4().to_string(), size)
    }

    /// A recording of these bytes.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self::with(&uuid::Uuid::new_v4().to_string(), bytes.to_vec())
    }

    /// The recording of that call, whose file has `size` bytes: the same bytes for every size, the longer ones going on.
    pub fn of_call(call_id: &str, size: usize) -> Self {
        let key = Key::of(call_id, "action");
        let mut bytes = vec![0; size];
        fastrand::Rng::with_seed(u64::from(key.bytes()[0])).fill(&mut bytes);
        Self::with(call_id, bytes)
    }

    fn with(call_id: &str, bytes: Vec<u8>) -> Self {
        let key = Key::of(call_id, "action");
        let order = Order {
            key,
            media_id: MediaId::derived(key, ENDED),
            call_id: call_id.into(),
            account_id: Some(ACCOUNT.into()),
            zone: "local".into(),
            file_name: format!("{key}.mp3"),
            media_name: "front-desk.mp3".into(),
            format: Format::Mp3,
            origin: "callflow : desk".into(),
            method: Method::Put,
            url: Url::None,
            min_sec: 0,
            asked_at: ENDED,
            parties: kz_record_call::kazoo::call::Parties::default(),
            continues: None,
            trace: None,
            command: None,
            adopted: None,
        };
        let dir = std::env::temp_dir().join(format!("kz-record-call-{}", uuid::Uuid::new_v4().simple()));
        let spool = Spool::open(&dir, 0).unwrap();
        let (mut file, spooled) = spool.create().unwrap();
        file.write_all(&bytes).unwrap();
        let mut hasher = Hasher::default();
        hasher.update(&bytes);
        let ids = vec![order.media_id.clone()];
        Self {
            order,
            told: told(),
            audio: Audio {
                size: bytes.len() as u64,
                digests: hasher.finish(),
                duration_ms: Some(59_000),
                findings: vec![],
                as_written: None,
            },
            source: Source::spooled(spooled.clone()),
            file: spooled,
            bytes,
            ids,
            dir,
            _spool: spool,
        }
    }

    /// As if the user had chosen the id.
    pub fn with_id(mut self, id: &str) -> Self {
        let derived = self.order.media_id.clone();
        self.order.media_id = id.parse().unwrap();
        self.ids = vec![self.order.media_id.clone(), derived];
        self
    }

    /// With the id that a recording gets whose other audio is stored already.
    pub fn with_another_id(mut self) -> Self {
        let other = self.order.key.of_audio(&self.audio.digests.sha256);
        self.ids.push(MediaId::derived(other, ENDED));
        self
    }

    pub fn id(&self) -> &MediaId {
        &self.ids[0]
    }

    pub fn subject<'a>(&'a self, id: &'a MediaId, destination: &'static str) -> Subject<'a> {
        Subject {
            order: &self.order,
            id,
            account_id: ACCOUNT,
            started: None,
            ended: &self.told,
            presumed: false,
            first_peer: None,
            told_ms: self.told.length_ms,
            audio: Some(&self.audio),
            destination,
            node: "kz_record_call@rec1",
            url_credentials: false,
            now: ENDED,
            controls: Default::default(),
        }
    }

    pub fn database(&self) -> String {
        self.subject(self.id(), "account").database()
    }

    /// The spool's folder.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Takes the spool away, as a lost disk would.
    pub fn lose_spool(&self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

fn told() -> Told {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/call_events/02-record-stop.json"
    );
    let event = RecordEvent::of(&Envelope::read(&std::fs::read(path).unwrap()).unwrap()).unwrap();
    Told::of(&event, "9f8e7d6c5b4a39281706f5e4d3c2b1a0.mp3", ENDED)
}
