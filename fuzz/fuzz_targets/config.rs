//! `cargo fuzz run config`: no file makes reading the configuration panic.
//! Inputs that are kept are in `fuzz/corpus/config`; `cargo test` replays them.
#![no_main]

#[allow(dead_code, reason = "the other targets' parts")]
#[path = "../../tests/it/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::config(bytes));
