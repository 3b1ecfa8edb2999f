//! What every call of the driver goes through: it goes on to the function behind the name, or gives an error at once. Unsafe:
//! assembly that keeps the caller's arguments, and reads of those arguments. It must not know what any function does.

use std::arch::naked_asm;
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicUsize, Ordering};

use simgpu_plan::DriverCallKind;

use crate::rules::{CallOutcome, Corruption, DriverCall, FaultState, fault_state};
use crate::symbols::{EXPORTED, MATMUL_INDEX, NAMES, SPARES};
use crate::{calls, driver, forward};

/// Of all functions.
const FUNCTION_COUNT: usize = NAMES.len() + SPARES;

/// Where each function goes on.
static IMPLEMENTATIONS: [AtomicUsize; FUNCTION_COUNT] = [const { AtomicUsize::new(0) }; FUNCTION_COUNT];

thread_local! {
    /// What happens to the work that this thread gives out with the call that it is in.
    /// Never dropped: programs call the driver from destructors of their own thread-locals.
    static TWISTS: ManuallyDrop<RefCell<Vec<Corruption>>> = const { ManuallyDrop::new(RefCell::new(Vec::new())) };
}

/// Arguments as `through` pushed them, and the stack of the caller.
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
    fn argument(&self, place: usize) -> u64 {
        match place {
            0 => self.rdi,
            1 => self.rsi,
            2 => self.rdx,
            3 => self.rcx,
            4 => self.r8,
            5 => self.r9,
            _ => self.stack[place - 6],
        }
    }
}

/// Entered by a jump with the function's number in eax. Seven pushes leave the stack aligned for the call.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn through() {
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

/// In rax and rdx: the code, and where to go on; 0: nowhere, the code is the answer.
#[repr(C)]
struct HookDecision {
    code: u64,
    destination: usize,
}

/// # Safety
/// Called by [`through`] only.
unsafe extern "C" fn decide(frame: *const CallFrame) -> HookDecision {
    // SAFETY: `through` pushed it just now.
    let index = unsafe { (*frame).index } as u32 as usize;
    let world = fault_state();
    if !world.is_quiet(index) {
        // SAFETY: as above; the caller's stack above the arguments is readable for six words.
        let outcome = consult_rules(world, index, unsafe { &*frame });
        if let Some(code) = outcome.error_code {
            return HookDecision { code: u64::from(code), destination: 0 };
        }
    }
    let mut target = IMPLEMENTATIONS[index].load(Ordering::Acquire);
    if target == 0 {
        fill_implementations();
        target = IMPLEMENTATIONS[index].load(Ordering::Acquire);
    }
    HookDecision { code: 0, destination: target }
}

#[cold]
fn consult_rules(world: &FaultState, index: usize, frame: &CallFrame) -> CallOutcome {
    let name = world.function_name(index);
    let kernel = calls::kernel_argument(name).and_then(|place| kernel_name(frame.argument(place) as usize));
    let places = calls::byte_arguments(name);
    let product = || places.iter().map(|place| frame.argument(*place)).fold(1, u64::saturating_mul);
    let bytes = (!places.is_empty()).then(product);
    let mut outcome = world.apply_rules(index, &DriverCall { name, kernel: kernel.as_deref(), bytes });
    apply_immediate_effects(name, &mut outcome);
    outcome
}

fn kernel_name(handle: usize) -> Option<String> {
    match forward::is_active() {
        true => forward::kernel_name(handle),
        false => driver::kernel_name(handle),
    }
}

/// Does what can be done before the call, and keeps for the call what concerns its work.
fn apply_immediate_effects(name: &str, outcome: &mut CallOutcome) {
    if let Some(hole) = outcome.max_hole_bytes
        && !forward::is_active()
    {
        driver::fragment(hole);
    }
    let twists = std::mem::take(&mut outcome.corruptions);
    let gives_work = calls::call_kind(name) == DriverCallKind::Launch && !forward::is_active();
    if gives_work {
        TWISTS.with(|kept| kept.replace(twists));
        return;
    }
    for twist in twists {
        match twist {
            // Nobody else may be kept waiting: no lock is held here.
            Corruption::Hang => hang(),
            Corruption::FlipBit { seed, rule } if !forward::is_active() => driver::flip_bit_now(seed, rule),
            Corruption::FlipBit { rule, .. } | Corruption::Overwrite { rule, .. } => {
                fault_state().record_evidence(Some(rule), "nothing was changed: a real driver's memory is out of reach, and so is what launches nothing");
            }
        }
    }
}

/// Never returns.
pub(crate) fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// What happens to the work of the call that this thread is in.
pub(crate) fn take_corruptions() -> Vec<Corruption> {
    TWISTS.with(|kept| kept.take())
}

/// For `cublasLtMatmul`, which the driver's hook does not see: the code that it fails with.
pub(crate) fn matmul_error_code() -> Option<u32> {
    let world = fault_state();
    if world.is_quiet(MATMUL_INDEX) {
        return None;
    }
    let name = world.function_name(MATMUL_INDEX);
    let mut outcome =
        world.apply_rules(MATMUL_INDEX, &DriverCall { name, kernel: Some("matmul"), bytes: None });
    apply_immediate_effects(name, &mut outcome);
    outcome.error_code
}

/// Fills the table: with the functions of the simulation, or of the real driver.
#[cold]
fn fill_implementations() {
    for (index, name) in NAMES.iter().enumerate() {
        let target = match forward::is_active() {
            true => forward::implementation(name),
            false => driver::target(name),
        };
        IMPLEMENTATIONS[index]
            .store(target.unwrap_or(driver::not_supported as *const () as usize), Ordering::Release);
    }
}

/// Sets where a function goes on that is not in the list.
pub(crate) fn set_implementation(index: usize, target: usize) {
    IMPLEMENTATIONS[index].store(target, Ordering::Release);
}

/// The exported function of a name.
pub(crate) fn exported_function(name: &str) -> Option<usize> {
    let index = NAMES[..EXPORTED.len()].binary_search(&name).ok()?;
    Some(EXPORTED[index] as *const () as usize)
}
