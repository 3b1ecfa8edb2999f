//! All states that a crash of a recorded run may leave, each once: representatives of every kind first. Pure.
//!
//! A process crash keeps everything that the kernel has taken: every prefix of the operations, and a large write torn
//! at a page (a real SIGKILL tears a `write` at 4 KiB on tmpfs and at 2 MiB on ext4). A power loss loses what was not
//! synced, within what a model allows. Large writes are collapsed into classes. What a bound leaves out is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::candidate::{Candidate, Tear};
use super::kept::Kept;
use super::landmarks::beside;
use super::model::{BYTES, Durable, Model, Traits, Unit, units};
use super::recording::{NodeId, Recording, What};

const PAGE: u64 = 4096;
const SECTOR: u64 = 512;
/// Pending operations on names that are lost one by one from the end; of more, some between are left out.
const PREFIXES: usize = 24;
/// Consecutive writes to one file of which each is a moment of its own; of more, some between are left out.
const RUN: usize = 8;

/// What killed the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Crash {
    Process,
    Power(Model),
}

/// Which crashes are looked at.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    pub process: bool,
    pub models: Vec<Model>,
    /// Distinct states at most.
    pub max_states: usize,
    /// Only these moments: so many operations have happened.
    pub moments: Option<BTreeSet<usize>>,
}

/// A distinct state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Every crash that can bring it about; of several moments the one at which most had been promised.
    pub ways: BTreeMap<Crash, Way>,
    pub digest: [u8; 16],
}

/// How a state comes about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub candidate: Candidate,
    /// The newest step that had been called saved.
    pub promised: Option<u64>,
}

impl State {
    /// The way by which most had been promised: whoever comes back from that one comes back from all.
    pub fn hardest(&self) -> Option<(Crash, &Way)> {
        let ways = self.ways.iter().map(|(crash, way)| (*crash, way));
        ways.max_by_key(|(crash, way)| (way.promised, way.candidate.k, std::cmp::Reverse(*crash)))
    }

    /// The first way, from which its files are made: all ways lead to the same ones.
    pub fn candidate(&self) -> &Candidate {
        static NOTHING: Candidate = Candidate { k: 0, lost: Vec::new(), torn: None };
        self.ways.values().next().map_or(&NOTHING, |way| &way.candidate)
    }
}

/// Figures of an enumeration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    pub candidates: BTreeMap<&'static str, u64>,
    pub distinct: BTreeMap<&'static str, u64>,
    pub left_out: BTreeMap<&'static str, u64>,
}

/// Distinct states in the order in which they are to be tried.
pub struct States {
    pub states: Vec<State>,
    pub counted: Counted,
}

impl Crash {
    pub fn kind(self) -> &'static str {
        match self {
            Crash::Process => "process",
            Crash::Power(_) => "power",
        }
    }
}

/// Finds them all.
pub fn enumerate(recording: &Recording, scope: &Scope) -> States {
    let mut found = Found {
        recording,
        scope,
        sets: Vec::new(),
        by_kept: HashMap::new(),
        kept: Kept::new(recording),
        counted: Counted::default(),
    };
    if scope.process {
        found.process();
    }
    for model in &scope.models {
        found.power(*model);
    }
    found.bounded()
}

struct Found<'a> {
    recording: &'a Recording,
    scope: &'a Scope,
    /// Sets of kept operations, each with the ways that lead to it: at many moments it is the same.
    sets: Vec<BTreeMap<Crash, Way>>,
    by_kept: HashMap<u128, usize>,
    kept: Kept,
    counted: Counted,
}

