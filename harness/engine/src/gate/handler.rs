//! What the gate and its caller exchange: the intercepted call, the decision about it, and what it did. Knows
//! no system call numbers and no part of the gate that acts.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::CallKind;
use super::clock_shift::ClockShift;
use super::connection_log::ConnectionAttempt;
use super::follow_error::GateFailure;
use super::stat::FileId;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The directory.
    pub dir: FileId,
    /// The last component of `path`.
    pub name: OsString,
    /// The whole path as the target sees it.
    pub path: PathBuf,
}

/// A call of the target on a watched file or directory, before it takes effect.
#[derive(Debug, Clone)]
pub struct InterceptedCall {
    /// What the call does.
    pub kind: CallKind,
    /// The thread that makes the call, by its id in the harness's pid namespace.
    pub tid: i32,
    /// The file that the call acts on, as the target sees it. For a rename or link, the source.
    pub path: PathBuf,
    /// The destination of a rename or link.
    pub to: Option<PathBuf>,
    /// The number of bytes that a read or write requests.
    pub requested_bytes: Option<u64>,
}

/// What happens to a call, as decided by the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallDecision {
    /// The kernel performs the call. Its result stays unknown.
    Continue,
    /// The supervisor performs the call and passes its effect to the handler.
    Perform,
    /// The supervisor performs the call as the kernel would, and tells the result.
    Observe,
    /// The call fails with this errno and has no effect.
    Fail(Errno),
    /// A write or read transfers at most this many bytes.
    Short(u64),
    /// The supervisor performs the call, but the target sees it fail with this errno.
    PerformThenFail(Errno),
    /// `CallHandler::kill_target` kills the target before the call has any effect.
    KillBefore,
    /// At most this many bytes are written, then `CallHandler::kill_target` kills the target.
    KillDuring(u64),
    /// The supervisor performs the call, then `CallHandler::kill_target` kills the target before it sees the
    /// result.
    KillAfter,
    /// The kernel performs the call after this time. Other calls don't wait for it.
    Delay(Duration),
    /// The supervisor replaces the file at the path, then the kernel performs the call. This simulates a race
    /// between check and use.
    Swap(Swap),
}

/// What replaces the file at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The file is removed.
    Nothing,
    /// A new, empty file.
    EmptyFile,
    /// A symbolic link to a name that does not exist.
    DanglingLink,
}

