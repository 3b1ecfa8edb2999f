//! A crash point with its persisted set: what had happened, and what of it was lost or torn. Pure; does not know
//! which candidates a model allows.

use std::sync::Arc;

use super::fs_model::PersistUnit;
use super::tear::Tear;

/// A write that reached the disk in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TornWrite {
    /// The index of the operation.
    pub op: u32,
    /// What reached the disk.
    pub tear: Tear,
}

/// A crash point, and what did not reach the disk of the operations before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CrashCandidate {
    /// The crash point: how many operations have happened.
    pub op_count: u32,
    /// The units that did not reach the disk. Sorted. Shared, because many crashes lose the same ones.
    pub lost: Arc<[PersistUnit]>,
    /// The write that reached the disk in part.
    pub torn: Option<TornWrite>,
}

impl CrashCandidate {
    /// A crash after `op_count` operations that lost nothing.
    pub fn whole(op_count: usize) -> CrashCandidate {
        CrashCandidate { op_count: op_count as u32, lost: Arc::default(), torn: None }
    }

    /// Whether every operation before the crash point is persisted in full.
    pub fn lost_nothing(&self) -> bool {
        self.lost.is_empty() && self.torn.is_none()
    }

    /// Whether nothing is lost but the end of the last operation before the crash point.
    pub(super) fn is_prefix(&self) -> bool {
        self.lost.is_empty() && self.torn.is_none_or(|torn| torn.op + 1 == self.op_count)
    }

    /// How many operations have happened in full, if it is a prefix.
    pub(super) fn whole_op_count(&self) -> usize {
        self.op_count as usize - usize::from(self.torn.is_some())
    }

    /// The name that `--state` takes: `op_count`, then the lost units, then the torn write, as in
    /// `12-3-9.1~7p4096`.
    pub fn name(&self) -> String {
        let mut name = self.op_count.to_string();
        for unit in self.lost.iter() {
            name += &format!("-{}", unit.op);
            if unit.part > 0 {
                name += &format!(".{}", unit.part);
            }
        }
        if let Some(torn) = self.torn {
            name += &format!("~{}{}", torn.op, torn.tear.name());
        }
        name
    }

    /// Parses what [`name`](CrashCandidate::name) returns. `None`: not a name of a crash state.
    pub fn parse(name: &str) -> Option<CrashCandidate> {
        let (rest, torn) = match name.split_once('~') {
            None => (name, None),
            Some((rest, torn)) => {
                let letter = torn.find(|letter: char| letter.is_ascii_alphabetic())?;
                let (op, tear) = torn.split_at(letter);
                (rest, Some(TornWrite { op: op.parse().ok()?, tear: Tear::parse(tear)? }))
            }
        };
        let mut parts = rest.split('-');
        let op_count = parts.next()?.parse().ok()?;
        let unit = |text: &str| -> Option<PersistUnit> {
            let (op, part) = text.split_once('.').unwrap_or((text, "0"));
            Some(PersistUnit { op: op.parse().ok()?, part: part.parse().ok()? })
        };
        let mut lost = parts.map(unit).collect::<Option<Vec<PersistUnit>>>()?;
        lost.sort_unstable();
        Some(CrashCandidate { op_count, lost: lost.into(), torn })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parsed_name_gives_the_same_candidate() {
        let unit = |op, part| PersistUnit { op, part };
        let torn = |op, tear| Some(TornWrite { op, tear });
        for torn in [
            None,
            torn(7, Tear::Prefix(4096)),
            torn(3, Tear::Hole(8)),
            torn(1, Tear::Gap { from: 4096, to: 8192 }),
        ] {
            let candidate = CrashCandidate { op_count: 12, lost: [unit(3, 0), unit(9, 1)].into(), torn };
            assert_eq!(CrashCandidate::parse(&candidate.name()), Some(candidate));
        }
        for name in ["12-x", "12~7", "12~7x1", "12~p1", "12~7m3", "12~7m3.2"] {
            assert_eq!(CrashCandidate::parse(name), None, "{name}");
        }
    }
}
