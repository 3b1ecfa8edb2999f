//! One training sample as it was read: text in segments, some of them to be learned.

/// A stretch of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub text: String,
    /// Whether its tokens count in the loss; prompts do not.
    pub learned: bool,
}

/// One line of a data file: `prompt`/`completion`, `text`, or `messages` (what the assistant says is learned).
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub segments: Vec<Segment>,
    /// Factor on this sample's loss; 1 unless the line says `weight`.
    pub weight: f32,
}
