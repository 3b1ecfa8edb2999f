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
