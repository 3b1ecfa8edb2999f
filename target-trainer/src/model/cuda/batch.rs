//! Samples as the device takes them: those of a micro-batch lie one behind the other without padding, and all of a step's
//! numbers go to the device in one copy.

use crate::device::cuda::{BufferView, DeviceBuffer};
use crate::model::tokens::TokenizedSample;

/// A step's samples, by micro-batch.
#[derive(Debug, Default)]
pub struct PackedBatch {
    pub(super) words: Vec<u32>,
    pub(super) micro_batches: Vec<MicroBatch>,
}

/// A micro-batch: its sizes, and where its numbers lie among the words.
#[derive(Debug, Clone, Copy)]
pub(super) struct MicroBatch {
    pub(super) rows: usize,
    pub(super) sequences: usize,
    pub(super) longest: usize,
    pub(super) target_count: usize,
    offset: usize,
}

/// A sample, and what its losses count.
pub type WeightedSample<'a> = (&'a TokenizedSample, f32);

impl PackedBatch {
    /// Gradients are multiplied by `scale`, losses are not. Samples that have nothing to learn are left out.
    pub fn new<'a>(
        samples: impl IntoIterator<Item = WeightedSample<'a>>,
        micro_batch: std::num::NonZeroUsize,
        scale: f32,
    ) -> PackedBatch {
        let samples: Vec<WeightedSample<'a>> = samples.into_iter().collect();
        let mut batch = PackedBatch::default();
        for some in samples.chunks(micro_batch.get()) {
            let some: Vec<_> =
                some.iter().copied().filter(|(tokens, _)| !tokens.targets.is_empty()).collect();
            if !some.is_empty() {
                batch.push(&some, scale);
            }
        }
        batch
    }

    fn push(&mut self, samples: &[WeightedSample<'_>], scale: f32) {
        let lengths = samples.iter().map(|(tokens, _)| tokens.tokens.len());
        let starts: Vec<usize> = std::iter::once(0)
            .chain(lengths.clone().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect();
        let part = MicroBatch {
            rows: lengths.clone().sum(),
            sequences: samples.len(),
            longest: lengths.clone().max().unwrap_or(0),
            target_count: samples.iter().map(|(tokens, _)| tokens.targets.len()).sum(),
            offset: self.words.len(),
        };
        let learned = || {
            samples.iter().zip(&starts).flat_map(|((tokens, weight), start)| {
                tokens.targets.iter().map(move |target| (start + target.row, target.token, *weight))
            })
        };
        let words = &mut self.words;
        words.extend(samples.iter().flat_map(|(tokens, _)| tokens.tokens.iter().copied()));
        words.extend(lengths.flat_map(|length| 0..length as u32));
        words.extend(starts.iter().map(|start| *start as u32));
        words.extend(learned().map(|(row, ..)| row as u32));
        words.extend(learned().map(|(_, token, _)| token));
        words.extend(learned().map(|(.., weight)| (weight * scale).to_bits()));
        words.extend(learned().map(|(.., weight)| weight.to_bits()));
        self.micro_batches.push(part);
    }

    /// How many words it takes.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// A micro-batch's numbers in device memory.
pub(super) struct MicroBatchInputs<'a> {
    pub(super) tokens: BufferView<'a>,
    pub(super) positions: BufferView<'a>,
    pub(super) starts: BufferView<'a>,
    pub(super) target_rows: BufferView<'a>,
    pub(super) targets: BufferView<'a>,
    pub(super) scales: BufferView<'a>,
    pub(super) weights: BufferView<'a>,
}

impl MicroBatch {
    pub(super) fn inputs<'a>(&self, words: &'a DeviceBuffer) -> MicroBatchInputs<'a> {
        let mut at = self.offset;
        let mut next = |len: usize| {
            at += len;
            words.view_range(at - len, len)
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
        let (a, b, c) = (sample(&[7, 8], &[0]), sample(&[9], &[]), sample(&[4, 5, 6], &[0, 1]));
        let two = std::num::NonZeroUsize::new(3).unwrap();
        let batch = PackedBatch::new([(&a, 1.0), (&b, 1.0), (&c, 2.0)], two, 0.5);
        let ints = [7, 8, 4, 5, 6, 0, 1, 0, 1, 2, 0, 2, 5, 0, 2, 3, 8, 5, 6];
        assert_eq!(batch.words[..ints.len()], ints);
        let floats: Vec<f32> = batch.words[ints.len()..].iter().map(|bits| f32::from_bits(*bits)).collect();
        assert_eq!(floats, [0.5, 1.0, 1.0, 1.0, 2.0, 2.0]);
        assert!(PackedBatch::new([(&b, 1.0)], two, 1.0).micro_batches.is_empty());
    }
}