impl Found<'_> {
    fn add(&mut self, candidate: Candidate, crash: Crash) {
        *self.counted.candidates.entry(crash.kind()).or_insert(0) += 1;
        let promised = self.recording.promised(candidate.k as usize);
        let at = *self.by_kept.entry(self.kept.sum(&candidate)).or_insert(self.sets.len());
        if at == self.sets.len() {
            self.sets.push(BTreeMap::new());
        }
        better(&mut self.sets[at], crash, Way { candidate, promised });
    }

    fn leave_out(&mut self, crash: Crash, many: u64) {
        if many > 0 {
            *self.counted.left_out.entry(crash.kind()).or_insert(0) += many;
        }
    }

    /// Moments: after each operation, but not within a long run of writes to one file.
    fn moments(&mut self, crash: Crash) -> Vec<usize> {
        let ops = &self.recording.ops;
        let wanted = |k: &usize| self.scope.moments.as_ref().is_none_or(|moments| moments.contains(k));
        let mut moments = vec![0];
        let mut k = 0;
        let mut left_out = 0;
        while k < ops.len() {
            let run = run_of_writes(self.recording, k);
            let dull = |at: usize| run > RUN && at > 2 && at + 2 < run && at != run / 2;
            moments.extend((1..=run).filter(|at| !dull(*at)).map(|at| k + at));
            left_out += (1..=run).filter(|at| dull(*at) && wanted(&(k + at))).count() as u64;
            k += run;
        }
        moments.retain(wanted);
        self.leave_out(crash, left_out);
        moments
    }

    fn process(&mut self) {
        for k in self.moments(Crash::Process) {
            self.add(Candidate::whole(k), Crash::Process);
            if let Some(What::Write { offset, bytes, .. }) =
                k.checked_sub(1).map(|at| &self.recording.ops[at].what)
            {
                let marks = self.recording.landmarks.get(&(k as u32 - 1));
                let cuts = page_cuts(*offset, *bytes).into_iter();
                let at_marks = marks.map(|marks| beside(marks, PAGE, *offset, *bytes)).unwrap_or_default();
                for cut in cuts.chain(at_marks).collect::<BTreeSet<u64>>() {
                    let torn = Some((k as u32 - 1, Tear::Prefix(cut)));
                    self.add(Candidate { torn, ..Candidate::whole(k) }, Crash::Process);
                }
            }
        }
    }

    fn power(&mut self, model: Model) {
        let crash = Crash::Power(model);
        let moments: BTreeSet<usize> = self.moments(crash).into_iter().collect();
        let mut durable = Durable::new(self.recording, model);
        for k in 0..=self.recording.ops.len() {
            if moments.contains(&k) {
                self.power_at(k, model, &durable);
            }
            if k < self.recording.ops.len() {
                durable.happened(k);
            }
        }
    }

    fn power_at(&mut self, k: usize, model: Model, durable: &Durable<'_>) {
        let crash = Crash::Power(model);
        let pending = Pending::at(self.recording, k, durable);
        let traits = model.traits();
        let lose = |found: &mut Self, names: Vec<Unit>, data: Vec<Unit>, torn| {
            let lost = lawful(found.recording, k, names, data, traits);
            found.add(Candidate { k: k as u32, lost, torn }, crash);
        };
        let count = pending.names.len();
        let kept: BTreeSet<usize> = thinned(count);
        self.leave_out(crash, (count + 1 - kept.len()) as u64);
        for kept in kept {
            let names: Vec<Unit> = pending.names[kept..].concat();
            lose(self, names.clone(), Vec::new(), None);
            let zeroes = |units: Vec<Unit>| units.into_iter().map(zeroed).collect();
            lose(self, names.clone(), pending.all_data(None), None);
            if traits.unwritten_zeroes {
                lose(self, names.clone(), zeroes(pending.all_data(None)), None);
            }
            for file in pending.files() {
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
            self.torn(k, crash, *file, writes, traits);
        }
        if traits.any_order {
            for group in &pending.names {
                lose(self, group.clone(), Vec::new(), None);
                let others: Vec<Unit> =
                    pending.names.iter().filter(|other| *other != group).flatten().copied().collect();
                lose(self, others, Vec::new(), None);
                if traits.torn_rename && group.len() > 1 {
                    group.iter().for_each(|unit| lose(self, vec![*unit], Vec::new(), None));
                }
            }
            for writes in pending.data.values().filter(|writes| writes.len() > 1 && writes.len() <= RUN) {
                writes.iter().for_each(|unit| lose(self, Vec::new(), vec![*unit], None));
            }
        }
    }

    /// Tears of what is pending in one file; everything else is there.
    fn torn(&mut self, k: usize, crash: Crash, file: NodeId, writes: &[Unit], traits: Traits) {
        let Some(last) = writes.last() else { return };
        for (index, unit) in
            writes.iter().enumerate().filter(|(index, _)| *index == 0 || index + 1 == writes.len())
        {
            let What::Write { offset, bytes, .. } = self.recording.ops[unit.op as usize].what else {
                continue;
            };
            let size_before = size_at(self.recording, file, unit.op as usize);
            let rest: Vec<Unit> = writes[index + 1..].to_vec();
            let marks = self.recording.landmarks.get(&unit.op).map_or(&[][..], Vec::as_slice);
            for tear in tears(offset, bytes, size_before, marks, traits) {
                // What comes after a torn piece is not there either, unless the tear leaves the length whole.
                let lost = if matches!(tear, Tear::Prefix(_)) { rest.clone() } else { Vec::new() };
                let lost = lawful(self.recording, k, Vec::new(), lost, traits);
                self.add(Candidate { k: k as u32, lost, torn: Some((unit.op, tear)) }, crash);
            }
            if last == unit {
                break;
            }
        }
    }

    /// Sets that make the same tree are one state.
    fn distinct(&mut self) -> Vec<State> {
        let sets = std::mem::take(&mut self.sets);
        let tree =
            |ways: &BTreeMap<Crash, Way>| ways.values().next().map(|way| way.candidate.tree(self.recording));
        let digests: Vec<[u8; 16]> =
            sets.par_iter().map(|ways| tree(ways).unwrap_or_default().digest()).collect();
        let mut by_digest: HashMap<[u8; 16], usize> = HashMap::new();
        let mut states: Vec<State> = Vec::new();
        for (ways, digest) in sets.into_iter().zip(digests) {
            let at = *by_digest.entry(digest).or_insert(states.len());
            if at == states.len() {
                states.push(State { ways, digest });
            } else {
                ways.into_iter().for_each(|(crash, way)| better(&mut states[at].ways, crash, way));
            }
        }
        states
    }

    /// Representatives of each group first; beyond the bound nothing, and how much that is.
    fn bounded(mut self) -> States {
        let states = self.distinct();
        for state in &states {
            for kind in state.ways.keys().map(|crash| crash.kind()).collect::<BTreeSet<_>>() {
                *self.counted.distinct.entry(kind).or_insert(0) += 1;
            }
        }
        let mut groups: BTreeMap<String, Vec<State>> = BTreeMap::new();
        for state in states {
            groups.entry(group_of(self.recording, &state)).or_default().push(state);
        }
        // The first of each group, then the second of each: and in a group, far apart moments first.
        let mut ranked: Vec<(usize, State)> =
            groups.into_values().flat_map(|group| spread(group.len()).into_iter().zip(group)).collect();
        ranked.sort_by_key(|(nth, _)| *nth);
        let beyond = ranked.split_off(ranked.len().min(self.scope.max_states.max(1)));
        for (_, state) in &beyond {
            for kind in state.ways.keys().map(|crash| crash.kind()).collect::<BTreeSet<_>>() {
                *self.counted.left_out.entry(kind).or_insert(0) += 1;
            }
        }
        States { states: ranked.into_iter().map(|(_, state)| state).collect(), counted: self.counted }
    }
}

