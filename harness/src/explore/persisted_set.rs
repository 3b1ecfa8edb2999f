//! Which operations a candidate keeps, as one number: candidates that keep the same make the same tree. Pure.

use super::crash_candidate::{CrashCandidate, Tear};
use super::fs_model::persist_units;
use super::recording::Recording;

/// Sums of the marks of all units before each moment.
pub(super) struct PersistedSetHasher {
    prefix_hashes: Vec<u128>,
}

impl PersistedSetHasher {
    pub(super) fn new(recording: &Recording) -> PersistedSetHasher {
        let mut prefix_hashes = vec![0];
        let mut sum = 0;
        for (op, what) in recording.ops.iter().map(|op| &op.effect).enumerate() {
            persist_units(op as u32, what).for_each(|unit| sum ^= unit_hash(unit.op, unit.part.into()));
            prefix_hashes.push(sum);
        }
        PersistedSetHasher { prefix_hashes }
    }

    /// Equal for those that keep the same; for others with a chance of 2^-128.
    pub(super) fn hash(&self, candidate: &CrashCandidate) -> u128 {
        let lost = candidate.lost.iter().fold(0, |sum, unit| sum ^ unit_hash(unit.op, unit.part.into()));
        let torn = candidate.torn.map_or(0, |(op, tear)| {
            let (kind, at): (u64, u64) = match tear {
                Tear::Prefix(at) => (1, at),
                Tear::ZeroTail(at) => (2, at),
                Tear::GarbageTail(at) => (3, at),
                Tear::Hole(at) => (4, at),
            };
            mix_bits(unit_hash(op, kind << 3) as u64 ^ at)
        });
        self.prefix_hashes[candidate.op_count as usize] ^ lost ^ torn
    }
}

/// A number that stands for a unit.
fn unit_hash(op: u32, part: u64) -> u128 {
    mix_bits(u64::from(op) << 8 | part)
}

/// Two rounds of the finalizer of splitmix64 (Steele, Lea, Flood 2014).
fn mix_bits(from: u64) -> u128 {
    let half = |from: u64| {
        let mut at = from.wrapping_add(0x9E37_79B9_7F4A_7C15);
        at = (at ^ at >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        at = (at ^ at >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        at ^ at >> 31
    };
    let first = half(from);
    u128::from(first) << 64 | u128::from(half(first ^ from.rotate_left(29)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_units_and_of_tears_differ() {
        let marks: std::collections::HashSet<u128> =
            (0..1000).flat_map(|op| (0..3).map(move |part| unit_hash(op, part))).collect();
        assert_eq!(marks.len(), 3000);
    }
}
