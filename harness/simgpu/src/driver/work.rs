//! Operations of a stream, and how each is carried out. Unsafe: it moves bytes and runs kernels. It must not know who waits.

use std::ffi::c_void;

use simgpu_plan::Overwrite;

use crate::codes;
use crate::fibers::{Failed, Fibers, Launch, POISON};
use crate::kernels::Kernel;
use crate::matmul::{Element, Matmul, Operand, narrowed, widened};
use crate::rules::{Twist, world};
use crate::sys;

use super::state::{Handle, gpu};

/// What one operation does.
pub(crate) enum Work {
    /// Only its place in the stream counts.
    Nothing,
    Copy {
        to: End,
        from: End,
        bytes: usize,
    },
    /// From pageable memory, read when the call was made.
    Staged {
        to: End,
        bytes: Vec<u8>,
    },
    Set {
        to: usize,
        pattern: [u8; 4],
        width: usize,
        count: usize,
    },
    Run(Box<KernelWork>),
    Multiply(Box<Matmul>),
    Record {
        event: Handle,
    },
    Call {
        function: unsafe extern "C" fn(*mut c_void),
        data: usize,
    },
    Free {
        at: usize,
    },
}

/// One end of a copy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// Device memory, or page-locked: looked up when the copy is done.
    Known(usize),
    /// Pageable: the caller's to answer for.
    Pageable(usize),
}

impl End {
    fn address(self) -> usize {
        match self {
            End::Known(address) | End::Pageable(address) => address,
        }
    }
}

pub(crate) struct KernelWork {
    pub(crate) kernel: Kernel,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: usize,
    /// One 16-byte cell or more for each.
    pub(crate) parameters: Vec<u128>,
    /// The first cell of each.
    pub(crate) cells: Vec<usize>,
}

/// Carries an operation out: its code.
pub(crate) fn carry_out(work: Work, twists: &[Twist], fibers: &mut Fibers) -> Result<(), u32> {
    let is_overwritten = twists.iter().any(|twist| matches!(twist, Twist::Overwrite { .. }));
    let result = is_overwritten.then(|| result_of(&work)).flatten();
    let before = copy_of(result);
    carry_out_plainly(work, fibers)?;
    for twist in twists {
        match *twist {
            Twist::Overwrite { with, seed, rule } => overwrite(result, before.as_deref(), with, seed, rule),
            Twist::FlipBit { seed, rule } => flip_bit(seed, rule),
            Twist::Hang => (),
        }
    }
    Ok(())
}

fn carry_out_plainly(work: Work, fibers: &mut Fibers) -> Result<(), u32> {
    match work {
        Work::Nothing => Ok(()),
        Work::Copy { to, from, bytes } => copy(to, from, bytes),
        Work::Staged { to, bytes } => copy(to, End::Pageable(bytes.as_ptr() as usize), bytes.len()),
        Work::Set { to, pattern, width, count } => set(to, pattern, width, count),
        Work::Run(work) => run(*work, fibers),
        Work::Multiply(work) => multiply(&work),
        Work::Record { event } => {
            if let Some(event) = gpu().events.get_mut(&event) {
                event.at = Some(std::time::Instant::now());
            }
            Ok(())
        }
        Work::Call { function, data } => {
            // SAFETY: who gave the function out promised that it can be called with this.
            unsafe { function(data as *mut c_void) };
            Ok(())
        }
        Work::Free { at } => free(at),
    }
}

fn illegal(what: &str) -> u32 {
    world().broken(codes::ILLEGAL_ADDRESS, what)
}

fn copy(to: End, from: End, bytes: usize) -> Result<(), u32> {
    for (end, what) in [(to, "to"), (from, "from")] {
        if let End::Known(address) = end
            && !gpu().is_device_side(address, bytes)
        {
            let place = gpu().memory.describe(address);
            return Err(illegal(&format!("a copy of {bytes} bytes {what} {place}")));
        }
    }
    let (to, from) = (to.address(), from.address());
    // SAFETY: device memory was checked; pageable memory is the caller's. Both may overlap.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
    Ok(())
}

