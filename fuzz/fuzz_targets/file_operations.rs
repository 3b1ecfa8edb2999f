//! Enumerates the crash states of any sequence of file operations. `shared/file_operations.rs` lists the
//! properties that must hold.
#![no_main]

#[path = "../shared/file_operations.rs"]
mod file_operations;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: Vec<file_operations::Step>| file_operations::check(&steps));
