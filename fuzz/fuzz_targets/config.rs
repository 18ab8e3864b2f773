//! `cargo fuzz run config`: no file makes reading the configuration panic.
//! What it finds worth keeping lies in `fuzz/corpus/config`, which `cargo test` replays.
#![no_main]

#[allow(dead_code, reason = "the other targets' parts")]
#[path = "../../tests/it/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::config(bytes));
