//! Judges any bytes as the name of a file. `shared/name.rs` lists the properties that must hold.
#![no_main]

#[path = "../shared/name.rs"]
mod name;

use libfuzzer_sys::fuzz_target;

/// Longest input that is checked.
const MAX_BYTES: usize = 700;

fuzz_target!(|data: &[u8]| {
    // Longer names are no different.
    if data.len() <= MAX_BYTES {
        // One for each input: libFuzzer ends without removing anything.
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        name::check(data, dir.path());
    }
});
