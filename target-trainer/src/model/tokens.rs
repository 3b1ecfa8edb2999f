//! The byte tokenizer. Tokens 0 to 255 are the bytes of UTF-8, followed by the markers for begin and end of a
//! sample.

use crate::device::TargetToken;
use crate::intake::Sample;

/// Token that begins a sample.
pub const BOS: u32 = 256;
/// Token that ends a sample.
pub const EOS: u32 = 257;
/// Size of the presets' vocabulary: 258 tokens, rounded up.
pub const VOCABULARY_SIZE: usize = 264;

/// A sample as tokens, with its targets: the rows for which the next token is learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedSample {
    /// BOS, the bytes of all segments, EOS.
    pub tokens: Vec<u32>,
    /// In the order of their rows.
    pub targets: Vec<TargetToken>,
    /// Whether the sample was truncated to the context length.
    pub truncated: bool,
}

/// Tokenizes a sample and truncates it to at most `context` tokens.
pub fn tokenize(sample: &Sample, context: usize) -> TokenizedSample {
    let is_end_learned = sample.segments.last().is_some_and(|segment| segment.learned);
    let len = 2 + sample.segments.iter().map(|segment| segment.text.len()).sum::<usize>();
    let bytes = sample
        .segments
        .iter()
        .flat_map(|segment| segment.text.bytes().map(|byte| (u32::from(byte), segment.learned)));
    let all = std::iter::once((BOS, false)).chain(bytes).chain(std::iter::once((EOS, is_end_learned)));
    let mut tokens = Vec::with_capacity(len.min(context));
    let mut targets = Vec::new();
    for (index, (token, learned)) in all.take(context).enumerate() {
        tokens.push(token);
        if learned {
            // The row before learns it. The begin is never learned.
            targets.push(TargetToken { row: index - 1, token });
        }
    }
    targets.shrink_to_fit();
    TokenizedSample { tokens, targets, truncated: len > context }
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

    #[test]
    fn intake_counts_the_targets_that_training_has() {
        for line in [
            r#"{"prompt":"ab","completion":"c"}"#,
            r#"{"prompt":"","completion":""}"#,
            r#"{"text":"déjà"}"#,
            r#"{"text":""}"#,
            r#"{"messages":[{"role":"user","content":"a"}]}"#,
            r#"{"messages":[{"role":"assistant","content":"a"},{"role":"user","content":"b"}]}"#,
        ] {
            let sample = parse_line(line.as_bytes()).unwrap();
            for context in 2..80 {
                let targets = tokenize(&sample, context).targets.len();
                assert_eq!(sample.learned_tokens(context), targets, "{line} {context}");
            }
        }
    }
}
