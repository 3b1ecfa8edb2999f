//! The parts of an operation that reach the disk separately. Pure.

use crate::explore::record::OpEffect;

/// A part of an operation that can reach the disk separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PersistUnit {
    /// The index of the operation.
    pub op: u32,
    /// The index of a name change. For a write, 0 is the whole write and `BYTES_PART` only its bytes.
    pub part: u8,
}

/// The bytes of a write without its length. If they are lost, blocks that were there keep their bytes, and new ones
/// read as zeroes.
pub(crate) const BYTES_PART: u8 = 1;

/// The units of an operation that can reach the disk separately.
pub fn persist_units(op: u32, effect: &OpEffect) -> impl Iterator<Item = PersistUnit> + use<> {
    let parts = match effect {
        OpEffect::NameChanges(changes) => changes.len(),
        OpEffect::Write { .. }
        | OpEffect::Resize { .. }
        | OpEffect::Zero { .. }
        | OpEffect::SetAttributes { .. } => 1,
        OpEffect::Sync { .. } | OpEffect::SyncAll | OpEffect::Output { .. } => 0,
    };
    (0..parts).map(move |part| PersistUnit { op, part: part as u8 })
}
