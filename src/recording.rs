//! The domain of recordings, as pure functions: an action's settings, a recording's identity, its commands and its document. This module
//! does no I/O, reads no clock and draws no random number.

pub mod adopt;
pub mod audio;
pub mod carry;
pub mod controls;
pub mod digest;
pub mod document;
pub mod ending;
pub mod format;
pub mod identity;
pub mod names;
pub mod order;
pub mod plan;
pub mod progress;
pub mod settings;
