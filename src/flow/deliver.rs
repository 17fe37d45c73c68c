//! ④ Deliver: the audio, in flight or in the hold, goes to its destination.

use std::sync::Arc;

use tokio::time::Instant;

use crate::couch::Couch;
use crate::destination::couchdb_write;
use crate::destination::pending_document::{self, Placed};
use crate::destination::storage_plan::proxy;
use crate::destination::url::http::Upload;
use crate::destination::{DeliveryError, Fault, Source};
use crate::entry::cause::Cause;
use crate::entry::fact::{Delivery, DeliveryFailure, Destination, Document, What};
use crate::recording::audio::Audio;
use crate::recording::document::Subject;
use crate::recording::identity::MediaId;
use crate::recording::order::Order;
use crate::recording::progress::{Elsewhere, Progress, State};
use crate::telemetry::events::DeliveryEnded;

use super::deliveries::Parts;
use super::effects::collect::InHand;
use super::found::{delivered, document_of};
use super::ids::ids_with_other;
use super::share::{BUSY, in_time};
use super::siblings::Nameless;
use super::way::{By, Way};
use crate::lifecycle::{Case, Input};

impl Parts {
    /// Delivers the audio to its destination, unless the target's circuit breaker is open, or all its slots are taken.
    pub(super) async fn deliver(
        &self,
        case: &Case,
        attempt: u32,
        destination: Destination,
        hand: Option<&InHand>,
    ) -> Input {
        let begun = Instant::now();
        let way = match self.way(case, destination).await {
            Ok(way) => way,
            Err(error) => return self.failed(case, attempt, (destination, ""), &error, begun),
        };
        let slot = match (destination, self.hosts.free_slot(&way.host)) {
            // Uploads from switches are limited already, and a file that is collected in vain costs more than the limit saves.
            (Destination::Account, slot) => slot,
            (_, None) => {
                return self
                    .common
                    .postponed(case, self.common.now().plus(BUSY), format!("{} is busy", way.host));
            }
            (_, slot) => slot,
        };
        let Some(_share) = self.share(case, destination, &way.host, hand).await else {
            let why = format!("other deliveries to {} have their switch wait", way.host);
            return self.common.postponed(case, self.common.now().plus(BUSY), why);
        };
        let own = match self.name_of_its_own(case, &way).await {
            Ok(own) => own,
            Err(Nameless::Unknown(why)) => return self.common.postponed(case, self.common.now().plus(BUSY), why),
            Err(Nameless::Replaces) => {
                let why = "another recording has this signed URL, and would be replaced";
                let error = DeliveryError::Recording(why.into());
                return self.failed(case, attempt, (destination, &way.host), &error, begun);
            }
        };
        if let Err(until) = self.targets.may_begin(&way.host) {
            return self
                .common
                .postponed(case, until, format!("{} takes nothing now", way.host));
        }
        let limit = self.limit(destination, hand);
        let bringing = Box::pin(self.bring(case, attempt, destination, (&way, own.as_deref()), hand));
        let result = in_time(limit, bringing).await;
        drop(slot);
        match &result {
            Ok(_) => self.targets.delivered(&way.host),
            Err(error) if error.fault() == Fault::Target => {
                self.targets.failed(&way.host, case.entry.key, &error.to_string());
            }
            Err(_) => self.targets.undecided(&way.host),
        }
        match result {
            Ok(what) => {
                self.ended(case, (destination, &way.host), Ok(()), begun);
                Input::Fact(what)
            }
            Err(error) => self.failed(case, attempt, (destination, &way.host), &error, begun),
        }
    }

