//! A hash of the persisted set of a candidate: candidates with equal persisted sets leave equal trees. Pure.

use super::crash_candidate::CrashCandidate;
use super::persist_unit::persist_units;
use super::tear::Tear;
use crate::explore::record::Recording;

/// Hashes persisted sets. Holds the combined hash of all units before each crash point.
pub(super) struct PersistedSetHasher {
    prefix_hashes: Vec<u128>,
}

impl PersistedSetHasher {
    pub(super) fn new(recording: &Recording) -> PersistedSetHasher {
        let mut prefix_hashes = vec![0];
        let mut combined = 0;
        for (op, effect) in recording.ops.iter().map(|op| &op.effect).enumerate() {
            persist_units(op as u32, effect)
                .for_each(|unit| combined ^= unit_hash(unit.op, unit.part.into()));
            prefix_hashes.push(combined);
        }
        PersistedSetHasher { prefix_hashes }
    }

    /// Equal for candidates with equal persisted sets. Others have equal hashes with a probability of 2^-128.
    pub(super) fn hash(&self, candidate: &CrashCandidate) -> u128 {
        let lost =
            candidate.lost.iter().fold(0, |combined, unit| combined ^ unit_hash(unit.op, unit.part.into()));
        let torn = candidate.torn.map_or(0, |torn| {
            let (kind, len_bytes): (u64, u64) = match torn.tear {
                Tear::Prefix(len_bytes) => (1, len_bytes),
                Tear::ZeroTail(len_bytes) => (2, len_bytes),
                Tear::GarbageTail(len_bytes) => (3, len_bytes),
                Tear::Hole(len_bytes) => (4, len_bytes),
                Tear::Gap { from, to } => (5, mix_bits(from) as u64 ^ to),
            };
            mix_bits(unit_hash(torn.op, kind << 3) as u64 ^ len_bytes)
        });
        self.prefix_hashes[candidate.op_count as usize] ^ lost ^ torn
    }
}

/// The hash of one unit.
fn unit_hash(op: u32, part: u64) -> u128 {
    mix_bits(u64::from(op) << 8 | part)
}

/// Two rounds of the finalizer of splitmix64 (Steele, Lea, Flood 2014).
fn mix_bits(input: u64) -> u128 {
    let finalize = |input: u64| {
        let mut value = input.wrapping_add(0x9E37_79B9_7F4A_7C15);
        value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ value >> 31
    };
    let first = finalize(input);
    u128::from(first) << 64 | u128::from(finalize(first ^ input.rotate_left(29)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_hashes_differ() {
        let hashes: std::collections::HashSet<u128> =
            (0..1000).flat_map(|op| (0..3).map(move |part| unit_hash(op, part))).collect();
        assert_eq!(hashes.len(), 3000);
    }
}
