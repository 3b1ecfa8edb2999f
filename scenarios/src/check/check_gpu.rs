//! What the shape of a file can't say of the GPU: which calls a fault can be made of, and which faults a GPU can have.

use crate::check::Checker;
use crate::gpu::{
    CudaVersion, ErrorReporting, GpuCallKind, GpuCallTrigger, GpuState, SimulatedGpu, TargetGpu,
};
use crate::gpu_draft::{GpuCallDraft, GpuDraft, GpuError, GpuFragment, GpuStateFault, SimulatedDraft};
use crate::problem::{Problem, SourceSpan};
use crate::scenario::{Effect, Fault, Occurrence, Trigger};
use crate::spanned::Placed;
use crate::units::ByteSize;

const MAX_DEVICES: u32 = 16;
/// Beyond that a rule's file knows no more of them.
const MAX_XIDS: usize = 32;

impl Checker {
    pub(super) fn target_gpu(&mut self, draft: Placed<GpuDraft>) -> TargetGpu {
        match draft.value {
            GpuDraft::Simulated(simulated) => TargetGpu::Simulated(self.simulated_gpu(simulated)),
            GpuDraft::Real => TargetGpu::Real,
        }
    }

    fn simulated_gpu(&mut self, draft: SimulatedDraft) -> SimulatedGpu {
        let devices = draft.devices.map_or(1, |devices| {
            if !(1..=MAX_DEVICES).contains(&devices.value) {
                self.problems.push(devices.problem(format!("`devices` is from 1 to {MAX_DEVICES}")));
            }
            devices.value
        });
        SimulatedGpu {
            devices,
            memory: draft.memory.map_or(ByteSize(1 << 30), |memory| memory.0),
            driver: draft.driver.map_or(CudaVersion { major: 12, minor: 8 }, |version| version.0),
            compute_capability: draft
                .compute_capability
                .map_or(CudaVersion { major: 9, minor: 0 }, |version| version.0),
        }
    }

    /// Faults of a GPU want one, and some of them a simulated one.
    pub(super) fn check_faults_fit_gpu(
        &mut self,
        method: &[Fault],
        gpu: Option<&TargetGpu>,
        place: SourceSpan,
    ) {
        for fault in method {
            let every = fault.effect.gpu_calls().is_some_and(|calls| calls.occurrence == Occurrence::Every);
            if every && matches!(fault.when, Trigger::Call(_)) {
                let message = "`at: every` is counted in an undisturbed run, in which no call is struck at";
                self.problems.push(
                    Problem::at(place, message)
                        .help("arm it by `step`, `said` or `after`, or from the start"),
                );
            }
            let Some((name, only_simulated)) = gpu_fault_name(&fault.effect) else { continue };
            match gpu {
                None if self.is_complete => self.problems.push(
                    Problem::at(place, format!("`{name}` is done to a GPU, and the target gets none"))
                        .help("add `gpu: simulated` to `target`"),
                ),
                Some(TargetGpu::Real) if only_simulated => self.problems.push(
                    Problem::at(place, format!("`{name}` can't be done to a real GPU"))
                        .help("write `gpu: simulated` in `target`"),
                ),
                None | Some(_) => {}
            }
        }
        let records = method.iter().any(|fault| matches!(fault.effect, Effect::CrashStates(_)));
        if records && gpu.is_some() {
            let message = "`crash-states` are found without a GPU: what is on disk does not depend on it";
            self.problems.push(Problem::at(place, message).help("take `gpu` out of `target`"));
        }
    }

