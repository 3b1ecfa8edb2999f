//! Takes the candidates of each crash point, as many as the budget allows, and counts the others. Pure.

use std::collections::{BTreeMap, BTreeSet};

use scenarios::{CrashCategory, EnumerationRule};

use super::candidate_sets::CandidateSets;
use super::candidate_space::{CandidateSpace, SpaceSection};
use super::crash_candidate::{CrashCandidate, TornWrite};
use super::crash_state::CrashKind;
use super::enumeration_budget::{PointQuota, SectionShare, is_exhausted, shares};
use super::left_out_counter::LeftOutCounter;
use super::recording_index::RecordingIndex;
use super::tear::Tear;

/// The candidates that were taken so far.
pub(super) struct CollectedCandidates<'a> {
    index: &'a RecordingIndex<'a>,
    quota: PointQuota,
    pub(super) sets: CandidateSets,
    /// How many were taken, also those with equal persisted sets.
    pub(super) taken: BTreeMap<CrashCategory, u64>,
    pub(super) left_out: LeftOutCounter,
}

/// A crash point under one kind of crash.
#[derive(Clone, Copy)]
pub(super) struct PointOfCrash {
    pub(super) crash: CrashKind,
    /// Its number among the crash points.
    pub(super) number: usize,
    pub(super) op_count: usize,
}

impl<'a> CollectedCandidates<'a> {
    pub(super) fn new(index: &'a RecordingIndex<'a>, quota: PointQuota) -> CollectedCandidates<'a> {
        CollectedCandidates {
            index,
            quota,
            sets: CandidateSets::new(index.recording),
            taken: BTreeMap::new(),
            left_out: LeftOutCounter::default(),
        }
    }

    /// Goes on with power losses, which have a budget of their own.
    pub(super) fn begin_power_losses(&mut self, quota: PointQuota) {
        self.quota = quota;
        (self.sets.steps, self.sets.units) = (0, 0);
    }

    /// Takes the candidates of a process crash: everything happened, or the last write is cut.
    pub(super) fn take_process_crash(&mut self, point: PointOfCrash) {
        let last = point.op_count.checked_sub(1);
        let write = last.and_then(|op| self.index.tearable_write(op as u32));
        let cuts = process_crash_cuts(self.index, point.op_count);
        let cut_count = cuts.len() as u64;
        let possible = write.map_or(0, |write| write.inner_page_count());
        let category = point.crash.category();
        self.left_out.add(category, EnumerationRule::PageSets, possible.saturating_sub(cut_count));
        let taken = self.taken_of(point, cut_count + 1);
        let torn = cuts.into_iter().zip(last).map(|(cut, op)| {
            let torn = Some(TornWrite { op: op as u32, tear: Tear::Prefix(cut) });
            CrashCandidate { torn, ..CrashCandidate::whole(point.op_count) }
        });
        let candidates = [CrashCandidate::whole(point.op_count)].into_iter().chain(torn);
        candidates.take(taken as usize).for_each(|candidate| self.add(candidate, point));
    }

    /// Takes the candidates of a power loss.
    pub(super) fn take_power_loss(&mut self, point: PointOfCrash, space: &CandidateSpace<'_>) {
        let len = space.len();
        let category = point.crash.category();
        let (allowed, listed) = (space.allowed(), space.listed());
        self.left_out.add(category, EnumerationRule::NameSets, allowed.names.saturating_sub(listed.names));
        let (allowed_pages, listed_pages) = (allowed.all - allowed.names, listed.all - listed.names);
        let pages_left_out = allowed_pages.saturating_sub(listed_pages);
        self.left_out.add_at_least(category, EnumerationRule::PageSets, pages_left_out);
        self.left_out.add_at_least(category, EnumerationRule::EarlyChanges, space.early_changes());
        let taken = self.taken_of(point, len);
        let sections = SpaceSection::ALL.into_iter().map(|section| {
            let len = space.len_of(section);
            SectionShare { section, len, taken: len }
        });
        let sections: Vec<SectionShare> = sections.filter(|section| section.len > 0).collect();
        let sections = if taken < len { shares(sections, taken) } else { sections };
        for share in sections {
            for number in share.numbers(point.op_count as u64) {
                if let Some(candidate) = space.candidate(share.section, number) {
                    self.add(candidate, point);
                }
            }
        }
    }

    /// How many of the candidates of a crash point are taken. Counts them and the others.
    fn taken_of(&mut self, point: PointOfCrash, len: u64) -> u64 {
        let is_used = self.quota.uses(point.number) && !is_exhausted(self.sets.steps, self.sets.units);
        let taken = if is_used { len.min(self.quota.candidates) } else { 0 };
        *self.taken.entry(point.crash.category()).or_default() += taken;
        self.left_out.add(point.crash.category(), EnumerationRule::Budget, len - taken);
        taken
    }

    fn add(&mut self, candidate: CrashCandidate, point: PointOfCrash) {
        self.sets.add(candidate, point.crash, self.index);
    }
}

/// Where a kill can cut the last operation before a crash point.
pub(super) fn process_crash_cuts(index: &RecordingIndex<'_>, op_count: usize) -> BTreeSet<u64> {
    let last = op_count.checked_sub(1);
    let write = last.and_then(|op| index.tearable_write(op as u32));
    write.map(|write| write.process_crash_cuts()).unwrap_or_default()
}
