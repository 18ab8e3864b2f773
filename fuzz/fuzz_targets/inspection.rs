//! `cargo fuzz run inspection`: no damage makes `journal show` panic, or find what was not written. It
//! uses the corpus of the target `journal`.
#![no_main]

#[allow(dead_code, reason = "the other targets' parts")]
#[path = "../../tests/it/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::inspection(bytes));
