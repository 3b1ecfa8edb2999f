//! The hook that every driver call passes: it jumps to the function's implementation or returns an error.
//! Unsafe: assembly that saves the caller's arguments, and reads of these arguments. Must not know what any
//! function does.

use std::arch::naked_asm;
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicUsize, Ordering};

use simgpu_plan::DriverCallKind;

use crate::rules::{CallOutcome, Corruption, DriverCall, FaultState, fault_state};
use crate::symbols::{EXPORTED, MATMUL_INDEX, NAMES, TRAMPOLINE_COUNT};
use crate::{calls, driver, forward};

/// Number of exported functions, including `cublasLtMatmul`, and of trampolines.
const FUNCTION_COUNT: usize = NAMES.len() + TRAMPOLINE_COUNT;

/// The address of each function's implementation. 0: not looked up yet.
static IMPLEMENTATIONS: [AtomicUsize; FUNCTION_COUNT] = [const { AtomicUsize::new(0) }; FUNCTION_COUNT];

thread_local! {
    /// Corruptions for the work that the current call of this thread will queue.
    /// Never dropped, because programs call the driver from destructors of their thread-locals.
    static PENDING_CORRUPTIONS: ManuallyDrop<RefCell<Vec<Corruption>>> =
        const { ManuallyDrop::new(RefCell::new(Vec::new())) };
}

/// The registers as `hook_entry` pushed them, and the stack of the caller.
#[repr(C)]
struct CallFrame {
    index: u64,
    r9: u64,
    r8: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    return_address: u64,
    stack: [u64; 6],
}

impl CallFrame {
    fn argument(&self, index: usize) -> u64 {
        match index {
            0 => self.rdi,
            1 => self.rsi,
            2 => self.rdx,
            3 => self.rcx,
            4 => self.r8,
            5 => self.r9,
            _ => self.stack[index - 6],
        }
    }
}

/// Exported functions jump here with their number in eax. Seven pushes align the stack for the call.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn hook_entry() {
    naked_asm!(
        "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9", "push rax",
        "mov rdi, rsp",
        "call {decide}",
        "mov r10, rax",
        "mov r11, rdx",
        "pop rax", "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
        "test r11, r11",
        "jz 2f",
        "jmp r11",
        "2:",
        "mov rax, r10",
        "ret",
        decide = sym decide,
    )
}

/// Returned in rax and rdx. If `destination` is 0, the call returns `code`. Else it continues at
/// `destination`.
#[repr(C)]
struct HookDecision {
    code: u64,
    destination: usize,
}

/// # Safety
/// Only [`hook_entry`] calls this, with a pointer to the registers that it has pushed.
unsafe extern "C" fn decide(frame: *const CallFrame) -> HookDecision {
    // SAFETY: `hook_entry` has pushed the frame.
    let index = unsafe { (*frame).index } as u32 as usize;
    let faults = fault_state();
    if !faults.is_quiet(index) {
        // SAFETY: `hook_entry` has pushed the frame. The six words above it belong to the stacks of the
        // callers.
        let outcome = consult_rules(faults, index, unsafe { &*frame });
        if let Some(code) = outcome.error_code {
            return HookDecision { code: u64::from(code), destination: 0 };
        }
    }
    let mut destination = IMPLEMENTATIONS[index].load(Ordering::Acquire);
    if destination == 0 {
        fill_implementations();
        destination = IMPLEMENTATIONS[index].load(Ordering::Acquire);
    }
    HookDecision { code: 0, destination }
}

/// Applies the rules to a call.
#[cold]
fn consult_rules(faults: &FaultState, index: usize, frame: &CallFrame) -> CallOutcome {
    let name = faults.function_name(index);
    let kernel = calls::kernel_argument(name).and_then(|index| kernel_name(frame.argument(index) as usize));
    let sizes = calls::byte_arguments(name);
    let product = || sizes.iter().map(|index| frame.argument(*index)).fold(1, u64::saturating_mul);
    let bytes = (!sizes.is_empty()).then(product);
    let mut outcome = faults.apply_rules(index, &DriverCall { name, kernel: kernel.as_deref(), bytes });
    apply_immediate_effects(name, &mut outcome);
    outcome
}

fn kernel_name(handle: usize) -> Option<String> {
    match forward::is_active() {
        true => forward::kernel_name(handle),
        false => driver::kernel_name(handle),
    }
}

/// Injects what must happen before the call, and stores the corruptions of the work that the call will queue.
fn apply_immediate_effects(name: &str, outcome: &mut CallOutcome) {
    if let Some(hole_bytes) = outcome.max_hole_bytes
        && !forward::is_active()
    {
        driver::fragment(hole_bytes);
    }
    let corruptions = std::mem::take(&mut outcome.corruptions);
    let queues_work = calls::call_kind(name) == DriverCallKind::Launch && !forward::is_active();
    if queues_work {
        PENDING_CORRUPTIONS.with(|pending| pending.replace(corruptions));
        return;
    }
    for corruption in corruptions {
        match corruption {
            // No lock is held here, so other threads are not blocked.
            Corruption::Hang => hang(),
            Corruption::FlipBit { seed, rule } if !forward::is_active() => driver::flip_bit_now(seed, rule),
            Corruption::FlipBit { rule, .. } | Corruption::Overwrite { rule, .. } => {
                fault_state().record_evidence(
                    Some(rule),
                    "nothing was changed: this needs a launch on the simulated GPU",
                );
            }
        }
    }
}

/// Blocks the calling thread permanently.
pub(crate) fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Takes the corruptions of the work that the current call of this thread queues.
pub(crate) fn take_corruptions() -> Vec<Corruption> {
    PENDING_CORRUPTIONS.with(|pending| pending.take())
}

/// Applies the rules to a call of `cublasLtMatmul`, which does not pass the hook. Returns the code that it
/// fails with.
pub(crate) fn matmul_error_code() -> Option<u32> {
    let faults = fault_state();
    if faults.is_quiet(MATMUL_INDEX) {
        return None;
    }
    let name = faults.function_name(MATMUL_INDEX);
    let mut outcome =
        faults.apply_rules(MATMUL_INDEX, &DriverCall { name, kernel: Some("matmul"), bytes: None });
    apply_immediate_effects(name, &mut outcome);
    outcome.error_code
}

/// Fills the table with the functions of the simulation or of the real driver.
#[cold]
fn fill_implementations() {
    for (index, name) in NAMES.iter().enumerate() {
        let address = match forward::is_active() {
            true => forward::implementation(name),
            false => driver::implementation(name),
        };
        IMPLEMENTATIONS[index]
            .store(address.unwrap_or(driver::not_supported as *const () as usize), Ordering::Release);
    }
}

/// Sets the implementation of a trampoline's function.
pub(crate) fn set_implementation(index: usize, address: usize) {
    IMPLEMENTATIONS[index].store(address, Ordering::Release);
}

/// Returns the address of an exported function.
pub(crate) fn exported_function(name: &str) -> Option<usize> {
    let index = NAMES[..EXPORTED.len()].binary_search(&name).ok()?;
    Some(EXPORTED[index] as *const () as usize)
}
