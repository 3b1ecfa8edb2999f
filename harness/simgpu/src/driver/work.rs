//! Operations of a stream, and how each is carried out. Unsafe: it moves bytes and runs kernels. It must not know who waits.

use std::ffi::c_void;

use simgpu_plan::OverwriteValue;

use crate::codes;
use crate::fibers::{FiberPool, GridLaunch, LaunchFailure, POISON};
use crate::kernels::CompiledKernel;
use crate::matmul::{ElementType, MatmulTask, Operand, bf16_to_f32, f32_to_bf16};
use crate::rules::{Corruption, fault_state};
use crate::sys;

use super::state::{Handle, gpu};

/// What one operation does.
pub(crate) enum StreamWork {
    /// Only its place in the stream counts.
    Nothing,
    Copy {
        to: CopyEndpoint,
        from: CopyEndpoint,
        bytes: usize,
    },
    /// From pageable memory, read when the call was made.
    StagedCopy {
        to: CopyEndpoint,
        bytes: Vec<u8>,
    },
    Fill {
        to: usize,
        pattern: [u8; 4],
        width: usize,
        count: usize,
    },
    LaunchKernel(Box<KernelLaunch>),
    Matmul(Box<MatmulTask>),
    RecordEvent {
        event: Handle,
    },
    HostCall {
        function: unsafe extern "C" fn(*mut c_void),
        data: usize,
    },
    Free {
        address: usize,
    },
}

/// One end of a copy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CopyEndpoint {
    /// Device memory, or page-locked: looked up when the copy is done.
    DeviceSide(usize),
    /// Pageable: the caller's to answer for.
    Pageable(usize),
}

impl CopyEndpoint {
    fn address(self) -> usize {
        match self {
            CopyEndpoint::DeviceSide(address) | CopyEndpoint::Pageable(address) => address,
        }
    }
}

pub(crate) struct KernelLaunch {
    pub(crate) kernel: CompiledKernel,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: usize,
    /// One 16-byte cell or more for each.
    pub(crate) parameter_cells: Vec<u128>,
    /// The first cell of each.
    pub(crate) first_cells: Vec<usize>,
}

/// Carries an operation out: its code.
pub(crate) fn execute(work: StreamWork, twists: &[Corruption], fibers: &mut FiberPool) -> Result<(), u32> {
    let is_overwritten = twists.iter().any(|twist| matches!(twist, Corruption::Overwrite { .. }));
    let result = is_overwritten.then(|| result_buffer(&work)).flatten();
    let before = snapshot(result);
    execute_uncorrupted(work, fibers)?;
    for twist in twists {
        match *twist {
            Corruption::Overwrite { with, seed, rule } => {
                overwrite(result, before.as_deref(), with, seed, rule)
            }
            Corruption::FlipBit { seed, rule } => flip_bit(seed, rule),
            Corruption::Hang => (),
        }
    }
    Ok(())
}

fn execute_uncorrupted(work: StreamWork, fibers: &mut FiberPool) -> Result<(), u32> {
    match work {
        StreamWork::Nothing => Ok(()),
        StreamWork::Copy { to, from, bytes } => copy(to, from, bytes),
        StreamWork::StagedCopy { to, bytes } => {
            copy(to, CopyEndpoint::Pageable(bytes.as_ptr() as usize), bytes.len())
        }
        StreamWork::Fill { to, pattern, width, count } => fill(to, pattern, width, count),
        StreamWork::LaunchKernel(work) => run_kernel(*work, fibers),
        StreamWork::Matmul(work) => multiply(&work),
        StreamWork::RecordEvent { event } => {
            if let Some(event) = gpu().events.get_mut(&event) {
                event.recorded_at = Some(std::time::Instant::now());
            }
            Ok(())
        }
        StreamWork::HostCall { function, data } => {
            // SAFETY: who gave the function out promised that it can be called with this.
            unsafe { function(data as *mut c_void) };
            Ok(())
        }
        StreamWork::Free { address: at } => free(at),
    }
}

fn illegal_access(what: &str) -> u32 {
    fault_state().record_defect(codes::ILLEGAL_ADDRESS, what)
}

fn copy(to: CopyEndpoint, from: CopyEndpoint, bytes: usize) -> Result<(), u32> {
    for (end, what) in [(to, "to"), (from, "from")] {
        if let CopyEndpoint::DeviceSide(address) = end
            && !gpu().is_device_side(address, bytes)
        {
            let place = gpu().memory.describe(address);
            return Err(illegal_access(&format!("a copy of {bytes} bytes {what} {place}")));
        }
    }
    let (to, from) = (to.address(), from.address());
    // SAFETY: device memory was checked; pageable memory is the caller's. Both may overlap.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
    Ok(())
}

