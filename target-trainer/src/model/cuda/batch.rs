//! Samples as the device takes them: those of a micro-batch lie one behind the other without padding, and all of a step's
//! numbers go to the device in one copy.

use crate::device::cuda::{Buffer, View};
use crate::model::tokens::Tokens;

/// A step's samples, by micro-batch.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) words: Vec<u32>,
    pub(super) parts: Vec<Part>,
}

/// A micro-batch: its sizes, and where its numbers lie among the words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) rows: usize,
    pub(super) sequences: usize,
    pub(super) longest: usize,
    pub(super) learned: usize,
    at: usize,
}

/// A sample, and what its losses count.
pub type Weighed<'a> = (&'a Tokens, f32);

impl Batch {
    /// Gradients are multiplied by `scale`, losses are not. Samples that have nothing to learn are left out.
    pub fn new<'a>(
        samples: impl IntoIterator<Item = Weighed<'a>>,
        micro_batch: std::num::NonZeroUsize,
        scale: f32,
    ) -> Batch {
        let samples: Vec<Weighed<'a>> = samples.into_iter().collect();
        let mut batch = Batch::default();
        for some in samples.chunks(micro_batch.get()) {
            let some: Vec<_> =
                some.iter().copied().filter(|(tokens, _)| !tokens.targets.is_empty()).collect();
            if !some.is_empty() {
                batch.push(&some, scale);
            }
        }
        batch
    }

    fn push(&mut self, samples: &[Weighed<'_>], scale: f32) {
        let lengths = samples.iter().map(|(tokens, _)| tokens.tokens.len());
        let starts: Vec<usize> = std::iter::once(0)
            .chain(lengths.clone().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect();
        let part = Part {
            rows: lengths.clone().sum(),
            sequences: samples.len(),
            longest: lengths.clone().max().unwrap_or(0),
            learned: samples.iter().map(|(tokens, _)| tokens.targets.len()).sum(),
            at: self.words.len(),
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
        self.parts.push(part);
    }

    /// How many words it takes.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// A micro-batch's numbers in device memory.
pub(super) struct Inputs<'a> {
    pub(super) tokens: View<'a>,
    pub(super) positions: View<'a>,
    pub(super) starts: View<'a>,
    pub(super) which: View<'a>,
    pub(super) targets: View<'a>,
    pub(super) scales: View<'a>,
    pub(super) weights: View<'a>,
}

impl Part {
    pub(super) fn inputs<'a>(&self, words: &'a Buffer) -> Inputs<'a> {
        let mut at = self.at;
        let mut next = |len: usize| {
            at += len;
            words.part(at - len, len)
        };
        Inputs {
            tokens: next(self.rows),
            positions: next(self.rows),
            starts: next(self.sequences + 1),
            which: next(self.learned),
            targets: next(self.learned),
            scales: next(self.learned),
            weights: next(self.learned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Target;

    #[test]
    fn samples_lie_without_padding_and_those_with_nothing_to_learn_not_at_all() {
        let sample = |tokens: &[u32], rows: &[usize]| Tokens {
            tokens: tokens.to_vec(),
            targets: rows.iter().map(|row| Target { row: *row, token: tokens[row + 1] }).collect(),
            cut: false,
        };
        let (a, b, c) = (sample(&[7, 8], &[0]), sample(&[9], &[]), sample(&[4, 5, 6], &[0, 1]));
        let two = std::num::NonZeroUsize::new(3).unwrap();
        let batch = Batch::new([(&a, 1.0), (&b, 1.0), (&c, 2.0)], two, 0.5);
        let ints = [7, 8, 4, 5, 6, 0, 1, 0, 1, 2, 0, 2, 5, 0, 2, 3, 8, 5, 6];
        assert_eq!(batch.words[..ints.len()], ints);
        let floats: Vec<f32> = batch.words[ints.len()..].iter().map(|bits| f32::from_bits(*bits)).collect();
        assert_eq!(floats, [0.5, 1.0, 1.0, 1.0, 2.0, 2.0]);
        assert!(Batch::new([(&b, 1.0)], two, 1.0).parts.is_empty());
    }
}
