//! The operations that streams queue, as data. Must not know how an operation runs, or which call queues it.

use crate::faults::Corruption;
use crate::kernels::CompiledKernel;
use crate::matmul::MatmulTask;

use super::sys::HostCall;

/// Identifies an object of the driver.
pub(crate) type Handle = u64;

/// One of the operations of a stream. The position is reached once that operation is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamPosition {
    pub(crate) stream: Handle,
    /// Number of the operation within the stream, from 1. 0 is always reached.
    pub(crate) number: u64,
}

/// An operation in the queue of a stream.
pub(crate) struct QueuedOperation {
    /// Number within the stream, from 1.
    pub(crate) number: u64,
    /// Positions in other streams that must be reached first.
    pub(crate) dependencies: Vec<StreamPosition>,
    pub(crate) work: StreamWork,
    /// What rules inject into this operation.
    pub(crate) corruptions: Vec<Corruption>,
}

impl QueuedOperation {
    /// Returns whether a rule makes this operation never end.
    pub(crate) fn hangs(&self) -> bool {
        self.corruptions.contains(&Corruption::Hang)
    }
}

/// What one operation does.
pub(crate) enum StreamWork {
    /// Nothing: other operations depend on its position, or it depends on others.
    Nothing,
    /// Copies `bytes` bytes.
    Copy { to: CopyEndpoint, from: CopyEndpoint, bytes: usize },
    /// Copies bytes that were read from pageable memory at the call.
    StagedCopy { to: CopyEndpoint, bytes: Vec<u8> },
    /// Fills memory.
    Fill(MemoryFill),
    /// Runs a kernel.
    LaunchKernel(Box<KernelLaunch>),
    /// Runs a matrix product of cublasLt.
    Matmul(Box<MatmulTask>),
    /// Records the time of an event.
    RecordEvent { event: Handle },
    /// Calls a function of the program.
    CallHost(HostCall),
    /// Frees an allocation.
    Free { address: usize },
}

/// One end of a copy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CopyEndpoint {
    /// Device memory or page-locked memory. Checked when the copy runs.
    DeviceSide(usize),
    /// Pageable memory. Not checked.
    Pageable(usize),
}

impl CopyEndpoint {
    pub(crate) fn address(self) -> usize {
        match self {
            CopyEndpoint::DeviceSide(address) | CopyEndpoint::Pageable(address) => address,
        }
    }
}

/// Writes the first `width` bytes of `pattern`, `count` times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryFill {
    pub(crate) to: usize,
    pub(crate) pattern: [u8; 4],
    /// At most 4.
    pub(crate) width: usize,
    pub(crate) count: usize,
}

/// A launch of a kernel, with its parameters.
pub(crate) struct KernelLaunch {
    pub(crate) kernel: CompiledKernel,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: usize,
    /// The values of the parameters. Each takes one or more cells of 16 bytes.
    pub(crate) parameter_cells: Vec<u128>,
    /// Index of the first cell of each parameter.
    pub(crate) first_cells: Vec<usize>,
}
