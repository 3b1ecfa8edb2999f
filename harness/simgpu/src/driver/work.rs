//! How each operation of a stream runs. Unsafe: it moves bytes and runs kernels. Must not know which call
//! waits for an operation, or which operation is next.

use std::ffi::c_void;

use simgpu_plan::OverwriteValue;

use crate::codes;
use crate::device_memory::{FreeOutcome, Overrun};
use crate::faults::{Corruption, FaultState};
use crate::fibers::{FiberPool, GridLaunch, LaunchFailure, POISON};
use crate::matmul::{ElementType, MatmulTask, Operand, bf16_to_f32, f32_to_bf16};
use crate::sys;

use super::operations::{CopyEndpoint, KernelLaunch, MemoryFill, StreamWork};
use super::state::gpu;

/// Runs an operation and injects its corruptions.
///
/// # Errors
/// The code of a defect of the operation. The evidence describes it.
pub(crate) fn execute(
    faults: &FaultState,
    work: StreamWork,
    corruptions: &[Corruption],
    fibers: &mut FiberPool,
) -> Result<(), u32> {
    let is_overwritten =
        corruptions.iter().any(|corruption| matches!(corruption, Corruption::Overwrite { .. }));
    let result = is_overwritten.then(|| result_buffer(&work)).flatten();
    let before = snapshot(result);
    execute_uncorrupted(faults, work, fibers)?;
    for corruption in corruptions {
        match *corruption {
            Corruption::Overwrite { with, seed, rule } => {
                let change = Overwrite { with, seed, rule };
                overwrite(faults, result, before.as_deref(), change);
            }
            Corruption::FlipBit { seed, rule } => flip_bit(faults, seed, rule),
            Corruption::Hang => (),
        }
    }
    Ok(())
}

fn execute_uncorrupted(faults: &FaultState, work: StreamWork, fibers: &mut FiberPool) -> Result<(), u32> {
    match work {
        StreamWork::Nothing => Ok(()),
        StreamWork::Copy { to, from, bytes } => copy(faults, to, from, bytes),
        StreamWork::StagedCopy { to, bytes } => {
            copy(faults, to, CopyEndpoint::Pageable(bytes.as_ptr() as usize), bytes.len())
        }
        StreamWork::Fill(work) => fill(faults, work),
        StreamWork::LaunchKernel(work) => run_kernel(faults, *work, fibers),
        StreamWork::Matmul(work) => multiply(faults, &work),
        StreamWork::RecordEvent { event } => {
            if let Some(event) = gpu().events.get_mut(&event) {
                event.recorded_at = Some(std::time::Instant::now());
            }
            Ok(())
        }
        StreamWork::CallHost(call) => {
            call.run();
            Ok(())
        }
        StreamWork::Free { address } => free(faults, address),
    }
}

fn illegal_access(faults: &FaultState, description: &str) -> u32 {
    faults.record_defect(codes::ILLEGAL_ADDRESS, description)
}

fn copy(faults: &FaultState, to: CopyEndpoint, from: CopyEndpoint, bytes: usize) -> Result<(), u32> {
    for (end, preposition) in [(to, "to"), (from, "from")] {
        if let CopyEndpoint::DeviceSide(address) = end
            && !gpu().is_device_side(address, bytes)
        {
            let location = gpu().memory.describe(address);
            return Err(illegal_access(faults, &format!("a copy of {bytes} bytes {preposition} {location}")));
        }
    }
    let (to, from) = (to.address(), from.address());
    // SAFETY: device memory was checked above, and CUDA requires the program to pass valid pageable memory.
    // `copy` allows an overlap.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
    Ok(())
}

fn fill(faults: &FaultState, work: MemoryFill) -> Result<(), u32> {
    let MemoryFill { to, pattern, width, count } = work;
    if !gpu().is_device_side(to, width * count) {
        let location = gpu().memory.describe(to);
        return Err(illegal_access(faults, &format!("a fill of {} bytes at {location}", width * count)));
    }
    if width == 1 {
        // SAFETY: the check above shows that the device may write these bytes.
        unsafe { sys::fill(to, pattern[0], count) };
        return Ok(());
    }
    for index in 0..count {
        // SAFETY: the check above covers these bytes, and `width` is at most the pattern's 4 bytes.
        unsafe { std::ptr::copy_nonoverlapping(pattern.as_ptr(), (to + index * width) as *mut u8, width) };
    }
    Ok(())
}

