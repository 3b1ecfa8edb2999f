//! The GPU as scenarios name it: which one a target gets, which calls of its driver, what they fail with, what its state is.
//!
//! Knows no driver: numbers are those of CUDA's own headers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scenario::Occurrence;
use crate::units::ByteSize;

/// The GPU that a target sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetGpu {
    /// None is needed: a stand-in for the driver computes on the CPU.
    Simulated(SimulatedGpu),
    /// The machine's own, with the stand-in in front of its driver.
    Real,
}

/// A simulated machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedGpu {
    /// At least 1.
    pub devices: u32,
    /// Of each.
    pub memory: ByteSize,
    /// Newest CUDA version that the driver supports.
    pub driver: CudaVersion,
    pub compute_capability: CudaVersion,
}

/// Such as 12.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaVersion {
    pub major: u32,
    pub minor: u32,
}

/// A kind of call of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GpuCallKind {
    /// `cuInit`.
    Initialise,
    /// A module or a library of kernels is loaded.
    LoadModule,
    /// A kernel is launched; a matrix product of cublasLt is one, named `matmul`.
    Launch,
    Allocate,
    Free,
    Copy,
    /// Waits for a stream, an event or a context.
    Synchronise,
    /// Everything else.
    Other,
}

impl GpuCallKind {
    /// As a scenario names it.
    pub fn name(self) -> &'static str {
        match self {
            GpuCallKind::Initialise => "initialise",
            GpuCallKind::LoadModule => "load-module",
            GpuCallKind::Launch => "launch",
            GpuCallKind::Allocate => "allocate",
            GpuCallKind::Free => "free",
            GpuCallKind::Copy => "copy",
            GpuCallKind::Synchronise => "synchronise",
            GpuCallKind::Other => "other",
        }
    }
}

/// Which calls of the driver, of all threads and processes of the target together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuCallTrigger {
    /// None: all kinds.
    pub kinds: Vec<GpuCallKind>,
    /// Glob on the function's name.
    pub function: Option<String>,
    /// Glob on the kernel's name.
    pub kernel: Option<String>,
    /// For allocations and copies.
    pub min_bytes: u64,
    /// Counted from when the fault is armed.
    pub occurrence: Occurrence,
}

/// When an error is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorReporting {
    /// By the call itself.
    Immediately,
    /// By the next call that waits, as errors of kernels are.
    AtNextSync,
}

/// What a wrong value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WrongValue {
    Nan,
    /// Finite, and far from right.
    Wrong,
}

/// Why clocks are held down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ThrottleReason {
    /// Hardware thermal slowdown.
    Thermal,
    /// Software power cap.
    PowerCap,
    /// Hardware power brake.
    PowerBrake,
}

/// What a GPU tells of itself; what is not said stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpuState {
    /// Off the bus.
    pub lost: bool,
    pub temperature_c: Option<u32>,
    pub throttled: Vec<ThrottleReason>,
    /// Added to the counts.
    pub ecc_corrected: u64,
    pub ecc_uncorrected: u64,
    /// In order.
    pub xids: Vec<u64>,
    /// Newest CUDA version that the driver supports, for processes that begin.
    pub driver: Option<CudaVersion>,
}

/// Errors that a scenario can name: `CUDA_ERROR_` and the name in capitals, its number, and whether it leaves the process unable to
/// use CUDA again ("the process must be terminated and relaunched", as cuda.h says of most of them).
const CUDA_ERRORS: [(&str, u32, bool); 53] = [
    ("invalid-value", 1, false),
    ("out-of-memory", 2, false),
    ("not-initialized", 3, false),
    ("deinitialized", 4, false),
    ("stub-library", 34, false),
    ("device-unavailable", 46, false),
    ("no-device", 100, false),
    ("invalid-device", 101, false),
    ("device-not-licensed", 102, false),
    ("invalid-image", 200, false),
    ("invalid-context", 201, false),
    ("map-failed", 205, false),
    ("unmap-failed", 206, false),
    ("no-binary-for-gpu", 209, false),
    ("ecc-uncorrectable", 214, true),
    ("unsupported-limit", 215, false),
    ("peer-access-unsupported", 217, false),
    ("invalid-ptx", 218, false),
    ("nvlink-uncorrectable", 220, true),
    ("jit-compiler-not-found", 221, false),
    ("unsupported-ptx-version", 222, false),
    ("jit-compilation-disabled", 223, false),
    ("contained", 226, true),
    ("file-not-found", 301, false),
    ("shared-object-symbol-not-found", 302, false),
    ("shared-object-init-failed", 303, false),
    ("operating-system", 304, false),
    ("invalid-handle", 400, false),
    ("illegal-state", 401, false),
    ("not-found", 500, false),
    ("not-ready", 600, false),
    ("illegal-address", 700, true),
    ("launch-out-of-resources", 701, false),
    ("launch-timeout", 702, true),
    ("context-is-destroyed", 709, false),
    ("assert", 710, true),
    ("hardware-stack-error", 714, true),
    ("illegal-instruction", 715, true),
    ("misaligned-address", 716, true),
    ("invalid-address-space", 717, true),
    ("invalid-pc", 718, true),
    ("launch-failed", 719, true),
    ("cooperative-launch-too-large", 720, false),
    ("tensor-memory-leak", 721, true),
    ("not-permitted", 800, false),
    ("not-supported", 801, false),
    ("system-not-ready", 802, false),
    ("system-driver-mismatch", 803, false),
    ("compat-not-supported-on-device", 804, false),
    ("mps-connection-failed", 805, false),
    ("mps-rpc-failure", 806, false),
    ("timeout", 909, false),
    ("unknown", 999, true),
];

/// Why a call of the driver failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaError {
    /// As a scenario names it.
    pub name: &'static str,
    /// Its `CUresult`.
    pub number: u32,
    /// Whether a real one leaves the process unable to use CUDA again.
    pub sticky: bool,
}

impl CudaError {
    pub fn from_name(name: &str) -> Option<CudaError> {
        let known = CUDA_ERRORS.iter().find(|(known, ..)| *known == name);
        known.map(|&(name, number, lasting)| CudaError { name, number, sticky: lasting })
    }

    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        CUDA_ERRORS.iter().map(|(name, ..)| *name)
    }
}

impl std::fmt::Display for CudaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl std::fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
