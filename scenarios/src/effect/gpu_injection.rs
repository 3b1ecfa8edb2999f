//! Which call of the GPU driver gets a fault, and what happens there. Knows no fault and no driver.

use gpu_words::{DriverCallKind, ErrorTiming, OverwriteValue};

use crate::gpu::CudaError;
use crate::trigger::Occurrence;

/// Which calls of the driver. Calls of all threads and processes of the target are counted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuCallTrigger {
    /// Kinds of call. Empty: all kinds.
    pub kinds: Vec<DriverCallKind>,
    /// Glob on the name of the driver function.
    pub function: Option<String>,
    /// Glob on the name of the kernel.
    pub kernel: Option<String>,
    /// Smallest size of an allocation or a copy.
    pub min_bytes: u64,
    /// Which of the matching calls, counted from when the fault is armed.
    pub occurrence: Occurrence,
}

impl GpuCallTrigger {
    /// Describes the calls, such as `GPU launch or synchronise of attention*`.
    pub fn describe(&self) -> String {
        let kinds: Vec<&str> = self.kinds.iter().map(|kind| kind.name()).collect();
        let kinds = if kinds.is_empty() { "call".into() } else { kinds.join(" or ") };
        let names = [&self.kernel, &self.function].into_iter().flatten();
        let names: String = names.map(|name| format!(" of {name}")).collect();
        let size = match self.min_bytes {
            0 => String::new(),
            min_bytes => format!(" of {min_bytes} bytes or more"),
        };
        format!("GPU {kinds}{names}{size}")
    }
}

/// What happens at a GPU driver call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GpuInjection {
    /// An error is returned. `sticky`: so does every later call of the process.
    Fail { code: CudaError, reported: ErrorTiming, sticky: bool },
    /// The kernel never ends.
    Hang,
    /// The kernel leaves a wrong value in its output. `seed` selects where.
    Overwrite { with: OverwriteValue, seed: u64 },
    /// A bit of the largest allocation flips. `seed` selects it.
    FlipBit { seed: u64 },
    /// Free device memory consists of holes of at most this size.
    Fragment { hole_bytes: u64 },
}

impl GpuInjection {
    /// What happens, as a part of a sentence about the call.
    pub fn describe(self) -> String {
        match self {
            GpuInjection::Fail { code, reported, sticky } => {
                let reported = match reported {
                    ErrorTiming::Immediately => "",
                    ErrorTiming::AtNextSync => ", reported at the next synchronisation",
                };
                let sticky = if sticky { ", as does every later call of the process" } else { "" };
                format!("fails with {code}{reported}{sticky}")
            }
            GpuInjection::Hang => "never ends".into(),
            GpuInjection::Overwrite { with: OverwriteValue::Nan, .. } => "leaves a NaN in its output".into(),
            GpuInjection::Overwrite { with: OverwriteValue::Wrong, .. } => {
                "leaves a wrong number in its output".into()
            }
            GpuInjection::FlipBit { .. } => "finds a bit flipped in the largest allocation".into(),
            GpuInjection::Fragment { hole_bytes } => {
                format!("finds device memory in holes of at most {hole_bytes} bytes")
            }
        }
    }
}
