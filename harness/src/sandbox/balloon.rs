//! Takes memory until somebody is killed for it. Runs in a room, in a memory cgroup with a limit just above its use.

use std::time::Duration;

const STEP_BYTES: usize = 256 * 1024;
/// Far more than the slack that it finds; a bound all the same.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// Never returns.
pub(super) fn main() -> ! {
    let mut held: Vec<Vec<u8>> = Vec::new();
    while held.len() * STEP_BYTES < MAX_BYTES {
        // Ones, not zeroes: every page is touched.
        held.push(vec![1; STEP_BYTES]);
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(Duration::from_secs(5));
    std::process::exit(i32::from(held.is_empty()))
}
