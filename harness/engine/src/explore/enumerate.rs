//! Enumerates the crash states of a recorded run, each once, representatives of every group first. Pure. A
//! process crash keeps every prefix of the operations, or tears a large write at a page (a real SIGKILL tears
//! a `write` at 4 KiB on tmpfs and at 2 MiB on ext4). A power loss can lose what was not synced, as far as
//! the model allows. Counts what a bound leaves out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::crash_candidate::{CrashCandidate, Tear};
use super::format_boundaries::aligned_neighbors;
use super::fs_model::{BYTES_PART, DurableSet, FsBehavior, FsModel, PersistUnit, persist_units};
use super::persisted_set::PersistedSetHasher;
use super::recording::{NodeId, OpEffect, Recording};

const PAGE_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;
/// With more pending name operations than this, only some of their prefixes are tried.
const MAX_NAME_PREFIXES: usize = 24;
/// In a run of more consecutive writes to one file than this, only some writes are crash points.
const MAX_WRITE_RUN: usize = 8;

/// What kind of crash ended the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CrashKind {
    /// The process is killed; the kernel keeps running.
    Process,
    /// The machine loses power; the file system behaves as the model allows.
    PowerLoss(FsModel),
}

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

/// A distinct file tree that a crash may leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashState {
    /// Every kind of crash that can leave this tree. Of several crash points, the one with the newest
    /// acknowledged step.
    pub witnesses: BTreeMap<CrashKind, Witness>,
    /// The digest of the tree.
    pub digest: [u8; 16],
}

/// A crash that leaves a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The crash point and the persisted set.
    pub candidate: CrashCandidate,
    /// The acknowledged step at the crash point.
    pub acknowledged: Option<u64>,
}

impl CrashState {
    /// The witness with the newest acknowledged step. A recovery that satisfies this one satisfies all.
    pub fn strictest_witness(&self) -> Option<(CrashKind, &Witness)> {
        let witnesses = self.witnesses.iter().map(|(crash, witness)| (*crash, witness));
        witnesses.max_by_key(|(crash, witness)| {
            (witness.acknowledged, witness.candidate.op_count, std::cmp::Reverse(*crash))
        })
    }

    /// The candidate of the first witness, from which the files are materialized. All witnesses give the same
    /// files.
    pub fn candidate(&self) -> &CrashCandidate {
        static NOTHING: CrashCandidate = CrashCandidate { op_count: 0, lost: Vec::new(), torn: None };
        self.witnesses.values().next().map_or(&NOTHING, |witness| &witness.candidate)
    }
}

/// The counts of an enumeration, by category of crash (`process`, `power`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnumerationCounts {
    /// Candidates before equal trees are merged.
    pub candidates: BTreeMap<&'static str, u64>,
    /// Distinct states.
    pub distinct: BTreeMap<&'static str, u64>,
    /// Crash points, candidates and states that a bound left out.
    pub left_out: BTreeMap<&'static str, u64>,
}

/// The result of an enumeration.
pub struct Enumeration {
    /// In the order in which they should be tried.
    pub states: Vec<CrashState>,
    /// How many there are, and how many were left out.
    pub counts: EnumerationCounts,
}

impl CrashKind {
    /// `process` or `power`.
    pub fn category(self) -> &'static str {
        match self {
            CrashKind::Process => "process",
            CrashKind::PowerLoss(_) => "power",
        }
    }
}

/// Enumerates the crash states of a recording that the scope includes, up to its bound.
pub fn enumerate(recording: &Recording, scope: &ExploreScope) -> Enumeration {
    let mut enumerator = Enumerator {
        recording,
        scope,
        persisted_sets: Vec::new(),
        set_index_by_hash: HashMap::new(),
        set_hasher: PersistedSetHasher::new(recording),
        counts: EnumerationCounts::default(),
    };
    if scope.process_crashes {
        enumerator.add_process_crashes();
    }
    for model in &scope.models {
        enumerator.add_power_losses(*model);
    }
    enumerator.select_within_bound()
}

