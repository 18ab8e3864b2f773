//! `cargo fuzz run journal`: no damage makes opening a journal panic, or gives what was not appended.
//! What it finds worth keeping lies in `fuzz/corpus/journal`, which `cargo test` replays.
#![no_main]

#[allow(dead_code, reason = "the other targets' parts")]
#[path = "../../tests/it/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::journal(bytes));
