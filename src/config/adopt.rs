//! Settings for recordings that Kazoo's own recorder would store.

use super::reader::Reader;

/// What the worker does with recordings of Kazoo's own recorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdoptMode {
    /// Nothing: Kazoo's own recorder stores them.
    Off,
    /// The worker stores them, in place of Kazoo's own recorder.
    Store,
}

#[derive(Debug, Clone)]
pub struct Adopt {
    pub mode: AdoptMode,
    /// Whether recordings are stored whose file name a callflow chose.
    pub shared_names: bool,
}

impl Adopt {
    pub(super) fn read(r: &mut Reader) -> Self {
        Self {
            mode: r.one_of("adopt.mode", &[("off", AdoptMode::Off), ("store", AdoptMode::Store)]),
            shared_names: r.flag("adopt.shared_names"),
        }
    }
}
