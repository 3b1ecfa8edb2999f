//! The GPU that a scenario file gives to a target: as it is written, its checks, and whether it fits the
//! faults. Knows no single fault.

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::effect::GpuNeed;
use crate::effect::checker::Checker;
use crate::gpu::{CudaVersion, SimulatedGpu, TargetGpu};
use crate::scenario::Fault;
use crate::trigger::{Occurrence, Trigger};
use crate::units::ByteSize;
use crate::yaml::spanned::Spanned;

/// Largest number of simulated devices.
const MAX_DEVICES: u32 = 16;

/// The GPU that the target sees.
#[derive(Debug)]
pub(crate) enum GpuDraft {
    Simulated(SimulatedDraft),
    Real,
}

/// A simulated machine with GPUs. The defaults are those of a small GPU of today.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct SimulatedDraft {
    /// Number of devices. Default: 1.
    pub(crate) devices: Option<Spanned<u32>>,
    /// Memory of each device. Default: 1 GiB.
    pub(crate) memory: Option<ByteSize>,
    /// Newest CUDA version that the driver supports. Default: 12.8.
    pub(crate) driver: Option<CudaVersion>,
    /// Compute capability of each device. Default: 9.0.
    pub(crate) compute_capability: Option<CudaVersion>,
}

const GPU_KINDS: &[&str] = &["simulated", "real"];

/// The form with a map: `{simulated: {..}}`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum GpuDraftMap {
    Simulated(SimulatedDraft),
    Real,
}

struct GpuDraftVisitor;

impl<'de> Visitor<'de> for GpuDraftVisitor {
    type Value = GpuDraft;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("`simulated`, `{simulated: {..}}` or `real`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<GpuDraft, E> {
        match text {
            "simulated" => Ok(GpuDraft::Simulated(SimulatedDraft::default())),
            "real" => Ok(GpuDraft::Real),
            _ => Err(E::unknown_variant(text, GPU_KINDS)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<GpuDraft, A::Error> {
        Ok(match GpuDraftMap::deserialize(MapAccessDeserializer::new(map))? {
            GpuDraftMap::Simulated(simulated) => GpuDraft::Simulated(simulated),
            GpuDraftMap::Real => GpuDraft::Real,
        })
    }
}

impl<'de> Deserialize<'de> for GpuDraft {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<GpuDraft, D::Error> {
        deserializer.deserialize_any(GpuDraftVisitor)
    }
}

impl JsonSchema for GpuDraft {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GpuDraft".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let simulated = generator.subschema_for::<SimulatedDraft>();
        schemars::json_schema!({
            "description": "`simulated`: a shim replaces the GPU driver and computes on the CPU, so that no \
                GPU is needed. `real`: the machine's own GPU, with the shim between target and driver.",
            "anyOf": [
                { "type": "string", "enum": GPU_KINDS },
                {
                    "type": "object",
                    "properties": { "simulated": simulated },
                    "required": ["simulated"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

/// The checked GPU. It is only valid if no problem is added.
pub(super) fn checked_gpu(draft: &GpuDraft, checker: &mut Checker) -> TargetGpu {
    let GpuDraft::Simulated(simulated) = draft else { return TargetGpu::Real };
    if let Some(devices) = simulated.devices.as_ref().filter(|n| !(1..=MAX_DEVICES).contains(&n.value)) {
        checker.problems.push(devices.problem(format!("`devices` must be from 1 to {MAX_DEVICES}")));
    }
    TargetGpu::Simulated(SimulatedGpu {
        devices: simulated.devices.as_ref().map_or(1, |devices| devices.value),
        memory: simulated.memory.unwrap_or(ByteSize(1 << 30)),
        driver: simulated.driver.unwrap_or(CudaVersion { major: 12, minor: 8 }),
        compute_capability: simulated.compute_capability.unwrap_or(CudaVersion { major: 9, minor: 0 }),
    })
}

/// Checks that the target has a GPU if a fault needs one, and a simulated one where the fault needs that.
pub(super) fn check_faults_fit_gpu(method: &[Fault], gpu: Option<&TargetGpu>, checker: &mut Checker) {
    for fault in method {
        let (name, spec) = (fault.effect.name(), fault.effect.spec());
        let every = spec.gpu_calls().is_some_and(|calls| calls.occurrence == Occurrence::Every);
        if every && matches!(fault.when, Trigger::Call(_)) {
            checker.method_problem(
                "`at: every` cannot be combined with `when: {call: ..}`, because GPU calls are counted in \
                    the baseline, where nothing is injected",
                "write `when` with `step`, `output` or `after`, or leave it out",
            );
        }
        match (spec.needed_gpu(), gpu) {
            (Some(_), None) if checker.is_complete => checker.method_problem(
                format!("`{name}` needs a GPU, and the target has none"),
                "add `gpu: simulated` to `target`",
            ),
            (Some(GpuNeed::Simulated), Some(TargetGpu::Real)) => checker.method_problem(
                format!("`{name}` is not possible on a real GPU"),
                "write `gpu: simulated` in `target`",
            ),
            _ => {}
        }
    }
    if gpu.is_some() && method.iter().any(|fault| fault.effect.spec().crash_states().is_some()) {
        checker.method_problem(
            "`crash-states` runs without a GPU: the files on disk do not depend on it",
            "remove `gpu` from `target`",
        );
    }
}
