//! Events of what is removed because it is older than the configuration keeps it.

use metrics::counter;
use tracing::{info, warn};

/// Dead letters were older than the configuration keeps them.
pub struct DeadLettersExpired<'a> {
    pub queue: &'a str,
    pub removed: usize,
    pub left: usize,
}

impl DeadLettersExpired<'_> {
    pub fn emit(self) {
        if self.removed == 0 {
            return;
        }
        counter!("kz_record_call_dead_letters_expired_total").increment(u64::try_from(self.removed).unwrap_or(0));
        info!(
            event = "dead_letters_expired",
            queue = self.queue,
            removed = self.removed,
            left = self.left,
            "dead letters past their retention removed"
        );
    }
}

/// Nothing was removed by its age, because the age of nothing can be told now.
pub struct RetentionPutOff<'a> {
    pub why: &'a str,
}

impl RetentionPutOff<'_> {
    pub fn emit(self) {
        warn!(
            event = "retention_put_off",
            why = self.why,
            "nothing removed by its age"
        );
    }
}

/// The hold has audio of a recording whose entry has none.
pub struct HeldCopyFound<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub place: &'a str,
    pub name: &'a str,
}

impl HeldCopyFound<'_> {
    pub fn emit(self) {
        info!(
            event = "held_copy_found",
            call_id = self.call_id,
            media_id = self.media_id,
            place = self.place,
            name = self.name,
            "copy in the hold that the ledger did not know"
        );
    }
}
