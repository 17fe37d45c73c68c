//! ③ Collect: the worker asks the switch for its file, and the switch uploads the file to our ingest.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::entry::fact::{CollectFailure, What};
use crate::entry::{Entry, MISSES_PROVE, TIDIES};
use crate::faults::{Fault, is_back};
use crate::ingest::Upload;
use crate::recording::audio::Audio;
use crate::recording::digest::Digests;
use crate::recording::order::Order;
use crate::telemetry::events::{AudioSuspect, CollectEnded, CollectPutOff};

use crate::flow::common::{Common, Interrupted};
use crate::flow::deliveries::Proofs;
use crate::flow::in_flight::InFlight;
use crate::flow::slots::{Crowded, Slots};

mod fetch;
mod predecessors;
mod quiescence;

pub use fetch::{Fetched, Fetcher, Files, Received};
use predecessors::Kept;
pub use predecessors::Predecessors;
use quiescence::Look;
pub use quiescence::{CallState, Channels, Ecallmgrs, Quiescence};

use crate::lifecycle::{Answer, Case, Input};

/// First delay of a recording that found too many other recordings waiting for its switch. The delay doubles each time, a few times.
const PUT_OFF: Duration = Duration::from_secs(20);

/// The result of a collect whose file must be complete.
enum Whole<U> {
    Brought(Box<(Fetched<U>, Look, OwnedSemaphorePermit)>),
    /// The file was collected twice, and differed.
    Grows,
}

/// Whether the end was presumed because the file was unchanged, and the file has other bytes now.
fn is_other_than_probed(entry: &Entry, audio: &Audio) -> bool {
    let probe = entry.probes().next().filter(|probe| {
        // The switch's clock may be ahead of the worker's. A start that was heard late seems to have been late.
        let began = [
            entry.latest_start().map(|told| told.at),
            entry.latest_began_by(probe.by),
        ];
        let since = began.into_iter().flatten().min();
        since.is_none_or(|since| probe.at >= since)
    });
    entry.told_end().is_none() && probe.is_some_and(|probe| probe.md5 != audio.written().md5)
}

/// An upload in flight, and the switch's slot that it holds.
pub struct InHand<U = Upload> {
    pub upload: U,
    /// The state of the call before this file was asked for.
    look: Look,
    _slot: OwnedSemaphorePermit,
}

/// Brings files from the switches, and lets the switches delete them. The worker gives it RabbitMQ, its ingest and the destinations;
/// `tests/simulation` gives it simulated ones.
pub struct Collector<F, C, P> {
    pub common: Arc<Common>,
    pub files: F,
    pub quiescence: Quiescence<C>,
    pub predecessors: Predecessors,
    /// Knows whether the audio is at its destination already.
    pub proof: Arc<P>,
    pub in_flight: InFlight,
    /// Slots for uploads from each switch: every upload holds a thread of a live media server.
    pub switches: Slots,
}