    async fn bring(
        &self,
        case: &Case,
        attempt: u32,
        destination: Destination,
        (way, own): (&Way, Option<&str>),
        hand: Option<&InHand>,
    ) -> Result<What, DeliveryError> {
        let (audio, source) = self.audio(case, hand)?;
        let order = order(case)?;
        let progress = complete(&audio, attempt);
        match &way.by {
            By::Database { couch, create } => {
                let ids = ids_with_other(order, &audio);
                let job = couchdb_write::Job {
                    audio: &audio,
                    source: &source,
                    ids: &ids,
                    subject: self.subject(case, destination, &audio)?,
                    progress: Some(progress),
                    failures: failures_there(case, destination),
                    create_database: *create,
                };
                let mut put = couchdb_write::put(couch, &job).await;
                if let (Destination::Account, Err(DeliveryError::NoDatabase(database))) = (destination, &put) {
                    self.create_missing(case, database).await?;
                    put = couchdb_write::put(couch, &job).await;
                }
                let stored = put?;
                if destination == Destination::Account {
                    self.complete_views(case, &stored.database).await?;
                }
                Ok(What::delivered(Delivery {
                    destination,
                    document: Document {
                        id: stored.id,
                        database: stored.database,
                        rev: stored.rev,
                        created: stored.created,
                    },
                    sha256: Some(audio.digests.sha256.clone()),
                    below_quorum: stored.below_quorum,
                    audio: None,
                    deleted: stored.deleted,
                    edit_told: false,
                    // A document that existed already is read again.
                    controls: Some(match stored.road {
                        Some(_) => case.entry.controls().fingerprint(),
                        None => String::new(),
                    }),
                    again: 0,
                }))
            }
            By::Url(target) => {
                let placed = self.placed(&self.couch, case, destination, &audio).await?;
                if placed.proven(&order.media_name).is_some() {
                    return Ok(delivered(destination, placed));
                }
                let account_id = case.entry.account_id().unwrap_or_default();
                let target = target.of_recording(&placed.document, account_id, order.format.extension(), own);
                let upload = Upload {
                    source: &source,
                    length: audio.size,
                    content_type: order.format.content_type(),
                    method: order.method,
                    // Two recordings can get the same id. This is never the key of the one that had it first.
                    key: &placed.idempotency_key(),
                };
                let sent = self.users.send(&target, &upload).await?;
                Ok(What::Uploaded {
                    url: sent.to.expose().to_string(),
                    sha256: Some(audio.digests.sha256.clone()),
                })
            }
            By::Proxy { couch, proxy } => {
                let placed = self.placed(couch, case, destination, &audio).await?;
                let job = proxy::Job {
                    placed: &placed,
                    name: &order.media_name,
                    content_type: order.format.content_type(),
                    audio: &audio,
                    source: &source,
                };
                proxy::store(couch, &self.cluster, proxy, &job).await?;
                let noted = pending_document::note(
                    couch,
                    &placed,
                    &self.subject(case, destination, &audio)?(&placed.id),
                    &progress,
                )
                .await?;
                Ok(match delivered(destination, noted) {
                    What::Delivered(mut delivery) => {
                        delivery.edit_told = true;
                        What::Delivered(delivery)
                    }
                    other => other,
                })
            }
        }
    }

    /// Writes the document that comes before the audio.
    pub(super) async fn document(&self, case: &Case, attempt: u32, destination: Destination) -> Input {
        let begun = Instant::now();
        let placed = async {
            let couch = self.documents(case, destination).await?;
            let audio = seen(case)?;
            self.placed(&couch, case, destination, &audio).await
        };
        match in_time(self.common.config.ingest.delivery_timeout, placed).await {
            Ok(placed) => Input::Fact(What::Documented(document_of(placed))),
            Err(error) => self.failed(case, attempt, (destination, ""), &error, begun),
        }
    }

    /// Completes the document that came before the audio.
    pub(super) async fn complete(&self, case: &Case, attempt: u32, destination: Destination) -> Input {
        let begun = Instant::now();
        let completed = async {
            let couch = self.documents(case, destination).await?;
            let (audio, order) = (seen(case)?, order(case)?);
            let placed = self.placed(&couch, case, destination, &audio).await?;
            let at = Elsewhere {
                name: &order.media_name,
                url: case.entry.uploaded().unwrap_or_default(),
                content_type: order.format.content_type(),
                length: audio.size,
            };
            let subject = self.subject(case, destination, &audio)?(&placed.id);
            pending_document::complete(&couch, &placed, &subject, &at, &complete(&audio, attempt)).await
        };
        match in_time(self.common.config.destination.send_timeout, completed).await {
            Ok(placed) => Input::Fact(delivered(destination, placed)),
            Err(error) => self.failed(case, attempt, (destination, ""), &error, begun),
        }
    }

    /// Writes into the document that came before the audio that the recording is parked. It is tried once, because the ledger
    /// knows it anyway.
    pub(super) async fn mark(&self, case: &Case, n: u32, cause: Cause) -> Input {
        let marked = async {
            let destination = case.entry.destination().unwrap_or(Destination::Url);
            let couch = self.documents(case, destination).await?;
            let audio = seen(case)?;
            let placed = self.placed(&couch, case, destination, &audio).await?;
            let progress = Progress {
                state: State::Parked,
                attempts: case.entry.next_attempt() - 1,
                cause: Some(cause.name()),
            };
            pending_document::park(
                &couch,
                &placed,
                &self.subject(case, destination, &audio)?(&placed.id),
                &progress,
            )
            .await
        };
        if let Err(error) = marked.await {
            tracing::warn!(event = "document_not_marked_parked", call_id = case.entry.call_id, %error, "parked state not written to the document");
        }
        Input::Fact(What::Marked { n })
    }

