//! What the processes of a target used over time, without memory.

use serde::{Deserialize, Serialize};

/// The most that the processes of a target used in a trial, as far as they were looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceUse {
    /// The most files, sockets and pipes that one process had open.
    pub open_files: u64,
    /// The most threads of all processes together.
    pub threads: u64,
    /// The longest time that a process was a zombie: it had ended, and its parent had not waited for it. In
    /// milliseconds.
    pub zombie_ms: u64,
}

impl ResourceUse {
    /// The larger of each.
    #[must_use]
    pub fn max(self, other: ResourceUse) -> ResourceUse {
        ResourceUse {
            open_files: self.open_files.max(other.open_files),
            threads: self.threads.max(other.threads),
            zombie_ms: self.zombie_ms.max(other.zombie_ms),
        }
    }
}
