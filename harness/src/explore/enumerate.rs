//! All states that a crash of a recorded run may leave, each once: representatives of every kind first. Pure.
//!
//! A process crash keeps everything that the kernel has taken: every prefix of the operations, and a large write torn
//! at a page (a real SIGKILL tears a `write` at 4 KiB on tmpfs and at 2 MiB on ext4). A power loss loses what was not
//! synced, within what a model allows. Large writes are collapsed into classes. What a bound leaves out is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::crash_candidate::{CrashCandidate, Tear};
use super::format_boundaries::aligned_neighbors;
use super::fs_model::{BYTES_PART, DurableSet, FsBehavior, FsModel, PersistUnit, persist_units};
use super::persisted_set::PersistedSetHasher;
use super::recording::{NodeId, OpEffect, Recording};

const PAGE_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;
/// Pending operations on names that are lost one by one from the end; of more, some between are left out.
const MAX_NAME_PREFIXES: usize = 24;
/// Consecutive writes to one file of which each is a moment of its own; of more, some between are left out.
const MAX_WRITE_RUN: usize = 8;

/// What killed the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CrashKind {
    Process,
    PowerLoss(FsModel),
}

/// Which crashes are looked at.
#[derive(Debug, Clone, Default)]
pub struct ExploreScope {
    pub process_crashes: bool,
    pub models: Vec<FsModel>,
    /// Distinct states at most.
    pub max_states: usize,
    /// Only these moments: so many operations have happened.
    pub crash_points: Option<BTreeSet<usize>>,
}

/// A distinct state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashState {
    /// Every crash that can bring it about; of several moments the one at which most had been promised.
    pub witnesses: BTreeMap<CrashKind, Witness>,
    pub digest: [u8; 16],
}

/// How a state comes about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    pub candidate: CrashCandidate,
    /// The newest step that had been called saved.
    pub acknowledged: Option<u64>,
}

impl CrashState {
    /// The way by which most had been promised: whoever comes back from that one comes back from all.
    pub fn strictest_witness(&self) -> Option<(CrashKind, &Witness)> {
        let ways = self.witnesses.iter().map(|(crash, way)| (*crash, way));
        ways.max_by_key(|(crash, way)| (way.acknowledged, way.candidate.op_count, std::cmp::Reverse(*crash)))
    }

    /// The first way, from which its files are made: all ways lead to the same ones.
    pub fn candidate(&self) -> &CrashCandidate {
        static NOTHING: CrashCandidate = CrashCandidate { op_count: 0, lost: Vec::new(), torn: None };
        self.witnesses.values().next().map_or(&NOTHING, |way| &way.candidate)
    }
}

/// Figures of an enumeration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnumerationCounts {
    pub candidates: BTreeMap<&'static str, u64>,
    pub distinct: BTreeMap<&'static str, u64>,
    pub left_out: BTreeMap<&'static str, u64>,
}

/// Distinct states in the order in which they are to be tried.
pub struct Enumeration {
    pub states: Vec<CrashState>,
    pub counts: EnumerationCounts,
}

impl CrashKind {
    pub fn category(self) -> &'static str {
        match self {
            CrashKind::Process => "process",
            CrashKind::PowerLoss(_) => "power",
        }
    }
}

/// Finds them all.
pub fn enumerate(recording: &Recording, scope: &ExploreScope) -> Enumeration {
    let mut found = Enumerator {
        recording,
        scope,
        persisted_sets: Vec::new(),
        set_index_by_hash: HashMap::new(),
        set_hasher: PersistedSetHasher::new(recording),
        counts: EnumerationCounts::default(),
    };
    if scope.process_crashes {
        found.add_process_crashes();
    }
    for model in &scope.models {
        found.add_power_losses(*model);
    }
    found.select_within_bound()
}

struct Enumerator<'a> {
    recording: &'a Recording,
    scope: &'a ExploreScope,
    /// Sets of kept operations, each with the ways that lead to it: at many moments it is the same.
    persisted_sets: Vec<BTreeMap<CrashKind, Witness>>,
    set_index_by_hash: HashMap<u128, usize>,
    set_hasher: PersistedSetHasher,
    counts: EnumerationCounts,
}

