//! How a worker gets a file from a switch, as `flow/collect.rs` and `flow/still.rs` do.

use std::sync::Arc;
use std::time::Duration;

use kz_record_call::entry::Entry;
use kz_record_call::entry::cause::{Cause, Outcome};
use kz_record_call::entry::fact::{CollectFailure, What};
use kz_record_call::lifecycle::Input;
use kz_record_call::recording::digest::Digests;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use crate::effects::Services;
use crate::faults::{Fault, is_back};
use crate::switch::Upload;
use crate::world::World;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Over,
    Apart,
    Bridged,
}

/// The call before its file was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    at: Instant,
    call: Option<Call>,
}

/// An upload in flight.
pub struct InHand {
    pub upload: Upload,
    look: Look,
}

type Fetched = Result<Upload, (CollectFailure, String)>;

impl Services {
    fn call(&self, entry: &Entry) -> Call {
        let (world, root) = (&self.0.world, self.0.world.root(entry.key));
        let call = world.switch.lock().unwrap().calls[&root].clone();
        // An ecallmgr that is away says nothing: the call may be bridged.
        match () {
            () if world.trouble().unlearned[world.asked[&root].switch] => Call::Over,
            () if world.trouble().cut[world.asked[&root].switch] || call.bridged => Call::Bridged,
            () if call.alive => Call::Apart,
            () => Call::Over,
        }
    }

    fn look(&self, entry: &Entry) -> Look {
        let again = entry.order().is_some_and(|order| order.may_begin_again());
        Look {
            at: Instant::now(),
            call: again.then(|| self.call(entry)),
        }
    }

    fn awaits(&self, entry: &Entry, look: Look, upload: &Upload) -> bool {
        let lives = matches!(look.call, Some(Call::Apart | Call::Bridged));
        lives
            && upload.content.audio().seems_open(upload.content.format)
            && !is_back(Fault::OpenFilesReleased)
            && entry.order().is_some()
    }

    fn lives_elsewhere(&self, entry: &Entry) -> bool {
        let (world, root) = (&self.0.world, self.0.world.root(entry.key));
        let call = world.switch.lock().unwrap().calls[&root].clone();
        call.other_alive && call.other_known
    }

    /// Whether nothing can have been appended to the file since it was asked for.
    pub async fn is_still(&self, entry: &Entry, hand: &InHand) -> bool {
        self.still(entry, hand.look, &hand.upload).await
    }

    async fn still(&self, entry: &Entry, look: Look, upload: &Upload) -> bool {
        if self.awaits(entry, look, upload) {
            return false;
        }
        tokio::time::sleep(self.0.world.between(1, 100)).await;
        let open = upload.content.audio().seems_open(upload.content.format);
        match look.call {
            None => true,
            Some(Call::Over) => self.call(entry) == Call::Over && !(open && self.lives_elsewhere(entry)),
            Some(Call::Bridged) => false,
            Some(Call::Apart) => self.call(entry) != Call::Bridged && look.at.elapsed() < Duration::from_secs(1),
        }
    }