fn run_kernel(faults: &FaultState, mut work: KernelLaunch, fibers: &mut FiberPool) -> Result<(), u32> {
    let cells = work.parameter_cells.as_mut_ptr();
    // SAFETY: each index was the length of the vector before the parameter's cells were added.
    let mut pointers: Vec<*mut c_void> =
        work.first_cells.iter().map(|cell| unsafe { cells.add(*cell) }.cast()).collect();
    let launch = GridLaunch {
        kernel: work.kernel.function,
        parameters: pointers.as_mut_ptr(),
        grid: work.grid,
        block: work.block,
        shared_bytes: work.shared_bytes,
    };
    // SAFETY: the parameters were copied with the sizes that the compiler recorded for this kernel.
    let result = unsafe { fibers.run(&launch) };
    result.map_err(|failure| {
        let (code, description) = explain_failure(&work, &failure);
        faults.record_defect(code, &description)
    })?;
    let buffers = work.first_cells.iter().zip(work.kernel.parameter_sizes).filter(|(_, size)| **size == 8);
    let addresses = buffers.map(|(cell, _)| work.parameter_cells[*cell] as u64 as usize);
    let Some(overrun) = gpu().memory.overrun_at(addresses) else { return Ok(()) };
    let Overrun { allocation_bytes, offset } = overrun;
    let name = work.kernel.name;
    let description =
        format!("`{name}` writes to byte {offset} of an allocation of {allocation_bytes} bytes");
    Err(illegal_access(faults, &description))
}

/// Returns the code of a failed launch, and its description.
fn explain_failure(work: &KernelLaunch, failure: &LaunchFailure) -> (u32, String) {
    let name = work.kernel.name;
    match failure {
        LaunchFailure::BadAccess { access, block, thread } if access.is_division => {
            (codes::LAUNCH_FAILED, format!("`{name}` divides by zero: block {block:?}, thread {thread}"))
        }
        LaunchFailure::BadAccess { access, block, thread } => {
            let location = gpu().memory.describe(access.address);
            let verb = if access.is_write { "writes to" } else { "reads" };
            (codes::ILLEGAL_ADDRESS, format!("`{name}` {verb} {location}: block {block:?}, thread {thread}"))
        }
        LaunchFailure::Divergent { block, at_block, at_warp, finished } => {
            let description = format!(
                "`{name}` has a divergent barrier: in block {block:?}, {at_block} threads wait for the \
                 block, {at_warp} for their warp, {finished} have finished"
            );
            (codes::LAUNCH_TIMEOUT, description)
        }
        LaunchFailure::SharedOverrun { block } => {
            let bytes = work.shared_bytes;
            (
                codes::ILLEGAL_ADDRESS,
                format!("`{name}` writes past its {bytes} bytes of shared memory: block {block:?}"),
            )
        }
        LaunchFailure::NoStack => {
            (codes::LAUNCH_OUT_OF_RESOURCES, format!("there is no memory for the stacks of `{name}`"))
        }
    }
}

fn multiply(faults: &FaultState, work: &MatmulTask) -> Result<(), u32> {
    {
        let gpu = gpu();
        for (operand, name, is_used) in [
            (&work.a, "A", true),
            (&work.b, "B", true),
            (&work.c, "C", work.beta != 0.0),
            (&work.d, "D", true),
        ] {
            let bytes = operand.extent_bytes(work.batch_count);
            if is_used && !gpu.is_device_side(operand.address, bytes) {
                let location = gpu.memory.describe(operand.address);
                drop(gpu);
                return Err(illegal_access(
                    faults,
                    &format!("`matmul`: {name} has {bytes} bytes at {location}"),
                ));
            }
        }
    }
    // SAFETY: the loop above checked that the device may access all operands. C is not read if beta is 0.
    unsafe { work.run() };
    Ok(())
}

/// Frees an allocation, and checks the bytes around it.
pub(crate) fn free(faults: &FaultState, address: usize) -> Result<(), u32> {
    let outcome = gpu().memory.free(address);
    match outcome {
        FreeOutcome::Freed => Ok(()),
        FreeOutcome::Overrun(overrun) => Err(record_overrun(faults, overrun)),
        FreeOutcome::Unknown => Err(codes::INVALID_VALUE),
    }
}

/// Checks the bytes around all allocations, as a kernel may reach memory that none of its parameters points
/// to.
pub(crate) fn check_redzones(faults: &FaultState) -> Result<(), u32> {
    let overrun = gpu().memory.overrun();
    overrun.map_or(Ok(()), |overrun| Err(record_overrun(faults, overrun)))
}

fn record_overrun(faults: &FaultState, Overrun { allocation_bytes, offset }: Overrun) -> u32 {
    let description = format!("byte {offset} of an allocation of {allocation_bytes} bytes was overwritten");
    illegal_access(faults, &description)
}

/// The first buffer that a launch writes to.
#[derive(Clone, Copy)]
struct ResultBuffer {
    address: usize,
    len_bytes: usize,
    element: ElementType,
}

