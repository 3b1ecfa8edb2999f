//! The GPU in a scenario file, as it is written: the GPU that a target gets, and the keys of each GPU fault.
//! Knows no driver.

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::draft::{CommonKeys, EffectiveIfDraft, PersistenceDraft, TriggerDraft, UntilDraft, fault};
use crate::gpu::{ErrorReporting, GpuCallKind, ThrottleReason, WrongValue};
use crate::leaf::{CudaErrorName, NameGlob, OccurrenceDraft, Size, Version};
use crate::spanned::Spanned;

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
    pub(crate) memory: Option<Size>,
    /// Newest CUDA version that the driver supports. Default: 12.8.
    pub(crate) driver: Option<Version>,
    /// Compute capability of each device. Default: 9.0.
    pub(crate) compute_capability: Option<Version>,
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

/// A call of the GPU driver. Calls of all threads and processes of the target are counted together, from when
/// the fault is armed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct GpuCallDraft {
    /// Which kinds of call. Default: all kinds that the other keys allow.
    pub(crate) to: Option<Spanned<Vec<GpuCallKind>>>,
    /// Only launches of kernels whose name matches: `attention*`.
    pub(crate) kernel: Option<Spanned<NameGlob>>,
    /// Only driver functions whose name matches: `cuMem*`.
    pub(crate) function: Option<NameGlob>,
    /// Only allocations and copies of at least this size.
    pub(crate) min_bytes: Option<Spanned<Size>>,
    /// Which of the calls that match. `every`: each call of each kind in turn, one trial each.
    pub(crate) at: OccurrenceDraft,
}

fault!(
    /// A call of the driver that fails.
    GpuErrorDraft {
        /// The errors that the call fails with, by CUDA's names, one trial each.
        code: Spanned<Vec<CudaErrorName>>,
        /// When the error is reported, one trial each. Default: `immediately`.
        reported: Option<Spanned<Vec<ErrorReporting>>>,
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
        with: WrongValue,
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
        holes: Spanned<Size>,
        /// The call at which memory becomes fragmented.
        call: GpuCallDraft,
    }
);
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
        throttled: Vec<ThrottleReason>,
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
        driver: Option<Version>,
    }
);
