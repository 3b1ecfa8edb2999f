//! The fault `gpu-state`: what the GPU reports about itself.

use gpu_words::ClockThrottleReason;

use crate::effect::checker::Checker;
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec, GpuNeed};
use crate::gpu::CudaVersion;
use crate::yaml::problem::Problem;

/// Largest number of XIDs in one fault: the rule file of the shim holds no more.
const MAX_XIDS: usize = 32;

fault!(
    /// What the GPU reports about itself while the fault lasts. Keys that are left out stay as they are.
    GpuStateDraft {
        /// Off the bus: new contexts find no device, and calls in existing ones fail.
        #[serde(default)]
        lost: bool,
        /// Temperature in degrees Celsius.
        temperature: Option<u32>,
        /// Why the clocks are throttled.
        #[serde(default)]
        throttled: Vec<ClockThrottleReason>,
        /// Added to the count of corrected memory errors.
        #[serde(default)]
        ecc_corrected: u64,
        /// Added to the count of uncorrected memory errors.
        #[serde(default)]
        ecc_uncorrected: u64,
        /// NVIDIA's numbers of driver events (XIDs). Each is delivered once to each process that listens.
        #[serde(default)]
        xids: Vec<u64>,
        /// The newest CUDA version that the driver supports, as after a change of driver. Simulated GPU only.
        driver: Option<CudaVersion>,
    }
);

/// Changes what the GPU reports about itself while the fault lasts. A field with its default value changes
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpuState {
    /// Off the bus.
    pub lost: bool,
    /// Temperature in degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Reasons for which the clocks are throttled.
    pub throttled: Vec<ClockThrottleReason>,
    /// Added to the count of corrected memory errors.
    pub ecc_corrected: u64,
    /// Added to the count of uncorrected memory errors.
    pub ecc_uncorrected: u64,
    /// Driver events, by NVIDIA's numbers, in order.
    pub xids: Vec<u64>,
    /// Newest CUDA version that the driver supports, as seen by processes that start after the injection.
    pub driver: Option<CudaVersion>,
}

impl CheckEffect for GpuStateDraft {
    type Checked = GpuState;

    fn check(&self, checker: &mut Checker) -> GpuState {
        let state = GpuState {
            lost: self.lost,
            temperature_c: self.temperature,
            throttled: self.throttled.clone(),
            ecc_corrected: self.ecc_corrected,
            ecc_uncorrected: self.ecc_uncorrected,
            xids: self.xids.clone(),
            driver: self.driver,
        };
        if state == GpuState::default() && checker.is_complete {
            let help = "add `lost: true`, `temperature: 95`, `throttled: [thermal]`, `ecc-corrected: 12` or \
                `xids: [79]`";
            checker.method_problem("`gpu-state` changes nothing", help);
        }
        if state.xids.len() > MAX_XIDS {
            let message = format!("`xids` must have at most {MAX_XIDS} numbers");
            checker.problems.push(Problem::at(checker.method_span, message));
        }
        state
    }
}

impl EffectSpec for GpuState {
    fn describe(&self) -> String {
        let lost = self.lost.then(|| "lost".to_owned());
        let temperature = self.temperature_c.map(|degrees| format!("{degrees} C"));
        let throttled = (!self.throttled.is_empty()).then(|| format!("slowed down ({:?})", self.throttled));
        let count = |count: u64, kind: &str| (count > 0).then(|| format!("{count} {kind} memory errors"));
        let (corrected, uncorrected) =
            (count(self.ecc_corrected, "corrected"), count(self.ecc_uncorrected, "uncorrected"));
        let xids = (!self.xids.is_empty()).then(|| format!("XIDs {:?}", self.xids));
        let driver = self.driver.map(|version| format!("a driver for CUDA {version}"));
        let all = [lost, temperature, throttled, corrected, uncorrected, xids, driver];
        format!("GPU: {}", all.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }

    fn needed_gpu(&self) -> Option<GpuNeed> {
        Some(if self.driver.is_some() { GpuNeed::Simulated } else { GpuNeed::Any })
    }
}
