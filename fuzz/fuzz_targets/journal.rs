//! `cargo fuzz run journal`: no damage makes opening a journal panic, or gives what was not appended.
//! Inputs that are kept are in `fuzz/corpus/journal`; `cargo test` replays them.
#![no_main]

#[allow(dead_code, reason = "the other targets' parts")]
#[path = "../../tests/it/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::journal(bytes));
