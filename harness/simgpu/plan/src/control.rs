//! Counters and flags in a file that is mapped into the harness and every process of the target. Unsafe: it
//! maps the file. Must not know the plan.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Maximum number of rules in a plan.
pub const MAX_RULES: usize = 64;
/// Maximum number of XIDs in a plan, and of XIDs that injected errors cause.
pub const MAX_XIDS: usize = 32;

const MAGIC: u64 = 0x7472_6177_7265_636b;

/// The layout of the file. Native byte order, as the file never leaves the machine.
#[repr(C)]
struct SharedState {
    magic: AtomicU64,
    generation: AtomicU64,
    calls_seen: [AtomicU64; MAX_RULES],
    claimed: [AtomicU64; MAX_RULES],
    lost: AtomicU64,
    ecc_uncorrected: AtomicU64,
    xid_count: AtomicU64,
    xids: [AtomicU64; MAX_XIDS],
}

/// The mapped file. All methods may be called from any thread of any process, and none of them blocks.
pub struct ControlFile {
    shared: *const SharedState,
}

// SAFETY: the shared state consists of atomics and stays mapped until the drop, so any thread may own the
// pointer.
unsafe impl Send for ControlFile {}
// SAFETY: the shared state consists of atomics, so threads may access it at the same time.
unsafe impl Sync for ControlFile {}

impl ControlFile {
    /// Creates the file. The harness calls this.
    ///
    /// # Errors
    /// The file exists already, or cannot be created or mapped.
    pub(crate) fn create(path: &Path) -> Result<ControlFile, Error> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.set_len(size_of::<SharedState>() as u64)?;
        let control = ControlFile::map(&file)?;
        control.shared().magic.store(MAGIC, Ordering::SeqCst);
        Ok(control)
    }

    /// Opens a file that [`ControlFile::create`] has made. The shim calls this.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or it has another layout.
    pub(crate) fn open(path: &Path) -> Result<ControlFile, Error> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() != size_of::<SharedState>() as u64 {
            return Err(Error::new(ErrorKind::InvalidData, "another version of Trainwreck wrote this file"));
        }
        let control = ControlFile::map(&file)?;
        match control.shared().magic.load(Ordering::SeqCst) {
            MAGIC => Ok(control),
            _ => Err(Error::new(ErrorKind::InvalidData, "not a control file")),
        }
    }

    fn map(file: &File) -> Result<ControlFile, Error> {
        let (length, protection) = (size_of::<SharedState>(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the kernel chooses an unused address, and both callers made sure that the file has this
        // length.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(ControlFile { shared: address.cast() })
    }

    fn shared(&self) -> &SharedState {
        // SAFETY: `map` mapped it page-aligned with the size of `SharedState`. It consists of atomics, for
        // which all bit patterns are valid, and stays mapped until the drop.
        unsafe { &*self.shared }
    }

    /// Changes with each replacement of the plan.
    pub fn generation(&self) -> u64 {
        self.shared().generation.load(Ordering::Acquire)
    }

    pub(crate) fn bump_generation(&self) {
        self.shared().generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts a call that matches the rule. Returns its number, from 1.
    pub fn count_call(&self, rule: usize) -> u64 {
        self.shared().calls_seen[rule].fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Returns how many calls the rule has counted.
    pub fn calls_seen(&self, rule: usize) -> u64 {
        self.shared().calls_seen[rule].load(Ordering::Acquire)
    }

    /// Claims the single injection of a transient rule. Returns true to the first caller only.
    pub fn claim(&self, rule: usize) -> bool {
        self.shared().claimed[rule].swap(1, Ordering::AcqRel) == 0
    }

    /// Marks the GPU as fallen off the bus, until [`ControlFile::clear_lost`].
    pub fn mark_lost(&self) {
        self.shared().lost.store(1, Ordering::Release);
    }

    /// Returns whether an injected error has made the GPU fall off the bus.
    pub fn is_lost(&self) -> bool {
        self.shared().lost.load(Ordering::Acquire) != 0
    }

    /// Reverts [`ControlFile::mark_lost`]. The harness calls this.
    pub fn clear_lost(&self) {
        self.shared().lost.store(0, Ordering::Release);
    }

    /// Counts one uncorrectable memory error.
    pub fn add_uncorrected_error(&self) {
        self.shared().ecc_uncorrected.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns how many uncorrectable memory errors were counted.
    pub fn uncorrected_errors(&self) -> u64 {
        self.shared().ecc_uncorrected.load(Ordering::Acquire)
    }

    /// Records an XID that an injected error causes. Ignored once there are [`MAX_XIDS`].
    pub fn add_xid(&self, xid: u64) {
        let index = self.shared().xid_count.fetch_add(1, Ordering::AcqRel) as usize;
        if let Some(slot) = self.shared().xids.get(index) {
            slot.store(xid, Ordering::Release);
        }
    }

    /// Returns the XIDs that injected errors have caused, in order.
    pub fn xids(&self) -> Vec<u64> {
        let count = (self.shared().xid_count.load(Ordering::Acquire) as usize).min(MAX_XIDS);
        let read = self.shared().xids[..count].iter().map(|xid| xid.load(Ordering::Acquire));
        // A slot is 0 while another process has counted its XID but not stored it yet.
        read.filter(|xid| *xid != 0).collect()
    }
}

impl Drop for ControlFile {
    fn drop(&mut self) {
        // SAFETY: `map` mapped it with this length, and `&mut self` shows that no reference to it is left.
        unsafe { libc::munmap(self.shared.cast_mut().cast(), size_of::<SharedState>()) };
    }
}
