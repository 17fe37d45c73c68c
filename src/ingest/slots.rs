//! Which deliveries wait for which uploads.
//!
//! A delivery registers an expected upload here before it asks a switch for the file. Several PUTs may arrive for one request: two zones
//! can serve one switch, and each may run the command. All of them are read. The first complete upload goes to the delivery. Uploads
//! that are complete before its answer get the same answer; later ones make the switch keep its file.

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

/// An expected upload.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub key: Key,
    pub media_id: MediaId,
    pub format: Format,
    /// Milliseconds that the switch reported.
    pub told_ms: Option<u64>,
}

/// A complete file of audio, and the switch that waits for an answer.
#[derive(Debug)]
pub struct Upload {
    pub audio: Audio,
    pub file: SpoolFile,
    slot: Arc<Slot>,
}

impl Upload {
    /// Answers the switch. `false` when the switch was answered before, with 503, because this took too long. An upload that is dropped
    /// without an answer makes the switch keep its file.
    pub fn answer(self, answer: Answer) -> bool {
        self.slot.answer(answer, &self.audio.digests)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.slot.answer(Answer::Keep, &self.audio.digests);
    }
}

/// State of an expected upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing has arrived yet.
    Waiting,
    /// This many uploads are in flight.
    Receiving(usize),
    /// An upload failed. Another one may arrive.
    Failed(UploadError),
}

/// An expected upload. Dropping it ends the wait: later PUTs are refused.
#[derive(Debug)]
pub struct Expected {
    /// The URL that the switch must PUT the file to.
    pub url: String,
    id: SlotId,
    slots: Slots,
    upload: oneshot::Receiver<Upload>,
    progress: watch::Receiver<Progress>,
}

impl Expected {
    /// The complete file. It waits without a limit, so the caller must set one by what `progress` reports.
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

/// All expected uploads, and the recordings that became safe lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    expected: HashMap<SlotId, Arc<Slot>>,
    safe: VecDeque<(Key, Digests)>,
}

/// Keys that are remembered as safe, for late PUTs.
const REMEMBERED: usize = 4096;

#[derive(Debug)]
pub(super) struct Slot {
    pub wanted: Wanted,
    taker: Mutex<Option<oneshot::Sender<Upload>>>,
    progress: watch::Sender<Progress>,
    /// The answer, and the digests of its audio.
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

    /// The recording's audio is safe: late PUTs of the same bytes may be released.
    pub fn remember_safe(&self, key: Key, digests: Digests) {
        if let Ok(mut table) = self.0.lock() {
            if table.safe.len() >= REMEMBERED {
                table.safe.pop_front();
            }
            table.safe.push_back((key, digests));
        }
    }

    /// The digests of this recording's audio that became safe last.
    pub fn safe(&self, key: Key) -> Option<Digests> {
        let table = self.0.lock().ok()?;
        let mut safe = table.safe.iter().rev();
        safe.find(|(of, _)| *of == key).map(|(_, digests)| digests.clone())
    }
}

impl Slot {
    /// An upload starts. Dropping the returned value ends it.
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

    /// Passes a complete file to the delivery. `false` when another upload was first, or no delivery waits. `answered` then gives the
    /// answer.
    pub fn hand_over(self: &Arc<Self>, audio: Audio, file: SpoolFile) -> bool {
        let taker = self.taker.lock().ok().and_then(|mut taker| taker.take());
        match taker {
            Some(taker) => {
                // If the delivery no longer receives, the upload is dropped here, which answers `Keep`.
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

    /// The answer to an upload with these digests. The subscription starts with this call.
    pub fn answered(&self, digests: Digests) -> impl Future<Output = Answer> + use<> {
        let mut answer = self.answer.subscribe();
        // The upload that was answered before has let the switch delete the file. What is under its name now may be another recording.
        let is_late = answer.borrow().is_some();
        async move {
            if is_late {
                return Answer::Keep;
            }
            let answered = answer.wait_for(Option::is_some).await.ok();
            match answered.as_deref() {
                // This must be a second upload of the same bytes, and not of a file that has grown meanwhile.
                Some(Some((Answer::Release, safe))) if *safe == digests => Answer::Release,
                _ => Answer::Keep,
            }
        }
    }

    /// The first answer counts. Returns whether an upload still waits for it.
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

/// An upload in flight.
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

#[cfg(test)]
mod tests {
    use crate::kazoo::time::Moment;
    use crate::recording::digest::Hasher;

    use super::*;

    /// The switch has deleted the file by then, and may record another part under its name.
    #[tokio::test]
    async fn an_upload_that_ends_after_the_answer_keeps_the_file() {
        let (slots, key) = (Slots::default(), Key::of("call", "action"));
        let wanted = Wanted {
            key,
            media_id: MediaId::derived(key, Moment::from_unix_seconds(1_795_386_262)),
            format: Format::Mp3,
            told_ms: None,
        };
        let _expected = slots.expect(wanted, 1, String::new());
        let slot = slots.find((key, 1)).unwrap();
        let digests = Hasher::default().finish();
        let in_time = slot.answered(digests.clone());
        slot.answer(Answer::Release, &digests);
        assert_eq!(in_time.await, Answer::Release);
        assert_eq!(slot.answered(digests).await, Answer::Keep);
    }
}
