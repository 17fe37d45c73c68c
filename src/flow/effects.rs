//! Performs one effect, and returns what came of it.

use crate::lifecycle::{Case, Effect, Input};
use crate::telemetry::trace::{self, Stage};

use super::common::Interrupted;
use super::crash;

pub mod announce;
pub mod calls;
pub mod collect;
pub mod commands;
pub mod hold;
pub mod segments;

use announce::Announcer;
use collect::{Collector, Ecallmgrs, Fetcher, InHand};
use commands::Commands;
use hold::Holder;
use segments::Segments;

use super::deliveries::{Deliveries, Proof};

/// Performs effects, each by the service that it belongs to.
pub struct Performer {
    pub commands: Commands,
    pub collector: Collector<Fetcher, Ecallmgrs, Proof>,
    pub deliveries: Deliveries,
    pub holder: Holder,
    pub segments: Segments,
    pub announcer: Announcer,
}

impl Performer {
    /// Performs `effect`, and returns what came of it.
    ///
    /// # Errors
    /// When the effect was left undone.
    pub async fn perform(&self, case: &Case, effect: Effect, hand: &mut Option<InHand>) -> Result<Input, Interrupted> {
        crash::step(Box::pin(self.act(case, effect, hand))).await
    }

    // Each future is boxed, because a thread's stack must hold what is moved.
    async fn act(&self, case: &Case, effect: Effect, hand: &mut Option<InHand>) -> Result<Input, Interrupted> {
        let (deliveries, collector) = (&self.deliveries, &self.collector);
        match effect {
            Effect::Command => Box::pin(self.commands.command(&case.entry)).await,
            Effect::Control { what, n } => Box::pin(self.commands.control(&case.entry, what, n)).await,
            Effect::LookForChannel { n } => Box::pin(self.commands.look_for_channel(&case.entry, n)).await,
            Effect::Probe { n, attempt, node, path } => Box::pin(collector.probe(case, n, attempt, &node, &path)).await,
            Effect::Collect { attempt, node, path } => {
                let collecting = Box::pin(collector.collect(case, attempt, &node, &path, hand));
                trace::within(Stage::Collect, trace::current(), collecting).await
            }
            Effect::Answer(answer) => {
                let answering = Box::pin(collector.answer(case, answer, hand.take()));
                Ok(Input::Answered(answering.await))
            }
            Effect::Tidy { n, node, path } => Box::pin(collector.tidy(case, n, &node, &path)).await,
            Effect::Decide => Box::pin(deliveries.chooser.decide(case)).await,
            Effect::Document { attempt, destination } => {
                Ok(Box::pin(deliveries.documents.document(case, attempt, destination)).await)
            }
            Effect::Deliver { attempt, destination } => {
                let upload = hand.as_ref().map(|hand| &hand.upload);
                let delivering = Box::pin(deliveries.deliverer.deliver(case, attempt, destination, upload));
                Ok(trace::within(Stage::Delivery, trace::current(), delivering).await)
            }
            Effect::Complete { attempt, destination } => {
                Ok(Box::pin(deliveries.documents.complete(case, attempt, destination)).await)
            }
            Effect::SeekCopy { n, last } => Ok(Box::pin(deliveries.kazoo_copies.look_again(case, n, last)).await),
            Effect::ReadBack { n } => Ok(Box::pin(deliveries.proof.read_back(case, n)).await),
            Effect::Amend { n } => Ok(Box::pin(deliveries.documents.amend(case, n)).await),
            Effect::Mark { n, cause } => Ok(Box::pin(deliveries.documents.mark(case, n, cause)).await),
            Effect::Hold => Ok(Box::pin(self.holder.put(case, hand.as_ref())).await),
            Effect::Unhold => Ok(Box::pin(self.holder.remove(case)).await),
            Effect::Continue => Box::pin(self.segments.hand_on(case)).await,
            Effect::Separate { name } => Box::pin(self.segments.separate(case, name)).await,
            Effect::Announce(announcement) => Box::pin(self.announcer.announce(case, announcement)).await,
        }
    }
}
