//! The candidates of a power loss at one crash point: sets of names that reached the disk, crossed with masks of
//! the pending files. Each candidate has a number, so that a few of very many can be taken. Pure.

use std::borrow::Cow;
use std::collections::BTreeSet;

use scenarios::MAX_COUNTED_CANDIDATES;

use super::crash_candidate::{CrashCandidate, TornWrite};
use super::file_mask::FileMask;
use super::fs_model::DurableSet;
use super::pending_units::{PageSetCounts, PendingFile, PendingUnits};
use super::persist_unit::PersistUnit;
use super::write_pages::subsets;

/// With more pending name operations than this, only some of their prefixes are tried.
const MAX_NAME_PREFIXES: usize = 24;
/// At the end of a save, the fine masks are crossed with this many prefixes of the pending name operations.
const MAX_FINE_PREFIXES: usize = 4;

/// The candidates at one crash point.
pub(super) struct CandidateSpace<'p> {
    pending: &'p PendingUnits<'p>,
    durable: &'p DurableSet<'p>,
    op_count: usize,
    /// How many groups of changes of names reached the disk, the largest number first.
    prefixes: Vec<usize>,
    /// How many of these are crossed with fine masks.
    fine_prefixes: usize,
    /// How many parts of the groups can be lost alone.
    halves: usize,
    /// Of all files: the tears of ends.
    torn_ends: RunningCounts<'p>,
    /// The files that are crossed with fine masks.
    recent_files: Vec<usize>,
    /// Of these files: the fine masks.
    fine: RunningCounts<'p>,
}

/// The candidates that are alike. In the order of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpaceSection {
    /// Names are lost, no data is.
    Names,
    /// The data of all files is lost.
    AllFiles,
    /// The data of one file is lost.
    OneFile,
    /// The data of all files but one is lost.
    OtherFiles,
    /// The first or the last write to a file is torn.
    TornEnds,
    /// The data of one file is there in part.
    FineMasks,
}

impl SpaceSection {
    pub(super) const ALL: [SpaceSection; 6] = [
        SpaceSection::Names,
        SpaceSection::AllFiles,
        SpaceSection::OneFile,
        SpaceSection::OtherFiles,
        SpaceSection::TornEnds,
        SpaceSection::FineMasks,
    ];
}

/// Sums of counts, to find the element that a number belongs to.
struct RunningCounts<'p> {
    ends: Cow<'p, [u64]>,
}

/// The element that a number belongs to, and the number within it.
struct ElementNumber {
    element: usize,
    number: u64,
}

impl<'p> RunningCounts<'p> {
    fn of(counts: impl Iterator<Item = usize>) -> RunningCounts<'p> {
        let mut end = 0;
        let ends = counts.map(|count| {
            end += count as u64;
            end
        });
        RunningCounts { ends: ends.collect() }
    }

    fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn locate(&self, number: u64) -> ElementNumber {
        let element = self.ends.partition_point(|end| *end <= number);
        let start = element.checked_sub(1).map_or(0, |before| self.ends[before]);
        ElementNumber { element, number: number - start }
    }
}

/// A set of pending changes of names that are lost.
struct LostNames {
    units: Vec<PersistUnit>,
    /// The pending operations before this one are persisted.
    from_op: u32,
}

/// How many sets of what reached the disk there are at a crash point. Not counted beyond [`MAX_COUNTED_CANDIDATES`].
pub(super) struct SetCounts {
    /// Sets of names.
    pub(super) names: u64,
    /// Sets of names crossed with sets of pages.
    pub(super) all: u64,
}

