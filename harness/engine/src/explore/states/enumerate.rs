//! Enumerates the crash states of a recorded run, each once, representatives of every group first. Pure. A
//! process crash keeps every prefix of the operations, or tears a large write at a page (a real SIGKILL tears
//! a `write` at 4 KiB on tmpfs and at 2 MiB on ext4). A power loss can lose what was not synced, as far as
//! the model allows. Counts what a rule or a bound leaves out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use rayon::slice::ParallelSlice;
use scenarios::{CrashCategory, EnumerationRule, NotEnumerated};

use super::candidate_sets::Witnesses;
use super::candidate_space::CandidateSpace;
use super::collected_candidates::{CollectedCandidates, PointOfCrash, process_crash_cuts};
use super::crash_candidate::CrashCandidate;
use super::crash_points::CrashPoints;
use super::crash_state::{CrashKind, CrashState};
use super::enumeration_budget::{PointCost, PointQuota};
use super::fs_model::{DurableSet, FsModel};
use super::left_out_counter::LeftOutCounts;
use super::pending_units::PendingUnits;
use super::recording_index::RecordingIndex;
use super::state_groups::{StateGroup, signatures, spread_ranks};
use super::tree_replay::digests_of_prefixes;
use crate::explore::record::Recording;

/// The trees of so many crashes that lose nothing are computed one from the other.
const PREFIXES_AT_ONCE: usize = 256;

/// Which crashes are enumerated.
#[derive(Debug, Clone, Default)]
pub struct ExploreScope {
    /// Whether process crashes are included.
    pub process_crashes: bool,
    /// The models whose power losses are included.
    pub models: Vec<FsModel>,
    /// The largest number of distinct states.
    pub max_states: usize,
    /// Only these crash points, as numbers of operations that have happened. `None`: all.
    pub crash_points: Option<BTreeSet<usize>>,
}

impl ExploreScope {
    /// The kinds of crash that are included.
    pub fn crash_kinds(&self) -> impl Iterator<Item = CrashKind> + '_ {
        let process_crash = self.process_crashes.then_some(CrashKind::Process);
        process_crash.into_iter().chain(self.models.iter().map(|model| CrashKind::PowerLoss(*model)))
    }
}

/// The counts of an enumeration, by category of crash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnumerationCounts {
    /// Candidates before equal trees are merged.
    pub candidates: BTreeMap<CrashCategory, u64>,
    /// Distinct states.
    pub distinct: BTreeMap<CrashCategory, u64>,
    /// Distinct states beyond [`ExploreScope::max_states`].
    pub left_out: BTreeMap<CrashCategory, u64>,
    /// Candidates that the rules of the enumeration left out. What states they lead to is not known. Each model
    /// is counted. Not counted beyond `MAX_COUNTED_CANDIDATES`.
    pub not_enumerated: BTreeMap<CrashCategory, u64>,
    /// The same by rule.
    pub not_enumerated_by_rule: BTreeMap<EnumerationRule, NotEnumerated>,
    /// Distinct states of both categories together. A state of both counts once.
    pub states: u64,
    /// Those of `states` that are beyond [`ExploreScope::max_states`].
    pub states_left_out: u64,
}

/// The result of an enumeration.
#[derive(Default)]
pub struct Enumeration {
    /// In the order in which they should be tried.
    pub states: Vec<CrashState>,
    /// How many there are, and how many were left out.
    pub counts: EnumerationCounts,
}

/// Enumerates the crash states of a recording that the scope includes, up to its bound.
pub fn enumerate(recording: &Recording, scope: &ExploreScope) -> Enumeration {
    enumerate_until(recording, scope, || false).unwrap_or_default()
}

