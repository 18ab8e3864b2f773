//! `cargo fuzz run callback`: no journal record makes reading it panic, and what is read is what was written.
//! Inputs that are kept are in `fuzz/corpus/callback`; `cargo test` replays them.
#![no_main]

#[allow(dead_code, reason = "the other targets' parts")]
#[path = "../../tests/it/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::callback(bytes));
