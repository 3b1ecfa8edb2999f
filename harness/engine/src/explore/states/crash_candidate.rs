//! A crash point with its persisted set: what had happened, and what of it was lost or torn. Pure; does not know
//! which candidates a model allows.

use std::sync::Arc;

use super::persist_unit::PersistUnit;
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

    /// The crash point, the lost units and the torn write as text, as in `12-3-9.1-14..20~7p4096`.
    pub fn name(&self) -> String {
        let mut text = self.op_count.to_string();
        let mut first = 0;
        while first < self.lost.len() {
            let unit = self.lost[first];
            let run = run_of_whole_units(&self.lost[first..]);
            text += &format!("-{}", unit.op);
            if unit.part > 0 {
                text += &format!(".{}", unit.part);
            }
            if run >= MIN_RUN {
                text += &format!("..{}", unit.op as usize + run - 1);
                first += run;
            } else {
                first += 1;
            }
        }
        if let Some(torn) = self.torn {
            text += &format!("~{}{}", torn.op, torn.tear.name());
        }
        text
    }

    /// Parses what [`name`](CrashCandidate::name) returns. `None`: it is no such text.
    pub fn parse(text: &str) -> Option<CrashCandidate> {
        let (rest, torn) = match text.split_once('~') {
            None => (text, None),
            Some((rest, torn)) => {
                let letter = torn.find(|letter: char| letter.is_ascii_alphabetic())?;
                let (op, tear) = torn.split_at(letter);
                (rest, Some(TornWrite { op: op.parse().ok()?, tear: Tear::parse(tear)? }))
            }
        };
        let mut parts = rest.split('-');
        let op_count = parts.next()?.parse().ok()?;
        let mut lost: Vec<PersistUnit> = Vec::new();
        for part in parts {
            if let Some((first, last)) = part.split_once("..") {
                let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
                // A range beyond the crash point names no state, however long it is.
                (first < last && last < op_count).then_some(())?;
                lost.extend((first..=last).map(|op| PersistUnit { op, part: 0 }));
            } else {
                let (op, part) = part.split_once('.').unwrap_or((part, "0"));
                lost.push(PersistUnit { op: op.parse().ok()?, part: part.parse().ok()? });
            }
        }
        lost.sort_unstable();
        Some(CrashCandidate { op_count, lost: lost.into(), torn })
    }
}

/// So many lost operations in a row are written as a range.
const MIN_RUN: usize = 3;

/// How many units from the first on are the first parts of consecutive operations.
fn run_of_whole_units(units: &[PersistUnit]) -> usize {
    let first = units.first().map_or(0, |unit| unit.op);
    let is_next = |nth: &usize| units[*nth].part == 0 && units[*nth].op as usize == first as usize + nth;
    (0..units.len()).take_while(is_next).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parsed_position_gives_the_same_candidate() {
        let unit = |op, part| PersistUnit { op, part };
        let torn = |op, tear| Some(TornWrite { op, tear });
        for torn in [
            None,
            torn(7, Tear::Prefix(4096)),
            torn(3, Tear::Hole(8)),
            torn(1, Tear::Gap { from: 4096, to: 8192 }),
        ] {
            for lost in [
                vec![],
                vec![unit(3, 0), unit(9, 1)],
                vec![unit(2, 0), unit(3, 0), unit(4, 0), unit(5, 0), unit(5, 1), unit(8, 0), unit(9, 0)],
                vec![unit(2, 0), unit(2, 1), unit(3, 0), unit(4, 0)],
            ] {
                let candidate = CrashCandidate { op_count: 12, lost: lost.into(), torn };
                let text = candidate.name();
                assert_eq!(CrashCandidate::parse(&text), Some(candidate), "{text}");
            }
        }
        let run = CrashCandidate { op_count: 9, lost: (3..8).map(|op| unit(op, 0)).collect(), torn: None };
        assert_eq!(run.name(), "9-3..7");
        let texts =
            ["12-x", "12~7", "12~7x1", "12~p1", "12~7m3", "12~7m3.2", "12-4..3", "12-3..99999999", ""];
        for text in texts {
            assert_eq!(CrashCandidate::parse(text), None, "{text}");
        }
    }
}
