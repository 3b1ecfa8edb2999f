//! A training sample: segments of text, some of which are trained on.

/// A part of a sample's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Whether the loss includes its tokens. It does not for prompts.
    pub learned: bool,
}

/// One line of a data file: `prompt` and `completion`, `text`, or `messages`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The segments in their order.
    pub segments: Vec<Segment>,
    /// Factor on this sample's loss; 1 if the line has no `weight`.
    pub weight: f32,
    /// Keys of the line that are not used.
    pub unknown_keys: Vec<String>,
}

impl Sample {
    /// Number of tokens that are trained on if the sample is cut to `context` tokens: the bytes of learned
    /// segments, and the end if the last segment is learned. The first token is the sample's begin.
    pub fn learned_tokens(&self, context: usize) -> usize {
        let mut room = context.saturating_sub(1);
        let mut learned = 0;
        for segment in &self.segments {
            let len = segment.text.len().min(room);
            room -= len;
            learned += if segment.learned { len } else { 0 };
        }
        let end = room > 0 && self.segments.last().is_some_and(|segment| segment.learned);
        learned + usize::from(end)
    }
}