impl<F: Files, C: Channels, P: Proofs> Collector<F, C, P> {
    /// Asks the switch for the file, and waits for the result.
    ///
    /// # Errors
    /// When the worker is shutting down.
    pub async fn collect(
        &self,
        case: &Case,
        attempt: u32,
        node: &str,
        path: &str,
        hand: &mut Option<InHand<F::Upload>>,
    ) -> Result<Input, Interrupted> {
        let order = case.entry.order().ok_or(Interrupted::Baseless)?;
        if let Some(input) = self.proof.in_vain(case, attempt).await {
            return Ok(input);
        }
        if let Some(stored) = self.proof.stored_by_kazoo(case).await {
            return Ok(stored);
        }
        if let Some(later) = self.put_off(case, node) {
            return Ok(later);
        }
        let (result, look, slot) = match self.whole(case, order, node, path).await? {
            Whole::Brought(brought) => *brought,
            Whole::Grows => {
                let before = case.entry.postponed().count();
                return Ok(self
                    .common
                    .postponed_by_schedule(case, before, "the switch records into the file".into()));
            }
        };
        let told = result
            .as_ref()
            .map(|upload| upload.audio().size)
            .map_err(|(_, why)| why.as_str());
        CollectEnded {
            call_id: &order.call_id,
            media_id: order.media_id.as_str(),
            switch: node,
            result: told,
        }
        .emit();
        match result {
            Ok(upload) if is_other_than_probed(&case.entry, upload.audio()) => {
                // The end was presumed because the file was unchanged. Since then it has changed.
                self.note_closed(case, order, upload.audio());
                upload.answer(Answer::Keep);
                let before = case.entry.postponed().count();
                Ok(self.common.postponed_by_schedule(
                    case,
                    before,
                    "the file is not what it was when its end was presumed".into(),
                ))
            }
            Ok(upload) if self.predecessors.is_kept_before(case, &upload.audio().digests).await => {
                // The recording that has this audio also releases the file.
                upload.answer(Answer::Keep);
                Ok(predecessors::already_kept())
            }
            Ok(upload) => {
                let audio = upload.audio().clone();
                for finding in &audio.findings {
                    AudioSuspect {
                        call_id: &order.call_id,
                        media_id: order.media_id.as_str(),
                        finding: finding.name(),
                        size: audio.size,
                    }
                    .emit();
                }
                *hand = Some(InHand {
                    upload,
                    look,
                    _slot: slot,
                });
                Ok(Input::Received(audio))
            }
            Err((CollectFailure::Missing, why)) => Ok(self.missing(case, order, attempt, why).await),
            Err((failure, why)) => Ok(Input::Fact(What::CollectFailed { attempt, failure, why })),
        }
    }

    /// A file that its writer has closed since its end was presumed is another file from now on. The next collect is compared with it: otherwise
    /// no attempt, and no operator's retry, could ever deliver it.
    fn note_closed(&self, case: &Case, order: &Order, audio: &Audio) {
        if audio.seems_open(order.format) {
            return;
        }
        let probed = What::Probed {
            n: case.entry.next_number("probed"),
            size: audio.size,
            md5: audio.written().md5.clone(),
            open: false,
        };
        let _ = self.in_flight.tell(case.entry.key, Input::Fact(probed));
    }

    /// Asks for the file until it is certainly complete: at once, unless the switch may be recording into it again.
    async fn whole(&self, case: &Case, order: &Order, node: &str, path: &str) -> Result<Whole<F::Upload>, Interrupted> {
        let mut before: Option<Digests> = None;
        loop {
            let look = self
                .common
                .unless_stopped(self.quiescence.look_at_ended_call(&case.entry))
                .await?;
            let slot = self.slot_of(node).await?;
            let look = self.quiescence.renewed(&case.entry, look).await;
            let result = self
                .common
                .unless_stopped(self.files.fetch(case, order, node, path))
                .await?;
            let brought = match &result {
                Ok(upload) => Some(upload.audio().digests.clone()),
                Err(_) => None,
            };
            let is_open = |upload: &F::Upload| look.awaits(&case.entry, upload.audio());
            let open = result.as_ref().is_ok_and(is_open);
            let same = brought.is_none() || before == brought && !open;
            let still = match &result {
                Ok(upload) => self.quiescence.is_still(&case.entry, &look, upload.audio()).await,
                Err(_) => true,
            };
            if same || still {
                return Ok(Whole::Brought(Box::new((result, look, slot))));
            }
            if let Ok(upload) = result {
                upload.answer(Answer::Keep);
            }
            if before.is_some() {
                return Ok(Whole::Grows);
            }
            before = brought;
            drop(slot);
            self.common
                .unless_stopped(tokio::time::sleep(self.quiescence.until_it_has_grown()))
                .await?;
        }
    }

    /// Waits for a slot of the switch. A task that waits for one is not busy: neither the sweep nor the recordings of other switches wait
    /// for it.
    async fn slot_of(&self, switch: &str) -> Result<OwnedSemaphorePermit, Interrupted> {
        let _idle = self.in_flight.idle();
        let slot = self.common.unless_stopped(self.switches.slot(switch)).await?;
        slot.ok_or(Interrupted::ShuttingDown)
    }

