//! What a file contains that a fault puts into a place: valid or hostile data, or no data at all. Knows no fault.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::effect::checker::Checker;
use crate::units::ByteSize;
use crate::yaml::leaf::{LeafError, leaf_of};
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
    /// This text, as it is.
    Text(String),
    /// These bytes, two hexadecimal digits each. Spaces are left out.
    Hex(HexBytes),
}

/// Bytes that are written as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HexBytes(pub Vec<u8>);

leaf_of!(
    HexBytes,
    hex_bytes,
    r"^([0-9a-fA-F]{2} ?)*$",
    "Bytes, two hexadecimal digits each: `ef bb bf`.",
    ["string"]
);

fn hex_bytes(text: &str) -> Result<HexBytes, LeafError> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    let bytes = digits.chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    let bytes: Option<Vec<u8>> = bytes.collect();
    bytes.map(HexBytes).ok_or_else(|| {
        LeafError::not(text, "a list of bytes").help("write two hexadecimal digits for each: `ef bb bf`")
    })
}

impl DataKind {
    /// Whether a trainer may take it as data.
    pub(crate) fn may_be_valid(&self) -> bool {
        match self {
            DataKind::Sound(samples) => *samples > 0,
            DataKind::Text(text) => !text.trim().is_empty(),
            DataKind::Hex(bytes) => !bytes.0.is_empty(),
            DataKind::NestedJson(_)
            | DataKind::ExponentialJson(_)
            | DataKind::LongNumber(_)
            | DataKind::DuplicateKeys(_)
            | DataKind::LongLine(_) => false,
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
