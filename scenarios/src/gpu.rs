//! The GPU as scenarios name it: the GPU of a target, versions, and the errors of a driver call. Knows no
//! driver. Error numbers are those of CUDA's headers.

use crate::units::ByteSize;
use crate::yaml::leaf::{LeafError, leaf_of};
use crate::yaml::problem::suggestion;

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

impl CudaVersion {
    fn parse(text: &str) -> Result<CudaVersion, LeafError> {
        let parsed = text.split_once('.').and_then(|(major, minor)| {
            let minor = minor.parse().ok().filter(|minor| *minor < 100)?;
            Some(CudaVersion { major: major.parse().ok().filter(|major| *major < 1000)?, minor })
        });
        parsed.ok_or_else(|| LeafError::not(text, "a version such as `12.8`"))
    }
}

leaf_of!(CudaVersion, CudaVersion::parse, r"^\d+\.\d+$", "A version: `12.8`.", ["string", "number"]);

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

    fn parse(text: &str) -> Result<CudaError, LeafError> {
        CudaError::from_name(text).ok_or_else(|| {
            let names = CUDA_ERRORS.iter().map(|(name, ..)| *name);
            LeafError::not(text, "a known CUDA error").help(suggestion(text, names))
        })
    }
}

leaf_of!(
    CudaError,
    CudaError::parse,
    r"^[a-z0-9-]+$",
    "A CUDA error by its name, without `CUDA_ERROR_`: `launch-failed`, `ecc-uncorrectable`."
);

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