/// Of several moments, the one at which most had been promised.
fn better(ways: &mut BTreeMap<Crash, Way>, crash: Crash, way: Way) {
    if ways.get(&crash).is_none_or(|known| known.promised < way.promised) {
        ways.insert(crash, way);
    }
}

/// States of one group lack the same kind of thing: as a tear of a kind of write, or from a kind of operation on.
fn group_of(recording: &Recording, state: &State) -> String {
    let plain = |op: u32| {
        let text = &recording.ops[op as usize].text;
        text.chars().filter(|letter| !letter.is_ascii_digit()).collect::<String>()
    };
    let candidate = state.candidate();
    if let Some((op, tear)) = candidate.torn {
        return format!("{} {:?}", plain(op), std::mem::discriminant(&tear));
    }
    let has_data = |unit: &Unit| recording.ops[unit.op as usize].data_node().is_some();
    let data = candidate.lost.iter().any(has_data);
    let names = candidate.lost.iter().any(|unit| !has_data(unit));
    let first = candidate.lost.first().map(|unit| plain(unit.op));
    // With nothing lost, it is the moment that makes the difference.
    first.map_or_else(
        || candidate.k.checked_sub(1).map(plain).unwrap_or_default(),
        |first| format!("{first} {data} {names}"),
    )
}