struct Enumerator<'a> {
    recording: &'a Recording,
    scope: &'a ExploreScope,
    /// The distinct persisted sets, each with its witnesses. Many crash points share one persisted set.
    persisted_sets: Vec<BTreeMap<CrashKind, Witness>>,
    set_index_by_hash: HashMap<u128, usize>,
    set_hasher: PersistedSetHasher,
    counts: EnumerationCounts,
}

impl Enumerator<'_> {
    fn add_candidate(&mut self, candidate: CrashCandidate, crash: CrashKind) {
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

    fn count_left_out(&mut self, crash: CrashKind, count: u64) {
        if count > 0 {
            *self.counts.left_out.entry(crash.category()).or_insert(0) += count;
        }
    }

    /// The crash points: after each operation, except for those inside a long run of writes to one file.
    fn crash_points(&mut self, crash: CrashKind) -> Vec<usize> {
        let ops = &self.recording.ops;
        let in_scope =
            |point: &usize| self.scope.crash_points.as_ref().is_none_or(|points| points.contains(point));
        let mut crash_points = vec![0];
        let mut start = 0;
        let mut left_out = 0;
        while start < ops.len() {
            let run = run_of_writes(self.recording, start);
            let is_skipped = |nth: usize| run > MAX_WRITE_RUN && nth > 2 && nth + 2 < run && nth != run / 2;
            crash_points.extend((1..=run).filter(|nth| !is_skipped(*nth)).map(|nth| start + nth));
            left_out += (1..=run).filter(|nth| is_skipped(*nth) && in_scope(&(start + nth))).count() as u64;
            start += run;
        }
        crash_points.retain(in_scope);
        self.count_left_out(crash, left_out);
        crash_points
    }

    fn add_process_crashes(&mut self) {
        for op_count in self.crash_points(CrashKind::Process) {
            self.add_candidate(CrashCandidate::whole(op_count), CrashKind::Process);
            if let Some(OpEffect::Write { offset, len_bytes, .. }) =
                op_count.checked_sub(1).map(|op| &self.recording.ops[op].effect)
            {
                let boundaries = self.recording.format_boundaries.get(&(op_count as u32 - 1));
                let cuts = page_cuts(*offset, *len_bytes).into_iter();
                let boundary_cuts = boundaries
                    .map(|boundaries| aligned_neighbors(boundaries, PAGE_BYTES, *offset, *len_bytes))
                    .unwrap_or_default();
                for cut in cuts.chain(boundary_cuts).collect::<BTreeSet<u64>>() {
                    let torn = Some((op_count as u32 - 1, Tear::Prefix(cut)));
                    self.add_candidate(
                        CrashCandidate { torn, ..CrashCandidate::whole(op_count) },
                        CrashKind::Process,
                    );
                }
            }
        }
    }

    fn add_power_losses(&mut self, model: FsModel) {
        let crash = CrashKind::PowerLoss(model);
        let crash_points: BTreeSet<usize> = self.crash_points(crash).into_iter().collect();
        let mut durable = DurableSet::new(self.recording, model);
        for op_count in 0..=self.recording.ops.len() {
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
        self.count_left_out(crash, (name_count + 1 - prefixes.len()) as u64);
        for persisted in prefixes {
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
        for (file, writes) in &pending.data {
            self.add_torn_writes(op_count, crash, *file, writes, behavior);
        }
        if behavior.unordered_names {
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
        file: NodeId,
        writes: &[PersistUnit],
        behavior: FsBehavior,
    ) {
        let Some(last) = writes.last() else { return };
        for (index, unit) in
            writes.iter().enumerate().filter(|(index, _)| *index == 0 || index + 1 == writes.len())
        {
            let OpEffect::Write { offset, len_bytes, .. } = self.recording.ops[unit.op as usize].effect
            else {
                continue;
            };
            let size_before = size_before_op(self.recording, file, unit.op as usize);
            let rest: Vec<PersistUnit> = writes[index + 1..].to_vec();
            let boundaries = self.recording.format_boundaries.get(&unit.op).map_or(&[][..], Vec::as_slice);
            for tear in tear_classes(offset, len_bytes, size_before, boundaries, behavior) {
                // After a write that is cut short, the later writes are lost too. If the length is right,
                // they are persisted.
                let lost = if matches!(tear, Tear::Prefix(_)) { rest.clone() } else { Vec::new() };
                let lost = close_under_ordering(self.recording, op_count, Vec::new(), lost, behavior);
                self.add_candidate(
                    CrashCandidate { op_count: op_count as u32, lost, torn: Some((unit.op, tear)) },
                    crash,
                );
            }
            if last == unit {
                break;
            }
        }
    }

    /// Merges the persisted sets that leave equal trees into one state each.
    fn merge_equal_trees(&mut self) -> Vec<CrashState> {
        let sets = std::mem::take(&mut self.persisted_sets);
        let tree = |witnesses: &BTreeMap<CrashKind, Witness>| {
            witnesses.values().next().map(|witness| witness.candidate.tree(self.recording))
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
        for state in &states {
            for category in state.witnesses.keys().map(|crash| crash.category()).collect::<BTreeSet<_>>() {
                *self.counts.distinct.entry(category).or_insert(0) += 1;
            }
        }
        let mut groups: BTreeMap<String, Vec<CrashState>> = BTreeMap::new();
        for state in states {
            groups.entry(group_key(self.recording, &state)).or_default().push(state);
        }
        // The first state of each group, then the second of each, and so on. Within a group, crash points far
        // apart first.
        let mut ranked: Vec<(usize, CrashState)> =
            groups.into_values().flat_map(|group| spread_ranks(group.len()).into_iter().zip(group)).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let beyond = ranked.split_off(ranked.len().min(self.scope.max_states.max(1)));
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

/// The group of a state: the torn kind of write, or the first kind of operation that was lost. Numbers in the
/// text of an operation do not count.
fn group_key(recording: &Recording, state: &CrashState) -> String {
    let without_digits = |op: u32| {
        let text = &recording.ops[op as usize].text;
        text.chars().filter(|character| !character.is_ascii_digit()).collect::<String>()
    };
    let candidate = state.candidate();
    if let Some((op, tear)) = candidate.torn {
        return format!("{} {:?}", without_digits(op), std::mem::discriminant(&tear));
    }
    let is_data = |unit: &PersistUnit| recording.ops[unit.op as usize].data_node().is_some();
    let lost_data = candidate.lost.iter().any(is_data);
    let lost_names = candidate.lost.iter().any(|unit| !is_data(unit));
    let first = candidate.lost.first().map(|unit| without_digits(unit.op));
    // Nothing is lost: the last operation before the crash point decides.
    first.map_or_else(
        || candidate.op_count.checked_sub(1).map(without_digits).unwrap_or_default(),
        |first| format!("{first} {lost_data} {lost_names}"),
    )
}

/// Ranks for `count` elements in a row: the first, the last, the middle, the quarters, and so on.
fn spread_ranks(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::with_capacity(count);
    let mut seen = vec![false; count];
    let mut take = |index: usize| {
        if !std::mem::replace(&mut seen[index], true) {
            order.push(index);
        }
    };
    if count > 0 {
        take(0);
        take(count - 1);
    }
    let mut parts = 2;
    while parts <= count.next_power_of_two() {
        (1..parts).step_by(2).for_each(|part| take((part * count / parts).min(count - 1)));
        parts *= 2;
    }
    let mut ranks = vec![0; count];
    order.iter().enumerate().for_each(|(rank, index)| ranks[*index] = rank);
    ranks
}

/// The units that are not durable at a crash point.
struct PendingUnits {
    /// Changes of names and sizes, by operation, in order.
    names: Vec<Vec<PersistUnit>>,
    /// Writes, by file.
    data: BTreeMap<NodeId, Vec<PersistUnit>>,
}

impl PendingUnits {
    fn collect(recording: &Recording, op_count: usize, durable: &DurableSet<'_>) -> PendingUnits {
        let (mut names, mut data) = (Vec::new(), BTreeMap::<NodeId, Vec<PersistUnit>>::new());
        for (index, op) in recording.ops[..op_count].iter().enumerate().skip(durable.pending_from) {
            let pending: Vec<PersistUnit> =
                persist_units(index as u32, &op.effect).filter(|unit| !durable.contains(*unit)).collect();
            match op.data_node() {
                _ if pending.is_empty() => {}
                Some(node) => data.entry(node).or_default().extend(pending),
                None => names.push(pending),
            }
        }
        PendingUnits { names, data }
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
    let node = |op: usize| recording.ops.get(op).and_then(super::recording::Op::data_node);
    match node(start) {
        None => 1,
        Some(first) => (start..).take_while(|op| node(*op) == Some(first)).count(),
    }
}

/// Where a crash can cut a write: at page boundaries of the file. Returns the first, one in the middle, and
/// the last.
fn page_cuts(offset: u64, len_bytes: u64) -> BTreeSet<u64> {
    let first = PAGE_BYTES - offset % PAGE_BYTES;
    if first >= len_bytes {
        return BTreeSet::new();
    }
    let last = first + (len_bytes - first - 1) / PAGE_BYTES * PAGE_BYTES;
    let middle = first + (last - first) / 2 / PAGE_BYTES * PAGE_BYTES;
    [first, middle, last].into()
}

/// The size of a file before operation `op`.
fn size_before_op(recording: &Recording, node: NodeId, op: usize) -> u64 {
    let mut size = match recording.nodes[node as usize] {
        super::recording::FileNode::File { initial_len_bytes, .. } => initial_len_bytes,
        _ => 0,
    };
    for earlier in &recording.ops[..op] {
        match earlier.effect {
            OpEffect::Write { node: changed, offset, len_bytes, .. } if changed == node => {
                size = size.max(offset + len_bytes)
            }
            OpEffect::Resize { node: changed, size_bytes } if changed == node => size = size_bytes,
            _ => {}
        }
    }
    size
}

/// The classes of tears that a power loss can leave of a write.
fn tear_classes(
    offset: u64,
    len_bytes: u64,
    size_before: u64,
    boundaries: &[u64],
    behavior: FsBehavior,
) -> Vec<Tear> {
    let mut tears: Vec<Tear> = page_cuts(offset, len_bytes).into_iter().map(Tear::Prefix).collect();
    tears.extend(aligned_neighbors(boundaries, PAGE_BYTES, offset, len_bytes).into_iter().map(Tear::Prefix));
    if behavior.size_before_data || behavior.torn_overwrite {
        tears.extend(
            aligned_neighbors(boundaries, SECTOR_BYTES, offset, len_bytes).into_iter().map(Tear::Prefix),
        );
    }
    let appends = offset + len_bytes > size_before;
    if behavior.size_before_data && appends {
        let cut = page_cuts(offset, len_bytes).first().copied().unwrap_or(0);
        tears.extend([Tear::ZeroTail(0), Tear::GarbageTail(0)]);
        if cut > 0 {
            tears.extend([Tear::ZeroTail(cut), Tear::GarbageTail(cut), Tear::Hole(cut)]);
        }
        tears.extend((len_bytes > SECTOR_BYTES).then_some(Tear::Prefix(SECTOR_BYTES)));
    }
    if behavior.unwritten_zeroes && appends {
        let cut = page_cuts(offset, len_bytes).first().copied();
        tears.extend([0].into_iter().chain(cut).map(Tear::ZeroTail));
    }
    if behavior.torn_overwrite && !appends && len_bytes > SECTOR_BYTES {
        tears.extend([
            Tear::Prefix(SECTOR_BYTES),
            Tear::Prefix((len_bytes - 1) / SECTOR_BYTES * SECTOR_BYTES),
        ]);
    }
    tears.sort_by_key(|tear| format!("{tear:?}"));
    tears.dedup();
    tears
}