    /// Finds the document, or creates it.
    async fn placed(
        &self,
        couch: &Couch,
        case: &Case,
        destination: Destination,
        audio: &Audio,
    ) -> Result<Placed, DeliveryError> {
        let order = order(case)?;
        if let Some(known) = case.entry.documented()
            && let Some(placed) = pending_document::find(couch, &known.database, &known.id, order.key).await?
            && !placed.has_other(audio)
        {
            return Ok(placed);
        }
        // The last id is used only when the other ids are taken: the database of a month may be created meanwhile.
        let all = ids_with_other(order, audio);
        let (ids, other) = all.split_at(all.len() - 1);
        let progress = Progress {
            state: State::Pending,
            attempts: 0,
            cause: None,
        };
        let subject = self.subject(case, destination, audio)?;
        let mut created = pending_document::create(couch, ids, &subject, &progress).await;
        if let Err(DeliveryError::NoDatabase(database)) = &created
            // On another server this worker does not know what creates the databases.
            && couch.is_same_server(&self.couch)
        {
            self.create_missing(case, database).await?;
            created = pending_document::create(couch, ids, &subject, &progress).await;
        }
        let placed = match created {
            Err(DeliveryError::Recording(_)) => pending_document::create(couch, other, &subject, &progress).await?,
            created => created?,
        };
        if couch.is_same_server(&self.couch) {
            self.complete_views(case, &placed.database).await?;
        }
        Ok(placed)
    }

    /// The audio, and where it can be read: the upload in flight, else the hold.
    fn audio(&self, case: &Case, hand: Option<&InHand>) -> Result<(Audio, Source), DeliveryError> {
        if let Some(hand) = hand {
            let audio = case.entry.judged(hand.upload.audio.clone());
            return Ok((audio, Source::spooled(hand.upload.file.clone())));
        }
        let nowhere = || DeliveryError::Source(Arc::from("the audio is neither uploaded nor in the hold"));
        let holding = case.entry.held().ok_or_else(nowhere)?;
        Ok((seen(case)?, Source::held(self.hold.clone(), holding.clone())))
    }

    /// Builds the document for any of its possible ids.
    fn subject<'a>(
        &'a self,
        case: &'a Case,
        destination: Destination,
        audio: &'a Audio,
    ) -> Result<impl Fn(&'a MediaId) -> Subject<'a>, DeliveryError> {
        let entry = &case.entry;
        let (Some(order), Some(ended), Some(account_id)) = (entry.order(), entry.ended(), entry.account_id()) else {
            return Err(DeliveryError::Source(Arc::from(
                "the recording has no order, end or account",
            )));
        };
        Ok(move |id| Subject {
            order,
            id,
            account_id,
            started: entry.started(),
            ended,
            told_ms: entry.told_ms(),
            audio: Some(audio),
            destination: destination.name(),
            node: &self.common.sender.node,
            now: self.common.now(),
            controls: entry.controls(),
        })
    }

    fn failed(
        &self,
        case: &Case,
        attempt: u32,
        (destination, host): (Destination, &str),
        error: &DeliveryError,
        begun: Instant,
    ) -> Input {
        self.ended(case, (destination, host), Err(&error.to_string()), begun);
        Input::Fact(failure(attempt, destination, error))
    }

    fn ended(&self, case: &Case, (destination, host): (Destination, &str), result: Result<(), &str>, begun: Instant) {
        DeliveryEnded {
            call_id: &case.entry.call_id,
            media_id: case.entry.order().map_or("", |order| order.media_id.as_str()),
            destination: destination.name(),
            host,
            result,
            took: begun.elapsed(),
        }
        .emit();
    }
}

/// A failed attempt, as the entry has it.
pub(super) fn failure(attempt: u32, destination: Destination, error: &DeliveryError) -> What {
    What::DeliveryFailed {
        attempt,
        destination,
        failure: error.failure(),
        why: error.to_string(),
        retry_after_s: error.retry_after().map(|after| after.as_secs()),
    }
}

fn order(case: &Case) -> Result<&Order, DeliveryError> {
    let unknown = || DeliveryError::Source(Arc::from("the order is unknown"));
    case.entry.order().ok_or_else(unknown)
}

/// The audio as a worker received it last, else as the hold has it.
fn seen(case: &Case) -> Result<Audio, DeliveryError> {
    let held = case.entry.held();
    let audio = case.entry.judged_audio();
    let same = |audio: &Audio| held.is_none_or(|held| held.digests == audio.digests);
    if let Some(audio) = audio.filter(same) {
        return Ok(audio);
    }
    let unseen = || DeliveryError::Source(Arc::from("the audio was never here"));
    held.map(|holding| Audio {
        size: holding.size,
        digests: holding.digests.clone(),
        duration_ms: None,
        findings: Vec::new(),
        as_written: None,
    })
    .ok_or_else(unseen)
}

fn complete(audio: &Audio, attempt: u32) -> Progress<'static> {
    let cause = if audio.is_suspect() {
        Cause::SuspectAudio
    } else {
        Cause::Complete
    };
    Progress {
        state: State::Complete,
        attempts: attempt,
        cause: Some(cause.name()),
    }
}

/// How often a server failed to take the recording.
fn failures_there(case: &Case, at: Destination) -> u32 {
    let there = case.entry.failures().filter(|fact| {
        matches!(
            fact.what,
            What::DeliveryFailed {
                destination,
                failure: DeliveryFailure::Target | DeliveryFailure::Refused,
                ..
            } if destination == at
        )
    });
    u32::try_from(there.count()).unwrap_or(u32::MAX)
}