    /// If enough recordings wait for a slot of the switch already, further ones wait in the ledger: a switch's backlog must not fill the
    /// memory.
    fn put_off(&self, case: &Case, switch: &str) -> Option<Input> {
        let crowded = self.switches.crowded(switch);
        if crowded == Crowded::No {
            return None;
        }
        CollectPutOff {
            call_id: &case.entry.call_id,
            switch,
            first: crowded == Crowded::Newly,
        }
        .emit();
        // The delay grows with the waiting time, and has a jitter.
        let before = u32::try_from(case.entry.postponed().count()).unwrap_or(u32::MAX);
        let pause = PUT_OFF * 2u32.saturating_pow(before.min(4));
        let until = self.common.now().plus(pause.mul_f64(0.75 + fastrand::f64() * 0.5));
        Some(self.common.postponed(case, until, format!("{switch} is busy")))
    }

    /// Reads the file, and leaves it on the switch. Two equal probes prove an end that no event reported.
    ///
    /// # Errors
    /// When the worker is shutting down.
    pub async fn probe(&self, case: &Case, n: u32, attempt: u32, node: &str, path: &str) -> Result<Input, Interrupted> {
        let order = case.entry.order().ok_or(Interrupted::Baseless)?;
        if let Some(later) = self.put_off(case, node) {
            return Ok(later);
        }
        let _slot = self.slot_of(node).await?;
        let result = self
            .common
            .unless_stopped(self.files.fetch(case, order, node, path))
            .await?;
        Ok(match result {
            Ok(upload) => {
                let audio = upload.audio();
                let (size, md5) = (audio.size, audio.written().md5.clone());
                let open = audio.seems_open(order.format) && !is_back(Fault::OpenFilesReleased);
                upload.answer(Answer::Keep);
                Input::Fact(What::Probed { n, size, md5, open })
            }
            Err((CollectFailure::Missing, why)) => self.missing(case, order, attempt, why).await,
            Err((failure, why)) => Input::Fact(What::CollectFailed { attempt, failure, why }),
        })
    }

    /// The switch has no such file. Two cases are checked before the file counts as missing. Another worker may have stored it, and the
    /// switch deleted it. Or the recording before contains all of it.
    async fn missing(&self, case: &Case, order: &Order, attempt: u32, why: String) -> Input {
        if let Some(stored) = self.proof.stored_by_kazoo(case).await {
            return stored;
        }
        let (failure, why) = match self.proof.stored_already(case, order).await {
            Ok(Some(delivered)) => return Input::Fact(delivered),
            Ok(None) => match self.predecessors.kept_before(case).await {
                Kept::All => return predecessors::already_kept(),
                Kept::Lost => return predecessors::lost(),
                Kept::Unknown => (CollectFailure::Missing, why),
            },
            Err(error) => (
                CollectFailure::Broken,
                format!("{why}; and the database does not tell whether it is stored: {error}"),
            ),
        };
        Input::Fact(What::CollectFailed { attempt, failure, why })
    }

