//! The values that the labels of metrics can have, collected from the modules that define them.

use crate::entry::cause::Outcome;
use crate::entry::fact::{Announcement, Destination};
use crate::hold::HoldError;
use crate::kazoo::dialplan::Control;
use crate::kazoo::names::Exchange;
use crate::recording::audio::Finding;
use crate::recording::settings;
use crate::telemetry::events::{self, Built, Labels};

/// Registers every known metric, so that it exists from the start.
pub fn begin_at_zero() {
    let closed: Vec<_> = Outcome::ALL
        .iter()
        .filter(|outcome| **outcome != Outcome::Parked)
        .flat_map(|outcome| outcome.causes().iter().map(|cause| (outcome.name(), cause.name())))
        .collect();
    let parked: Vec<_> = Outcome::Parked.causes().iter().map(|cause| cause.name()).collect();
    let mut keys = settings::KEYS.to_vec();
    // The value for data that is no object.
    keys.push("data");
    let controls = [Control::Stop, Control::Mask, Control::Unmask].map(Control::name);
    let commands = [&["start"], &controls[..]].concat();
    let announcements = [&Announcement::NAMES[..], &["system_alert"]].concat();
    events::begin_at_zero(&Labels {
        closed: &closed,
        parked: &parked,
        keys: &keys,
        commands: &commands,
        findings: &Finding::ALL.map(Finding::name),
        destinations: &Destination::ALL.map(Destination::name),
        announcements: &announcements,
        exchanges: &Exchange::ALL.map(Exchange::name),
        hold_refusals: &HoldError::REASONS,
    });
    Built.emit();
}
