//! Any sequence of file operations against the enumeration of crash states: `shared/file_operations.rs` has what must hold.
#![no_main]

#[path = "../shared/file_operations.rs"]
mod file_operations;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: Vec<file_operations::Step>| file_operations::check(&steps));