/// The rank of each of so many: the first, the last, the middle, the quarters, and so on.
fn spread(count: usize) -> Vec<usize> {
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
struct Pending {
    /// By operation, in order: names and sizes.
    names: Vec<Vec<Unit>>,
    data: BTreeMap<NodeId, Vec<Unit>>,
}

impl Pending {
    fn at(recording: &Recording, k: usize, durable: &Durable<'_>) -> Pending {
        let (mut names, mut data) = (Vec::new(), BTreeMap::<NodeId, Vec<Unit>>::new());
        for (index, op) in recording.ops[..k].iter().enumerate().skip(durable.pending_from) {
            let open: Vec<Unit> = units(index as u32, &op.what).filter(|unit| !durable.has(*unit)).collect();
            match op.data_node() {
                _ if open.is_empty() => {}
                Some(node) => data.entry(node).or_default().extend(open),
                None => names.push(open),
            }
        }
        Pending { names, data }
    }

    fn files(&self) -> Vec<NodeId> {
        if self.data.len() > 1 { self.data.keys().copied().collect() } else { Vec::new() }
    }

    fn data_of(&self, file: NodeId) -> Vec<Unit> {
        self.data.get(&file).cloned().unwrap_or_default()
    }

    fn all_data(&self, but: Option<NodeId>) -> Vec<Unit> {
        self.data
            .iter()
            .filter(|(file, _)| Some(**file) != but)
            .flat_map(|(_, units)| units)
            .copied()
            .collect()
    }
}

/// Takes what is lost together; of what a kept rename has brought along, only the bytes are.
fn lawful(recording: &Recording, k: usize, names: Vec<Unit>, data: Vec<Unit>, traits: Traits) -> Vec<Unit> {
    let mut lost: BTreeSet<Unit> = names.into_iter().collect();
    let mut data: BTreeSet<Unit> = data.into_iter().collect();
    if traits.replace_carries_size && !data.is_empty() {
        for op in 0..k {
            let kept = !lost.contains(&Unit { op: op as u32, part: 0 });
            if kept && let Some(node) = recording.replaced_by(op) {
                let carried = |unit: &Unit| {
                    unit.op as usize <= op && recording.ops[unit.op as usize].data_node() == Some(node)
                };
                data =
                    data.into_iter().map(|unit| if carried(&unit) { zeroed(unit) } else { unit }).collect();
            }
        }
    }
    lost.extend(data);
    lost.into_iter().collect()
}

fn zeroed(unit: Unit) -> Unit {
    Unit { part: BYTES, ..unit }
}

/// How many of the pending names are kept: none, all, and all between up to a bound.
fn thinned(count: usize) -> BTreeSet<usize> {
    if count <= PREFIXES {
        return (0..=count).collect();
    }
    let recent = (count - PREFIXES * 2 / 3)..=count;
    let spread = (0..PREFIXES / 3).map(|nth| nth * count / (PREFIXES / 3));
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
    let first = PAGE - offset % PAGE;
    if first >= bytes {
        return BTreeSet::new();
    }
    let last = first + (bytes - first - 1) / PAGE * PAGE;
    let middle = first + (last - first) / 2 / PAGE * PAGE;
    [first, middle, last].into()
}

fn size_at(recording: &Recording, node: NodeId, k: usize) -> u64 {
    let mut size = match recording.nodes[node as usize] {
        super::recording::Node::File { initial, .. } => initial,
        _ => 0,
    };
    for op in &recording.ops[..k] {
        match op.what {
            What::Write { node: of, offset, bytes, .. } if of == node => size = size.max(offset + bytes),
            What::Resize { node: of, size: to } if of == node => size = to,
            _ => {}
        }
    }
    size
}

/// Classes of what a power loss leaves of a write.
fn tears(offset: u64, bytes: u64, size_before: u64, marks: &[u64], traits: Traits) -> Vec<Tear> {
    let mut tears: Vec<Tear> = page_cuts(offset, bytes).into_iter().map(Tear::Prefix).collect();
    tears.extend(beside(marks, PAGE, offset, bytes).into_iter().map(Tear::Prefix));
    if traits.size_before_data || traits.torn_overwrite {
        tears.extend(beside(marks, SECTOR, offset, bytes).into_iter().map(Tear::Prefix));
    }
    let appends = offset + bytes > size_before;
    if traits.size_before_data && appends {
        let cut = page_cuts(offset, bytes).first().copied().unwrap_or(0);
        tears.extend([Tear::ZeroTail(0), Tear::GarbageTail(0)]);
        if cut > 0 {
            tears.extend([Tear::ZeroTail(cut), Tear::GarbageTail(cut), Tear::Hole(cut)]);
        }
        tears.extend((bytes > SECTOR).then_some(Tear::Prefix(SECTOR)));
    }
    if traits.unwritten_zeroes && appends {
        let cut = page_cuts(offset, bytes).first().copied();
        tears.extend([0].into_iter().chain(cut).map(Tear::ZeroTail));
    }
    if traits.torn_overwrite && !appends && bytes > SECTOR {
        tears.extend([Tear::Prefix(SECTOR), Tear::Prefix((bytes - 1) / SECTOR * SECTOR)]);
    }
    tears.sort_by_key(|tear| format!("{tear:?}"));
    tears.dedup();
    tears
}
