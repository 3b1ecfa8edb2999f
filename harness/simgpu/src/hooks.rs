//! The hook that every driver call passes, and every NVML call without code of ours: it jumps to the function's implementation or returns an error.
//! Unsafe: assembly that saves the caller's arguments, and reads of these arguments. Must not know what any
//! function does.

use std::arch::global_asm;

use simgpu_plan::DriverCallKind;

use crate::call_table::{implementation_of, set_implementation};
use crate::faults::{
    CallOutcome, Corruption, DriverCall, FaultState, fault_state, hang, set_pending_corruptions,
};
use crate::nvml_exports::exported_name;
use crate::symbols::{MATMUL_INDEX, NAMES};
use crate::{calls, driver, forward, nvml};

/// The registers as `simgpu_hook_entry` pushed them, and the stack of the caller.
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

// Exported functions jump here with their number in eax. Seven pushes align the stack for the call. It is
// assembly of its own and not a function, because `symbols` finds it by name: this file knows `driver`, which
// returns the addresses of exported functions.
global_asm!(
    ".pushsection .text.simgpu_hook_entry, \"ax\", @progbits",
    ".globl simgpu_hook_entry",
    ".hidden simgpu_hook_entry",
    ".type simgpu_hook_entry, @function",
    ".balign 16",
    "simgpu_hook_entry:",
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
    ".size simgpu_hook_entry, . - simgpu_hook_entry",
    ".popsection",
    decide = sym decide,
);

/// Returned in rax and rdx. If `destination` is 0, the call returns `code`. Else it continues at
/// `destination`.
#[repr(C)]
struct HookDecision {
    code: u64,
    destination: usize,
}

/// # Safety
/// Only `simgpu_hook_entry` calls this, with a pointer to the registers that it has pushed.
unsafe extern "C" fn decide(frame: *const CallFrame) -> HookDecision {
    // SAFETY: `simgpu_hook_entry` has pushed the frame.
    let index = unsafe { (*frame).index } as u32 as usize;
    let faults = fault_state();
    if let Some(name) = exported_name(index) {
        return match nvml::forwarded(faults, name) {
            Ok(destination) => HookDecision { code: 0, destination },
            Err(code) => HookDecision { code: u64::from(code), destination: 0 },
        };
    }
    if !faults.is_quiet(index) {
        // SAFETY: `simgpu_hook_entry` has pushed the frame. The six words above it belong to the stacks of
        // the callers.
        let outcome = consult_rules(faults, index, unsafe { &*frame });
        if let Some(code) = outcome.error_code {
            return HookDecision { code: u64::from(code), destination: 0 };
        }
    }
    let destination = implementation_of(index).unwrap_or_else(|| look_up_implementations(faults, index));
    HookDecision { code: 0, destination }
}

/// Applies the rules to a call.
#[cold]
fn consult_rules(faults: &FaultState, index: usize, frame: &CallFrame) -> CallOutcome {
    let name = faults.function_name(index);
    let kernel =
        calls::kernel_argument(name).and_then(|index| kernel_name(faults, frame.argument(index) as usize));
    let sizes = calls::byte_arguments(name);
    let product = || sizes.iter().map(|index| frame.argument(*index)).fold(1, u64::saturating_mul);
    let bytes = (!sizes.is_empty()).then(product);
    apply_rules(faults, index, kernel.as_deref(), bytes)
}

/// Applies the rules to a call of a function, and injects what must happen before the call.
fn apply_rules(faults: &FaultState, index: usize, kernel: Option<&str>, bytes: Option<u64>) -> CallOutcome {
    let is_forwarded = forward::is_active(faults);
    let name = faults.function_name(index);
    let has_context = || match is_forwarded {
        true => forward::has_context(faults),
        false => driver::has_context(),
    };
    let call = DriverCall { name, kernel, bytes, is_forwarded, has_context: &has_context };
    let mut outcome = faults.apply_rules(index, &call);
    apply_immediate_effects(faults, &call, &mut outcome);
    outcome
}

fn kernel_name(faults: &FaultState, handle: usize) -> Option<String> {
    match forward::is_active(faults) {
        true => forward::kernel_name(faults, handle),
        false => driver::kernel_name(handle),
    }
}

/// Injects what must happen before the call, and stores the corruptions of the work that the call will queue.
fn apply_immediate_effects(faults: &FaultState, call: &DriverCall<'_>, outcome: &mut CallOutcome) {
    if let Some(hole_bytes) = outcome.max_hole_bytes
        && !call.is_forwarded
    {
        driver::fragment(hole_bytes);
    }
    let corruptions = std::mem::take(&mut outcome.corruptions);
    let queues_work = calls::call_kind(call.name) == DriverCallKind::Launch && !call.is_forwarded;
    if queues_work {
        return set_pending_corruptions(corruptions);
    }
    for corruption in corruptions {
        match corruption {
            // No lock is held here, so other threads are not blocked.
            Corruption::Hang => hang(),
            Corruption::FlipBit { seed, rule } if !call.is_forwarded => {
                driver::flip_bit_now(faults, seed, rule)
            }
            Corruption::FlipBit { rule, .. } | Corruption::Overwrite { rule, .. } => {
                faults.record_evidence(
                    Some(rule),
                    "nothing was changed: this needs a launch on the simulated GPU",
                );
            }
        }
    }
}

/// Applies the rules to a call of `cublasLtMatmul`, which does not pass the hook. Returns the code that it
/// fails with.
pub(crate) fn matmul_error_code(faults: &FaultState) -> Option<u32> {
    if faults.is_quiet(MATMUL_INDEX) {
        return None;
    }
    apply_rules(faults, MATMUL_INDEX, Some("matmul"), None).error_code
}

/// Fills the table with the functions of the simulation or of the real driver. Returns where the calls of one
/// function continue.
#[cold]
fn look_up_implementations(faults: &FaultState, requested: usize) -> usize {
    let not_supported = driver::not_supported as *const () as usize;
    for (index, name) in NAMES.iter().enumerate() {
        let address = match forward::is_active(faults) {
            true => forward::implementation(faults, name),
            false => driver::implementation(name),
        };
        set_implementation(index, address.unwrap_or(not_supported));
    }
    implementation_of(requested).unwrap_or(not_supported)
}