impl<'p> CandidateSpace<'p> {
    pub(super) fn new(
        pending: &'p PendingUnits<'p>,
        durable: &'p DurableSet<'p>,
        op_count: usize,
    ) -> CandidateSpace<'p> {
        let prefixes: Vec<usize> = sampled_prefixes(pending.group_count()).into_iter().rev().collect();
        let crossed = if pending.index.ends_save(op_count) { MAX_FINE_PREFIXES } else { 1 };
        let recent_from = pending.index.recent_from(op_count);
        let torn_rename = pending.behavior.torn_rename && pending.behavior.unordered_names;
        let recent_files = pending.touched_from(recent_from);
        let fine = recent_files.iter().map(|file| pending.files()[*file].fine.len());
        CandidateSpace {
            fine_prefixes: prefixes.len().min(crossed),
            prefixes,
            halves: if torn_rename { pending.divisible_len() } else { 0 },
            torn_ends: RunningCounts { ends: pending.torn_ends().into() },
            fine: RunningCounts::of(fine),
            recent_files,
            pending,
            durable,
            op_count,
        }
    }

    /// How many sets of names can be lost out of order.
    fn unordered_count(&self) -> u64 {
        if !self.pending.behavior.unordered_names {
            return 0;
        }
        let attributes = u64::from(!self.pending.attributes.is_empty());
        attributes + 2 * self.pending.group_count() as u64 + self.halves as u64
    }

    /// How many candidates a section has.
    pub(super) fn len_of(&self, section: SpaceSection) -> u64 {
        let (prefixes, files) = (self.prefixes.len() as u64, self.pending.files().len() as u64);
        let whole_masks = FileMask::whole(self.pending.behavior).len() as u64;
        match section {
            SpaceSection::Names => prefixes + self.unordered_count(),
            SpaceSection::AllFiles => prefixes * whole_masks * files.min(1),
            SpaceSection::OneFile if files > 1 => prefixes * whole_masks * files,
            SpaceSection::OtherFiles if files > 1 => files,
            SpaceSection::OneFile | SpaceSection::OtherFiles => 0,
            SpaceSection::TornEnds => self.torn_ends.total(),
            SpaceSection::FineMasks => self.fine.total() * self.fine_prefixes as u64,
        }
    }

    /// How many candidates there are.
    pub(super) fn len(&self) -> u64 {
        SpaceSection::ALL.into_iter().map(|section| self.len_of(section)).sum()
    }

    /// How many units are not durable.
    pub(super) fn pending_len(&self) -> u64 {
        self.pending.len() as u64
    }

    /// How many changes may be on the disk ahead of earlier ones, in candidates that are not enumerated.
    pub(super) fn early_changes(&self) -> u64 {
        self.durable.early_changes()
    }

    /// A candidate by its number. `None`: it leaves the same tree as another one, because the file has no name.
    pub(super) fn candidate(&self, section: SpaceSection, number: u64) -> Option<CrashCandidate> {
        let prefixes = self.prefixes.len() as u64;
        let prefix = |number: u64| self.names_until(self.prefixes[(number % prefixes) as usize]);
        let whole_mask = |number: u64| FileMask::whole(self.pending.behavior)[(number / prefixes) as usize];
        match section {
            SpaceSection::Names if number < prefixes => Some(self.losing(prefix(number), Vec::new(), None)),
            SpaceSection::Names => {
                let units = self.unordered_names(number - prefixes);
                Some(self.losing(LostNames { units, from_op: 0 }, Vec::new(), None))
            }
            SpaceSection::AllFiles => {
                Some(self.losing_files(prefix(number), whole_mask(number), self.pending.files().iter()))
            }
            SpaceSection::OneFile => {
                let of_each = prefixes * FileMask::whole(self.pending.behavior).len() as u64;
                let file = &self.pending.files()[(number / of_each) as usize];
                self.masking(prefix(number), file, whole_mask(number % of_each))
            }
            SpaceSection::OtherFiles => {
                let files = self.pending.files();
                self.is_visible(&files[number as usize], self.op_count as u32).then(|| {
                    let others = files.iter().enumerate().filter(|(index, _)| *index as u64 != number);
                    self.losing_files(self.all_names(), FileMask::Before(0), others.map(|(_, file)| file))
                })
            }
            SpaceSection::TornEnds => {
                let ElementNumber { element, number } = self.torn_ends.locate(number);
                let file = &self.pending.files()[element];
                self.masking(self.all_names(), file, file.torn_ends[number as usize])
            }
            SpaceSection::FineMasks => {
                let fine_prefixes = self.fine_prefixes as u64;
                let names = self.names_until(self.prefixes[(number % fine_prefixes) as usize]);
                let ElementNumber { element, number } = self.fine.locate(number / fine_prefixes);
                let file = &self.pending.files()[self.recent_files[element]];
                self.masking(names, file, file.fine[number as usize])
            }
        }
    }

    fn all_names(&self) -> LostNames {
        LostNames { units: Vec::new(), from_op: self.op_count as u32 }
    }

    /// Only the first groups reached the disk.
    fn names_until(&self, persisted: usize) -> LostNames {
        let units = self.pending.groups_from(persisted);
        let from_op = units.first().map_or(self.op_count as u32, |unit| unit.op);
        LostNames { units, from_op }
    }

    /// The attributes, one group, all but one group, or a part of a group.
    fn unordered_names(&self, number: u64) -> Vec<PersistUnit> {
        let (mut number, groups) = (number as usize, self.pending.group_count());
        if !self.pending.attributes.is_empty() {
            let Some(less) = number.checked_sub(1) else { return self.pending.attributes.clone() };
            number = less;
        }
        match number {
            lost if lost < groups => self.pending.group(lost).to_vec(),
            kept if kept < 2 * groups => {
                let others = (0..groups).filter(|index| *index != kept - groups);
                others.flat_map(|index| self.pending.group(index)).copied().collect()
            }
            half => vec![self.pending.divisible(half - 2 * groups)],
        }
    }

    fn losing_files<'f>(
        &self,
        names: LostNames,
        mask: FileMask,
        files: impl Iterator<Item = &'f PendingFile>,
    ) -> CrashCandidate {
        let lost = |file: &PendingFile| file.writes.masked(mask, self.sized_until(file, names.from_op)).lost;
        let data = files.flat_map(lost).collect();
        self.losing(names, data, None)
    }

    fn masking(&self, names: LostNames, file: &PendingFile, mask: FileMask) -> Option<CrashCandidate> {
        self.is_visible(file, names.from_op).then(|| {
            let masked = file.writes.masked(mask, self.sized_until(file, names.from_op));
            self.losing(names, masked.lost, masked.torn)
        })
    }

    fn losing(&self, names: LostNames, data: Vec<PersistUnit>, torn: Option<TornWrite>) -> CrashCandidate {
        let mut lost = names.units;
        lost.extend(data);
        lost.sort_unstable();
        lost.dedup();
        CrashCandidate { op_count: self.op_count as u32, lost: lost.into(), torn }
    }

    /// The last operation that has made the length of a file durable, because it renamed the file over another
    /// one.
    fn sized_until(&self, file: &PendingFile, from_op: u32) -> Option<u32> {
        let replacing = self.pending.index.replacing_ops(file.node).iter().rev().copied();
        let mut persisted = replacing.filter(|op| self.is_persisted(*op, from_op));
        persisted.next().filter(|_| self.pending.behavior.replace_persists_size)
    }

    fn is_persisted(&self, op: u32, from_op: u32) -> bool {
        let is_durable = || (0..2).any(|part| self.durable.contains(PersistUnit { op, part }));
        (op as usize) < self.op_count && (op < from_op || is_durable())
    }

    /// Whether a file has a name.
    fn is_visible(&self, file: &PendingFile, from_op: u32) -> bool {
        let index = self.pending.index;
        let is_named = || index.naming_ops(file.node).iter().any(|op| self.is_persisted(*op, from_op));
        let is_removed = index.removed_by(file.node).is_some_and(|op| op < from_op);
        !is_removed && (index.is_initial(file.node) || is_named())
    }

    /// How many sets of names, and of pages with them, the model allows. What of a page is there, and what garbage
    /// is in it, is not counted.
    pub(super) fn allowed(&self) -> SetCounts {
        let (pending, behavior) = (self.pending, self.pending.behavior);
        let groups = pending.group_count() as u64;
        let names = match behavior.unordered_names {
            true => {
                let halves = self.halves as u64;
                let units = if behavior.torn_rename { pending.single_groups() + halves } else { groups };
                subsets(units)
            }
            false => groups + 1 + pending.joined_attributes,
        };
        let mut all = names;
        for file in pending.files() {
            all = all.saturating_mul(file.page_sets.allowed);
            if all >= MAX_COUNTED_CANDIDATES {
                break;
            }
        }
        SetCounts { names: names.min(MAX_COUNTED_CANDIDATES), all: all.min(MAX_COUNTED_CANDIDATES) }
    }

    /// How many of these the candidates are. Candidates that are equal count once.
    pub(super) fn listed(&self) -> SetCounts {
        let (groups, prefixes) = (self.pending.group_count() as u64, self.prefixes.len() as u64);
        // With all groups but the last, or only the first, it is a prefix.
        let unordered = match self.pending.behavior.unordered_names {
            true => 2 * groups.saturating_sub(1) - u64::from(groups == 2) + self.halves as u64,
            false => 0,
        };
        let names = prefixes + unordered;
        let files = self.pending.files();
        let PageSetCounts { whole, torn, .. } = self.pending.page_sets;
        let all_files = self.pending.most_whole;
        let one_file = if files.len() > 1 { whole } else { 0 };
        let other_files = if files.len() > 2 { files.len() as u64 } else { 0 };
        let torn = torn - whole;
        let recent = self.recent_files.iter().map(|file| &files[*file]).filter(|file| !file.fine.is_empty());
        let fine: u64 = recent.map(|file| file.page_sets.fine - file.page_sets.torn).sum();
        let pages = prefixes * (all_files + one_file) + other_files + torn + fine * self.fine_prefixes as u64;
        SetCounts { names, all: names + pages }
    }
}

/// How many of the pending name operations are persisted: none, all, and the numbers between them, up to a
/// bound.
fn sampled_prefixes(count: usize) -> BTreeSet<usize> {
    if count <= MAX_NAME_PREFIXES {
        return (0..=count).collect();
    }
    let recent = (count - MAX_NAME_PREFIXES * 2 / 3)..=count;
    let spread = (0..MAX_NAME_PREFIXES / 3).map(|nth| nth * count / (MAX_NAME_PREFIXES / 3));
    recent.chain(spread).collect()
}
