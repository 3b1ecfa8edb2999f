//! The memory balloon: allocates memory until the kernel kills a process. Runs in a sandbox, in a memory
//! cgroup whose limit is just above its current use.
//!
//! It is a child process of the harness, so it may end with `process::exit`: the harness itself does that
//! nowhere.

use std::time::Duration;

/// Memory allocated at a time.
const STEP_BYTES: usize = 256 * 1024;
/// Upper bound, far above the free memory that it finds.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// Entry point of the balloon's process. Never returns.
pub(super) fn main() -> ! {
    let mut allocated: Vec<Vec<u8>> = Vec::new();
    while allocated.len() * STEP_BYTES < MAX_BYTES {
        // Ones instead of zeroes, so that every page is touched.
        allocated.push(vec![1; STEP_BYTES]);
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(Duration::from_secs(5));
    std::process::exit(i32::from(allocated.is_empty()))
}
