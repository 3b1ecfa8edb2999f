//! The GPU as scenarios name it: the GPU of a target, calls of its driver, their errors, and the GPU's state.
//!
//! Knows no driver. Error numbers are those of CUDA's headers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scenario::Occurrence;
use crate::units::ByteSize;

/// The GPU that a target sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetGpu {
    /// No GPU is needed: a shim replaces the driver and computes on the CPU.
    Simulated(SimulatedGpu),
    /// The machine's own GPU, with the shim between the target and its driver.
    Real,
}

/// A simulated machine with GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedGpu {
    /// Number of devices, at least 1.
    pub devices: u32,
    /// Memory of each device.
    pub memory: ByteSize,
    /// Newest CUDA version that the driver supports.
    pub driver: CudaVersion,
    /// Compute capability of each device.
    pub compute_capability: CudaVersion,
}

/// A version such as 12.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaVersion {
    pub major: u32,
    pub minor: u32,
}

/// A kind of driver call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GpuCallKind {
    /// `cuInit`.
    Initialise,
    /// Loads a module or a library of kernels.
    LoadModule,
    /// Launches a kernel. A matrix product of cublasLt counts as a launch of a kernel named `matmul`.
    Launch,
    Allocate,
    Free,
    Copy,
    /// Waits for a stream, an event or a context.
    Synchronise,
    /// Any other call.
    Other,
}

impl GpuCallKind {
    /// Its name in scenario files.
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

/// Which calls of the driver. Calls of all threads and processes of the target are counted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuCallTrigger {
    /// Kinds of call. Empty: all kinds.
    pub kinds: Vec<GpuCallKind>,
    /// Glob on the name of the driver function.
    pub function: Option<String>,
    /// Glob on the name of the kernel.
    pub kernel: Option<String>,
    /// Smallest size of an allocation or a copy.
    pub min_bytes: u64,
    /// Which of the matching calls, counted from when the fault is armed.
    pub occurrence: Occurrence,
}

/// When an error is reported to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorReporting {
    /// By the call that fails.
    Immediately,
    /// By the next synchronising call, as errors in kernels are.
    AtNextSync,
}

/// A wrong value in the output of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WrongValue {
    Nan,
    /// A finite value that is far from the right one.
    Wrong,
}

/// Why the clocks are throttled.
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

/// What a GPU reports about itself. A field with its default value changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpuState {
    /// Off the bus.
    pub lost: bool,
    /// Temperature in degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Reasons for which the clocks are throttled.
    pub throttled: Vec<ThrottleReason>,
    /// Added to the count of corrected memory errors.
    pub ecc_corrected: u64,
    /// Added to the count of uncorrected memory errors.
    pub ecc_uncorrected: u64,
    /// Driver events, by NVIDIA's numbers, in order.
    pub xids: Vec<u64>,
    /// Newest CUDA version that the driver supports, as seen by processes that start after the injection.
    pub driver: Option<CudaVersion>,
}

/// Errors that a scenario can name: the name after `CUDA_ERROR_` in lower case, the number, and whether the
/// error is sticky: the process cannot use CUDA again ("the process must be terminated and relaunched",
/// cuda.h).
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

/// Why a driver call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaError {
    /// Its name in scenario files.
    pub name: &'static str,
    /// Its `CUresult`.
    pub number: u32,
    /// Whether a real error of this kind leaves the process unable to use CUDA again.
    pub sticky: bool,
}

impl CudaError {
    /// The error with this name, if a scenario can name it.
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