/// Enumerates the crash states of a recording that the scope includes, up to its bound. `cancelled` is polled;
/// once it is `true` the result is `None`, because it would not be whole.
pub fn enumerate_until(
    recording: &Recording,
    scope: &ExploreScope,
    cancelled: fn() -> bool,
) -> Option<Enumeration> {
    let index = RecordingIndex::new(recording);
    let points = CrashPoints::of(recording, scope.crash_points.as_ref());
    let enumerator = Enumerator { index: &index, scope, points, cancelled };
    let mut quota = PointQuota::within_bounds(&enumerator.power_loss_costs());
    let mut collected = enumerator.collect(quota);
    while let Some(larger) = quota.enlarged(collected.sets.steps, collected.sets.units) {
        if cancelled() {
            return None;
        }
        quota = larger;
        drop(collected);
        collected = enumerator.collect(quota);
    }
    let enumeration = enumerator.select_within_bound(collected);
    // What was left out after that is not counted.
    if cancelled() { None } else { Some(enumeration) }
}

struct Enumerator<'a> {
    index: &'a RecordingIndex<'a>,
    scope: &'a ExploreScope,
    points: CrashPoints,
    /// Once it is `true`, the rest is left out, and nobody looks at the result.
    cancelled: fn() -> bool,
}

impl Enumerator<'_> {
    /// What each crash point costs under a process crash.
    fn process_crash_costs(&self) -> Vec<PointCost> {
        let cost = |op_count: &usize| PointCost {
            candidates: process_crash_cuts(self.index, *op_count).len() as u64 + 1,
            steps: self.index.tree_steps(*op_count),
            units: 0,
        };
        self.points.op_counts.iter().map(cost).collect()
    }

    /// What each crash point costs under each model of a power loss.
    fn power_loss_costs(&self) -> Vec<PointCost> {
        let mut costs = Vec::new();
        for model in &self.scope.models {
            self.visit_power_losses(*model, |point, space| {
                let (candidates, units) = (space.len(), space.pending_len() / 2);
                let steps = self.index.file_operations(point.op_count).into();
                costs.push(PointCost { candidates, steps, units });
            });
        }
        costs
    }

    /// `quota`: that of the power losses.
    fn collect(&self, quota: PointQuota) -> CollectedCandidates<'_> {
        let quota_of_process_crashes = PointQuota::within_bounds(&self.process_crash_costs());
        let mut collected = CollectedCandidates::new(self.index, quota_of_process_crashes);
        for crash in self.scope.crash_kinds() {
            collected.left_out.add(crash.category(), EnumerationRule::WriteRuns, self.points.left_out);
            if crash == CrashKind::Process {
                let points = self.points.op_counts.iter().copied().enumerate();
                points
                    .take_while(|_| !(self.cancelled)())
                    .map(|(number, op_count)| PointOfCrash { crash, number, op_count })
                    .for_each(|point| collected.take_process_crash(point));
            }
        }
        collected.begin_power_losses(quota);
        for model in &self.scope.models {
            self.visit_power_losses(*model, |point, space| collected.take_power_loss(point, space));
        }
        collected
    }

    /// Calls `visit` at each crash point, in order.
    fn visit_power_losses(&self, model: FsModel, mut visit: impl FnMut(PointOfCrash, &CandidateSpace<'_>)) {
        let crash = CrashKind::PowerLoss(model);
        let mut durable = DurableSet::new(self.index.recording, model);
        let mut pending = PendingUnits::new(self.index, model.behavior());
        let mut happened = 0;
        for (number, op_count) in self.points.op_counts.iter().copied().enumerate() {
            if (self.cancelled)() {
                return;
            }
            for op in happened..op_count {
                durable.advance(op);
                pending.advance(op, &durable);
            }
            happened = op_count;
            pending.update_masks();
            let space = CandidateSpace::new(&pending, &durable, op_count);
            visit(PointOfCrash { crash, number, op_count }, &space);
        }
    }

    /// The digests of the trees of these sets.
    fn tree_digests(&self, sets: &[Witnesses]) -> Vec<[u8; 16]> {
        let (recording, cancelled) = (self.index.recording, self.cancelled);
        let candidates = || sets.iter().map(|set| set.candidate().filter(|_| !cancelled()));
        let digest = |candidate: Option<&CrashCandidate>| {
            let candidate = candidate.filter(|candidate| !candidate.is_prefix() && !cancelled());
            candidate.map(|candidate| candidate.tree_digest(recording)).unwrap_or_default()
        };
        let mut digests: Vec<[u8; 16]> = sets.par_iter().map(|set| digest(set.candidate())).collect();
        let mut prefixes: Vec<(usize, &CrashCandidate)> = candidates()
            .enumerate()
            .filter_map(|(index, candidate)| {
                Some((index, candidate.filter(|candidate| candidate.is_prefix())?))
            })
            .collect();
        prefixes.sort_by_key(|(_, candidate)| candidate.whole_op_count());
        let of_prefixes = prefixes.par_chunks(PREFIXES_AT_ONCE).flat_map_iter(|prefixes| {
            let crashes: Vec<&CrashCandidate> =
                prefixes.iter().take_while(|_| !cancelled()).map(|(_, candidate)| *candidate).collect();
            let digests = digests_of_prefixes(recording, &crashes);
            prefixes.iter().map(|(index, _)| *index).zip(digests)
        });
        let of_prefixes: Vec<(usize, [u8; 16])> = of_prefixes.collect();
        of_prefixes.into_iter().for_each(|(index, digest)| digests[index] = digest);
        digests
    }

    /// Merges the persisted sets that leave equal trees into one state each. Returns each with its digest.
    fn merge_equal_trees(&self, sets: Vec<Witnesses>) -> Vec<DistinctTree> {
        let digests = self.tree_digests(&sets);
        let mut by_digest: HashMap<[u8; 16], usize> = HashMap::new();
        let mut trees: Vec<DistinctTree> = Vec::new();
        for (witnesses, digest) in sets.into_iter().zip(digests) {
            let index = *by_digest.entry(digest).or_insert(trees.len());
            match trees.get_mut(index) {
                Some(known) => known.witnesses.merge(witnesses),
                None => trees.push(DistinctTree { witnesses, digest }),
            }
        }
        trees
    }

    /// Orders the states, representatives of each group first, and counts those beyond the bound.
    fn select_within_bound(&self, mut collected: CollectedCandidates<'_>) -> Enumeration {
        let trees = self.merge_equal_trees(collected.sets.take());
        let LeftOutCounts { by_category, by_rule } = collected.left_out.into_counts();
        let mut counts = EnumerationCounts {
            candidates: collected.taken,
            not_enumerated: by_category,
            not_enumerated_by_rule: by_rule,
            states: trees.len() as u64,
            ..EnumerationCounts::default()
        };
        trees.iter().for_each(|tree| tree.count_in(&mut counts.distinct));
        let signatures = signatures(self.index.recording);
        let mut groups: BTreeMap<StateGroup, Vec<DistinctTree>> = BTreeMap::new();
        for tree in trees.into_iter().take_while(|_| !(self.cancelled)()) {
            let Some(candidate) = tree.witnesses.candidate() else { continue };
            let group = StateGroup::of(self.index.recording, &signatures, candidate);
            groups.entry(group).or_default().push(tree);
        }
        // The first state of each group, then the second of each, and so on. Within a group, crash points far
        // apart first.
        let mut ranked: Vec<(usize, DistinctTree)> =
            groups.into_values().flat_map(|group| spread_ranks(group.len()).into_iter().zip(group)).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let beyond = ranked.split_off(ranked.len().min(self.scope.max_states.max(1)));
        counts.states_left_out = beyond.len() as u64;
        beyond.iter().for_each(|(_, tree)| tree.count_in(&mut counts.left_out));
        drop(beyond);
        let states = ranked
            .into_iter()
            .map(|(_, tree)| CrashState { witnesses: tree.witnesses.into_map(), digest: tree.digest });
        Enumeration { states: states.collect(), counts }
    }
}

/// A tree that some persisted sets leave.
struct DistinctTree {
    witnesses: Witnesses,
    digest: [u8; 16],
}

impl DistinctTree {
    /// Counts it in each category of crash that leaves it.
    fn count_in(&self, counts: &mut BTreeMap<CrashCategory, u64>) {
        let categories: BTreeSet<CrashCategory> =
            self.witnesses.crash_kinds().map(CrashKind::category).collect();
        for category in categories {
            *counts.entry(category).or_insert(0) += 1;
        }
    }
}
