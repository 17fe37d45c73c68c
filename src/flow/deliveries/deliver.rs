//! ④ Deliver: the audio, in flight or in the hold, goes to its destination.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::destination::circuit_breaker::CircuitBreakers;
use crate::destination::{Attempt, DeliveryError, Destinations, Fault, Parcel, Registry, Route, Source};
use crate::entry::fact::{Destination, What};
use crate::flow::common::Common;
use crate::hold::Hold;
use crate::ingest::Upload;
use crate::lifecycle::{Case, Input};
use crate::recording::audio::Audio;

use super::names::{Nameless, Names};
use super::shares::{BUSY, Shares};
use super::{ended, failed, in_time, seen, writer};

/// Delivers audio. May touch: the destination, held audio, the ledger's claims of names, and this worker's limits and circuit breakers.
pub struct Deliverer {
    pub common: Arc<Common>,
    pub destinations: Arc<Destinations>,
    pub breakers: Arc<CircuitBreakers>,
    pub hold: Hold,
    pub shares: Shares,
    pub names: Names,
}

impl Deliverer {
    /// Delivers the audio, an upload or what the hold has, to its destination, unless the target's circuit breaker is open, or all its slots are taken.
    pub async fn deliver(&self, case: &Case, attempt: u32, destination: Destination, upload: Option<&Upload>) -> Input {
        let begun = Instant::now();
        let busy = |why: String| self.common.postponed(case, self.common.now().plus(BUSY), why);
        let route = match self.destinations.of(destination).resolve(&case.entry).await {
            Ok(route) => route,
            Err(error) => return failed(case, attempt, (destination, ""), &error, begun),
        };
        let host = route.host.as_str();
        let slot = match self.shares.of_host(host) {
            None if destination.is_held() => return busy(format!("{host} is busy")),
            // Uploads from switches are limited already, and a file that is collected in vain costs more than the limit saves.
            slot => slot,
        };
        let Some(_share) = self.shares.of_switch(case, destination, host, upload.is_some()).await else {
            return busy(format!("other deliveries to {host} have their switch wait"));
        };
        let own = match self.names.of_its_own(case, route.url.as_ref()).await {
            Ok(own) => own,
            Err(Nameless::Unknown(why)) => return busy(why),
            Err(Nameless::Replaces) => {
                let why = "another recording has this signed URL, and would be replaced";
                let error = DeliveryError::Recording(why.into());
                return failed(case, attempt, (destination, host), &error, begun);
            }
        };
        let handler = route.handler_breaker();
        if let Some(until) = handler.and_then(|handler| self.breakers.may_begin(handler).err()) {
            return self
                .common
                .postponed(case, until, "the store refuses the storage plan now".into());
        }
        if let Err(until) = self.breakers.may_begin(host) {
            handler.iter().for_each(|handler| self.breakers.undecided(handler));
            return self.common.postponed(case, until, format!("{host} takes nothing now"));
        }
        let sending = Box::pin(self.send(case, attempt, destination, (&route, own.as_deref()), upload));
        let result = in_time(self.limit(destination, upload.is_some()), sending).await;
        drop(slot);
        self.tell_breakers(case, (host, handler), &result);
        match result {
            // The delivery ends when the document is complete.
            Ok(what @ What::ObjectStored(_)) => Input::Fact(what),
            Ok(what) => {
                ended(case, (destination, host), Ok(()), begun);
                Input::Fact(what)
            }
            Err(error) => failed(case, attempt, (destination, host), &error, begun),
        }
    }

    /// A storage plan that is refused says nothing about the host: plans of other accounts may have the same host.
    fn tell_breakers(&self, case: &Case, (host, handler): (&str, Option<&str>), result: &Result<What, DeliveryError>) {
        let breakers = &self.breakers;
        let fault = result.as_ref().err().map(|error| (error.fault(), error.to_string()));
        match &fault {
            None => breakers.delivered(host),
            Some((Fault::Target, why)) => breakers.failed(host, case.entry.key, why),
            Some(_) => breakers.undecided(host),
        }
        let Some(handler) = handler else { return };
        match &fault {
            None => breakers.delivered(handler),
            Some((Fault::Plan, why)) => breakers.failed(handler, case.entry.key, why),
            Some(_) => breakers.undecided(handler),
        }
    }

    async fn send(
        &self,
        case: &Case,
        attempt: u32,
        destination: Destination,
        (route, own): (&Route, Option<&str>),
        upload: Option<&Upload>,
    ) -> Result<What, DeliveryError> {
        let (audio, source) = self.audio(case, upload)?;
        let writer = writer(&self.common);
        let attempt = Attempt {
            parcel: Parcel::of(&case.entry, audio, destination, writer)?,
            source,
            number: attempt,
            own,
            places: &self.names,
        };
        self.destinations.of(destination).send(route, &attempt).await
    }

    /// The audio, and where it can be read: the upload in flight, else the hold.
    fn audio(&self, case: &Case, upload: Option<&Upload>) -> Result<(Audio, Source), DeliveryError> {
        if let Some(upload) = upload {
            let audio = case.entry.judged(upload.audio.clone());
            return Ok((audio, Source::spooled(upload.file.clone())));
        }
        let nowhere = || DeliveryError::Source(Arc::from("the audio is neither uploaded nor in the hold"));
        let holding = case.entry.held().ok_or_else(nowhere)?;
        Ok((seen(case)?, Source::held(self.hold.clone(), holding.clone())))
    }

    /// Time limit of an attempt. `waits`: the switch waits for the answer to its upload.
    fn limit(&self, destination: Destination, waits: bool) -> Duration {
        let config = &self.common.config;
        // By this time the switch has got the answer to keep its file.
        let told = config.ingest.delivery_timeout;
        if !waits {
            return config.destination.send_timeout;
        }
        if destination.is_held() && self.hold.is_there() {
            // The audio can wait in the hold, and must be there before the switch gets the answer to keep its file. Other recordings need
            // the switch's slot.
            return (told / 2).min(config.destination.switch_waits);
        }
        told
    }
}
