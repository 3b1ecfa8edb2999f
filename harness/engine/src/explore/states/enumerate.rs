//! Enumerates the crash states of a recorded run, each once, representatives of every group first. Pure. A
//! process crash keeps every prefix of the operations, or tears a large write at a page (a real SIGKILL tears
//! a `write` at 4 KiB on tmpfs and at 2 MiB on ext4). A power loss can lose what was not synced, as far as
//! the model allows. Counts what a bound leaves out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use scenarios::CrashCategory;

use super::crash_candidate::{CrashCandidate, TornWrite};
use super::crash_state::{CrashKind, CrashState, Witness};
use super::fs_model::{BYTES_PART, DurableSet, FsBehavior, FsModel, PersistUnit, persist_units};
use super::persisted_set::PersistedSetHasher;
use super::state_groups::{StateGroup, signatures, spread_ranks};
use super::tear::{Tear, TearableWrite};
use crate::explore::record::{NodeId, Op, OpEffect, Recording};

/// With more pending name operations than this, only some of their prefixes are tried.
const MAX_NAME_PREFIXES: usize = 24;
/// In a run of more consecutive writes to one file than this, only some writes are crash points.
const MAX_WRITE_RUN: usize = 8;

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
    /// Candidates that fixed bounds left out: crash points inside long runs of writes, and orders of many
    /// pending changes of names. What states they lead to is not known. Each model is counted.
    pub not_enumerated: BTreeMap<CrashCategory, u64>,
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
    let mut enumerator = Enumerator {
        recording,
        scope,
        persisted_sets: Vec::new(),
        set_index_by_hash: HashMap::new(),
        set_hasher: PersistedSetHasher::new(recording),
        counts: EnumerationCounts::default(),
        cancelled,
    };
    for crash in scope.crash_kinds() {
        match crash {
            CrashKind::Process => enumerator.add_process_crashes(),
            CrashKind::PowerLoss(model) => enumerator.add_power_losses(model),
        }
    }
    let enumeration = enumerator.select_within_bound();
    // What was left out after that is not counted.
    if cancelled() { None } else { Some(enumeration) }
}

struct Enumerator<'a> {
    recording: &'a Recording,
    scope: &'a ExploreScope,
    /// The distinct persisted sets, each with its witnesses. Many crash points share one persisted set.
    persisted_sets: Vec<BTreeMap<CrashKind, Witness>>,
    set_index_by_hash: HashMap<u128, usize>,
    set_hasher: PersistedSetHasher,
    counts: EnumerationCounts,
    /// Once it is `true`, the rest is left out, and nobody looks at the result.
    cancelled: fn() -> bool,
}

