//! Fuzz target `registers`; what it does with its bytes is in tests/fuzzed.
#![no_main]
#![allow(missing_docs)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| corevisor_fuzzed::run("registers", bytes));
