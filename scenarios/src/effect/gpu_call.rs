//! The faults at calls of the GPU driver: `gpu-error`, `gpu-hang`, `gpu-overwrite`, `gpu-flip-bit`,
//! `gpu-fragment`. Knows no driver.

use gpu_words::{DriverCallKind, ErrorTiming, OverwriteValue};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::effect::checker::Checker;
use crate::effect::gpu_injection::{GpuCallTrigger, GpuInjection};
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec, GpuNeed};
use crate::gpu::CudaError;
use crate::trigger::Occurrence;
use crate::units::ByteSize;
use crate::yaml::leaf::NameGlob;
use crate::yaml::problem::Problem;
use crate::yaml::spanned::Spanned;

/// A call of the GPU driver. Calls of all threads and processes of the target are counted together, from when
/// the fault is armed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct GpuCallDraft {
    /// Which kinds of call. Default: all kinds that the other keys allow.
    pub(crate) to: Option<Spanned<Vec<DriverCallKind>>>,
    /// Only launches of kernels whose name matches: `attention*`.
    pub(crate) kernel: Option<Spanned<NameGlob>>,
    /// Only driver functions whose name matches: `cuMem*`.
    pub(crate) function: Option<NameGlob>,
    /// Only allocations and copies of at least this size.
    pub(crate) min_bytes: Option<Spanned<ByteSize>>,
    /// Which of the calls that match. `every`: each call of each kind in turn, one trial each.
    pub(crate) at: Occurrence,
}

fault!(
    /// A call of the driver that fails.
    GpuErrorDraft {
        /// The errors that the call fails with, by CUDA's names, one trial each.
        code: Spanned<Vec<CudaError>>,
        /// When the error is reported, one trial each. Default: `immediately`.
        reported: Option<Spanned<Vec<ErrorTiming>>>,
        /// Every later call of the same process fails in the same way. Default: as a real error of that name
        /// does.
        sticky: Option<bool>,
        /// Which call fails.
        call: GpuCallDraft,
    }
);
fault!(
    /// A kernel that never finishes.
    GpuHangDraft {
        /// Which launch.
        call: GpuCallDraft,
    }
);
fault!(
    /// A wrong value in the output of a kernel. The seed decides where.
    GpuOverwriteDraft {
        /// The value that is written.
        with: OverwriteValue,
        /// Which launch.
        call: GpuCallDraft,
    }
);
fault!(
    /// One bit of the largest allocation flips. The seed decides which bit.
    GpuFlipBitDraft {
        /// The call at which the bit flips.
        call: GpuCallDraft,
    }
);
fault!(
    /// Fragmented device memory.
    GpuFragmentDraft {
        /// Largest contiguous piece of free memory.
        holes: Spanned<ByteSize>,
        /// The call at which memory becomes fragmented.
        call: GpuCallDraft,
    }
);

/// Makes a call of the GPU driver fail, one trial per code and timing.
#[derive(Debug, Clone)]
pub struct GpuError {
    /// Never empty.
    pub codes: Vec<CudaError>,
    /// When the error is reported. Never empty.
    pub reported: Vec<ErrorTiming>,
    /// `None`: as a real error of that code.
    pub sticky: Option<bool>,
    /// Which call fails.
    pub calls: GpuCallTrigger,
}

/// Makes a kernel run forever.
#[derive(Debug, Clone)]
pub struct GpuHang {
    /// Which launch.
    pub calls: GpuCallTrigger,
}

/// Overwrites a value in the output of a kernel.
#[derive(Debug, Clone)]
pub struct GpuOverwrite {
    /// The value that is written.
    pub with: OverwriteValue,
    /// Which launch.
    pub calls: GpuCallTrigger,
}

/// Flips one bit in the largest allocation.
#[derive(Debug, Clone)]
pub struct GpuFlipBit {
    /// The call at which the bit flips.
    pub calls: GpuCallTrigger,
}

/// Fragments free device memory.
#[derive(Debug, Clone)]
pub struct GpuFragment {
    /// Largest contiguous piece of free memory.
    pub holes: ByteSize,
    /// The call at which memory becomes fragmented.
    pub calls: GpuCallTrigger,
}

impl GpuCallDraft {
    fn check(&self, checker: &mut Checker) -> GpuCallTrigger {
        let fitting: &[DriverCallKind] = match (&self.kernel, &self.min_bytes) {
            (Some(_), _) => &[DriverCallKind::Launch],
            (None, Some(_)) => &[DriverCallKind::Allocate, DriverCallKind::Copy],
            (None, None) => &[],
        };
        let kinds = self.to.as_ref().map_or(fitting, |kinds| kinds.value.as_slice()).to_vec();
        let misfit = kinds.iter().find(|kind| !fitting.is_empty() && !fitting.contains(kind));
        let key = self.kernel.as_ref().map(|kernel| ("kernel", kernel.span));
        let key = key.or(self.min_bytes.as_ref().map(|bytes| ("min-bytes", bytes.span)));
        if let (Some(kind), Some((key, span))) = (misfit, key) {
            let names: Vec<&str> = fitting.iter().map(|kind| kind.name()).collect();
            checker.problems.push(
                Problem::at(span, format!("`{key}` does not apply to `{}` calls", kind.name()))
                    .help(format!("write `to` with one or more of: {}", names.join(", "))),
            );
        }
        GpuCallTrigger {
            kinds,
            function: self.function.as_ref().map(|function| function.0.clone()),
            kernel: self.kernel.as_ref().map(|kernel| kernel.value.0.clone()),
            min_bytes: self.min_bytes.as_ref().map_or(0, |bytes| bytes.value.0),
            occurrence: self.at,
        }
    }