/// What a call did. Handlers that record calls receive it after the fact.
#[derive(Debug)]
pub enum CallEffect {
    /// A file was opened, and possibly created or truncated. `created`: a descriptor of the new file.
    Opened { entry: DirectoryEntry, file_id: FileId, created: Option<OwnedFd>, truncated: bool },
    /// `O_TMPFILE` created an unnamed file. A later `Linked` may give it a name.
    CreatedUnnamed { file_id: FileId, file: OwnedFd },
    /// Bytes were written. `CallHandler::on_payload` received them before.
    Wrote { file_id: FileId, offset: u64, len_bytes: u64, sync: WriteSync },
    /// The kernel writes bytes after this effect, as many as it can: at most `len_bytes` from `offset` on. They
    /// can be read from the file when the thread makes another call.
    Writing { tid: i32, file_id: FileId, file: OwnedFd, offset: u64, len_bytes: u64 },
    /// A direct write (O_DIRECT) failed or moved fewer bytes than it could. The kernel may have written more than it says:
    /// ext4 writes the whole blocks before it refuses a length that is no multiple of a block. What the file has now
    /// can be read from it.
    WroteUntold { file_id: FileId, file: OwnedFd },
    /// The size of a file was set.
    Truncated { file_id: FileId, size_bytes: u64 },
    /// fallocate: the file's size afterwards, and the offset and length of the range that now reads as
    /// zeroes.
    Allocated { file_id: FileId, size_bytes: u64, zeroed: Option<(u64, u64)> },
    /// A rename. `exchanged`: the two names were exchanged.
    Renamed { from: DirectoryEntry, to: DirectoryEntry, exchanged: bool },
    /// A hard link was created. `new_id`: the identity of the file under the new name, which is another one in an
    /// overlay if the file came from a lower layer.
    Linked { file_id: FileId, entry: DirectoryEntry, new_id: FileId },
    /// A symbolic link was created.
    Symlinked { file_id: FileId, entry: DirectoryEntry, link_text: PathBuf, link: OwnedFd },
    /// A name was removed.
    Unlinked { entry: DirectoryEntry },
    /// A directory was created.
    CreatedDir { file_id: FileId, entry: DirectoryEntry, dir: OwnedFd },
    /// A directory was removed.
    RemovedDir { entry: DirectoryEntry },
    /// A call that may change permission bits, owner, times or extended attributes. The kernel performs it after
    /// this effect: read the attributes before it now, and those after it when the thread makes another call.
    ChangingAttributes { kind: CallKind, tid: i32, file_id: FileId, file: OwnedFd },
    /// A file or directory was synced. `data_only`: by fdatasync.
    Synced { file_id: FileId, data_only: bool },
    /// The kernel syncs the data of a file that is mapped shared, for msync. The file need not be watched.
    SyncedMapping { file_id: FileId },
    /// A whole file system, or all of them, were synced.
    SyncedAll,
    /// A pipe or socket got a name.
    CreatedSpecial { file_id: FileId, entry: DirectoryEntry, file: OwnedFd },
    /// A file was mapped shared, by a descriptor that allows writing. From now on its content can change without
    /// a call.
    Mapped { file_id: FileId, file: OwnedFd },
    /// Bytes were written into a pipe that the handler observes. `CallHandler::on_payload` received them
    /// before. `tid`: the thread that writes them.
    OutputWritten { pipe: FileId, tid: i32 },
    /// The program used a feature that can't be followed. The call failed as if the kernel did not support
    /// it.
    Refused { feature: &'static str },
    /// The file at the path was replaced, as decided.
    Swapped { path: PathBuf },
    /// A file outside of the watched mounts was opened for writing.
    OpenedOutside { path: PathBuf },
    /// The target is about to connect or to send to an address. Whether it succeeds is unknown.
    Connects(ConnectionAttempt),
    /// Something outside of the watched mounts is about to be renamed. Whether it succeeds is unknown.
    RenamesOutside { path: PathBuf },
    /// A rename within a watched mount failed with `EXDEV`, as an overlay fails that of a lower directory.
    RenameRefused { path: PathBuf },
    /// The target asked for the time of the wall clock, and got the shifted one.
    ToldTime,
    /// The target has set a timer to a time of the wall clock. Later changes of its clock do not move it.
    ClockTimerSet,
    /// The target tried to set the clock, or to read it by such a call. It was refused with EPERM.
    ClockChangeRefused { call: &'static str },
    /// The target did something that goes by the machine's clock, or may have.
    ClockNotFollowed { what: String },
}

/// Whether a write also made its bytes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteSync {
    /// It did not.
    No,
    /// As fdatasync does: `O_DSYNC`, `RWF_DSYNC`.
    Data,
    /// As fsync does: `O_SYNC`, `RWF_SYNC`.
    All,
}

/// What the gate did for a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CarriedOut {
    /// The call was performed, and this is its result: a number, or the errno with which it failed. With
    /// `CallDecision::PerformThenFail` the target sees another one.
    Performed(Result<i64, Errno>),
    /// The call did not take place.
    Prevented,
    /// The call waits, or the file at its path was replaced. The kernel performs it then.
    Prepared,
    /// The decision could not be carried out at this call. The kernel performs it as if there were no decision.
    NotPossible,
}

/// Decides what happens to calls. The supervisor passes it one call at a time.
pub trait CallHandler: Send {
    /// Decides what happens to a call.
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision;

    /// Receives the next bytes of the write in progress.
    fn on_payload(&mut self, _bytes: &[u8]) {}

    /// Receives what a call did.
    fn on_effect(&mut self, _effect: CallEffect) {}

    /// Learns that the kernel will fail the call in progress with this errno. The gate leaves the call to it because
    /// it also sends a signal.
    fn on_kernel_failure(&mut self, _errno: Errno) {}

    /// Learns what was done for the last decision, unless that was `Continue` or `Perform`. Before the target
    /// sees a result, and before it is killed.
    fn on_carried_out(&mut self, _carried_out: CarriedOut) {}

    /// Whether a call that could not be followed, because the target forbids it, is made by the kernel all the
    /// same. If not, it fails, and `on_failure` is called.
    fn lets_through(&mut self, _failure: &GateFailure) -> bool {
        false
    }

    /// The supervisor failed: what the target does from now on is not known, and its calls may wait for ever. The
    /// sandbox has to be ended, by another thread than the supervisor's. Called at most a few times.
    fn on_failure(&mut self, failure: GateFailure);

    /// Whether the call that this thread now makes has to wait. It is asked again soon, and the call is handled once
    /// it need not wait.
    fn holds(&mut self, _tid: i32) -> bool {
        false
    }

    /// Whether a call whose delay is over at `due` continues now. It is asked again soon.
    fn may_end_delay(&mut self, _due: Instant) -> bool {
        true
    }

    /// How far the target's wall clock is from the machine's, if the filter intercepts calls for the time.
    fn clock_shift(&self) -> ClockShift {
        ClockShift::default()
    }

    /// Kills the whole target. Returns when all its processes are dead.
    fn kill_target(&mut self) {}

    /// Whether `InterceptedCall::path` is needed for calls on descriptors. It costs one look-up per call.
    fn needs_paths(&self) -> bool {
        true
    }

    /// Whether performed calls really sync. If not, a sync is only reported as an effect.
    fn performs_syncs(&self) -> bool {
        true
    }

    /// Whether the handler needs the bytes that the target writes into this pipe.
    fn observes_pipe(&self, _pipe: FileId) -> bool {
        false
    }
}