impl Enumerator<'_> {
    fn add_candidate(&mut self, candidate: CrashCandidate, crash: CrashKind) {
        if (self.cancelled)() {
            return;
        }
        *self.counts.candidates.entry(crash.category()).or_insert(0) += 1;
        let acknowledged = self.recording.acknowledged(candidate.op_count as usize);
        let index = *self
            .set_index_by_hash
            .entry(self.set_hasher.hash(&candidate))
            .or_insert(self.persisted_sets.len());
        if index == self.persisted_sets.len() {
            self.persisted_sets.push(BTreeMap::new());
        }
        keep_strictest(&mut self.persisted_sets[index], crash, Witness { candidate, acknowledged });
    }

    fn count_not_enumerated(&mut self, crash: CrashKind, count: u64) {
        if count > 0 {
            *self.counts.not_enumerated.entry(crash.category()).or_insert(0) += count;
        }
    }

    /// The crash points: after each operation, except for those inside a long run of writes to one file.
    fn crash_points(&mut self, crash: CrashKind) -> Vec<usize> {
        let ops = &self.recording.ops;
        let in_scope =
            |point: &usize| self.scope.crash_points.as_ref().is_none_or(|points| points.contains(point));
        let mut crash_points = vec![0];
        let mut start = 0;
        let mut skipped = 0;
        while start < ops.len() {
            let run = run_of_writes(self.recording, start);
            let is_skipped = |nth: usize| run > MAX_WRITE_RUN && nth > 2 && nth + 2 < run && nth != run / 2;
            crash_points.extend((1..=run).filter(|nth| !is_skipped(*nth)).map(|nth| start + nth));
            skipped += (1..=run).filter(|nth| is_skipped(*nth) && in_scope(&(start + nth))).count() as u64;
            start += run;
        }
        crash_points.retain(in_scope);
        self.count_not_enumerated(crash, skipped);
        crash_points
    }

    fn add_process_crashes(&mut self) {
        for op_count in self.crash_points(CrashKind::Process) {
            self.add_candidate(CrashCandidate::whole(op_count), CrashKind::Process);
            let Some(op) = op_count.checked_sub(1) else { continue };
            let Some(write) = tearable_write(self.recording, op as u32) else { continue };
            for cut in write.process_crash_cuts() {
                let torn = Some(TornWrite { op: op as u32, tear: Tear::Prefix(cut) });
                let candidate = CrashCandidate { torn, ..CrashCandidate::whole(op_count) };
                self.add_candidate(candidate, CrashKind::Process);
            }
        }
    }

    fn add_power_losses(&mut self, model: FsModel) {
        let crash = CrashKind::PowerLoss(model);
        let crash_points: BTreeSet<usize> = self.crash_points(crash).into_iter().collect();
        let mut durable = DurableSet::new(self.recording, model);
        for op_count in 0..=self.recording.ops.len() {
            if (self.cancelled)() {
                return;
            }
            if crash_points.contains(&op_count) {
                self.add_power_losses_at(op_count, model, &durable);
            }
            if op_count < self.recording.ops.len() {
                durable.advance(op_count);
            }
        }
    }

    fn add_power_losses_at(&mut self, op_count: usize, model: FsModel, durable: &DurableSet<'_>) {
        let crash = CrashKind::PowerLoss(model);
        let pending = PendingUnits::collect(self.recording, op_count, durable);
        let behavior = model.behavior();
        let lose = |enumerator: &mut Self, names: Vec<PersistUnit>, data: Vec<PersistUnit>, torn| {
            let lost = close_under_ordering(enumerator.recording, op_count, names, data, behavior);
            enumerator.add_candidate(CrashCandidate { op_count: op_count as u32, lost, torn }, crash);
        };
        let name_count = pending.names.len();
        let prefixes: BTreeSet<usize> = sampled_prefixes(name_count);
        let names_left_out = (name_count + 1 - prefixes.len()) as u64;
        self.count_not_enumerated(crash, names_left_out + pending.joined_attributes);
        for persisted in prefixes {
            if (self.cancelled)() {
                return;
            }
            let names: Vec<PersistUnit> = pending.names[persisted..].concat();
            lose(self, names.clone(), Vec::new(), None);
            let zeroes = |units: Vec<PersistUnit>| units.into_iter().map(with_bytes_zeroed).collect();
            lose(self, names.clone(), pending.all_data(None), None);
            if behavior.unwritten_zeroes {
                lose(self, names.clone(), zeroes(pending.all_data(None)), None);
            }
            for file in pending.separate_files() {
                lose(self, names.clone(), pending.data_of(file), None);
                if behavior.unwritten_zeroes {
                    lose(self, names.clone(), zeroes(pending.data_of(file)), None);
                }
                if persisted == name_count {
                    lose(self, names.clone(), pending.all_data(Some(file)), None);
                }
            }
        }
        for writes in pending.data.values() {
            self.add_torn_writes(op_count, crash, writes, behavior);
        }
        if behavior.unordered_names {
            if !pending.attributes.is_empty() {
                lose(self, pending.attributes.clone(), Vec::new(), None);
            }
            for group in &pending.names {
                lose(self, group.clone(), Vec::new(), None);
                let others: Vec<PersistUnit> =
                    pending.names.iter().filter(|other| *other != group).flatten().copied().collect();
                lose(self, others, Vec::new(), None);
                if behavior.torn_rename && group.len() > 1 {
                    group.iter().for_each(|unit| lose(self, vec![*unit], Vec::new(), None));
                }
            }
            for writes in
                pending.data.values().filter(|writes| writes.len() > 1 && writes.len() <= MAX_WRITE_RUN)
            {
                writes.iter().for_each(|unit| lose(self, Vec::new(), vec![*unit], None));
            }
        }
    }

    /// Adds tears of the pending writes to one file. Everything else is persisted.
    fn add_torn_writes(
        &mut self,
        op_count: usize,
        crash: CrashKind,
        writes: &[PersistUnit],
        behavior: FsBehavior,
    ) {
        let Some(last) = writes.last() else { return };
        for (index, unit) in
            writes.iter().enumerate().filter(|(index, _)| *index == 0 || index + 1 == writes.len())
        {
            let Some(write) = tearable_write(self.recording, unit.op) else { continue };
            let rest: Vec<PersistUnit> = writes[index + 1..].to_vec();
            for tear in write.power_loss_tears(behavior) {
                // After a write that is cut short, the later writes are lost too. If the length is right,
                // they are persisted.
                let lost = if matches!(tear, Tear::Prefix(_)) { rest.clone() } else { Vec::new() };
                let lost = close_under_ordering(self.recording, op_count, Vec::new(), lost, behavior);
                let torn = Some(TornWrite { op: unit.op, tear });
                self.add_candidate(CrashCandidate { op_count: op_count as u32, lost, torn }, crash);
            }
            if last == unit {
                break;
            }
        }
    }

    /// Merges the persisted sets that leave equal trees into one state each.
    fn merge_equal_trees(&mut self) -> Vec<CrashState> {
        let sets = std::mem::take(&mut self.persisted_sets);
        let (recording, cancelled) = (self.recording, self.cancelled);
        let tree = |witnesses: &BTreeMap<CrashKind, Witness>| {
            let witness = witnesses.values().next().filter(|_| !cancelled());
            witness.map(|witness| witness.candidate.tree(recording))
        };
        let digests: Vec<[u8; 16]> =
            sets.par_iter().map(|witnesses| tree(witnesses).unwrap_or_default().digest()).collect();
        let mut by_digest: HashMap<[u8; 16], usize> = HashMap::new();
        let mut states: Vec<CrashState> = Vec::new();
        for (witnesses, digest) in sets.into_iter().zip(digests) {
            let index = *by_digest.entry(digest).or_insert(states.len());
            if index == states.len() {
                states.push(CrashState { witnesses, digest });
            } else {
                witnesses.into_iter().for_each(|(crash, witness)| {
                    keep_strictest(&mut states[index].witnesses, crash, witness)
                });
            }
        }
        states
    }

    /// Orders the states, representatives of each group first, and counts those beyond the bound.
    fn select_within_bound(mut self) -> Enumeration {
        let states = self.merge_equal_trees();
        self.counts.states = states.len() as u64;
        for state in &states {
            for category in state.witnesses.keys().map(|crash| crash.category()).collect::<BTreeSet<_>>() {
                *self.counts.distinct.entry(category).or_insert(0) += 1;
            }
        }
        let signatures = signatures(self.recording);
        let mut groups: BTreeMap<StateGroup, Vec<CrashState>> = BTreeMap::new();
        for state in states.into_iter().take_while(|_| !(self.cancelled)()) {
            let group = StateGroup::of(self.recording, &signatures, state.candidate());
            groups.entry(group).or_default().push(state);
        }
        // The first state of each group, then the second of each, and so on. Within a group, crash points far
        // apart first.
        let mut ranked: Vec<(usize, CrashState)> =
            groups.into_values().flat_map(|group| spread_ranks(group.len()).into_iter().zip(group)).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let beyond = ranked.split_off(ranked.len().min(self.scope.max_states.max(1)));
        self.counts.states_left_out = beyond.len() as u64;
        for (_, state) in &beyond {
            for category in state.witnesses.keys().map(|crash| crash.category()).collect::<BTreeSet<_>>() {
                *self.counts.left_out.entry(category).or_insert(0) += 1;
            }
        }
        Enumeration { states: ranked.into_iter().map(|(_, state)| state).collect(), counts: self.counts }
    }
}

