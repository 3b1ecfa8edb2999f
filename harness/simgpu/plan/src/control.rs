//! Counters and flags in a file that is mapped into every process. The one place here that the compiler can't check.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rules that a plan may have.
pub const MAX_RULES: usize = 64;
/// XIDs that a plan may list, and as many that rules may bring about.
pub const MAX_XIDS: usize = 32;

const MAGIC: u64 = 0x7472_6177_7265_636b;

/// As it lies in the file, native byte order: it never leaves the machine.
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

/// The mapped file. All methods are safe to call from any thread of any process, and none waits.
pub struct ControlFile {
    shared: *const SharedState,
}

// SAFETY: everything behind the pointer is atomic, and it stays mapped until the drop.
unsafe impl Send for ControlFile {}
// SAFETY: as above.
unsafe impl Sync for ControlFile {}

impl ControlFile {
    pub(crate) fn create(path: &Path) -> Result<ControlFile, Error> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.set_len(size_of::<SharedState>() as u64)?;
        let control = ControlFile::map(&file)?;
        control.shared().magic.store(MAGIC, Ordering::SeqCst);
        Ok(control)
    }

    pub(crate) fn open(path: &Path) -> Result<ControlFile, Error> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() != size_of::<SharedState>() as u64 {
            return Err(Error::new(ErrorKind::InvalidData, "made by another version"));
        }
        let control = ControlFile::map(&file)?;
        match control.shared().magic.load(Ordering::SeqCst) {
            MAGIC => Ok(control),
            _ => Err(Error::new(ErrorKind::InvalidData, "not a control file")),
        }
    }

    fn map(file: &File) -> Result<ControlFile, Error> {
        let (length, protection) = (size_of::<SharedState>(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a fresh mapping of a file that is as long as what is read through it; the address is the kernel's choice.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(ControlFile { shared: at.cast() })
    }

    fn shared(&self) -> &SharedState {
        // SAFETY: mapped in `map`, page-aligned, as long as `Shared`, all of it atomic, and mapped until the drop.
        unsafe { &*self.shared }
    }

    /// Changes whenever the plan was replaced.
    pub fn generation(&self) -> u64 {
        self.shared().generation.load(Ordering::Acquire)
    }

    pub(crate) fn bump_generation(&self) {
        self.shared().generation.fetch_add(1, Ordering::AcqRel);
    }

    /// One more call that the rule speaks of: which one it is, 1-based.
    pub fn count_call(&self, rule: usize) -> u64 {
        self.shared().calls_seen[rule].fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Calls counted so far.
    pub fn calls_seen(&self, rule: usize) -> u64 {
        self.shared().calls_seen[rule].load(Ordering::Acquire)
    }

    /// Strikes for a rule that strikes once: true for the first who asks.
    pub fn claim(&self, rule: usize) -> bool {
        self.shared().claimed[rule].swap(1, Ordering::AcqRel) == 0
    }

    /// The GPU has fallen off the bus by a rule; it stays so.
    pub fn mark_lost(&self) {
        self.shared().lost.store(1, Ordering::Release);
    }

    pub fn is_lost(&self) -> bool {
        self.shared().lost.load(Ordering::Acquire) != 0
    }

    /// The harness puts the GPU back.
    pub fn clear_lost(&self) {
        self.shared().lost.store(0, Ordering::Release);
    }

    pub fn add_uncorrected_error(&self) {
        self.shared().ecc_uncorrected.fetch_add(1, Ordering::AcqRel);
    }

    pub fn uncorrected_errors(&self) -> u64 {
        self.shared().ecc_uncorrected.load(Ordering::Acquire)
    }

    /// A rule has brought this XID about. More than [`XIDS_MOST`] are not kept.
    pub fn add_xid(&self, xid: u64) {
        let at = self.shared().xid_count.fetch_add(1, Ordering::AcqRel) as usize;
        if let Some(place) = self.shared().xids.get(at) {
            place.store(xid, Ordering::Release);
        }
    }

    /// XIDs that rules have brought about, in order.
    pub fn xids(&self) -> Vec<u64> {
        let count = (self.shared().xid_count.load(Ordering::Acquire) as usize).min(MAX_XIDS);
        let read = self.shared().xids[..count].iter().map(|xid| xid.load(Ordering::Acquire));
        // 0: counted and not stored yet.
        read.filter(|xid| *xid != 0).collect()
    }
}

impl Drop for ControlFile {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and nothing borrows from it any more.
        unsafe { libc::munmap(self.shared.cast_mut().cast(), size_of::<SharedState>()) };
    }
}
