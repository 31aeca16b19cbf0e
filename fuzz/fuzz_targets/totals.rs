//! A totals file that an earlier run left.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz::reads_totals(bytes);
});