fn fill(to: usize, pattern: [u8; 4], width: usize, count: usize) -> Result<(), u32> {
    if !gpu().is_device_side(to, width * count) {
        let place = gpu().memory.describe(to);
        return Err(illegal_access(&format!("memory of {} bytes is set at {place}", width * count)));
    }
    if width == 1 {
        // SAFETY: checked above.
        unsafe { sys::fill(to, pattern[0], count) };
        return Ok(());
    }
    for index in 0..count {
        // SAFETY: checked above, and the pattern has at most 4 bytes.
        unsafe { std::ptr::copy_nonoverlapping(pattern.as_ptr(), (to + index * width) as *mut u8, width) };
    }
    Ok(())
}

fn run_kernel(mut work: KernelLaunch, fibers: &mut FiberPool) -> Result<(), u32> {
    let cells = work.parameter_cells.as_mut_ptr();
    // SAFETY: cells lie in the vector.
    let mut pointers: Vec<*mut c_void> =
        work.first_cells.iter().map(|cell| unsafe { cells.add(*cell) }.cast()).collect();
    let launch = GridLaunch {
        kernel: work.kernel.function,
        parameters: pointers.as_mut_ptr(),
        grid: work.grid,
        block: work.block,
        shared_bytes: work.shared_bytes,
    };
    // SAFETY: the parameters were copied by the sizes that the compiler gave for this kernel.
    let ended = unsafe { fibers.run(&launch) };
    ended.map_err(|failed| {
        let (code, what) = explain_failure(&work, &failed);
        fault_state().record_defect(code, &what)
    })?;
    let buffers = work.first_cells.iter().zip(work.kernel.parameter_sizes).filter(|(_, size)| **size == 8);
    let addresses = buffers.map(|(cell, _)| work.parameter_cells[*cell] as u64 as usize);
    let found = gpu().memory.overrun_at(addresses).map(|(allocation, offset)| (allocation.len_bytes, offset));
    found.map_or(Ok(()), |(bytes, offset)| {
        let name = work.kernel.name;
        Err(illegal_access(&format!("`{name}` writes to byte {offset} of an allocation of {bytes} bytes")))
    })
}

fn explain_failure(work: &KernelLaunch, failed: &LaunchFailure) -> (u32, String) {
    let name = work.kernel.name;
    match failed {
        LaunchFailure::BadAccess { access, block, thread } if access.is_division => {
            (codes::LAUNCH_FAILED, format!("`{name}` divides by zero: block {block:?}, thread {thread}"))
        }
        LaunchFailure::BadAccess { access, block, thread } => {
            let place = gpu().memory.describe(access.address);
            let does = if access.is_write { "writes to" } else { "reads" };
            (codes::ILLEGAL_ADDRESS, format!("`{name}` {does} {place}: block {block:?}, thread {thread}"))
        }
        LaunchFailure::Divergent { block, at_block, at_warp, finished: ended } => {
            let what = format!(
                "`{name}` has a divergent barrier: in block {block:?}, {at_block} threads wait for the block, {at_warp} for \
                 their warp, {ended} have ended"
            );
            (codes::LAUNCH_TIMEOUT, what)
        }
        LaunchFailure::SharedOverrun { block } => {
            let bytes = work.shared_bytes;
            (
                codes::ILLEGAL_ADDRESS,
                format!("`{name}` writes behind its {bytes} bytes of shared memory: block {block:?}"),
            )
        }
        LaunchFailure::NoStack => {
            (codes::LAUNCH_OUT_OF_RESOURCES, format!("no stacks for the threads of `{name}`"))
        }
    }
}

fn multiply(work: &MatmulTask) -> Result<(), u32> {
    {
        let gpu = gpu();
        for (operand, name, used) in [
            (&work.a, "A", true),
            (&work.b, "B", true),
            (&work.c, "C", work.beta != 0.0),
            (&work.d, "D", true),
        ] {
            let bytes = operand.extent_bytes(work.batch_count);
            if used && !gpu.is_device_side(operand.address, bytes) {
                let place = gpu.memory.describe(operand.address);
                drop(gpu);
                return Err(illegal_access(&format!("`matmul`: {name} takes {bytes} bytes from {place}")));
            }
        }
    }
    // SAFETY: checked above.
    unsafe { work.run() };
    Ok(())
}

pub(crate) fn free(at: usize) -> Result<(), u32> {
    let freed = gpu().memory.free(at);
    match freed {
        Some(None) => Ok(()),
        Some(Some((allocation, offset))) => {
            let bytes = allocation.len_bytes;
            Err(illegal_access(&format!(
                "something was written to byte {offset} of an allocation of {bytes} bytes"
            )))
        }
        None => Err(codes::INVALID_VALUE),
    }
}

/// Whether something was written beside any allocation: what kernels do to memory that they were not given by a parameter.
pub(crate) fn check_redzones() -> Result<(), u32> {
    let found = gpu().memory.overrun().map(|(allocation, offset)| (allocation.len_bytes, offset));
    found.map_or(Ok(()), |(bytes, offset)| {
        Err(illegal_access(&format!(
            "something was written to byte {offset} of an allocation of {bytes} bytes"
        )))
    })
}

