//! `cargo fuzz run normalize`: no body makes normalizing panic or break the contract.
//! Inputs that are kept are in `fuzz/corpus/normalize`; `cargo test` replays them.
#![no_main]

#[allow(dead_code, reason = "the other targets' parts")]
#[path = "../../tests/it/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|body: &[u8]| fuzzed::normalize(body));
