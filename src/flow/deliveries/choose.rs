//! Decides where the audio of a recording goes, when the recording has ended.

use std::sync::Arc;
use std::time::Duration;

use crate::destination::choose::{Decision, Undecided, choose};
use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{KazooCopy, What};
use crate::flow::common::{Common, Interrupted};
use crate::ledger::{Ledger, address};
use crate::lifecycle::{Case, Input};
use crate::recording::order::Url;
use crate::system_config::{Accounts, Plan, SystemConfig, ThirdParty};

/// Time limit for the ledger's answer to what it knows of an order.
const KNOWLEDGE: Duration = Duration::from_secs(3);

/// How often the ledger is asked again for an order that it does not know, before its settings count as lost.
const LOOKS_FOR_ORDER: usize = 3;

/// Chooses destinations. May touch: Kazoo's settings, and the recording's entry in the ledger, to read them.
pub struct Chooser {
    pub common: Arc<Common>,
    pub ledger: Ledger,
    pub system_config: SystemConfig,
    pub accounts: Accounts,
}

impl Chooser {
    /// Decides where the audio goes, from the configuration as it is now.
    ///
    /// # Errors
    /// When the entry has no order.
    pub async fn decide(&self, case: &Case) -> Result<Input, Interrupted> {
        let entry = &case.entry;
        let mut order = entry.order().ok_or(Interrupted::Baseless)?.clone();
        let account_id = entry.account_id().unwrap_or_default();
        let n = entry.next_number("retried");
        if entry.watched().is_some() && entry.kazoo_copy().is_some_and(KazooCopy::is_without_url) {
            // Kazoo's document shows that there is no URL.
            order.url = Url::None;
        }
        if order.url == Url::Lost {
            match self.known_order(case).await {
                Ok(Some(known)) => return Ok(known),
                // The worker that began the recording writes its order within moments, or the order is on its way in the journal.
                Ok(None) if n == 1 && entry.postponed().count() < LOOKS_FOR_ORDER => {
                    return Ok(self.undecided(case, &Undecided::Ledger));
                }
                Ok(None) => {}
                Err(undecided) => return Ok(self.undecided(case, &undecided)),
            }
        }
        if n > 1 && order.url == Url::Lost {
            // An operator who knows that the URL is lost retried the recording. It goes where it would have gone without a URL.
            order.url = Url::None;
        }
        let mut media = self.system_config.current();
        if let (Some(media), Some(_)) = (&mut media, entry.watched()) {
            // Kazoo's own recorder does not know that setting.
            media.third_party = ThirdParty::NotSet;
        }
        let plan = match order.url {
            Url::None => self.accounts.plan(account_id).await,
            Url::Given(_) | Url::Lost => Plan::None,
        };
        let destination = match choose(&order, media.as_ref(), &plan) {
            Ok(Decision::To(destination)) => destination,
            // The file on the switch is released, so the copy in the hold is the only one. Only an operator may discard it.
            // So it may be where no worker wrote the release down.
            Ok(Decision::Discard) if entry.held().is_some() => {
                return Ok(Input::Fact(entry.park(Cause::Undecided)));
            }
            Ok(Decision::Discard) => {
                return Ok(Input::Fact(What::Concluded {
                    outcome: Outcome::Discarded,
                    cause: Cause::StoringDisabled,
                }));
            }
            Err(undecided) => return Ok(self.undecided(case, &undecided)),
        };
        // Kazoo would not count an attempt while our own database is down.
        let attempts = match (destination, &media) {
            (_, None) => None,
            (destination, _) if destination.is_own() => None,
            (_, Some(media)) => self.accounts.storage_retry_times(account_id, media).await,
        };
        Ok(Input::Fact(What::Decided {
            n,
            destination,
            attempts,
        }))
    }

    /// What the ledger knows of a recording whose order is uncertain here, if the ledger's order is better. The worker that began the
    /// recording may have written it since.
    async fn known_order(&self, case: &Case) -> Result<Option<Input>, Undecided> {
        let address = address(&case.entry);
        let known = tokio::time::timeout(KNOWLEDGE, self.ledger.load(&address)).await;
        let Ok(Ok(record)) = known else {
            return Err(Undecided::Ledger);
        };
        let known = record.map(|record| record.entry);
        let is_better = |known: &Entry| {
            let all = case.entry.clone().merge(known.clone());
            all.order().is_some_and(|order| order.url != Url::Lost)
        };
        Ok(known.filter(is_better).map(|known| Input::Known(Box::new(known))))
    }

    /// A setting that is unknown is not replaced by its default. The default could throw the recording away, or put it where it must not
    /// go.
    fn undecided(&self, case: &Case, why: &Undecided) -> Input {
        tracing::warn!(event = "destination_undecided", call_id = case.entry.call_id, %why, "destination undecided, retrying");
        let before = case.entry.postponed().count();
        self.common.postponed_by_schedule(case, before, why.to_string())
    }
}
