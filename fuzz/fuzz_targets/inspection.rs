//! `cargo fuzz run inspection`: no damage makes looking into a journal panic, or
//! finds what was not written. Its corpus is that of `journal`, which opens one as well.
#![no_main]

#[allow(dead_code, reason = "the other targets' parts")]
#[path = "../../tests/it/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::inspection(bytes));
