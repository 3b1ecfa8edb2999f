//! The checks of a scenario's GPU and its faults that the types of the draft cannot express: at which calls a
//! fault can be injected, and which faults a GPU can have. Knows no driver.

use crate::check::Checker;
use crate::gpu::{
    CudaVersion, ErrorReporting, GpuCallKind, GpuCallTrigger, GpuState, SimulatedGpu, TargetGpu,
};
use crate::gpu_draft::{
    GpuCallDraft, GpuDraft, GpuErrorDraft, GpuFragmentDraft, GpuStateDraft, SimulatedDraft,
};
use crate::problem::{Problem, SourceSpan};
use crate::scenario::{Effect, Fault, Occurrence, Trigger};
use crate::spanned::Spanned;
use crate::units::ByteSize;

/// Largest number of simulated devices.
const MAX_DEVICES: u32 = 16;
/// Largest number of XIDs in one fault: the rule file of the shim holds no more.
const MAX_XIDS: usize = 32;

impl Checker {
    pub(super) fn target_gpu(&mut self, draft: Spanned<GpuDraft>) -> TargetGpu {
        match draft.value {
            GpuDraft::Simulated(simulated) => TargetGpu::Simulated(self.simulated_gpu(simulated)),
            GpuDraft::Real => TargetGpu::Real,
        }
    }

    fn simulated_gpu(&mut self, draft: SimulatedDraft) -> SimulatedGpu {
        let devices = draft.devices.map_or(1, |devices| {
            if !(1..=MAX_DEVICES).contains(&devices.value) {
                self.problems.push(devices.problem(format!("`devices` must be from 1 to {MAX_DEVICES}")));
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

    /// Checks that the target has a GPU if a fault needs one, and a simulated one where the fault needs that.
    pub(super) fn check_faults_fit_gpu(
        &mut self,
        method: &[Fault],
        gpu: Option<&TargetGpu>,
        method_span: SourceSpan,
    ) {
        for fault in method {
            let every = fault.effect.gpu_calls().is_some_and(|calls| calls.occurrence == Occurrence::Every);
            if every && matches!(fault.when, Trigger::Call(_)) {
                let message = "`at: every` cannot be combined with `when: {call: ..}`, because GPU calls are \
                    counted in the baseline, where nothing is injected";
                self.problems.push(
                    Problem::at(method_span, message)
                        .help("write `when` with `step`, `output` or `after`, or leave it out"),
                );
            }
            let Some((name, only_simulated)) = gpu_fault_name(&fault.effect) else { continue };
            match gpu {
                None if self.is_complete => self.problems.push(
                    Problem::at(method_span, format!("`{name}` needs a GPU, and the target has none"))
                        .help("add `gpu: simulated` to `target`"),
                ),
                Some(TargetGpu::Real) if only_simulated => self.problems.push(
                    Problem::at(method_span, format!("`{name}` is not possible on a real GPU"))
                        .help("write `gpu: simulated` in `target`"),
                ),
                None | Some(_) => {}
            }
        }
        let has_crash_states = method.iter().any(|fault| matches!(fault.effect, Effect::CrashStates(_)));
        if has_crash_states && gpu.is_some() {
            let message = "`crash-states` runs without a GPU: the files on disk do not depend on it";
            self.problems.push(Problem::at(method_span, message).help("remove `gpu` from `target`"));
        }
    }

    pub(super) fn gpu_calls(&mut self, draft: GpuCallDraft) -> GpuCallTrigger {
        let fitting: &[GpuCallKind] = match (&draft.kernel, &draft.min_bytes) {
            (Some(_), _) => &[GpuCallKind::Launch],
            (None, Some(_)) => &[GpuCallKind::Allocate, GpuCallKind::Copy],
            (None, None) => &[],
        };
        let kinds = draft.to.as_ref().map_or(fitting, |kinds| kinds.value.as_slice()).to_vec();
        let misfit = kinds.iter().find(|kind| !fitting.is_empty() && !fitting.contains(kind));
        let key = draft.kernel.as_ref().map(|kernel| ("kernel", kernel.span));
        let key = key.or(draft.min_bytes.as_ref().map(|bytes| ("min-bytes", bytes.span)));
        if let (Some(kind), Some((key, span))) = (misfit, key) {
            self.problems.push(
                Problem::at(span, format!("`{key}` does not apply to `{}` calls", kind.name()))
                    .help(format!("write `to` with one or more of: {}", kind_names(fitting))),
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

    /// The calls of a fault that can be injected only at kernel launches.
    pub(super) fn launch_calls(
        &mut self,
        draft: GpuCallDraft,
        name: &str,
        method_span: SourceSpan,
    ) -> GpuCallTrigger {
        let span = draft.to.as_ref().map_or(method_span, |kinds| kinds.span);
        let has_kinds = draft.to.is_some();
        let mut calls = self.gpu_calls(draft);
        if let Some(wrong) =
            calls.kinds.iter().find(|kind| **kind != GpuCallKind::Launch).filter(|_| has_kinds)
        {
            self.problems.push(
                Problem::at(span, format!("`{name}` cannot be injected at a `{}` call", wrong.name()))
                    .help("write `to: [launch]`"),
            );
        }
        calls.kinds = vec![GpuCallKind::Launch];
        calls
    }

    pub(super) fn gpu_error(&mut self, draft: GpuErrorDraft) -> Effect {
        self.require_not_empty(&draft.code, "`code` is empty");
        let reported = draft.reported.map_or_else(
            || vec![ErrorReporting::Immediately],
            |reported| {
                self.require_not_empty(&reported, "`reported` is empty");
                reported.value
            },
        );
        Effect::GpuError {
            codes: draft.code.value.iter().map(|code| code.0).collect(),
            reported,
            sticky: draft.sticky,
            calls: self.gpu_calls(draft.call),
        }
    }

    pub(super) fn gpu_fragment(&mut self, draft: GpuFragmentDraft) -> Effect {
        if draft.holes.value.0.0 == 0 {
            self.problems.push(draft.holes.problem("`holes` must be at least 1 B"));
        }
        Effect::GpuFragment { holes: draft.holes.value.0, calls: self.gpu_calls(draft.call) }
    }

    pub(super) fn gpu_state(&mut self, draft: GpuStateDraft, method_span: SourceSpan) -> Effect {
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
            let help = "add `lost: true`, `temperature: 95`, `throttled: [thermal]`, `ecc-corrected: 12` or \
                `xids: [79]`";
            self.problems.push(Problem::at(method_span, "`gpu-state` changes nothing").help(help));
        }
        if state.xids.len() > MAX_XIDS {
            self.problems
                .push(Problem::at(method_span, format!("`xids` must have at most {MAX_XIDS} numbers")));
        }
        Effect::GpuState(state)
    }
}

fn kind_names(kinds: &[GpuCallKind]) -> String {
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

/// The key of a GPU fault, and whether only a simulated GPU can have it. `None` for other faults.
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
