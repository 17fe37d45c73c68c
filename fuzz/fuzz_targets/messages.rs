//! Whatever comes by the broker.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/keys/kazoo.rs"]
mod kazoo;
#[path = "../messages.rs"]
mod messages;

fuzz_target!(|data: &[u8]| messages::messages(data));
