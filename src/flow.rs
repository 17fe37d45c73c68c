//! From messages to effects. Messages become facts, `lifecycle` decides what must be done about them, and a driver has it done.
//!
//! The rooms of the flow, from top to bottom: what begins work (`inbox`, `sweep`, `reconcile`, `retention`, `heartbeat`), what drives a
//! recording (`drivers`), what is done to the world (`effects`, `deliveries`), and what these build on (`driver`, `journal`, `kazoo_recorder`,
//! `peer_notices`, `webhooks`, `in_flight`, `memory`, `slots`, `common`). Every effect is harmless when it is done twice. A worker can be killed before or after any effect, and
//! another worker resumes the recording.

pub mod inbox;
pub mod reconcile;
pub mod sweep;

pub mod heartbeat;
pub mod retention;

pub mod drivers;

pub mod effects;

pub mod deliveries;

pub mod driver;
pub mod journal;
pub mod kazoo_recorder;
pub mod peer_notices;
pub mod webhooks;

pub mod common;
mod crash;
pub mod in_flight;
pub mod memory;
pub mod slots;
