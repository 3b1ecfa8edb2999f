//! What keeps a drain from ending, once no job is trained: a queue or files that keep failing. Waits for
//! nothing.

use std::time::Duration;

use super::drain_state::InboxState;
use super::error::DaemonError;
use super::job_queue::{JobQueue, UnreadableEntry};
use super::trouble::Trouble;
use crate::exit::Exit;
use crate::plain_text::shown;

/// Something that keeps failing, with the error that ends the daemon if it lasts too long.
pub(super) struct Stuck {
    pub(super) lasted: Duration,
    pub(super) error: DaemonError,
}

/// What keeps failing, if anything does.
pub(super) fn stuck(queue_trouble: Option<&Trouble>, queue: &JobQueue, inbox: InboxState) -> Option<Stuck> {
    let stuck = |lasted, exit, reason| Some(Stuck { lasted, error: DaemonError::Stuck { exit, reason } });
    if let Some(trouble) = queue_trouble {
        return stuck(trouble.lasted(), Exit::Disk, trouble.message().to_owned());
    }
    if let Some(trouble) = queue.stuck_departure() {
        let reason = format!("a job can't be moved out of the queue: {}", trouble.message());
        return stuck(trouble.lasted(), Exit::Disk, reason);
    }
    if let Some(UnreadableEntry { name, reason, lasted }) = queue.unreadable_entry() {
        let reason = format!("queue entry `{}` can't be read: {reason}", shown(name));
        return stuck(lasted, Exit::JobsFailed, reason);
    }
    match inbox {
        InboxState::Stuck { lasted, message, exit } => stuck(lasted, exit, message),
        InboxState::Empty | InboxState::Busy => None,
    }
}
