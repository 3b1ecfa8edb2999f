//! The fault `memory-limit`: less memory than the target needs.

use crate::effect::checker::Checker;
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::units::{ByteSize, UnitError, parse_bytes};
use crate::yaml::leaf::leaf_of;

fault!(
    /// Too little memory.
    MemoryLimitDraft {
        /// How much memory all processes of the target may use together.
        max: MemoryCap,
    }
);

/// How much memory a target may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MemoryCap {
    /// This many bytes.
    Bytes(ByteSize),
    /// Percentage of the baseline's peak memory, 1 to 99.
    PercentOfBaselinePeak(u8),
}

leaf_of!(
    MemoryCap,
    memory_cap,
    r"^(\d+ ?(B|KiB|MiB|GiB)|\d+ ?% of baseline peak)$",
    "A size (`64 MiB`), or a percentage of the baseline's peak memory (`60 % of baseline peak`)."
);

/// Why a text is no memory cap.
#[derive(Debug, thiserror::Error)]
enum MemoryCapError {
    #[error("{0}, nor a percentage such as `60 % of baseline peak`")]
    NoSize(UnitError),
    #[error("`{text}`: the percentage must be a whole number from 1 to 99")]
    BadPercentage { text: String },
}

fn memory_cap(text: &str) -> Result<MemoryCap, MemoryCapError> {
    let Some(percent) = text.strip_suffix("% of baseline peak") else {
        return parse_bytes(text).map(MemoryCap::Bytes).map_err(MemoryCapError::NoSize);
    };
    match percent.trim().parse() {
        Ok(percent @ 1..=99) => Ok(MemoryCap::PercentOfBaselinePeak(percent)),
        _ => Err(MemoryCapError::BadPercentage { text: text.into() }),
    }
}

/// Limits the memory of all processes of the target together, so that the target is OOM-killed.
#[derive(Debug, Clone)]
pub struct MemoryLimit {
    /// How much memory the target may use.
    pub limit: MemoryCap,
}

impl CheckEffect for MemoryLimitDraft {
    type Checked = MemoryLimit;

    fn check(&self, _checker: &mut Checker) -> MemoryLimit {
        MemoryLimit { limit: self.max }
    }
}

/// Needs no mechanism: it has a fall-back that works in every sandbox.
impl EffectSpec for MemoryLimit {
    fn describe(&self) -> String {
        "memory limit below the need".into()
    }
}
