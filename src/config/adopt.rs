//! Settings for recordings that Kazoo's own recorder would store.

use std::time::Duration;

use super::reader::Reader;

/// What the worker does with recordings of Kazoo's own recorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdoptMode {
    /// Nothing: Kazoo's own recorder stores them.
    Off,
    /// The worker stores them, in place of Kazoo's own recorder.
    Store,
    /// Kazoo's own recorder stores them. The worker reports those that it did not store.
    Watch,
    /// As `Watch`, and the worker stores those.
    Rescue,
}

impl AdoptMode {
    /// Whether the worker looks what Kazoo's own recorder has stored.
    pub const fn watches(self) -> bool {
        matches!(self, Self::Watch | Self::Rescue)
    }
}

#[derive(Debug, Clone)]
pub struct Adopt {
    pub mode: AdoptMode,
    /// Whether recordings are stored whose file name a callflow chose.
    pub shared_names: bool,
    /// How long after its end a worker first looks whether a recording is stored.
    pub first_look: Duration,
    /// For how long recordings are gathered, to look at them by one request.
    pub batch: Duration,
    /// For how long Kazoo's own recorder tries to store a recording. `None`: computed from Kazoo's settings.
    pub give_up: Option<Duration>,
}

impl Adopt {
    pub(super) fn read(r: &mut Reader) -> Self {
        Self {
            mode: r.one_of(
                "adopt.mode",
                &[
                    ("off", AdoptMode::Off),
                    ("store", AdoptMode::Store),
                    ("watch", AdoptMode::Watch),
                    ("rescue", AdoptMode::Rescue),
                ],
            ),
            shared_names: r.flag("adopt.shared_names"),
            first_look: r.seconds("adopt.first_look_s", 1, 600),
            batch: r.seconds("adopt.batch_s", 1, 60),
            give_up: Some(r.seconds("adopt.give_up_s", 0, 172_800)).filter(|given| !given.is_zero()),
        }
    }
}