/// Keeps the witness with the newest acknowledged step.
fn keep_strictest(witnesses: &mut BTreeMap<CrashKind, Witness>, crash: CrashKind, witness: Witness) {
    if witnesses.get(&crash).is_none_or(|known| known.acknowledged < witness.acknowledged) {
        witnesses.insert(crash, witness);
    }
}

/// The units that are not durable at a crash point.
struct PendingUnits {
    /// Changes of names and sizes, by operation, in order. Each with the changes of attributes since the one
    /// before it.
    names: Vec<Vec<PersistUnit>>,
    /// Changes of attributes.
    attributes: Vec<PersistUnit>,
    /// How many changes of attributes are not separated from the next change of a name or a size.
    joined_attributes: u64,
    /// Writes, by file.
    data: BTreeMap<NodeId, Vec<PersistUnit>>,
}

impl PendingUnits {
    fn collect(recording: &Recording, op_count: usize, durable: &DurableSet<'_>) -> PendingUnits {
        let (mut names, mut data) = (Vec::new(), BTreeMap::<NodeId, Vec<PersistUnit>>::new());
        let (mut attributes, mut joined, mut joined_attributes) = (Vec::new(), Vec::new(), 0);
        for (index, op) in recording.ops[..op_count].iter().enumerate().skip(durable.pending_from) {
            let pending: Vec<PersistUnit> =
                persist_units(index as u32, &op.effect).filter(|unit| !durable.contains(*unit)).collect();
            match op.data_node() {
                _ if pending.is_empty() => {}
                _ if op.attribute_node().is_some() => {
                    attributes.extend_from_slice(&pending);
                    joined.extend(pending);
                }
                Some(node) => data.entry(node).or_default().extend(pending),
                None => {
                    joined_attributes += joined.len() as u64;
                    names.push(std::mem::take(&mut joined).into_iter().chain(pending).collect());
                }
            }
        }
        if !joined.is_empty() {
            names.push(joined);
        }
        PendingUnits { names, attributes, joined_attributes, data }
    }

