//! The memory balloon: allocates memory until the kernel kills a process. Runs in a sandbox, in a memory
//! cgroup whose limit is just above its current use.
//!
//! It is a child process of the harness, so it may end with `process::exit`: the harness itself does that
//! nowhere.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use super::cgroup::oom_kills_in;

/// Memory allocated at a time.
const STEP_BYTES: usize = 256 * 1024;
/// Upper bound, far above the free memory that it finds.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// Entry point of the balloon's process. Its standard output is the file with the number of kills, which it only reads:
/// it stops at the first kill by itself, since the harness may look late, and the target would lose more processes.
/// Never returns.
pub(super) fn main() -> ! {
    let kills: Option<File> = std::io::stdout().as_fd().try_clone_to_owned().ok().map(File::from);
    let count = || kills.as_ref().map_or(0, oom_kills_in);
    let before = count();
    let mut allocated: Vec<Vec<u8>> = Vec::new();
    while allocated.len() * STEP_BYTES < MAX_BYTES && count() == before {
        // Ones instead of zeroes, so that every page is touched.
        allocated.push(vec![1; STEP_BYTES]);
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(Duration::from_secs(5));
    std::process::exit(i32::from(allocated.is_empty()))
}
