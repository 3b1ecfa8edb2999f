//! What performing a call needs and gives: the call's thread and handler, a buffer, and the result. Knows no
//! single call.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use scenarios::PAGE_BYTES;

use crate::gate::calls::{BufferArgument, FilePosition};
use crate::gate::follow_error::{FollowError, GateFailure};
use crate::gate::handler::CallHandler;
use crate::gate::sys::NotificationResponse;
use crate::gate::target_thread::TargetThread;
use crate::landlock::LandlockRules;

/// Bytes copied between target and file at a time: few enough to stay in a core's cache.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;
/// The most bytes that one direct write or read (O_DIRECT) copies at a time. The kernel checks the alignment of the
/// whole call, so it should be one call here too.
pub(super) const MAX_DIRECT_BYTES: usize = 64 << 20;
/// How and when a notification is responded to.
pub(in crate::gate) enum CallResponse {
    /// The caller sends this response now.
    Now(NotificationResponse),
    /// The response has been sent, or the target was killed and nothing waits for one.
    AlreadySent,
    /// The call is held, and answered later.
    Held,
    /// The caller lets the call continue after this time.
    After(Duration),
}

/// The result of a call that was performed here.
pub(in crate::gate) enum Performed {
    /// The call returns this number.
    Value(i64),
    /// The call returns a descriptor of this file.
    File {
        file: OwnedFd,
        close_on_exec: bool,
    },
    Failed(Errno),
}

impl Performed {
    pub(super) fn result(&self) -> Result<i64, Errno> {
        match self {
            Performed::Value(value) => Ok(*value),
            // The number of the descriptor is not known before the target has it.
            Performed::File { .. } => Ok(0),
            Performed::Failed(errno) => Err(*errno),
        }
    }
}

/// The result of performing a call. `None`: the kernel has to perform it.
pub(super) type PerformResult = Result<Option<Performed>, FollowError>;

/// Everything that is needed to perform one intercepted call and to respond to it.
pub(in crate::gate) struct CallContext<'a> {
    pub(in crate::gate) listener: BorrowedFd<'a>,
    pub(in crate::gate) notification_id: u64,
    pub(in crate::gate) tid: i32,
    pub(in crate::gate) thread: &'a TargetThread,
    pub(in crate::gate) handler: &'a mut dyn CallHandler,
    pub(in crate::gate) scratch: &'a mut Scratch,
    /// The rules that the target is under.
    pub(in crate::gate) rules: Option<&'a LandlockRules>,
}

impl CallContext<'_> {
    /// Makes a call that creates a file, with the umask of the target. The kernel ignores it in a directory with a
    /// default access list, so it cannot be applied to the mode here.
    ///
    /// # Errors
    /// The call fails, or the umask cannot be read.
    pub(super) fn with_umask<T>(
        &self,
        call: impl FnOnce() -> Result<T, FollowError>,
    ) -> Result<T, FollowError> {
        umask(Mode::from_bits_truncate(self.thread.umask()?));
        let result = call();
        umask(Mode::empty());
        result
    }

    /// Makes a call that depends on the rules that the target is under, if there are any.
    ///
    /// # Errors
    /// The call fails, or it can't be made under the rules.
    pub(super) fn as_allowed<T: Send>(
        &self,
        call: impl FnOnce() -> Result<T, Errno> + Send,
    ) -> Result<T, FollowError> {
        let Some(rules) = self.rules else { return Ok(call()?) };
        let made = rules.call_under(call).map_err(|source| {
            FollowError::Gate(GateFailure::System {
                doing: "make a call under the rules of Landlock",
                source,
            })
        })?;
        Ok(made?)
    }
}

/// A buffer that is used for one call after the other.
#[derive(Default)]
pub(in crate::gate) struct Scratch {
    bytes: Vec<u8>,
}

impl Scratch {
    /// A part of the buffer, as far from the start of a page as `address` is: a direct write (O_DIRECT) is then
    /// right or wrong as it is for the target.
    pub(super) fn aligned_as(&mut self, address: u64, len_bytes: usize) -> &mut [u8] {
        let in_page = address as usize % PAGE_BYTES as usize;
        &mut self.page_aligned(in_page + len_bytes)[in_page..]
    }

    /// A part of the buffer that begins with a page.
    pub(super) fn page_aligned(&mut self, len_bytes: usize) -> &mut [u8] {
        let page_bytes = PAGE_BYTES as usize;
        let needed_bytes = len_bytes.max(CHUNK_BYTES) + 2 * page_bytes;
        if self.bytes.len() < needed_bytes {
            self.bytes.resize(needed_bytes, 0);
        }
        let misaligned = self.bytes.as_ptr() as usize % page_bytes;
        let start = (page_bytes - misaligned) % page_bytes;
        &mut self.bytes[start..start + len_bytes]
    }
}

/// The arguments of a read or write, and the most bytes that it may move.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteRequest {
    pub(super) buffer: BufferArgument,
    pub(super) position: FilePosition,
    pub(super) max_bytes: u64,
}

/// A path in /proc that names one of our own descriptors.
pub(super) fn proc_fd_path(file: &OwnedFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}