fn result_buffer(work: &StreamWork) -> Option<ResultBuffer> {
    match work {
        StreamWork::LaunchKernel(run) if run.kernel.parameter_sizes.first() == Some(&8) => {
            let address = *run.parameter_cells.get(*run.first_cells.first()?)? as u64 as usize;
            let end = gpu().memory.containing(address)?.end();
            let element = if run.kernel.name.contains("bf16") { ElementType::Bf16 } else { ElementType::F32 };
            Some(ResultBuffer { address, len_bytes: end - address, element })
        }
        StreamWork::Matmul(matmul) => {
            let Operand { address, element, .. } = matmul.d;
            let len_bytes = matmul.d.extent_bytes(matmul.batch_count);
            gpu().is_device_side(address, len_bytes).then_some(ResultBuffer { address, len_bytes, element })
        }
        _ => None,
    }
}

fn snapshot(buffer: Option<ResultBuffer>) -> Option<Vec<u8>> {
    // SAFETY: the buffer lies in one allocation, and operations run under the lock of the work, so no kernel
    // writes to it.
    buffer.map(|buffer| unsafe { sys::bytes(buffer.address, buffer.len_bytes) }.to_vec())
}

/// What a rule overwrites one element with.
struct Overwrite {
    with: OverwriteValue,
    /// Selects the element.
    seed: u64,
    rule: usize,
}

/// Overwrites one element that the launch changed. The seed selects it.
fn overwrite(
    faults: &FaultState,
    buffer: Option<ResultBuffer>,
    before: Option<&[u8]>,
    Overwrite { with, seed, rule }: Overwrite,
) {
    let (Some(buffer), Some(before)) = (buffer, before) else {
        return faults.record_evidence(Some(rule), "the launch has no result that can be overwritten");
    };
    // SAFETY: the buffer lies in one allocation, and operations run under the lock of the work, so no kernel
    // writes to it.
    let after = unsafe { sys::bytes(buffer.address, buffer.len_bytes) };
    let size = buffer.element.bytes();
    let pairs = before.chunks_exact(size).zip(after.chunks_exact(size));
    let changed: Vec<usize> =
        pairs.enumerate().filter(|(_, (old, new))| old != new).map(|(index, _)| index).collect();
    if changed.is_empty() {
        return faults.record_evidence(Some(rule), "the launch changed nothing that could be overwritten");
    }
    let index = changed[(split_mix_64(seed) % changed.len() as u64) as usize];
    let address = buffer.address + index * size;
    // SAFETY: `index` counts elements of the buffer, so the element lies in it.
    let (old, new) = unsafe { replace_element(address, buffer.element, with) };
    let count = changed.len();
    faults.record_evidence(
        Some(rule),
        &format!("element {index}, one of {count} that changed, was {old:e} and is now {new:e}"),
    );
}

/// Replaces one element. Returns the old and the new value.
///
/// # Safety
/// The element lies in writable memory.
unsafe fn replace_element(address: usize, element: ElementType, with: OverwriteValue) -> (f32, f32) {
    let replacement = |old: f32| match with {
        OverwriteValue::Nan => f32::NAN,
        // Finite, and of another magnitude than the old value.
        OverwriteValue::Wrong if old.abs() < 1.0 => 1000.0,
        OverwriteValue::Wrong => (-64.0 * old).clamp(-1e30, 1e30),
    };
    // SAFETY: the whole element lies in writable memory, which this function requires. It need not be
    // aligned.
    unsafe {
        match element {
            ElementType::F32 => {
                let old = (address as *const f32).read_unaligned();
                (address as *mut f32).write_unaligned(replacement(old));
                (old, replacement(old))
            }
            ElementType::Bf16 => {
                let old = bf16_to_f32((address as *const u16).read_unaligned());
                (address as *mut u16).write_unaligned(f32_to_bf16(replacement(old)));
                (old, replacement(old))
            }
        }
    }
}

/// Flips one bit of the largest allocation. The seed selects it.
pub(crate) fn flip_bit(faults: &FaultState, seed: u64, rule: usize) {
    let largest = gpu().memory.largest().map(|allocation| (allocation.address, allocation.len_bytes));
    let Some((address, bytes)) = largest else {
        return faults.record_evidence(Some(rule), "there is no allocation to flip a bit of");
    };
    let bit = split_mix_64(seed) % (bytes as u64 * 8);
    // SAFETY: the byte lies in the allocation, which stays mapped while it is not freed.
    unsafe { *((address + bit as usize / 8) as *mut u8) ^= 1 << (bit % 8) };
    faults.record_evidence(
        Some(rule),
        &format!("bit {bit} of the largest allocation, {bytes} bytes, was flipped"),
    );
}

/// SplitMix64 (Steele, Lea and Flood, 2014): spreads small seeds over the whole range.
fn split_mix_64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

const _: () = assert!(POISON == 0xFF, "read as bf16 or f32, the poison must be NaN");
