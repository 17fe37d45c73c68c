//! Plays the cluster around the worker: callflow, ecallmgr with call control, and the media switch.
//!
//! It shares no code with the worker. It builds and checks every message from the contract by itself, so a mistake made
//! once does not pass because it is made on both sides. The binary beside it is the demonstration; tests include the
//! module through its folder, so that its files are found:
//!
//! ```ignore
//! #[path = "../src/bin/kazoo-sim"]
//! mod simulator {
//!     pub mod sim;
//! }
//! ```
//!
//! A test reads like the story it tells:
//!
//! ```ignore
//! let kazoo = Kazoo::start(KazooOptions::new(&amqp_uri)).await?;
//! let call = kazoo.new_call(CallOptions::talking());
//! call.execute(json!({"action": "start", "format": "wav"})).await?.continued(SECONDS_5).await?;
//! let recording = call.wait_recording_started(SECONDS_5).await?;
//! call.hangup("NORMAL_CLEARING").await;
//! kazoo.tap().outcome(&recording.id, SECONDS_5).await?;
//! kazoo.check()?;
//! ```

#![allow(dead_code, reason = "the tests and the binary each use a part of it")]
#![allow(unused_imports, reason = "likewise, of its re-exports")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "the bans keep the daemon safe; this is a test's counterpart with a clock and a terminal of its own"
)]

pub mod amqp;
pub mod audio;
pub mod bench;
pub mod call;
pub mod callflow;
pub mod check;
pub mod control;
pub mod couch;
pub mod demo;
pub mod ecallmgr;
pub mod events;
pub mod http_put;
pub mod kazoo;
pub mod load;
pub mod media_mgr;
pub mod moves;
pub mod options;
pub mod record;
pub mod recorder;
pub mod report;
pub mod state;
pub mod switch;
pub mod tap;
pub mod term;
pub mod upload;
pub mod wire;
pub mod world;

pub use self::{
    audio::{Audio, Format, Size},
    call::Call,
    callflow::{Answered, Outcome, RawExecute, Run},
    kazoo::Kazoo,
    media_mgr::{Fate, MediaMgr},
    options::{CallOptions, EventFault, Faults, KazooOptions, Mistreat, QueueStyle, UploadFault},
    record::{Direction, Entry, Role, Violation},
    state::{Observed, Phase, Recording, State, Upload},
    tap::Tap,
    term::Decision,
};
