//! Text <-> tokens: bytes. Tokens 0 to 255 are the bytes of UTF-8, then comes the beginning and the end of a sample.

use crate::device::TargetToken;
use crate::intake::Sample;

pub const BOS: u32 = 256;
pub const EOS: u32 = 257;
/// A little more than is used.
pub const VOCABULARY_SIZE: usize = 264;

/// A sample as tokens, with the rows of it whose successor is learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedSample {
    pub tokens: Vec<u32>,
    pub targets: Vec<TargetToken>,
    /// Cut off at the context's end.
    pub truncated: bool,
}

/// At most `context` tokens.
pub fn tokenize(sample: &Sample, context: usize) -> TokenizedSample {
    let mut marked = vec![(BOS, false)];
    for segment in &sample.segments {
        marked.extend(segment.text.bytes().map(|byte| (u32::from(byte), segment.learned)));
    }
    let ends_learned = sample.segments.last().is_some_and(|segment| segment.learned);
    marked.push((EOS, ends_learned));
    let cut = marked.len() > context;
    marked.truncate(context);
    let learned = |(row, (token, learned)): (usize, &(u32, bool))| {
        learned.then_some(TargetToken { row, token: *token })
    };
    let targets = marked.iter().skip(1).enumerate().filter_map(learned).collect();
    TokenizedSample { tokens: marked.into_iter().map(|(token, _)| token).collect(), targets, truncated: cut }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::parse_line;

    #[test]
    fn only_learned_segments_have_targets_and_a_learned_end_has_one() {
        let sample = parse_line(br#"{"prompt":"ab","completion":"c"}"#).unwrap();
        let tokens = tokenize(&sample, 100);
        assert_eq!(tokens.tokens, [BOS, 97, 98, 99, EOS]);
        assert_eq!(tokens.targets, [TargetToken { row: 2, token: 99 }, TargetToken { row: 3, token: EOS }]);
        assert!(tokenize(&sample, 3).truncated && tokenize(&sample, 3).targets.is_empty());
    }
}
