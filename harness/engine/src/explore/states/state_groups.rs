//! Groups of similar crash states, of which representatives are tried first. Pure.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::crash_candidate::CrashCandidate;
use super::tear::TearKind;
use crate::explore::record::{NodeId, Op, OpEffect, Recording};

/// What similar operations have in common. Names count without their digits, so that the saves of different
/// steps are similar.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OpSignature {
    /// First, because groups are in the order of the signatures.
    kind_name: &'static str,
    /// The path of the file that is changed; for a rename, the old and the new path. For a line of output, the
    /// line. Bytes without digits.
    operands: Vec<Vec<u8>>,
}

/// What the states of one group lost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LossKind {
    Nothing,
    Torn(TearKind),
    Lost { data: bool, names: bool },
}

/// The group of a state: the operation that decides, and the kind of loss.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StateGroup {
    /// The torn write, or the first operation that was lost, or the last operation before the crash point.
    op: Option<OpSignature>,
    pub(crate) loss: LossKind,
}

/// The groups of the states of one recording.
pub(crate) struct StateGroups<'a> {
    recording: &'a Recording,
    signatures: Vec<OpSignature>,
}

impl<'a> StateGroups<'a> {
    pub(crate) fn new(recording: &'a Recording) -> StateGroups<'a> {
        StateGroups { recording, signatures: signatures(recording) }
    }

    pub(crate) fn of(&self, candidate: &CrashCandidate) -> StateGroup {
        StateGroup::of(self.recording, &self.signatures, candidate)
    }
}

impl StateGroup {
    /// `signatures`: those of the recording's operations, in order.
    pub(super) fn of(
        recording: &Recording,
        signatures: &[OpSignature],
        candidate: &CrashCandidate,
    ) -> StateGroup {
        let signature = |op: u32| signatures.get(op as usize).cloned();
        if let Some(torn) = candidate.torn {
            return StateGroup { op: signature(torn.op), loss: LossKind::Torn(torn.tear.kind()) };
        }
        let Some(first) = candidate.lost.first() else {
            let op = candidate.op_count.checked_sub(1).and_then(signature);
            return StateGroup { op, loss: LossKind::Nothing };
        };
        let is_data = |op: u32| recording.ops[op as usize].data_node().is_some();
        let data = candidate.lost.iter().any(|unit| is_data(unit.op));
        let names = candidate.lost.iter().any(|unit| !is_data(unit.op));
        StateGroup { op: signature(first.op), loss: LossKind::Lost { data, names } }
    }
}

/// The signatures of all operations, in order.
pub(super) fn signatures(recording: &Recording) -> Vec<OpSignature> {
    let mut paths = PathIndex::new(recording);
    let mut signatures = Vec::with_capacity(recording.ops.len());
    for op in &recording.ops {
        signatures.push(OpSignature { kind_name: op.kind.name(), operands: paths.operands(op) });
        paths.apply(op);
    }
    signatures
}

/// The path of each node, without digits, as of one operation.
struct PathIndex<'a> {
    recording: &'a Recording,
    /// The directory and the name that each node got last.
    names: HashMap<NodeId, (NodeId, &'a OsStr)>,
}

impl<'a> PathIndex<'a> {
    fn new(recording: &'a Recording) -> PathIndex<'a> {
        let mut names = HashMap::new();
        for (dir, entries) in &recording.initial_names {
            for (name, node) in entries {
                names.entry(*node).or_insert((*dir, name.as_os_str()));
            }
        }
        PathIndex { recording, names }
    }

    fn apply(&mut self, op: &'a Op) {
        for change in op.name_changes().iter().rev() {
            if let Some(node) = change.node {
                self.names.insert(node, (change.dir, change.name.as_os_str()));
            }
        }
    }

    fn operands(&self, op: &Op) -> Vec<Vec<u8>> {
        match &op.effect {
            OpEffect::NameChanges(changes) => {
                let path = |dir: NodeId, name: &OsStr| {
                    let mut path = self.path(dir);
                    push_name(&mut path, name);
                    path
                };
                // A rename sets the new name first; its old name comes first in the signature.
                changes.iter().rev().map(|change| path(change.dir, &change.name)).collect()
            }
            OpEffect::Write { node, .. }
            | OpEffect::Resize { node, .. }
            | OpEffect::Zero { node, .. }
            | OpEffect::SetAttributes { node, .. }
            | OpEffect::Sync { node, .. } => vec![self.path(*node)],
            OpEffect::SyncAll => Vec::new(),
            OpEffect::Output { line, .. } => vec![without_digits(line.as_bytes()).collect()],
        }
    }

    /// The root's number is not part of the path if there is only one.
    fn path(&self, node: NodeId) -> Vec<u8> {
        if let Some(root) = self.recording.roots.get(node as usize) {
            return if self.recording.roots.len() == 1 {
                Vec::new()
            } else {
                without_digits(root.as_os_str().as_bytes()).collect()
            };
        }
        let Some((dir, name)) = self.names.get(&node) else { return Vec::new() };
        let mut path = self.path(*dir);
        push_name(&mut path, name);
        path
    }
}

fn push_name(path: &mut Vec<u8>, name: &OsStr) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend(without_digits(name.as_bytes()));
}

fn without_digits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().copied().filter(|byte| !byte.is_ascii_digit())
}

/// Ranks for `count` elements in a row: the first, the last, the middle, the quarters, and so on.
pub(super) fn spread_ranks(count: usize) -> Vec<usize> {
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
