//! Pages, and the signal of a bad access: what the kernel of the operating system does for the simulation. Unsafe.
//! It must not know what the memory is for.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) const PAGE_BYTES: usize = 4096;

/// A guard page, `bytes` (whole pages) of memory, a guard page: the address of the memory, or none where the machine has no
/// more.
pub(crate) fn map_guarded(bytes: usize) -> Option<usize> {
    let whole = bytes + 2 * PAGE_BYTES;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return None;
    }
    let memory = at as usize + PAGE_BYTES;
    // SAFETY: the pages were mapped above and nobody knows of them yet.
    let opened =
        unsafe { libc::mprotect(memory as *mut c_void, bytes, libc::PROT_READ | libc::PROT_WRITE) } == 0;
    if !opened {
        unmap_guarded(memory, bytes);
    }
    opened.then_some(memory)
}

/// Gives the memory's contents back; the addresses stay taken, and any access faults.
pub(crate) fn discard_guarded(memory: usize, bytes: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: replaces pages that `map_guarded` mapped and that its caller gives up.
    unsafe { libc::mmap(memory as *mut c_void, bytes, libc::PROT_NONE, flags, -1, 0) };
}

/// Gives the addresses back too.
pub(crate) fn unmap_guarded(memory: usize, bytes: usize) {
    // SAFETY: exactly what `map_guarded` mapped, and its caller gives it up.
    unsafe { libc::munmap((memory - PAGE_BYTES) as *mut c_void, bytes + 2 * PAGE_BYTES) };
}

/// A bad access of the code that ran under [`guarded`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadAccess {
    pub(crate) address: usize,
    pub(crate) is_write: bool,
    /// An integer was divided by zero: no access at all.
    pub(crate) is_division: bool,
}

thread_local! {
    /// Where to go on after a bad access; 0: the access is not ours.
    static LANDING: Cell<usize> = const { Cell::new(0) };
    static LAST: Cell<Option<BadAccess>> = const { Cell::new(None) };
    static HAS_STACK: Cell<bool> = const { Cell::new(false) };
}

static OLD_SEGV: AtomicUsize = AtomicUsize::new(0);
static OLD_FPE: AtomicUsize = AtomicUsize::new(0);

/// From here to the drop of what it returns, a bad access of this thread goes on at `landing`, which must never return.
pub(crate) fn catch_faults(landing: extern "C" fn() -> !) -> FaultGuard {
    install_handlers();
    ensure_signal_stack();
    LANDING.set(landing as usize);
    FaultGuard
}

pub(crate) struct FaultGuard;

impl Drop for FaultGuard {
    fn drop(&mut self) {
        LANDING.set(0);
    }
}

/// The bad access that led to the landing.
pub(crate) fn last_bad_access() -> Option<BadAccess> {
    LAST.take()
}

fn install_handlers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (signal, old) in [(libc::SIGSEGV, &OLD_SEGV), (libc::SIGFPE, &OLD_FPE)] {
            // SAFETY: all zeroes is a valid sigaction, and both structures live through the call.
            unsafe {
                let mut before = Box::new(std::mem::zeroed::<libc::sigaction>());
                let mut now = std::mem::zeroed::<libc::sigaction>();
                now.sa_sigaction = on_signal as *const () as usize;
                now.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                libc::sigaction(signal, &now, &mut *before);
                old.store(Box::into_raw(before) as usize, Ordering::Release);
            }
        }
    });
}

/// A kernel's stack may be what overflowed: the handler needs one of its own. It lives as long as the thread may.
fn ensure_signal_stack() {
    const BYTES: usize = 64 * 1024;
    if HAS_STACK.replace(true) {
        return;
    }
    // SAFETY: asks for the present stack, and sets a fresh one that is never freed.
    unsafe {
        let mut present = std::mem::zeroed::<libc::stack_t>();
        libc::sigaltstack(std::ptr::null(), &mut present);
        if present.ss_flags & libc::SS_DISABLE == 0 && present.ss_size >= 8192 {
            return;
        }
        let Some(at) = map_guarded(BYTES) else { return };
        let stack = libc::stack_t { ss_sp: at as *mut c_void, ss_flags: 0, ss_size: BYTES };
        libc::sigaltstack(&stack, std::ptr::null_mut());
    }
}

/// Runs in the signal: touches thread-locals without destructors and atomics only.
extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let landing = LANDING.get();
    if landing == 0 {
        return forward_signal(signal, info, context);
    }
    // SAFETY: the kernel hands both pointers over for the time of the handler.
    unsafe {
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let division = signal == libc::SIGFPE;
        let error = machine.gregs[libc::REG_ERR as usize];
        LAST.set(Some(BadAccess {
            address: (*info).si_addr() as usize,
            is_write: error & 2 != 0,
            is_division: division,
        }));
        // As if the landing had been called: below the red zone, and 8 off a multiple of 16.
        let stack = &mut machine.gregs[libc::REG_RSP as usize];
        *stack = ((*stack - 256) & !15) - 8;
        machine.gregs[libc::REG_RIP as usize] = landing as i64;
    }
}

fn forward_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let old = if signal == libc::SIGSEGV { &OLD_SEGV } else { &OLD_FPE };
    // SAFETY: stored in `install` and never freed; the old handler is called as it asked to be.
    unsafe {
        let old = old.load(Ordering::Acquire) as *const libc::sigaction;
        if old.is_null() || (*old).sa_sigaction == libc::SIG_DFL || (*old).sa_sigaction == libc::SIG_IGN {
            // Back to the default: the same access faults again and ends the process.
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

/// Fills memory with a byte.
///
/// # Safety
/// `at..at + bytes` is writable.
pub(crate) unsafe fn fill(at: usize, byte: u8, bytes: usize) {
    // SAFETY: the caller's.
    unsafe { std::ptr::write_bytes(at as *mut u8, byte, bytes) };
}

/// Memory as a slice.
///
/// # Safety
/// `at..at + bytes` is readable, and nobody writes to it while the slice lives.
pub(crate) unsafe fn bytes<'a>(at: usize, bytes: usize) -> &'a [u8] {
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts(at as *const u8, bytes) }
}
