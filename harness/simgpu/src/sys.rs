//! The operating system's part of the simulation: guarded pages, and signals of bad accesses. Unsafe: system
//! calls and signal handlers. Must not know what the memory is used for.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Size of a page on x86-64.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Maps `bytes` (whole pages) of memory between two guard pages. Returns the address of the memory, or `None`
/// if there is not enough.
pub(crate) fn map_guarded(bytes: usize) -> Option<usize> {
    let total_bytes = bytes + 2 * PAGE_BYTES;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the kernel chooses unused addresses for the mapping.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), total_bytes, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    let memory = start as usize + PAGE_BYTES;
    // SAFETY: the pages were mapped above, and no other code uses them yet.
    let is_accessible =
        unsafe { libc::mprotect(memory as *mut c_void, bytes, libc::PROT_READ | libc::PROT_WRITE) } == 0;
    if !is_accessible {
        unmap_guarded(memory, bytes);
    }
    is_accessible.then_some(memory)
}

/// Discards the content of memory and makes every access to it fault. The addresses stay reserved.
fn discard_guarded(memory: usize, bytes: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: it replaces pages that `map_guarded` has mapped and that the caller no longer uses.
    unsafe { libc::mmap(memory as *mut c_void, bytes, libc::PROT_NONE, flags, -1, 0) };
}

/// Unmaps memory and its guard pages.
pub(crate) fn unmap_guarded(memory: usize, bytes: usize) {
    // SAFETY: it unmaps exactly the pages that `map_guarded` has mapped and that the caller no longer uses.
    unsafe { libc::munmap((memory - PAGE_BYTES) as *mut c_void, bytes + 2 * PAGE_BYTES) };
}

/// A bad access of code that ran under [`catch_faults`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadAccess {
    pub(crate) address: usize,
    pub(crate) is_write: bool,
    /// The code made no access, but divided an integer by zero.
    pub(crate) is_division: bool,
}

thread_local! {
    /// Where the thread continues after a bad access. 0: faults are not caught.
    static FAULT_ENTRY: Cell<usize> = const { Cell::new(0) };
    static LAST_BAD_ACCESS: Cell<Option<BadAccess>> = const { Cell::new(None) };
    static HAS_SIGNAL_STACK: Cell<bool> = const { Cell::new(false) };
}

/// The handlers that were installed before, as pointers to leaked boxes.
static OLD_SEGV: AtomicUsize = AtomicUsize::new(0);
static OLD_FPE: AtomicUsize = AtomicUsize::new(0);

/// Until the result is dropped, this thread continues at `on_fault` after a bad access.
pub(crate) fn catch_faults(on_fault: extern "C" fn() -> !) -> FaultGuard {
    install_handlers();
    ensure_signal_stack();
    FAULT_ENTRY.set(on_fault as usize);
    FaultGuard
}

/// Ends [`catch_faults`] when dropped.
pub(crate) struct FaultGuard;

impl Drop for FaultGuard {
    fn drop(&mut self) {
        FAULT_ENTRY.set(0);
    }
}

/// Takes the last bad access of this thread.
pub(crate) fn last_bad_access() -> Option<BadAccess> {
    LAST_BAD_ACCESS.take()
}

fn install_handlers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (signal, old) in [(libc::SIGSEGV, &OLD_SEGV), (libc::SIGFPE, &OLD_FPE)] {
            // SAFETY: `sigaction` consists of integers and pointers, so zeros are valid. Both live during the
            // call.
            unsafe {
                let mut old_action = Box::new(std::mem::zeroed::<libc::sigaction>());
                let mut action = std::mem::zeroed::<libc::sigaction>();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                libc::sigaction(signal, &action, &mut *old_action);
                old.store(Box::into_raw(old_action) as usize, Ordering::Release);
            }
        }
    });
}

/// Gives the thread a stack for signal handlers, because the handler may run after a stack overflow. It is
/// never freed.
fn ensure_signal_stack() {
    const BYTES: usize = 64 * 1024;
    if HAS_SIGNAL_STACK.replace(true) {
        return;
    }
    // SAFETY: reads the current signal stack, and sets a new one that is never freed.
    unsafe {
        let mut current = std::mem::zeroed::<libc::stack_t>();
        libc::sigaltstack(std::ptr::null(), &mut current);
        if current.ss_flags & libc::SS_DISABLE == 0 && current.ss_size >= 8192 {
            return;
        }
        let Some(address) = map_guarded(BYTES) else { return };
        let stack = libc::stack_t { ss_sp: address as *mut c_void, ss_flags: 0, ss_size: BYTES };
        libc::sigaltstack(&stack, std::ptr::null_mut());
    }
}

