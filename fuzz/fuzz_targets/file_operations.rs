//! Enumerates the crash states of any sequence of file operations. `shared/file_operations.rs` lists the
//! properties that must hold.
#![no_main]

#[path = "../shared/file_operations.rs"]
mod file_operations;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| file_operations::check(&file_operations::steps_of(data)));
