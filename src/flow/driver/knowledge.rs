//! What a driver asks the ledger before: what another worker may have done, or may be about to do.

use std::time::Duration;

use crate::entry::Entry;
use crate::entry::fact::{Announcement, Fact, What};
use crate::faults::{Fault, is_back};
use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::lifecycle::{Effect, Next};

/// RabbitMQ gives the actions of a worker that it does not hear of to another worker after twenty seconds or more. So a worker whose ledger does not
/// answer either is still the only one that has an action, if it got the action less than this long ago. If the connection was closed since,
/// RabbitMQ has given the action to another worker at once.
const SURELY_OURS: Duration = Duration::from_secs(15);

/// The clocks of the nodes of a cluster differ by less than this, as a rule.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5);

/// What a driver learned from the ledger before a command.
pub(super) enum Learned {
    /// What is to be done, according to all that workers know.
    Next(Next),
    /// The ledger does not answer.
    Nothing,
    /// Another live worker is about to send the command.
    OthersTurn,
}

/// Whether a start command is to be sent, as far as is known.
pub(super) fn awaits_command(entry: &Entry) -> bool {
    let has_command = entry.order().is_some_and(|order| order.command.is_some());
    has_command && !entry.is_commanded() && entry.started().is_none()
}

/// Whether the effect says that audio is not at its destination, or that more audio must exist. Another worker may have delivered the
/// audio without this worker knowing.
pub(super) fn is_bad_news(entry: &Entry, effect: &Effect) -> bool {
    match effect {
        _ if is_back(Fault::BadNewsUnasked) => false,
        Effect::Announce(Announcement::Outcome(_)) => entry.delivery().is_none(),
        Effect::Continue => true,
        _ => false,
    }
}

/// Whether this worker is surely the only one that has the action which this command carries out. `None`: the command does no harm when
/// another worker has sent it, and more, meanwhile.
pub(super) fn perhaps_carried_out(
    entry: &Entry,
    effect: &Effect,
    worker: &str,
    now: Moment,
    receives_since: Option<Moment>,
) -> Option<bool> {
    let is_it = |what: &What| match effect {
        Effect::Command => matches!(what, What::Asked(_)),
        Effect::Control {
            what: Control::Stop, ..
        } => false,
        Effect::Control { .. } => matches!(what, What::MaskAsked { .. }),
        _ => false,
    };
    let mut facts = entry.facts().rev();
    let asked = facts.find(|fact| is_it(&fact.what))?;
    // Another worker's stamp is of another clock, and says that this worker did not get the action first.
    let is_its_own = |fact: &Fact| fact.by == worker;
    // A start that this worker just heard of shows that RabbitMQ hears this worker, and tells it what other workers do. A mask that was
    // asked for earlier is sent again for this start.
    let begun = entry.facts().filter(|fact| {
        matches!(fact.what, What::Started { .. }) && !matches!(effect, Effect::Command) && is_its_own(fact)
    });
    let heard = begun.map(|fact| fact.at).max();
    let is_new = heard.max(Some(asked.at)).is_some_and(|at| at.plus(SURELY_OURS) > now);
    // The action that begins a recording has the time of its callflow node.
    let differ = match effect {
        Effect::Command => CLOCKS_DIFFER,
        _ => Duration::ZERO,
    };
    let is_held = |since: Moment| since.plus(differ) <= asked.at && asked.at <= now.plus(differ);
    Some(is_its_own(asked) && is_new && receives_since.is_some_and(is_held))
}