/// The signal handler. It uses only atomics and thread-locals without destructors.
extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let fault_entry = FAULT_ENTRY.get();
    if fault_entry == 0 {
        return forward_signal(signal, info, context);
    }
    // SAFETY: the kernel passes pointers that are valid while the handler runs.
    unsafe {
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let is_division = signal == libc::SIGFPE;
        let error = machine.gregs[libc::REG_ERR as usize];
        LAST_BAD_ACCESS.set(Some(BadAccess {
            address: (*info).si_addr() as usize,
            is_write: error & 2 != 0,
            is_division,
        }));
        // Continues as if the function had been called: below the red zone, and with the stack at 8 modulo
        // 16.
        let stack = &mut machine.gregs[libc::REG_RSP as usize];
        *stack = ((*stack - 256) & !15) - 8;
        machine.gregs[libc::REG_RIP as usize] = fault_entry as i64;
    }
}

/// Calls the handler that was installed before.
fn forward_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let old = if signal == libc::SIGSEGV { &OLD_SEGV } else { &OLD_FPE };
    // SAFETY: `install_handlers` has stored the pointer and never frees it. The flags define the handler's
    // type.
    unsafe {
        let old = old.load(Ordering::Acquire) as *const libc::sigaction;
        if old.is_null() || (*old).sa_sigaction == libc::SIG_DFL || (*old).sa_sigaction == libc::SIG_IGN {
            // Restores the default action: the same access faults again and kills the process.
            libc::signal(signal, libc::SIG_DFL);
        } else if (*old).sa_flags & libc::SA_SIGINFO != 0 {
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void) =
                std::mem::transmute((*old).sa_sigaction);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(i32) = std::mem::transmute((*old).sa_sigaction);
            handler(signal);
        }
    }
}

/// Memory between two guard pages that is only accessed by kernels, by copies, and by the checks here. It is
/// unmapped when dropped.
#[derive(Debug)]
pub(crate) struct GuardedPages {
    address: usize,
    len_bytes: usize,
    is_accessible: bool,
}

impl GuardedPages {
    /// Maps whole pages, each byte of which is `byte`. Returns `None` if there is no memory.
    pub(crate) fn map(min_bytes: usize, byte: u8) -> Option<GuardedPages> {
        let len_bytes = min_bytes.next_multiple_of(PAGE_BYTES);
        let address = map_guarded(len_bytes)?;
        // SAFETY: `map_guarded` has just mapped these pages as writable, and nobody else knows them.
        unsafe { fill(address, byte, len_bytes) };
        Some(GuardedPages { address, len_bytes, is_accessible: true })
    }

    pub(crate) fn address(&self) -> usize {
        self.address
    }

    /// Returns the address after the last byte.
    pub(crate) fn end(&self) -> usize {
        self.address + self.len_bytes
    }

    /// Discards the content, and makes every access fault. The addresses stay reserved.
    pub(crate) fn discard(&mut self) {
        self.is_accessible = false;
        discard_guarded(self.address, self.len_bytes);
    }

    /// Returns the address of the first byte of a range that is not `byte`. Looks only at bytes of these
    /// pages, and at none after [`GuardedPages::discard`].
    pub(crate) fn first_other_than(&self, byte: u8, range: std::ops::Range<usize>) -> Option<usize> {
        const PIECE_BYTES: usize = 64;
        let (start, end) = (range.start.max(self.address), range.end.min(self.end()));
        if start >= end || !self.is_accessible {
            return None;
        }
        // SAFETY: the range lies in these pages, which are mapped and accessible. Kernels and copies run only
        // under the lock of the work, and the checks either hold it too or follow on the same thread.
        let bytes = unsafe { bytes(start, end - start) };
        // Compares in pieces, which is fast: this runs for every allocation after each wait.
        let pieces = bytes.chunks_exact(PIECE_BYTES);
        let is_filled = pieces.remainder().iter().all(|current| *current == byte)
            && pieces.into_iter().all(|piece| piece == [byte; PIECE_BYTES]);
        if is_filled {
            return None;
        }
        bytes.iter().position(|current| *current != byte).map(|index| start + index)
    }
}

impl Drop for GuardedPages {
    fn drop(&mut self) {
        unmap_guarded(self.address, self.len_bytes);
    }
}

/// Fills memory with a byte.
///
/// # Safety
/// `address..address + bytes` is writable.
pub(crate) unsafe fn fill(address: usize, byte: u8, bytes: usize) {
    // SAFETY: `address` is valid for writes of that length, which this function requires of its caller.
    unsafe { std::ptr::write_bytes(address as *mut u8, byte, bytes) };
}

/// Returns memory as a slice.
///
/// # Safety
/// `address..address + bytes` is readable, and no code writes to it while the slice lives.
pub(crate) unsafe fn bytes<'a>(address: usize, bytes: usize) -> &'a [u8] {
    // SAFETY: the range is readable and not written to, which this function requires of its caller. Bytes
    // have no invalid values.
    unsafe { std::slice::from_raw_parts(address as *const u8, bytes) }
}