    /// Asks once more for a file that was never released. Only audio that is safe already is released. Anything else in the file, such as a
    /// recording that began anew, stays.
    ///
    /// # Errors
    /// When the worker is shutting down.
    pub async fn tidy(&self, case: &Case, n: u32, node: &str, path: &str) -> Result<Input, Interrupted> {
        let order = case.entry.order().ok_or(Interrupted::Baseless)?;
        if let Some(later) = self.put_off(case, node) {
            return Ok(later);
        }
        let _slot = self.slot_of(node).await?;
        let look = self.quiescence.look_at_call(&case.entry).await;
        let result = self
            .common
            .unless_stopped(self.files.fetch(case, order, node, path))
            .await?;
        let may_go = |there: &Digests| case.entry.may_let_go(there) || is_back(Fault::DigestsIgnored);
        let mut missing = false;
        let left = match result {
            Ok(upload) if !self.quiescence.is_still(&case.entry, &look, upload.audio()).await => {
                let seems_over = self.quiescence.seems_over(&case.entry, &look, upload.audio()).await;
                let is_known = case.entry.has_had(&upload.audio().digests);
                upload.answer(Answer::Keep);
                if let Some(told) = case.entry.untold_part().filter(|_| seems_over && !is_known) {
                    // A copy of what the switch recorded since is made at once. Whether the file may go is another question.
                    return Ok(Input::Fact(What::Started(Box::new(told))));
                }
                Some("the switch may be recording into it".to_owned())
            }
            Ok(upload) if self.files.is_shared(&case.entry, upload.audio()).await => {
                upload.answer(Answer::Keep);
                Some("the switch records another call into it".to_owned())
            }
            Ok(upload) if self.files.is_kazoos_too(&case.entry).await => {
                upload.answer(Answer::Keep);
                Some("Kazoo's own recorder may ask for it".to_owned())
            }
            Ok(upload) if may_go(&upload.audio().digests) => {
                let released = self.files.release(&case.entry, upload);
                (!released).then(|| "the switch waited no longer for its answer".to_owned())
            }
            Ok(upload) => {
                let is_known = case.entry.has_had(&upload.audio().digests);
                upload.answer(Answer::Keep);
                if let Some(told) = case.entry.untold_part().filter(|_| !is_known) {
                    // The switch recorded into the file again, and no event reported it. That becomes a recording of its own.
                    return Ok(Input::Fact(What::Started(Box::new(told))));
                }
                Some("what is there now is not what is safe".to_owned())
            }
            Err((CollectFailure::Missing, why)) => {
                missing = true;
                (case.entry.misses() + 1 < MISSES_PROVE).then_some(why)
            }
            Err((_, why)) => Some(why),
        };
        if let (Some(why), true) = (&left, case.entry.tidied().count() + 1 >= TIDIES) {
            tracing::warn!(event = "file_left_on_switch",
                call_id = order.call_id,
                media_id = %order.media_id,
                switch = node,
                why,
                "file left on the switch"
            );
        }
        Ok(Input::Fact(What::Tidied { n, left, missing }))
    }

    /// Answers the switch for its upload: the point of no return. Exactly this audio must be safe, whatever else is known of the recording.
    pub async fn answer(&self, case: &Case, answer: Answer, hand: Option<InHand<F::Upload>>) -> Answer {
        let Some(held) = hand else { return answer };
        let (entry, audio) = (&case.entry, held.upload.audio());
        let safe = entry.is_safe(&audio.digests) || entry.is_unwanted() || is_back(Fault::DigestsIgnored);
        let answer = match answer {
            Answer::Release if !safe || self.files.is_shared(entry, audio).await => Answer::Keep,
            Answer::Release if self.files.is_kazoos_too(entry).await => Answer::Keep,
            Answer::Release if self.quiescence.is_still(entry, &held.look, audio).await => Answer::Release,
            _ => Answer::Keep,
        };
        let is_answered = match answer {
            Answer::Release => self.files.release(entry, held.upload),
            Answer::Keep => held.upload.answer(Answer::Keep),
        };
        if is_answered {
            answer
        } else {
            // The switch has given up, or got the answer to keep its file. The audio is safe, and a worker asks for the file once more to
            // release it.
            Answer::Keep
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::entry::fact::Fact;
    use crate::kazoo::time::Moment;
    use crate::lifecycle::tests::{audio, order, told};

    use super::*;

    /// The end was presumed because the file was unchanged. Its last part has grown since.
    #[test]
    fn a_file_that_grew_is_kept_though_the_clock_of_the_switch_is_ahead() {
        let mut entry = Entry::of_order(order(), "w");
        let asked_at = order().asked_at;
        let mut started = told(0);
        started.at = asked_at.plus(Duration::from_secs(3600));
        started.stamp = Some(started.at.unix_micros());
        let probed = What::Probed {
            n: 1,
            size: 6,
            md5: "before".into(),
            open: false,
        };
        for (second, what) in [
            (0, What::Started(started.clone())),
            (400, probed),
            (470, What::PresumedEnded(started)),
        ] {
            let (at, by): (Moment, _) = (asked_at.plus(Duration::from_secs(second)), "w".to_owned());
            entry.add(Fact { at, by, what });
        }
        assert!(is_other_than_probed(&entry, &audio(5000)));
    }
}
