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
}
