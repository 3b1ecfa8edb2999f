//! Answers notifications, and says whether they still wait for an answer. Decides nothing.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::follow_error::{FollowError, GateFailure};
use super::sys::{self, NotificationResponse};

/// Whether a call still waits for its response.
pub(super) fn still_waits(listener: BorrowedFd<'_>, id: u64) -> Result<bool, FollowError> {
    sys::is_notification_valid(listener, id)
        .map_err(|source| FollowError::Gate(GateFailure::System { doing: "look after a call", source }))
}

/// Sends a response. A call that no longer waits needs none.
pub(super) fn respond(
    listener: BorrowedFd<'_>,
    id: u64,
    response: NotificationResponse,
) -> Result<(), GateFailure> {
    match sys::send_response(listener, id, response) {
        // The target was killed or interrupted in the meantime.
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(source) => Err(GateFailure::System { doing: "answer a call", source }),
    }
}