/// The first buffer that a launch writes to: address, bytes, and what its elements are.
#[derive(Clone, Copy)]
struct ResultBuffer {
    address: usize,
    len_bytes: usize,
    element: ElementType,
}

fn result_buffer(work: &StreamWork) -> Option<ResultBuffer> {
    match work {
        StreamWork::LaunchKernel(run) if run.kernel.parameter_sizes.first() == Some(&8) => {
            let at = *run.parameter_cells.get(*run.first_cells.first()?)? as u64 as usize;
            let end = gpu().memory.containing(at)?.end();
            let element = if run.kernel.name.contains("bf16") { ElementType::Bf16 } else { ElementType::F32 };
            Some(ResultBuffer { address: at, len_bytes: end - at, element })
        }
        StreamWork::Matmul(matmul) => {
            let Operand { address: at, element, .. } = matmul.d;
            gpu().is_device_side(at, matmul.d.extent_bytes(matmul.batch_count)).then_some(ResultBuffer {
                address: at,
                len_bytes: matmul.d.extent_bytes(matmul.batch_count),
                element,
            })
        }
        _ => None,
    }
}

fn snapshot(buffer: Option<ResultBuffer>) -> Option<Vec<u8>> {
    // SAFETY: the buffer lies in one allocation, and no work runs now.
    buffer.map(|buffer| unsafe { sys::bytes(buffer.address, buffer.len_bytes) }.to_vec())
}

/// One element that the launch changed becomes another; which one, the seed says.
fn overwrite(
    buffer: Option<ResultBuffer>,
    before: Option<&[u8]>,
    with: OverwriteValue,
    seed: u64,
    rule: usize,
) {
    let (Some(buffer), Some(before)) = (buffer, before) else {
        return fault_state().record_evidence(Some(rule), "the launch has no result that can be overwritten");
    };
    // SAFETY: as in `copy_of`.
    let after = unsafe { sys::bytes(buffer.address, buffer.len_bytes) };
    let size = buffer.element.bytes();
    let pairs = before.chunks_exact(size).zip(after.chunks_exact(size));
    let changed: Vec<usize> =
        pairs.enumerate().filter(|(_, (old, new))| old != new).map(|(index, _)| index).collect();
    if changed.is_empty() {
        return fault_state()
            .record_evidence(Some(rule), "the launch changed nothing that could be overwritten");
    }
    let index = changed[(split_mix_64(seed) % changed.len() as u64) as usize];
    let at = buffer.address + index * size;
    // SAFETY: the element lies in the buffer.
    let (old, new) = unsafe { replace_element(at, buffer.element, with) };
    let of = changed.len();
    fault_state().record_evidence(
        Some(rule),
        &format!("element {index}, one of {of} that changed, was {old:e} and is now {new:e}"),
    );
}

/// # Safety
/// The element lies in writable memory.
unsafe fn replace_element(at: usize, element: ElementType, with: OverwriteValue) -> (f32, f32) {
    let wrong = |old: f32| match with {
        OverwriteValue::Nan => f32::NAN,
        // Finite, and of another size whatever the old value was.
        OverwriteValue::Wrong if old.abs() < 1.0 => 1000.0,
        OverwriteValue::Wrong => (-64.0 * old).clamp(-1e30, 1e30),
    };
    // SAFETY: the caller's.
    unsafe {
        match element {
            ElementType::F32 => {
                let old = (at as *const f32).read_unaligned();
                (at as *mut f32).write_unaligned(wrong(old));
                (old, wrong(old))
            }
            ElementType::Bf16 => {
                let old = bf16_to_f32((at as *const u16).read_unaligned());
                (at as *mut u16).write_unaligned(f32_to_bf16(wrong(old)));
                (old, wrong(old))
            }
        }
    }
}

/// One bit of the largest allocation.
pub(crate) fn flip_bit(seed: u64, rule: usize) {
    let largest = gpu().memory.largest().map(|allocation| (allocation.address, allocation.len_bytes));
    let Some((at, bytes)) = largest else {
        return fault_state().record_evidence(Some(rule), "there is no allocation to flip a bit of");
    };
    let bit = split_mix_64(seed) % (bytes as u64 * 8);
    // SAFETY: the byte lies in the allocation, and no work runs now.
    unsafe { *((at + bit as usize / 8) as *mut u8) ^= 1 << (bit % 8) };
    fault_state().record_evidence(
        Some(rule),
        &format!("bit {bit} of the largest allocation, {bytes} bytes, was flipped"),
    );
}

/// SplitMix64: small seeds lie as far apart as large ones.
fn split_mix_64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

const _: () = assert!(POISON == 0xFF, "a bf16 and an f32 of this are no numbers");