    async fn slot<'a>(
        &self,
        world: &World,
        entry: &Entry,
        slots: &'a [tokio::sync::Semaphore; 2],
    ) -> SemaphorePermit<'a> {
        let _idle = self.0.hands.idle();
        let at = world.asked[&world.root(entry.key)].switch;
        slots[at].acquire().await.unwrap()
    }

    async fn fetch(&self, entry: &Entry) -> Fetched {
        let world = &self.0.world;
        world.upload(world.root(entry.key)).await
    }

    fn let_it_be(&self, upload: Upload) {
        let world = Arc::clone(&self.0.world);
        tokio::spawn(async move { world.answer(upload, false).await });
    }

    pub async fn collect(&self, entry: &Entry, attempt: u32, hand: &mut Option<InHand>) -> Input {
        let worker = Arc::clone(&self.0);
        let mut before: Option<Digests> = None;
        loop {
            let slot = self.slot(&worker.world, entry, &worker.slots).await;
            let look = self.look(entry);
            let fetched = self.fetch(entry).await;
            drop(slot);
            let upload = match fetched {
                Ok(upload) => upload,
                Err((CollectFailure::Missing, why)) => return self.missing(entry, attempt, why),
                Err((failure, why)) => return Input::Fact(What::CollectFailed { attempt, failure, why }),
            };
            let audio = upload.content.audio();
            let open = self.awaits(entry, look, &upload);
            let same = before.as_ref() == Some(&audio.digests) && !open;
            if !same && !self.still(entry, look, &upload).await {
                self.let_it_be(upload);
                if before.is_some() {
                    return self.postponed(entry, Duration::from_secs(30));
                }
                before = Some(audio.digests);
                tokio::time::sleep(Duration::from_secs(5)).await;
                continue;
            }
            if is_other_than_probed(entry, &audio.digests) {
                self.let_it_be(upload);
                return self.postponed(entry, Duration::from_secs(30));
            }
            *hand = Some(InHand { upload, look });
            return Input::Received(audio);
        }
    }

    pub async fn probe(&self, entry: &Entry, n: u32, attempt: u32) -> Input {
        let worker = Arc::clone(&self.0);
        let _slot = self.slot(&worker.world, entry, &worker.slots).await;
        match self.fetch(entry).await {
            Ok(upload) => {
                let audio = upload.content.audio();
                let open = audio.seems_open(upload.content.format) && !is_back(Fault::OpenFilesReleased);
                self.let_it_be(upload);
                let (size, md5) = (audio.size, audio.digests.md5);
                Input::Fact(What::Probed { n, size, md5, open })
            }
            Err((CollectFailure::Missing, why)) => self.missing(entry, attempt, why),
            Err((failure, why)) => Input::Fact(What::CollectFailed { attempt, failure, why }),
        }
    }

    /// What is missing is looked for at its destination.
    fn missing(&self, entry: &Entry, attempt: u32, why: String) -> Input {
        let world = &self.0.world;
        let destination = world.asked[&world.root(entry.key)].destination;
        let (stored, down) = {
            let places = world.places.lock().unwrap();
            (
                places.found(entry.key, world.now()).cloned(),
                world.trouble().target_down,
            )
        };
        let failure = match stored {
            _ if down => CollectFailure::Broken,
            Some(stored) if !destination.documents_first() => {
                return self.delivered(entry, destination, &stored.content, false);
            }
            _ => CollectFailure::Missing,
        };
        Input::Fact(What::CollectFailed { attempt, failure, why })
    }

    pub async fn tidy(&self, entry: &Entry, n: u32) -> Input {
        let worker = Arc::clone(&self.0);
        let _slot = self.slot(&worker.world, entry, &worker.slots).await;
        let look = self.look(entry);
        let short = entry.outcome() == Some((Outcome::Discarded, Cause::TooShort));
        let seen = entry.audio().map(|audio| audio.digests.clone());
        let left = match self.fetch(entry).await {
            Err((CollectFailure::Missing, _)) => None,
            Err((_, why)) => Some(why),
            Ok(upload) => {
                let digests = upload.content.audio().digests;
                let safe = entry.is_safe(&digests) || short && seen == Some(digests) || is_back(Fault::DigestsIgnored);
                if !self.still(entry, look, &upload).await {
                    self.let_it_be(upload);
                    Some("the switch may be recording into it".to_owned())
                } else if safe {
                    let heard = self.0.world.answer(upload, true).await;
                    (!heard).then(|| "the switch waited no longer".to_owned())
                } else {
                    self.let_it_be(upload);
                    if let Some(told) = entry.untold_start() {
                        return Input::Fact(What::Started(Box::new(told)));
                    }
                    Some("other audio".to_owned())
                }
            }
        };
        Input::Fact(What::Tidied { n, left })
    }
}

/// The end was presumed because the file was the same, and now it is another.
fn is_other_than_probed(entry: &Entry, digests: &Digests) -> bool {
    let since = entry.latest_start().map(|told| told.at);
    let mut probes = entry.probes();
    let probe = probes
        .next()
        .filter(|probe| since.is_none_or(|since| probe.at >= since));
    entry.told_end().is_none() && probe.is_some_and(|probe| probe.md5 != digests.md5)
}
