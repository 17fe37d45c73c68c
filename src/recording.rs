//! The domain: what a recording is, decided purely. What an action asks for, which identity a recording gets, what is sent for it and
//! what its document says. Nothing here does I/O, reads a clock or draws a random number.

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