    pub(super) fn gpu_calls(&mut self, draft: GpuCallDraft) -> GpuCallTrigger {
        let usual: &[GpuCallKind] = match (&draft.kernel, &draft.min_bytes) {
            (Some(_), _) => &[GpuCallKind::Launch],
            (None, Some(_)) => &[GpuCallKind::Allocate, GpuCallKind::Copy],
            (None, None) => &[],
        };
        let kinds = draft.to.as_ref().map_or(usual, |to| to.value.as_slice()).to_vec();
        let stray = kinds.iter().find(|kind| !usual.is_empty() && !usual.contains(kind));
        let key = draft.kernel.as_ref().map(|kernel| ("kernel", kernel.span));
        let key = key.or(draft.min_bytes.as_ref().map(|bytes| ("min-bytes", bytes.span)));
        if let (Some(kind), Some((key, place))) = (stray, key) {
            self.problems.push(
                Problem::at(place, format!("`{key}` says nothing of `{}`", kind.name()))
                    .help(format!("write `to` with some of: {}", kind_names(usual))),
            );
        }
        GpuCallTrigger {
            kinds,
            function: draft.function.map(|function| function.0),
            kernel: draft.kernel.map(|kernel| kernel.value.0),
            min_bytes: draft.min_bytes.map_or(0, |bytes| bytes.value.0.0),
            occurrence: draft.at.0,
        }
    }

    /// A fault that is made of a launch.
    pub(super) fn launch_calls(
        &mut self,
        draft: GpuCallDraft,
        name: &str,
        method: SourceSpan,
    ) -> GpuCallTrigger {
        let place = draft.to.as_ref().map_or(method, |to| to.span);
        let named = draft.to.is_some();
        let mut calls = self.gpu_calls(draft);
        if let Some(wrong) = calls.kinds.iter().find(|kind| **kind != GpuCallKind::Launch).filter(|_| named) {
            self.problems.push(
                Problem::at(place, format!("`{name}` can't strike at `{}`", wrong.name()))
                    .help("write `to: [launch]`"),
            );
        }
        calls.kinds = vec![GpuCallKind::Launch];
        calls
    }

    pub(super) fn gpu_error(&mut self, draft: GpuError) -> Effect {
        self.require_not_empty(&draft.code, "no CUDA error is named");
        let told = draft.reported.map_or_else(
            || vec![ErrorReporting::Immediately],
            |told| {
                self.require_not_empty(&told, "`reported` is empty");
                told.value
            },
        );
        Effect::GpuError {
            codes: draft.code.value.iter().map(|code| code.0).collect(),
            reported: told,
            sticky: draft.sticky,
            calls: self.gpu_calls(draft.call),
        }
    }

    pub(super) fn gpu_fragment(&mut self, draft: GpuFragment) -> Effect {
        if draft.holes.value.0.0 == 0 {
            self.problems.push(draft.holes.problem("`holes` have at least 1 B"));
        }
        Effect::GpuFragment { holes: draft.holes.value.0, calls: self.gpu_calls(draft.call) }
    }

    pub(super) fn gpu_state(&mut self, draft: GpuStateFault, method: SourceSpan) -> Effect {
        let state = GpuState {
            lost: draft.lost,
            temperature_c: draft.temperature,
            throttled: draft.throttled,
            ecc_corrected: draft.ecc_corrected,
            ecc_uncorrected: draft.ecc_uncorrected,
            xids: draft.xids,
            driver: draft.driver.map(|version| version.0),
        };
        if state == GpuState::default() && self.is_complete {
            let help = "add `lost: true`, `temperature: 95`, `throttled: [thermal]`, `ecc-corrected: 12` or `xids: [79]`";
            self.problems.push(Problem::at(method, "`gpu-state` changes nothing").help(help));
        }
        if state.xids.len() > MAX_XIDS {
            self.problems
                .push(Problem::at(method, format!("`gpu-state` has at most {MAX_XIDS} numbers in `xids`")));
        }
        Effect::GpuState(state)
    }
}

fn kind_names(kinds: &[GpuCallKind]) -> String {
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

/// The word of a fault that is done to a GPU, and whether only a simulated one can have it.
fn gpu_fault_name(effect: &Effect) -> Option<(&'static str, bool)> {
    Some(match effect {
        Effect::GpuError { .. } => ("gpu-error", false),
        Effect::GpuHang { .. } => ("gpu-hang", false),
        Effect::GpuState(state) => ("gpu-state", state.driver.is_some()),
        Effect::GpuOverwrite { .. } => ("gpu-overwrite", true),
        Effect::GpuFlipBit { .. } => ("gpu-flip-bit", true),
        Effect::GpuFragment { .. } => ("gpu-fragment", true),
        _ => return None,
    })
}