impl Enumerator<'_> {
    fn add_candidate(&mut self, candidate: CrashCandidate, crash: CrashKind) {
        *self.counts.candidates.entry(crash.category()).or_insert(0) += 1;
        let promised = self.recording.acknowledged(candidate.op_count as usize);
        let at = *self
            .set_index_by_hash
            .entry(self.set_hasher.hash(&candidate))
            .or_insert(self.persisted_sets.len());
        if at == self.persisted_sets.len() {
            self.persisted_sets.push(BTreeMap::new());
        }
        keep_strictest(&mut self.persisted_sets[at], crash, Witness { candidate, acknowledged: promised });
    }

    fn count_left_out(&mut self, crash: CrashKind, many: u64) {
        if many > 0 {
            *self.counts.left_out.entry(crash.category()).or_insert(0) += many;
        }
    }

    /// Moments: after each operation, but not within a long run of writes to one file.
    fn crash_points(&mut self, crash: CrashKind) -> Vec<usize> {
        let ops = &self.recording.ops;
        let wanted = |k: &usize| self.scope.crash_points.as_ref().is_none_or(|moments| moments.contains(k));
        let mut moments = vec![0];
        let mut k = 0;
        let mut left_out = 0;
        while k < ops.len() {
            let run = run_of_writes(self.recording, k);
            let dull = |at: usize| run > MAX_WRITE_RUN && at > 2 && at + 2 < run && at != run / 2;
            moments.extend((1..=run).filter(|at| !dull(*at)).map(|at| k + at));
            left_out += (1..=run).filter(|at| dull(*at) && wanted(&(k + at))).count() as u64;
            k += run;
        }
        moments.retain(wanted);
        self.count_left_out(crash, left_out);
        moments
    }

    fn add_process_crashes(&mut self) {
        for k in self.crash_points(CrashKind::Process) {
            self.add_candidate(CrashCandidate::whole(k), CrashKind::Process);
            if let Some(OpEffect::Write { offset, len_bytes: bytes, .. }) =
                k.checked_sub(1).map(|at| &self.recording.ops[at].effect)
            {
                let marks = self.recording.format_boundaries.get(&(k as u32 - 1));
                let cuts = page_cuts(*offset, *bytes).into_iter();
                let at_marks = marks
                    .map(|marks| aligned_neighbors(marks, PAGE_BYTES, *offset, *bytes))
                    .unwrap_or_default();
                for cut in cuts.chain(at_marks).collect::<BTreeSet<u64>>() {
                    let torn = Some((k as u32 - 1, Tear::Prefix(cut)));
                    self.add_candidate(
                        CrashCandidate { torn, ..CrashCandidate::whole(k) },
                        CrashKind::Process,
                    );
                }
            }
        }
    }

    fn add_power_losses(&mut self, model: FsModel) {
        let crash = CrashKind::PowerLoss(model);
        let moments: BTreeSet<usize> = self.crash_points(crash).into_iter().collect();
        let mut durable = DurableSet::new(self.recording, model);
        for k in 0..=self.recording.ops.len() {
            if moments.contains(&k) {
                self.add_power_losses_at(k, model, &durable);
            }
            if k < self.recording.ops.len() {
                durable.advance(k);
            }
        }
    }

    fn add_power_losses_at(&mut self, k: usize, model: FsModel, durable: &DurableSet<'_>) {
        let crash = CrashKind::PowerLoss(model);
        let pending = PendingUnits::collect(self.recording, k, durable);
        let traits = model.behavior();
        let lose = |found: &mut Self, names: Vec<PersistUnit>, data: Vec<PersistUnit>, torn| {
            let lost = close_under_ordering(found.recording, k, names, data, traits);
            found.add_candidate(CrashCandidate { op_count: k as u32, lost, torn }, crash);
        };
        let count = pending.names.len();
        let kept: BTreeSet<usize> = sampled_prefixes(count);
        self.count_left_out(crash, (count + 1 - kept.len()) as u64);
        for kept in kept {
            let names: Vec<PersistUnit> = pending.names[kept..].concat();
            lose(self, names.clone(), Vec::new(), None);
            let zeroes = |units: Vec<PersistUnit>| units.into_iter().map(with_bytes_zeroed).collect();
            lose(self, names.clone(), pending.all_data(None), None);
            if traits.unwritten_zeroes {
                lose(self, names.clone(), zeroes(pending.all_data(None)), None);
            }
            for file in pending.separate_files() {
                lose(self, names.clone(), pending.data_of(file), None);
                if traits.unwritten_zeroes {
                    lose(self, names.clone(), zeroes(pending.data_of(file)), None);
                }
                if kept == count {
                    lose(self, names.clone(), pending.all_data(Some(file)), None);
                }
            }
        }
        for (file, writes) in &pending.data {
            self.add_torn_writes(k, crash, *file, writes, traits);
        }
        if traits.unordered_names {
            for group in &pending.names {
                lose(self, group.clone(), Vec::new(), None);
                let others: Vec<PersistUnit> =
                    pending.names.iter().filter(|other| *other != group).flatten().copied().collect();
                lose(self, others, Vec::new(), None);
                if traits.torn_rename && group.len() > 1 {
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

    /// Tears of what is pending in one file; everything else is there.
    fn add_torn_writes(
        &mut self,
        k: usize,
        crash: CrashKind,
        file: NodeId,
        writes: &[PersistUnit],
        traits: FsBehavior,
    ) {
        let Some(last) = writes.last() else { return };
        for (index, unit) in
            writes.iter().enumerate().filter(|(index, _)| *index == 0 || index + 1 == writes.len())
        {
            let OpEffect::Write { offset, len_bytes: bytes, .. } =
                self.recording.ops[unit.op as usize].effect
            else {
                continue;
            };
            let size_before = size_before_op(self.recording, file, unit.op as usize);
            let rest: Vec<PersistUnit> = writes[index + 1..].to_vec();
            let marks = self.recording.format_boundaries.get(&unit.op).map_or(&[][..], Vec::as_slice);
            for tear in tear_classes(offset, bytes, size_before, marks, traits) {
                // What comes after a torn piece is not there either, unless the tear leaves the length whole.
                let lost = if matches!(tear, Tear::Prefix(_)) { rest.clone() } else { Vec::new() };
                let lost = close_under_ordering(self.recording, k, Vec::new(), lost, traits);
                self.add_candidate(
                    CrashCandidate { op_count: k as u32, lost, torn: Some((unit.op, tear)) },
                    crash,
                );
            }
            if last == unit {
                break;
            }
        }
    }

    /// Sets that make the same tree are one state.
    fn merge_equal_trees(&mut self) -> Vec<CrashState> {
        let sets = std::mem::take(&mut self.persisted_sets);
        let tree = |ways: &BTreeMap<CrashKind, Witness>| {
            ways.values().next().map(|way| way.candidate.tree(self.recording))
        };
        let digests: Vec<[u8; 16]> =
            sets.par_iter().map(|ways| tree(ways).unwrap_or_default().digest()).collect();
        let mut by_digest: HashMap<[u8; 16], usize> = HashMap::new();
        let mut states: Vec<CrashState> = Vec::new();
        for (ways, digest) in sets.into_iter().zip(digests) {
            let at = *by_digest.entry(digest).or_insert(states.len());
            if at == states.len() {
                states.push(CrashState { witnesses: ways, digest });
            } else {
                ways.into_iter()
                    .for_each(|(crash, way)| keep_strictest(&mut states[at].witnesses, crash, way));
            }
        }
        states
    }

    /// Representatives of each group first; beyond the bound nothing, and how much that is.
    fn select_within_bound(mut self) -> Enumeration {
        let states = self.merge_equal_trees();
        for state in &states {
            for kind in state.witnesses.keys().map(|crash| crash.category()).collect::<BTreeSet<_>>() {
                *self.counts.distinct.entry(kind).or_insert(0) += 1;
            }
        }
        let mut groups: BTreeMap<String, Vec<CrashState>> = BTreeMap::new();
        for state in states {
            groups.entry(group_key(self.recording, &state)).or_default().push(state);
        }
        // The first of each group, then the second of each: and in a group, far apart moments first.
        let mut ranked: Vec<(usize, CrashState)> =
            groups.into_values().flat_map(|group| spread_ranks(group.len()).into_iter().zip(group)).collect();
        ranked.sort_by_key(|(nth, _)| *nth);
        let beyond = ranked.split_off(ranked.len().min(self.scope.max_states.max(1)));
        for (_, state) in &beyond {
            for kind in state.witnesses.keys().map(|crash| crash.category()).collect::<BTreeSet<_>>() {
                *self.counts.left_out.entry(kind).or_insert(0) += 1;
            }
        }
        Enumeration { states: ranked.into_iter().map(|(_, state)| state).collect(), counts: self.counts }
    }
}

/// Of several moments, the one at which most had been promised.
fn keep_strictest(ways: &mut BTreeMap<CrashKind, Witness>, crash: CrashKind, way: Witness) {
    if ways.get(&crash).is_none_or(|known| known.acknowledged < way.acknowledged) {
        ways.insert(crash, way);
    }
}

/// States of one group lack the same kind of thing: as a tear of a kind of write, or from a kind of operation on.
fn group_key(recording: &Recording, state: &CrashState) -> String {
    let plain = |op: u32| {
        let text = &recording.ops[op as usize].text;
        text.chars().filter(|letter| !letter.is_ascii_digit()).collect::<String>()
    };
    let candidate = state.candidate();
    if let Some((op, tear)) = candidate.torn {
        return format!("{} {:?}", plain(op), std::mem::discriminant(&tear));
    }
    let has_data = |unit: &PersistUnit| recording.ops[unit.op as usize].data_node().is_some();
    let data = candidate.lost.iter().any(has_data);
    let names = candidate.lost.iter().any(|unit| !has_data(unit));
    let first = candidate.lost.first().map(|unit| plain(unit.op));
    // With nothing lost, it is the moment that makes the difference.
    first.map_or_else(
        || candidate.op_count.checked_sub(1).map(plain).unwrap_or_default(),
        |first| format!("{first} {data} {names}"),
    )
}

/// The rank of each of so many: the first, the last, the middle, the quarters, and so on.
fn spread_ranks(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::with_capacity(count);
    let mut seen = vec![false; count];
    let mut take = |at: usize| {
        if !std::mem::replace(&mut seen[at], true) {
            order.push(at);
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
    order.iter().enumerate().for_each(|(rank, at)| ranks[*at] = rank);
    ranks
}

/// What is not certain at a moment.
struct PendingUnits {
    /// By operation, in order: names and sizes.
    names: Vec<Vec<PersistUnit>>,
    data: BTreeMap<NodeId, Vec<PersistUnit>>,
}

impl PendingUnits {
    fn collect(recording: &Recording, k: usize, durable: &DurableSet<'_>) -> PendingUnits {
        let (mut names, mut data) = (Vec::new(), BTreeMap::<NodeId, Vec<PersistUnit>>::new());
        for (index, op) in recording.ops[..k].iter().enumerate().skip(durable.pending_from) {
            let open: Vec<PersistUnit> =
                persist_units(index as u32, &op.effect).filter(|unit| !durable.contains(*unit)).collect();
            match op.data_node() {
                _ if open.is_empty() => {}
                Some(node) => data.entry(node).or_default().extend(open),
                None => names.push(open),
            }
        }
        PendingUnits { names, data }
    }

    fn separate_files(&self) -> Vec<NodeId> {
        if self.data.len() > 1 { self.data.keys().copied().collect() } else { Vec::new() }
    }

    fn data_of(&self, file: NodeId) -> Vec<PersistUnit> {
        self.data.get(&file).cloned().unwrap_or_default()
    }

    fn all_data(&self, but: Option<NodeId>) -> Vec<PersistUnit> {
        self.data
            .iter()
            .filter(|(file, _)| Some(**file) != but)
            .flat_map(|(_, units)| units)
            .copied()
            .collect()
    }
}

/// Takes what is lost together; of what a kept rename has brought along, only the bytes are.
fn close_under_ordering(
    recording: &Recording,
    k: usize,
    names: Vec<PersistUnit>,
    data: Vec<PersistUnit>,
    traits: FsBehavior,
) -> Vec<PersistUnit> {
    let mut lost: BTreeSet<PersistUnit> = names.into_iter().collect();
    let mut data: BTreeSet<PersistUnit> = data.into_iter().collect();
    if traits.replace_persists_size && !data.is_empty() {
        for op in 0..k {
            let kept = !lost.contains(&PersistUnit { op: op as u32, part: 0 });
            if kept && let Some(node) = recording.replacing_node(op) {
                let carried = |unit: &PersistUnit| {
                    unit.op as usize <= op && recording.ops[unit.op as usize].data_node() == Some(node)
                };
                data = data
                    .into_iter()
                    .map(|unit| if carried(&unit) { with_bytes_zeroed(unit) } else { unit })
                    .collect();
            }
        }
    }
    lost.extend(data);
    lost.into_iter().collect()
}

fn with_bytes_zeroed(unit: PersistUnit) -> PersistUnit {
    PersistUnit { part: BYTES_PART, ..unit }
}

/// How many of the pending names are kept: none, all, and all between up to a bound.
fn sampled_prefixes(count: usize) -> BTreeSet<usize> {
    if count <= MAX_NAME_PREFIXES {
        return (0..=count).collect();
    }
    let recent = (count - MAX_NAME_PREFIXES * 2 / 3)..=count;
    let spread = (0..MAX_NAME_PREFIXES / 3).map(|nth| nth * count / (MAX_NAME_PREFIXES / 3));
    recent.chain(spread).collect()
}

/// Operations from `k` on that write to the same file, one after the other; at least 1.
fn run_of_writes(recording: &Recording, k: usize) -> usize {
    let node = |at: usize| recording.ops.get(at).and_then(super::recording::Op::data_node);
    match node(k) {
        None => 1,
        Some(first) => (k..).take_while(|at| node(*at) == Some(first)).count(),
    }
}

/// Where a process crash can cut a write: at pages of the file; the first, one in the middle, the last.
fn page_cuts(offset: u64, bytes: u64) -> BTreeSet<u64> {
    let first = PAGE_BYTES - offset % PAGE_BYTES;
    if first >= bytes {
        return BTreeSet::new();
    }
    let last = first + (bytes - first - 1) / PAGE_BYTES * PAGE_BYTES;
    let middle = first + (last - first) / 2 / PAGE_BYTES * PAGE_BYTES;
    [first, middle, last].into()
}

fn size_before_op(recording: &Recording, node: NodeId, k: usize) -> u64 {
    let mut size = match recording.nodes[node as usize] {
        super::recording::FileNode::File { initial_len_bytes: initial, .. } => initial,
        _ => 0,
    };
    for op in &recording.ops[..k] {
        match op.effect {
            OpEffect::Write { node: of, offset, len_bytes: bytes, .. } if of == node => {
                size = size.max(offset + bytes)
            }
            OpEffect::Resize { node: of, size_bytes: to } if of == node => size = to,
            _ => {}
        }
    }
    size
}

/// Classes of what a power loss leaves of a write.
fn tear_classes(offset: u64, bytes: u64, size_before: u64, marks: &[u64], traits: FsBehavior) -> Vec<Tear> {
    let mut tears: Vec<Tear> = page_cuts(offset, bytes).into_iter().map(Tear::Prefix).collect();
    tears.extend(aligned_neighbors(marks, PAGE_BYTES, offset, bytes).into_iter().map(Tear::Prefix));
    if traits.size_before_data || traits.torn_overwrite {
        tears.extend(aligned_neighbors(marks, SECTOR_BYTES, offset, bytes).into_iter().map(Tear::Prefix));
    }
    let appends = offset + bytes > size_before;
    if traits.size_before_data && appends {
        let cut = page_cuts(offset, bytes).first().copied().unwrap_or(0);
        tears.extend([Tear::ZeroTail(0), Tear::GarbageTail(0)]);
        if cut > 0 {
            tears.extend([Tear::ZeroTail(cut), Tear::GarbageTail(cut), Tear::Hole(cut)]);
        }
        tears.extend((bytes > SECTOR_BYTES).then_some(Tear::Prefix(SECTOR_BYTES)));
    }
    if traits.unwritten_zeroes && appends {
        let cut = page_cuts(offset, bytes).first().copied();
        tears.extend([0].into_iter().chain(cut).map(Tear::ZeroTail));
    }
    if traits.torn_overwrite && !appends && bytes > SECTOR_BYTES {
        tears.extend([Tear::Prefix(SECTOR_BYTES), Tear::Prefix((bytes - 1) / SECTOR_BYTES * SECTOR_BYTES)]);
    }
    tears.sort_by_key(|tear| format!("{tear:?}"));
    tears.dedup();
    tears
}
