//! Why a call of the target could not be followed, and whose fault that is.

use nix::errno::Errno;
use thiserror::Error;

/// A failure of the supervisor. What the target did from then on is not known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GateFailure {
    /// A call that the supervisor makes for each notification failed.
    #[error("the supervisor could not {doing}")]
    System {
        /// What it was about to do.
        doing: &'static str,
        /// The errno of its own call.
        #[source]
        source: Errno,
    },
    /// The target does not allow access to its memory or its descriptors.
    #[error(
        "the supervisor may not {doing} of process {tid}: it runs a program with other rights, or forbids \
         access to its memory (PR_SET_DUMPABLE)"
    )]
    Forbidden {
        /// What it was about to do.
        doing: &'static str,
        /// The thread that made the call.
        tid: i32,
    },
    /// The thread that answers calls has panicked.
    #[error("the supervisor ended too early")]
    Ended,
}

impl GateFailure {
    /// Whether the target forbids to follow it: the supervisor itself works, and can follow other calls.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, GateFailure::Forbidden { .. })
    }
}

/// Why a call can't be resolved or performed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FollowError {
    /// The call itself is wrong, or its thread was killed: the kernel will fail in the same way.
    Target(Errno),
    /// The supervisor failed.
    Gate(GateFailure),
}

impl FollowError {
    /// An errno of a call that the supervisor made to reach the thread `tid`.
    pub(super) fn reaching(doing: &'static str, tid: i32, errno: Errno) -> FollowError {
        match errno {
            // A bad descriptor or address of the target, or a thread that has been killed.
            Errno::EBADF | Errno::EFAULT | Errno::ESRCH => FollowError::Target(errno),
            Errno::EPERM | Errno::EACCES => FollowError::Gate(GateFailure::Forbidden { doing, tid }),
            source => FollowError::Gate(GateFailure::System { doing, source }),
        }
    }
}

impl From<Errno> for FollowError {
    /// An errno of a call that does what the target asks for.
    fn from(errno: Errno) -> FollowError {
        match errno {
            // These limits are the supervisor's, not the target's.
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM => {
                FollowError::Gate(GateFailure::System { doing: "make a call for the target", source: errno })
            }
            errno => FollowError::Target(errno),
        }
    }
}
