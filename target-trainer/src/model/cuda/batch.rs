//! Packs samples for the device. The samples of a micro-batch are concatenated without padding, and all
//! inputs of a step are transferred in one copy. Knows no arithmetic.

use crate::device::cuda::{BufferView, DeviceBuffer};
use crate::model::tokens::TokenizedSample;

/// The packed samples of one step, by micro-batch.
#[derive(Debug, Default)]
pub struct PackedBatch {
    pub(super) words: Vec<u32>,
    pub(super) micro_batches: Vec<MicroBatch>,
}

/// The sizes of a micro-batch, and the position of its inputs in the batch's words.
#[derive(Debug, Clone, Copy)]
pub(super) struct MicroBatch {
    /// Tokens of all samples together.
    pub(super) rows: usize,
    /// Number of samples.
    pub(super) sequences: usize,
    /// Tokens of the longest sample.
    pub(super) longest: usize,
    /// Targets of all samples together.
    pub(super) target_count: usize,
    /// Index of the first input in the batch's words.
    offset: usize,
}

/// A sample of a batch.
#[derive(Debug, Clone, Copy)]
pub struct WeightedSample<'a> {
    /// The sample.
    pub sample: &'a TokenizedSample,
    /// The factor of its losses.
    pub weight: f32,
}

impl PackedBatch {
    /// Packs samples into micro-batches. Gradients are multiplied by `scale`, losses are not. Samples without
    /// targets are left out.
    pub fn new<'a>(
        samples: impl IntoIterator<Item = WeightedSample<'a>>,
        micro_batch: std::num::NonZeroUsize,
        scale: f32,
    ) -> PackedBatch {
        let samples: Vec<WeightedSample<'a>> = samples.into_iter().collect();
        let mut batch = PackedBatch::default();
        for chunk in samples.chunks(micro_batch.get()) {
            let with_targets: Vec<_> =
                chunk.iter().copied().filter(|weighted| !weighted.sample.targets.is_empty()).collect();
            if !with_targets.is_empty() {
                batch.push(&with_targets, scale);
            }
        }
        batch
    }

    /// Appends a micro-batch.
    fn push(&mut self, samples: &[WeightedSample<'_>], scale: f32) {
        let lengths = samples.iter().map(|weighted| weighted.sample.tokens.len());
        let starts: Vec<usize> = std::iter::once(0)
            .chain(lengths.clone().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect();
        let micro_batch = MicroBatch {
            rows: lengths.clone().sum(),
            sequences: samples.len(),
            longest: lengths.clone().max().unwrap_or(0),
            target_count: samples.iter().map(|weighted| weighted.sample.targets.len()).sum(),
            offset: self.words.len(),
        };
        let targets = || {
            samples.iter().zip(&starts).flat_map(|(WeightedSample { sample, weight }, start)| {
                sample.targets.iter().map(move |target| (start + target.row, target.token, *weight))
            })
        };
        let words = &mut self.words;
        words.extend(samples.iter().flat_map(|weighted| weighted.sample.tokens.iter().copied()));
        words.extend(lengths.flat_map(|length| 0..length as u32));
        words.extend(starts.iter().map(|start| *start as u32));
        words.extend(targets().map(|(row, ..)| row as u32));
        words.extend(targets().map(|(_, token, _)| token));
        words.extend(targets().map(|(.., weight)| (weight * scale).to_bits()));
        words.extend(targets().map(|(.., weight)| weight.to_bits()));
        self.micro_batches.push(micro_batch);
    }

    /// The inputs of all micro-batches as 32-bit words.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// The inputs of a micro-batch in device memory.
pub(super) struct MicroBatchInputs<'a> {
    /// The tokens of all samples, `[rows]`.
    pub(super) tokens: BufferView<'a>,
    /// The position of each token within its sample, `[rows]`.
    pub(super) positions: BufferView<'a>,
    /// The first row of each sample, then the end of the last one, `[sequences + 1]`.
    pub(super) starts: BufferView<'a>,
    /// The rows that have a target, `[target_count]`.
    pub(super) target_rows: BufferView<'a>,
    /// The target tokens, `[target_count]`.
    pub(super) targets: BufferView<'a>,
    /// The factor of each target's gradient, f32, `[target_count]`.
    pub(super) scales: BufferView<'a>,
    /// The factor of each target's loss, f32, `[target_count]`.
    pub(super) weights: BufferView<'a>,
}

impl MicroBatch {
    /// Splits the words in device memory into the inputs of this micro-batch.
    pub(super) fn inputs<'a>(&self, words: &'a DeviceBuffer) -> MicroBatchInputs<'a> {
        let mut offset = self.offset;
        let mut next = |len: usize| {
            offset += len;
            words.view_range(offset - len, len)
        };
        MicroBatchInputs {
            tokens: next(self.rows),
            positions: next(self.rows),
            starts: next(self.sequences + 1),
            target_rows: next(self.target_count),
            targets: next(self.target_count),
            scales: next(self.target_count),
            weights: next(self.target_count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::TargetToken;

    #[test]
    fn samples_are_packed_without_padding_and_samples_without_targets_are_left_out() {
        let sample = |tokens: &[u32], rows: &[usize]| TokenizedSample {
            tokens: tokens.to_vec(),
            targets: rows.iter().map(|row| TargetToken { row: *row, token: tokens[row + 1] }).collect(),
            truncated: false,
        };
        fn weighted(sample: &TokenizedSample, weight: f32) -> WeightedSample<'_> {
            WeightedSample { sample, weight }
        }
        let (a, b, c) = (sample(&[7, 8], &[0]), sample(&[9], &[]), sample(&[4, 5, 6], &[0, 1]));
        let micro_batch = std::num::NonZeroUsize::new(3).unwrap();
        let batch =
            PackedBatch::new([weighted(&a, 1.0), weighted(&b, 1.0), weighted(&c, 2.0)], micro_batch, 0.5);
        let ints = [7, 8, 4, 5, 6, 0, 1, 0, 1, 2, 0, 2, 5, 0, 2, 3, 8, 5, 6];
        assert_eq!(batch.words[..ints.len()], ints);
        let floats: Vec<f32> = batch.words[ints.len()..].iter().map(|bits| f32::from_bits(*bits)).collect();
        assert_eq!(floats, [0.5, 1.0, 1.0, 1.0, 2.0, 2.0]);
        assert!(PackedBatch::new([weighted(&b, 1.0)], micro_batch, 1.0).micro_batches.is_empty());
    }
}
