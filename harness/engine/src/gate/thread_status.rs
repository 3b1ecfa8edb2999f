//! Reads the status of a thread of the target from /proc.

use nix::errno::Errno;

use super::follow_error::FollowError;

/// A field of /proc/TID/status.
pub(super) fn status_field(tid: i32, name: &str) -> Result<String, FollowError> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        // A process that has ended has no directory there any more.
        let errno = if errno == Errno::ENOENT { Errno::ESRCH } else { errno };
        FollowError::reaching("read the status", tid, errno)
    })?;
    let field = status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
    field.ok_or(FollowError::Target(Errno::ESRCH))
}

/// A signal that the thread can receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PendingSignal {
    /// This thread receives it. If not, another thread of the process may.
    pub(super) is_certain: bool,
}

/// The signal that waits for a thread, if there is one that it does not block.
pub(super) fn pending_signal(tid: i32) -> Option<PendingSignal> {
    let field = |name| status_field(tid, name).ok();
    let signals = |name| field(name).and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    let received = !signals("SigBlk:")?;
    let (own, shared) = (signals("SigPnd:")? & received, signals("ShdPnd:")? & received);
    // The kernel asks the main thread first, which does not block it.
    let is_main = || field("Tgid:").as_deref() == Some(tid.to_string().as_str());
    (own | shared != 0).then(|| PendingSignal { is_certain: own != 0 || is_main() })
}
