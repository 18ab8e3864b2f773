//! `cargo fuzz run normalize`: no body makes normalizing panic or break the contract.
//! What it finds worth keeping lies in `fuzz/corpus/normalize`, which `cargo test` replays.
#![no_main]

#[allow(dead_code, reason = "the other targets' parts")]
#[path = "../../tests/it/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|body: &[u8]| fuzzed::normalize(body));
