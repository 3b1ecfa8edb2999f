//! Judges any bytes as the name of a file. `shared/name.rs` lists the properties that must hold.
#![no_main]

#[path = "../shared/name.rs"]
mod name;

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// Longest input that is checked.
const MAX_BYTES: usize = 700;

/// An empty directory, one for each process.
static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("trainwreck-fuzz-name-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory can be made");
    dir
});

fuzz_target!(|data: &[u8]| {
    // Longer names are no different.
    if data.len() <= MAX_BYTES {
        name::check(data, &DIR);
    }
});