    /// The calls of a fault that can be injected only at kernel launches. `name`: the fault's key.
    fn check_launches(&self, name: &str, checker: &mut Checker) -> GpuCallTrigger {
        let calls = self.check(checker);
        let wrong = calls.kinds.iter().find(|kind| **kind != DriverCallKind::Launch);
        if let (Some(to), Some(wrong)) = (&self.to, wrong) {
            let problem = to.problem(format!("`{name}` cannot be injected at a `{}` call", wrong.name()));
            checker.problems.push(problem.help("write `to: [launch]`"));
        }
        GpuCallTrigger { kinds: vec![DriverCallKind::Launch], ..calls }
    }
}

impl CheckEffect for GpuErrorDraft {
    type Checked = GpuError;

    fn check(&self, checker: &mut Checker) -> GpuError {
        checker.require_not_empty(&self.code, "`code` is empty");
        if let Some(reported) = &self.reported {
            checker.require_not_empty(reported, "`reported` is empty");
        }
        let reported = self.reported.as_ref().map(|reported| reported.value.clone());
        GpuError {
            codes: self.code.value.clone(),
            reported: reported.unwrap_or_else(|| vec![ErrorTiming::Immediately]),
            sticky: self.sticky,
            calls: self.call.check(checker),
        }
    }
}

impl CheckEffect for GpuHangDraft {
    type Checked = GpuHang;

    fn check(&self, checker: &mut Checker) -> GpuHang {
        GpuHang { calls: self.call.check_launches("gpu-hang", checker) }
    }
}

impl CheckEffect for GpuOverwriteDraft {
    type Checked = GpuOverwrite;

    fn check(&self, checker: &mut Checker) -> GpuOverwrite {
        GpuOverwrite { with: self.with, calls: self.call.check_launches("gpu-overwrite", checker) }
    }
}

impl CheckEffect for GpuFlipBitDraft {
    type Checked = GpuFlipBit;

    fn check(&self, checker: &mut Checker) -> GpuFlipBit {
        GpuFlipBit { calls: self.call.check(checker) }
    }
}

impl CheckEffect for GpuFragmentDraft {
    type Checked = GpuFragment;

    fn check(&self, checker: &mut Checker) -> GpuFragment {
        if self.holes.value.0 == 0 {
            checker.problems.push(self.holes.problem("`holes` must be at least 1 B"));
        }
        GpuFragment { holes: self.holes.value, calls: self.call.check(checker) }
    }
}

/// What all faults of this file tell about themselves, and what each of them injects.
macro_rules! driver_fault {
    ($name:ident, $need:expr, $describe:literal, |$fault:ident, $seed:ident| $injections:expr) => {
        impl EffectSpec for $name {
            fn describe(&self) -> String {
                $describe.into()
            }

            fn needed_gpu(&self) -> Option<GpuNeed> {
                Some($need)
            }

            fn gpu_calls(&self) -> Option<&GpuCallTrigger> {
                Some(&self.calls)
            }

            fn gpu_injections(&self, $seed: u64) -> Vec<GpuInjection> {
                let $fault = self;
                $injections
            }
        }
    };
}

driver_fault!(GpuError, GpuNeed::Any, "a GPU call fails", |fault, _seed| {
    let fail = |code: CudaError, reported: ErrorTiming| GpuInjection::Fail {
        code,
        reported,
        sticky: fault.sticky.unwrap_or(code.sticky),
    };
    let codes = fault.codes.iter();
    codes.flat_map(|code| fault.reported.iter().map(move |reported| fail(*code, *reported))).collect()
});
driver_fault!(GpuHang, GpuNeed::Any, "a kernel never ends", |_fault, _seed| vec![GpuInjection::Hang]);
driver_fault!(GpuOverwrite, GpuNeed::Simulated, "a kernel leaves a wrong value", |fault, seed| {
    vec![GpuInjection::Overwrite { with: fault.with, seed }]
});
driver_fault!(GpuFlipBit, GpuNeed::Simulated, "a bit of device memory flips", |_fault, seed| {
    vec![GpuInjection::FlipBit { seed }]
});
driver_fault!(GpuFragment, GpuNeed::Simulated, "device memory is fragmented", |fault, _seed| {
    vec![GpuInjection::Fragment { hole_bytes: fault.holes.0 }]
});
