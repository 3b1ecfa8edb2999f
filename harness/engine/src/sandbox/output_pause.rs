//! A pause in which nobody reads the standard output of the target, so that its writes wait once the pipe is full.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use nix::fcntl::{FcntlArg, fcntl};

use super::sys;
use crate::locks::LockExt;

/// The size of the pipe during a pause: the smallest that there is.
const SMALL_PIPE_BYTES: i32 = 4096;

/// Whether the standard output of the target is read.
#[derive(Debug, Default)]
pub struct OutputPause {
    state: Mutex<PauseState>,
}

#[derive(Debug, Default)]
struct PauseState {
    is_paused: bool,
    /// A target has been started whose output is not read. The next one's is.
    has_target: bool,
    /// The reading end of the pipe of the target that was started last.
    output: Option<OwnedFd>,
}

/// What waits in a pipe that nobody reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnreadBytes {
    /// Bytes that wait.
    pub waiting: u64,
    /// The size of the pipe.
    pub pipe_size: u64,
}

impl OutputPause {
    /// Tells where the standard output of a target is read that has just been started. A pause concerns one target.
    pub fn attach(&self, output: BorrowedFd<'_>) {
        let mut state = self.state.locked();
        state.output = output.try_clone_to_owned().ok();
        if std::mem::replace(&mut state.has_target, true) {
            state.is_paused = false;
        }
        if state.is_paused {
            state.make_pipe_small();
        }
    }

    /// Whether the standard output is not read now.
    pub fn is_paused(&self) -> bool {
        self.state.locked().is_paused
    }

    /// Begins a pause for the target that runs, or for the next one.
    pub fn begin(&self, is_running: bool) {
        let mut state = self.state.locked();
        (state.is_paused, state.has_target) = (true, is_running);
        state.make_pipe_small();
    }

    /// Ends the pause.
    pub fn end(&self) {
        self.state.locked().is_paused = false;
    }

    /// What waits to be read. `None`: no target was started, or the kernel does not tell.
    pub fn unread(&self) -> Option<UnreadBytes> {
        let state = self.state.locked();
        let output = state.output.as_ref()?;
        let pipe_size = fcntl(output.as_fd(), FcntlArg::F_GETPIPE_SZ).ok()?;
        let waiting = sys::bytes_to_read(output.as_raw_fd()).ok()?;
        Some(UnreadBytes { waiting: u64::try_from(waiting).ok()?, pipe_size: u64::try_from(pipe_size).ok()? })
    }
}

impl PauseState {
    /// If more waits in the pipe than fits, it keeps its size, which only takes longer to fill.
    fn make_pipe_small(&self) {
        if let Some(output) = &self.output {
            let _ = fcntl(output.as_fd(), FcntlArg::F_SETPIPE_SZ(SMALL_PIPE_BYTES));
        }
    }
}
