//! Other recordings of the same call that go to the same URL.
//!
//! Kazoo names the file by its call alone (`media_recording:handler_fields_for_protocol`). A server that stores by path would replace one
//! recording of a call by the next. So only the first recording has Kazoo's name.

use crate::destination::url::Target;
use crate::ledger::LedgerError;
use crate::lifecycle::Case;
use crate::recording::order::{Order, Url};
use crate::recording::settings::Method;

use super::perform::Parts;
use super::way::{By, Way};

/// Digits of the recording's key in its file's name.
const OF_THE_KEY: usize = 8;

/// Why a recording has no name at its URL.
pub(super) enum Nameless {
    /// The ledger does not tell which other recordings the call has.
    Unknown(LedgerError),
    /// The URL is signed, so it names one object, and another recording has it.
    Replaces,
}

impl Parts {
    /// What tells the recording's file from the files of the call's other recordings at the same URL. `None` for the first one, and for
    /// every other destination.
    pub(super) async fn name_of_its_own(&self, case: &Case, way: &Way) -> Result<Option<String>, Nameless> {
        let (By::Url(target), Some(order)) = (&way.by, case.entry.order()) else {
            return Ok(None);
        };
        if order.continues.is_none() && !self.follows_another(case, target, order).await? {
            return Ok(None);
        }
        if target.is_signed() && order.method == Method::Put {
            return Err(Nameless::Replaces);
        }
        let key = order.key.to_string();
        Ok(Some(key.get(..OF_THE_KEY).unwrap_or(&key).to_owned()))
    }

    /// Whether an earlier recording of the call goes to the same URL, or any that is there already. The answer stays the same at every
    /// attempt: recordings that begin later have later orders.
    async fn follows_another(&self, case: &Case, target: &Target, order: &Order) -> Result<bool, Nameless> {
        let records = self.ledger.of_call(&case.entry.call_id).await;
        let mine = (order.asked_at, order.key);
        Ok(records.map_err(Nameless::Unknown)?.iter().any(|record| {
            let Some(other) = record.entry.order().filter(|other| other.key != order.key) else {
                return false;
            };
            let Url::Given(url) = &other.url else { return false };
            Target::parse(url).is_ok_and(|url| url == *target)
                && (record.entry.uploaded().is_some() || (other.asked_at, other.key) < mine)
        }))
    }
}
