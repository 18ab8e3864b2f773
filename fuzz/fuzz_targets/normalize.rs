//! `cargo fuzz run normalize`: no body makes normalizing panic or break the contract.
//! What it finds worth keeping lies in `fuzz/corpus/normalize`, which `cargo test` replays.
#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| weni_edge::normalize::hold_to_the_contract(body));