fn set(to: usize, pattern: [u8; 4], width: usize, count: usize) -> Result<(), u32> {
    if !gpu().is_device_side(to, width * count) {
        let place = gpu().memory.describe(to);
        return Err(illegal(&format!("memory of {} bytes is set at {place}", width * count)));
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

fn run(mut work: KernelWork, fibers: &mut Fibers) -> Result<(), u32> {
    let cells = work.parameters.as_mut_ptr();
    // SAFETY: cells lie in the vector.
    let mut pointers: Vec<*mut c_void> =
        work.cells.iter().map(|cell| unsafe { cells.add(*cell) }.cast()).collect();
    let launch = Launch {
        run: work.kernel.run,
        parameters: pointers.as_mut_ptr(),
        grid: work.grid,
        block: work.block,
        shared_bytes: work.shared_bytes,
    };
    // SAFETY: the parameters were copied by the sizes that the compiler gave for this kernel.
    let ended = unsafe { fibers.run(&launch) };
    ended.map_err(|failed| {
        let (code, what) = explained(&work, &failed);
        world().broken(code, &what)
    })?;
    let buffers = work.cells.iter().zip(work.kernel.sizes).filter(|(_, size)| **size == 8);
    let addresses = buffers.map(|(cell, _)| work.parameters[*cell] as u64 as usize);
    let found = gpu().memory.overrun_at(addresses).map(|(allocation, offset)| (allocation.bytes, offset));
    found.map_or(Ok(()), |(bytes, offset)| {
        let name = work.kernel.name;
        Err(illegal(&format!("`{name}` writes to byte {offset} of an allocation of {bytes} bytes")))
    })
}

fn explained(work: &KernelWork, failed: &Failed) -> (u32, String) {
    let name = work.kernel.name;
    match failed {
        Failed::BadAccess { access, block, thread } if access.division => {
            (codes::LAUNCH_FAILED, format!("`{name}` divides by zero: block {block:?}, thread {thread}"))
        }
        Failed::BadAccess { access, block, thread } => {
            let place = gpu().memory.describe(access.address);
            let does = if access.write { "writes to" } else { "reads" };
            (codes::ILLEGAL_ADDRESS, format!("`{name}` {does} {place}: block {block:?}, thread {thread}"))
        }
        Failed::Divergent { block, at_block, at_warp, ended } => {
            let what = format!(
                "`{name}` has a divergent barrier: in block {block:?}, {at_block} threads wait for the block, {at_warp} for \
                 their warp, {ended} have ended"
            );
            (codes::LAUNCH_TIMEOUT, what)
        }
        Failed::SharedOverrun { block } => {
            let bytes = work.shared_bytes;
            (
                codes::ILLEGAL_ADDRESS,
                format!("`{name}` writes behind its {bytes} bytes of shared memory: block {block:?}"),
            )
        }
        Failed::NoStack => (codes::LAUNCH_OUT_OF_RESOURCES, format!("no stacks for the threads of `{name}`")),
    }
}

fn multiply(work: &Matmul) -> Result<(), u32> {
    {
        let gpu = gpu();
        for (operand, name, used) in [
            (&work.a, "A", true),
            (&work.b, "B", true),
            (&work.c, "C", work.beta != 0.0),
            (&work.d, "D", true),
        ] {
            let bytes = operand.extent(work.batches);
            if used && !gpu.is_device_side(operand.at, bytes) {
                let place = gpu.memory.describe(operand.at);
                drop(gpu);
                return Err(illegal(&format!("`matmul`: {name} takes {bytes} bytes from {place}")));
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
            let bytes = allocation.bytes;
            Err(illegal(&format!("something was written to byte {offset} of an allocation of {bytes} bytes")))
        }
        None => Err(codes::INVALID_VALUE),
    }
}

/// Whether something was written beside any allocation: what kernels do to memory that they were not given by a parameter.
pub(crate) fn check_surroundings() -> Result<(), u32> {
    let found = gpu().memory.overrun().map(|(allocation, offset)| (allocation.bytes, offset));
    found.map_or(Ok(()), |(bytes, offset)| {
        Err(illegal(&format!("something was written to byte {offset} of an allocation of {bytes} bytes")))
    })
}

/// The first buffer that a launch writes to: address, bytes, and what its elements are.
#[derive(Clone, Copy)]
struct Buffer {
    at: usize,
    bytes: usize,
    element: Element,
}

fn result_of(work: &Work) -> Option<Buffer> {
    match work {
        Work::Run(run) if run.kernel.sizes.first() == Some(&8) => {
            let at = *run.parameters.get(*run.cells.first()?)? as u64 as usize;
            let end = gpu().memory.around(at)?.end();
            let element = if run.kernel.name.contains("bf16") { Element::Bf16 } else { Element::F32 };
            Some(Buffer { at, bytes: end - at, element })
        }
        Work::Multiply(matmul) => {
            let Operand { at, element, .. } = matmul.d;
            gpu().is_device_side(at, matmul.d.extent(matmul.batches)).then_some(Buffer {
                at,
                bytes: matmul.d.extent(matmul.batches),
                element,
            })
        }
        _ => None,
    }
}

fn copy_of(buffer: Option<Buffer>) -> Option<Vec<u8>> {
    // SAFETY: the buffer lies in one allocation, and no work runs now.
    buffer.map(|buffer| unsafe { sys::bytes(buffer.at, buffer.bytes) }.to_vec())
}

/// One element that the launch changed becomes another; which one, the seed says.
fn overwrite(buffer: Option<Buffer>, before: Option<&[u8]>, with: Overwrite, seed: u64, rule: usize) {
    let (Some(buffer), Some(before)) = (buffer, before) else {
        return world().tell(Some(rule), "the launch has no result that can be overwritten");
    };
    // SAFETY: as in `copy_of`.
    let after = unsafe { sys::bytes(buffer.at, buffer.bytes) };
    let size = buffer.element.bytes();
    let pairs = before.chunks_exact(size).zip(after.chunks_exact(size));
    let changed: Vec<usize> =
        pairs.enumerate().filter(|(_, (old, new))| old != new).map(|(index, _)| index).collect();
    if changed.is_empty() {
        return world().tell(Some(rule), "the launch changed nothing that could be overwritten");
    }
    let index = changed[(mixed(seed) % changed.len() as u64) as usize];
    let at = buffer.at + index * size;
    // SAFETY: the element lies in the buffer.
    let (old, new) = unsafe { replace(at, buffer.element, with) };
    let of = changed.len();
    world().tell(
        Some(rule),
        &format!("element {index}, one of {of} that changed, was {old:e} and is now {new:e}"),
    );
}

/// # Safety
/// The element lies in writable memory.
unsafe fn replace(at: usize, element: Element, with: Overwrite) -> (f32, f32) {
    let wrong = |old: f32| match with {
        Overwrite::Nan => f32::NAN,
        // Finite, and of another size whatever the old value was.
        Overwrite::Wrong if old.abs() < 1.0 => 1000.0,
        Overwrite::Wrong => (-64.0 * old).clamp(-1e30, 1e30),
    };
    // SAFETY: the caller's.
    unsafe {
        match element {
            Element::F32 => {
                let old = (at as *const f32).read_unaligned();
                (at as *mut f32).write_unaligned(wrong(old));
                (old, wrong(old))
            }
            Element::Bf16 => {
                let old = widened((at as *const u16).read_unaligned());
                (at as *mut u16).write_unaligned(narrowed(wrong(old)));
                (old, wrong(old))
            }
        }
    }
}

/// One bit of the largest allocation.
pub(crate) fn flip_bit(seed: u64, rule: usize) {
    let largest = gpu().memory.largest().map(|allocation| (allocation.at, allocation.bytes));
    let Some((at, bytes)) = largest else {
        return world().tell(Some(rule), "there is no allocation to flip a bit of");
    };
    let bit = mixed(seed) % (bytes as u64 * 8);
    // SAFETY: the byte lies in the allocation, and no work runs now.
    unsafe { *((at + bit as usize / 8) as *mut u8) ^= 1 << (bit % 8) };
    world().tell(Some(rule), &format!("bit {bit} of the largest allocation, {bytes} bytes, was flipped"));
}

/// SplitMix64: small seeds lie as far apart as large ones.
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

const _: () = assert!(POISON == 0xFF, "a bf16 and an f32 of this are no numbers");
