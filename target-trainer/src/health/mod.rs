//! The health of the machine: whether it swaps, whether its memory is short, and how near its limits are. Warns, and
//! changes nothing. Prints nothing, and knows no job.

mod condition;
mod host_watch;
mod limited_use;
mod memory_figures;
mod user_processes;

pub use condition::HostEvent;
pub use host_watch::{HostWatch, WatchedHost};