    /// The files with pending writes, if there are several.
    fn separate_files(&self) -> Vec<NodeId> {
        if self.data.len() > 1 { self.data.keys().copied().collect() } else { Vec::new() }
    }

    fn data_of(&self, file: NodeId) -> Vec<PersistUnit> {
        self.data.get(&file).cloned().unwrap_or_default()
    }

    fn all_data(&self, except: Option<NodeId>) -> Vec<PersistUnit> {
        self.data
            .iter()
            .filter(|(file, _)| Some(**file) != except)
            .flat_map(|(_, units)| units)
            .copied()
            .collect()
    }
}

/// The lost units, corrected for what the model orders: if a persisted rename has committed the size of a
/// file, only the bytes of its writes can be lost.
fn close_under_ordering(
    recording: &Recording,
    op_count: usize,
    names: Vec<PersistUnit>,
    data: Vec<PersistUnit>,
    behavior: FsBehavior,
) -> Vec<PersistUnit> {
    let mut lost: BTreeSet<PersistUnit> = names.into_iter().collect();
    let mut data: BTreeSet<PersistUnit> = data.into_iter().collect();
    if behavior.replace_persists_size && !data.is_empty() {
        for op in 0..op_count {
            let is_persisted = !lost.contains(&PersistUnit { op: op as u32, part: 0 });
            if is_persisted && let Some(node) = recording.replacing_node(op) {
                let has_committed_size = |unit: &PersistUnit| {
                    unit.op as usize <= op && recording.ops[unit.op as usize].data_node() == Some(node)
                };
                data = data
                    .into_iter()
                    .map(|unit| if has_committed_size(&unit) { with_bytes_zeroed(unit) } else { unit })
                    .collect();
            }
        }
    }
    lost.extend(data);
    lost.into_iter().collect()
}

/// Only the bytes are lost, not the length.
fn with_bytes_zeroed(unit: PersistUnit) -> PersistUnit {
    PersistUnit { part: BYTES_PART, ..unit }
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

/// How many consecutive operations from `start` on write to the same file; at least 1.
fn run_of_writes(recording: &Recording, start: usize) -> usize {
    let node = |op: usize| recording.ops.get(op).and_then(Op::data_node);
    match node(start) {
        None => 1,
        Some(first) => (start..).take_while(|op| node(*op) == Some(first)).count(),
    }
}

/// The write with this index. `None`: the operation is no write.
fn tearable_write(recording: &Recording, op: u32) -> Option<TearableWrite<'_>> {
    let OpEffect::Write { node, offset, len_bytes, .. } = recording.ops[op as usize].effect else {
        return None;
    };
    let size_before = recording.size_before(node, op as usize);
    let boundaries = recording.format_boundaries.get(&op).map_or(&[][..], Vec::as_slice);
    Some(TearableWrite { offset, len_bytes, size_before, boundaries })
}
