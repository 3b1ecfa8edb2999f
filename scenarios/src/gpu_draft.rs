//! A scenario's words for the GPU as they are written: the one a target gets, and the keys of each of its faults.

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::draft::{Common, EffectiveIfDraft, PersistenceDraft, TriggerDraft, UntilDraft, fault};
use crate::gpu::{ErrorReporting, GpuCallKind, ThrottleReason, WrongValue};
use crate::leaf::{CudaErrorName, NameGlob, Size, Version, Which};
use crate::spanned::Placed;

/// The GPU that the target sees.
#[derive(Debug)]
pub(crate) enum GpuDraft {
    Simulated(SimulatedDraft),
    Real,
}

/// A simulated machine; what is not said is as a small card of today has it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct SimulatedDraft {
    /// 1 where it is not said.
    pub(crate) devices: Option<Placed<u32>>,
    /// Of each device; 1 GiB where it is not said.
    pub(crate) memory: Option<Size>,
    /// Newest CUDA version that the driver supports; 12.8 where it is not said.
    pub(crate) driver: Option<Version>,
    /// 9.0 where it is not said.
    pub(crate) compute_capability: Option<Version>,
}

const GPU_KINDS: &[&str] = &["simulated", "real"];

/// The form with a value.
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

    fn visit_str<E: Error>(self, word: &str) -> Result<GpuDraft, E> {
        match word {
            "simulated" => Ok(GpuDraft::Simulated(SimulatedDraft::default())),
            "real" => Ok(GpuDraft::Real),
            _ => Err(E::unknown_variant(word, GPU_KINDS)),
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
            "description": "`simulated`: a stand-in for the driver that computes on the CPU. `real`: the machine's own, with the stand-in in front of its driver.",
            "anyOf": [
                { "type": "string", "enum": GPU_KINDS },
                { "type": "object", "properties": { "simulated": simulated }, "required": ["simulated"], "additionalProperties": false },
            ],
        })
    }
}

/// A call of the driver. Calls of all threads and processes of the target are counted together, from when the fault is armed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct GpuCallDraft {
    /// Which kinds; where none is said, all that the other keys leave.
    pub(crate) to: Option<Placed<Vec<GpuCallKind>>>,
    /// Only launches of kernels with such a name: `attention*`.
    pub(crate) kernel: Option<Placed<NameGlob>>,
    /// Only functions of the driver with such a name: `cuMem*`.
    pub(crate) function: Option<NameGlob>,
    /// Only allocations and copies of at least so much.
    pub(crate) min_bytes: Option<Placed<Size>>,
    /// Which of the calls that match. `every`: those of each kind in turn, one trial each.
    pub(crate) at: Which,
}

fault!(
    /// A call of the driver that fails.
    GpuError {
        /// With what, by CUDA's own names: a trial for each.
        code: Placed<Vec<CudaErrorName>>,
        /// When it is told: a trial for each. `immediately` where it is not said.
        reported: Option<Placed<Vec<ErrorReporting>>>,
        /// Every later call of the same process fails likewise; as a real error of that name has it where it is not said.
        sticky: Option<bool>,
        /// Which call.
        call: GpuCallDraft,
    }
);
fault!(
    /// A kernel that never ends.
    GpuHang {
        /// Which launch.
        call: GpuCallDraft,
    }
);
fault!(
    /// A wrong value in what a kernel wrote; the seed decides where.
    GpuOverwrite {
        with: WrongValue,
        /// Which launch.
        call: GpuCallDraft,
    }
);
fault!(
    /// A bit of the largest allocation there is flips; the seed decides which.
    GpuFlipBit {
        /// At which call.
        call: GpuCallDraft,
    }
);
fault!(
    /// Device memory in small pieces.
    GpuFragment {
        /// What is free is left in holes of at most so much.
        holes: Placed<Size>,
        /// At which call.
        call: GpuCallDraft,
    }
);
fault!(
    /// What the GPU tells of itself, as long as the fault lasts.
    GpuStateFault {
        /// Off the bus: new contexts find no device, calls in old ones fail.
        #[serde(default)]
        lost: bool,
        /// In degrees Celsius.
        temperature: Option<u32>,
        /// Why clocks are held down.
        #[serde(default)]
        throttled: Vec<ThrottleReason>,
        /// So many more corrected memory errors.
        #[serde(default)]
        ecc_corrected: u64,
        /// So many more uncorrected ones.
        #[serde(default)]
        ecc_uncorrected: u64,
        /// Events of the driver by NVIDIA's numbers, each delivered once to each process that listens.
        #[serde(default)]
        xids: Vec<u64>,
        /// Another driver, as after an update: the newest CUDA version that it supports. Simulated only.
        driver: Option<Version>,
    }
);
