//! Erlang terms and the other words of the wire.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../terms.rs"]
mod terms;

fuzz_target!(|data: &[u8]| terms::terms(data));
