//! What a file contains that a fault puts into a place: valid or hostile data. Knows no fault.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::effect::checker::Checker;
use crate::units::ByteSize;
use crate::yaml::problem::{Problem, SourceSpan};

/// 2^22 leaves are about 50 MB of text.
const MAX_JSON_LEVELS: u32 = 22;

/// What a file contains: JSON lines, valid or hostile.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DataKind {
    /// This many well-formed samples.
    Sound(u32),
    /// One line with arrays nested to this depth.
    NestedJson(u32),
    /// One line with an object that doubles at each of this many levels (at most 22), written out.
    ExponentialJson(u32),
    /// One line with a number of this many digits.
    LongNumber(u32),
    /// One line with an object that has the same key this many times.
    DuplicateKeys(u32),
    /// One line of this size, sparse on disk.
    LongLine(ByteSize),
}

impl DataKind {
    /// Whether a trainer may take it as data.
    pub(crate) fn may_be_valid(&self) -> bool {
        match self {
            DataKind::Sound(samples) => *samples > 0,
            _ => false,
        }
    }

    /// Checks that the data is not too large. `span`: where a problem is reported.
    pub(crate) fn check(&self, span: SourceSpan, checker: &mut Checker) {
        if matches!(self, DataKind::ExponentialJson(levels) if *levels > MAX_JSON_LEVELS) {
            let message = format!("`exponential-json` must have at most {MAX_JSON_LEVELS} levels");
            checker.problems.push(Problem::at(span, message));
        }
    }
}
