//! Who waits for which upload.
//!
//! Whoever asks a switch for a file expects it here first. Several PUTs may come for one request (two zones can serve one switch, and
//! each may run the command): all are read, the first complete one is handed over, the others get the same answer.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::{oneshot, watch};

use crate::lifecycle::Answer;
use crate::recording::audio::Audio;
use crate::recording::digest::Digests;
use crate::recording::format::Format;
use crate::recording::identity::{Key, MediaId};

use super::UploadError;
use super::spool::SpoolFile;

/// What is expected.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub key: Key,
    pub media_id: MediaId,
    pub format: Format,
    /// Milliseconds that the switch told.
    pub told_ms: Option<u64>,
}

/// A whole file of audio, and the switch that waits for an answer.
#[derive(Debug)]
pub struct Upload {
    pub audio: Audio,
    pub file: SpoolFile,
    slot: Arc<Slot>,
}

impl Upload {
    /// Answers the switch; `false` when it was told before that its file stays, because this took too long. An upload that is dropped unanswered
    /// keeps the file.
    pub fn answer(self, answer: Answer) -> bool {
        self.slot.answer(answer, &self.audio.digests)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.slot.answer(Answer::Keep, &self.audio.digests);
    }
}

/// How far an expected upload has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing came yet.
    Waiting,
    /// So many uploads are under way.
    Receiving(usize),
    /// An upload was given up; others may come.
    Failed(UploadError),
}

/// An upload that is expected. Dropping it ends the wait: later PUTs are refused.
#[derive(Debug)]
pub struct Expected {
    /// Where the switch is to PUT the file.
    pub url: String,
    id: SlotId,
    slots: Slots,
    upload: oneshot::Receiver<Upload>,
    progress: watch::Receiver<Progress>,
}

impl Expected {
    /// The whole file. Waits for ever; callers bound it by what `progress` tells.
    pub async fn upload(&mut self) -> Option<Upload> {
        (&mut self.upload).await.ok()
    }

    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.slots.forget(self.id);
    }
}

pub(super) type SlotId = (Key, u64);

/// All that is expected, and what was safe lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    expected: HashMap<SlotId, Arc<Slot>>,
    safe: VecDeque<(Key, Digests)>,
}

/// Keys that are remembered as safe, for PUTs that come late.
const REMEMBERED: usize = 4096;

#[derive(Debug)]
pub(super) struct Slot {
    pub wanted: Wanted,
    taker: Mutex<Option<oneshot::Sender<Upload>>>,
    progress: watch::Sender<Progress>,
    /// The answer, and which audio it was given for.
    answer: watch::Sender<Option<(Answer, Digests)>>,
}

impl Slots {
    pub fn expect(&self, wanted: Wanted, attempt: u64, url: String) -> Expected {
        let id = (wanted.key, attempt);
        let (taker, upload) = oneshot::channel();
        let (progress_sender, progress) = watch::channel(Progress::Waiting);
        let slot = Arc::new(Slot {
            wanted,
            taker: Mutex::new(Some(taker)),
            progress: progress_sender,
            answer: watch::channel(None).0,
        });
        if let Ok(mut table) = self.0.lock() {
            table.expected.insert(id, slot);
        }
        Expected {
            url,
            id,
            slots: self.clone(),
            upload,
            progress,
        }
    }

    pub fn find(&self, id: SlotId) -> Option<Arc<Slot>> {
        self.0.lock().ok()?.expected.get(&id).cloned()
    }

    fn forget(&self, id: SlotId) {
        if let Ok(mut table) = self.0.lock() {
            table.expected.remove(&id);
        }
    }

    /// The recording's audio is safe: PUTs of the same bytes that come late may be released.
    pub fn remember_safe(&self, key: Key, digests: Digests) {
        if let Ok(mut table) = self.0.lock() {
            if table.safe.len() >= REMEMBERED {
                table.safe.pop_front();
            }
            table.safe.push_back((key, digests));
        }
    }

    /// What was safe last of this recording.
    pub fn safe(&self, key: Key) -> Option<Digests> {
        let table = self.0.lock().ok()?;
        let mut safe = table.safe.iter().rev();
        safe.find(|(of, _)| *of == key).map(|(_, digests)| digests.clone())
    }
}

impl Slot {
    /// An upload begins; the guard ends it.
    pub fn begin(self: &Arc<Self>) -> Receiving {
        self.progress.send_modify(|progress| {
            *progress = Progress::Receiving(match progress {
                Progress::Receiving(count) => *count + 1,
                _ => 1,
            });
        });
        Receiving {
            slot: Arc::clone(self),
            failed: None,
        }
    }

    /// Hands a whole file over. `false` when another upload was first, or nobody waits any more; then `answered` tells.
    pub fn hand_over(self: &Arc<Self>, audio: Audio, file: SpoolFile) -> bool {
        let taker = self.taker.lock().ok().and_then(|mut taker| taker.take());
        match taker {
            Some(taker) => {
                // An upload that nobody takes is dropped here, which answers `Keep`.
                let _ = taker.send(Upload {
                    audio,
                    file,
                    slot: Arc::clone(self),
                });
                true
            }
            None => false,
        }
    }

    /// The answer to an upload with these digests, once there is one. From now on it is awaited.
    pub fn answered(&self, digests: Digests) -> impl Future<Output = Answer> + use<> {
        let mut answer = self.answer.subscribe();
        async move {
            let answered = answer.wait_for(Option::is_some).await.ok();
            match answered.as_deref() {
                // A second upload of the same file, and not of one that has grown meanwhile.
                Some(Some((Answer::Release, safe))) if *safe == digests => Answer::Release,
                _ => Answer::Keep,
            }
        }
    }

    /// The first answer counts. Whether somebody still waits for it.
    fn answer(&self, answer: Answer, digests: &Digests) -> bool {
        let awaited = self.answer.receiver_count() > 0;
        let first = self.answer.send_if_modified(|present| {
            let first = present.is_none();
            if first {
                *present = Some((answer, digests.clone()));
            }
            first
        });
        first && awaited
    }
}

/// An upload under way.
pub(super) struct Receiving {
    slot: Arc<Slot>,
    failed: Option<UploadError>,
}

impl Receiving {
    pub fn fail(mut self, error: UploadError) {
        self.failed = Some(error);
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let failed = self.failed.take();
        self.slot.progress.send_modify(|progress| {
            *progress = match (&progress, failed) {
                (Progress::Receiving(count), _) if *count > 1 => Progress::Receiving(count - 1),
                (_, Some(error)) => Progress::Failed(error),
                (_, None) => Progress::Waiting,
            };
        });
    }
}
