//! Parses any bytes as a scenario file and as a target file. They must give a value, or problems with
//! positions inside the file; never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scenarios::{Scenario, TargetFile};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = Scenario::parse(text, "fuzz") {
        assert!(
            !error.problems.is_empty() && error.problems.iter().all(|problem| problem.offset <= text.len())
        );
    }
    let _ = TargetFile::parse(text, "fuzz");
});
