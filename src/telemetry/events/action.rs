//! Actions of callflows, and the commands that follow from them.

use std::time::Duration;

use metrics::{counter, histogram};
use tracing::{debug, info, warn};

/// An action was handled.
pub struct ActionHandled<'a> {
    pub call_id: &'a str,
    pub account_id: &'a str,
    pub media_id: &'a str,
    /// `start`, `stop`, `mask`, `unmask` or `skip`.
    pub what: &'static str,
    pub redelivered: bool,
    pub took: Duration,
}

impl ActionHandled<'_> {
    pub fn emit(self) {
        info!(
            event = "action_answered",
            call_id = self.call_id,
            account_id = self.account_id,
            media_id = self.media_id,
            action = self.what,
            redelivered = self.redelivered,
            took_ms = self.took.as_secs_f64() * 1000.0,
            "action answered"
        );
        counter!("kz_record_call_actions_total", "action" => self.what).increment(1);
        histogram!("kz_record_call_action_seconds").record(self.took);
    }
}

/// An action could not be run. Its callflow was answered if its address was known.
pub struct ActionRefused<'a> {
    pub call_id: &'a str,
    pub why: &'a str,
    pub answered: bool,
}

impl ActionRefused<'_> {
    pub fn emit(self) {
        warn!(
            event = "action_refused",
            call_id = super::shown(self.call_id),
            answered = self.answered,
            why = self.why,
            "action refused"
        );
        counter!("kz_record_call_actions_total", "action" => "refused").increment(1);
    }
}

/// A value of an action's data was corrected.
pub struct SettingCorrected<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub key: &'static str,
    pub given: &'a str,
    pub used: &'a str,
    pub why: &'static str,
}

impl SettingCorrected<'_> {
    pub fn emit(self) {
        info!(
            event = "setting_corrected",
            call_id = self.call_id,
            media_id = self.media_id,
            key = self.key,
            given = self.given,
            used = self.used,
            why = self.why,
            "setting corrected"
        );
        counter!("kz_record_call_corrections_total", "key" => self.key).increment(1);
    }
}

/// A command to a call was published, or could not be published.
pub struct CommandSent<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub command: &'static str,
    /// `Err` holds the reason. `unroutable`: the call's control queue does not exist.
    pub result: Result<(), &'a str>,
    pub unroutable: bool,
}

impl CommandSent<'_> {
    pub fn emit(self) {
        let (call_id, media_id, command) = (self.call_id, self.media_id, self.command);
        let result = match self.result {
            Ok(()) => {
                debug!(event = "command_sent", call_id, media_id, command, "command sent");
                "sent"
            }
            Err(why) if self.unroutable => {
                warn!(
                    event = "command_unroutable",
                    call_id, media_id, command, why, "command not delivered: control queue missing"
                );
                "unroutable"
            }
            Err(why) => {
                warn!(
                    event = "command_not_sent",
                    call_id, media_id, command, why, "command not sent"
                );
                "failed"
            }
        };
        counter!("kz_record_call_commands_total", "command" => command, "result" => result).increment(1);
    }
}

/// Call control rejected a start command.
pub struct CommandRefused<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub why: &'a str,
}

impl CommandRefused<'_> {
    pub fn emit(self) {
        warn!(
            event = "command_refused",
            call_id = self.call_id,
            media_id = self.media_id,
            why = self.why,
            "start command refused by call control"
        );
        counter!("kz_record_call_commands_total", "command" => "start", "result" => "refused").increment(1);
    }
}
