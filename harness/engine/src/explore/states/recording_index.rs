//! What the enumeration looks up often in a recording, computed once. Pure; knows no models.

use std::collections::HashMap;
use std::ffi::OsStr;

use super::tear::TearableWrite;
use super::tree_sizes::TreeSizes;
use crate::explore::record::{FileNodeKind, NameChange, NodeId, OpEffect, Recording};

/// Without any acknowledged save, this many operations count as the last two saves.
const OPS_OF_UNKNOWN_SAVES: usize = 64;

/// A name or a piece of a content costs as much as the replay of this many operations.
const STEPS_OF_PIECE: u64 = 2;

/// Answers by operation and by node.
pub(super) struct RecordingIndex<'a> {
    pub(super) recording: &'a Recording,
    /// By number of operations that have happened.
    acknowledged: Vec<Option<u64>>,
    /// By number of operations that have happened: where the last save but one began.
    recent_from: Vec<u32>,
    /// By number of operations that have happened: how many of them are no output.
    file_operations: Vec<u32>,
    /// By number of operations that have happened: the size of the tree.
    tree_sizes: Vec<u32>,
    /// By operation, for writes: the size of the file before it, in bytes.
    sizes_before: Vec<u64>,
    nodes: Vec<NodeHistory>,
}

/// The operations on the names of a node, in order.
#[derive(Default, Clone)]
struct NodeHistory {
    /// Whether it had a name before the recording.
    is_initial: bool,
    /// Those that gave it a name.
    naming_ops: Vec<u32>,
    /// Those that renamed it over an existing file.
    replacing_ops: Vec<u32>,
    /// The one that removed its last name.
    removed_by: Option<u32>,
}

impl<'a> RecordingIndex<'a> {
    pub(super) fn new(recording: &'a Recording) -> RecordingIndex<'a> {
        RecordingIndex {
            recording,
            acknowledged: acknowledged_steps(recording),
            recent_from: recent_operations(recording),
            file_operations: file_operations(recording),
            tree_sizes: TreeSizes::of(recording),
            sizes_before: sizes_before(recording),
            nodes: NameReplay::new(recording).histories(),
        }
    }

    /// The acknowledged step at a crash point.
    pub(super) fn acknowledged(&self, op_count: usize) -> Option<u64> {
        self.acknowledged[op_count]
    }

    /// Whether a crash point directly follows the acknowledgement of a step, or the last operation.
    pub(super) fn ends_save(&self, op_count: usize) -> bool {
        let last = op_count.checked_sub(1).and_then(|op| self.recording.ops.get(op));
        op_count == self.recording.ops.len() || last.is_some_and(|op| op.is_acknowledgement())
    }

    /// The first operation of the last two saves before a crash point.
    pub(super) fn recent_from(&self, op_count: usize) -> u32 {
        self.recent_from[op_count]
    }

    /// How many file operations there are before a crash point.
    pub(super) fn file_operations(&self, op_count: usize) -> u32 {
        self.file_operations[op_count]
    }

    /// What the digest of the tree at a crash point costs if the tree before it is known, compared with the replay of
    /// one operation.
    pub(super) fn tree_steps(&self, op_count: usize) -> u64 {
        STEPS_OF_PIECE * u64::from(self.tree_sizes[op_count])
    }

    /// The write with this index. `None`: the operation is no write.
    pub(super) fn tearable_write(&self, op: u32) -> Option<TearableWrite<'a>> {
        let OpEffect::Write { offset, len_bytes, .. } = self.recording.ops[op as usize].effect else {
            return None;
        };
        let boundaries = self.recording.format_boundaries.get(&op).map_or(&[][..], Vec::as_slice);
        Some(TearableWrite { offset, len_bytes, size_before: self.sizes_before[op as usize], boundaries })
    }

    /// The operations that gave a node a name.
    pub(super) fn naming_ops(&self, node: NodeId) -> &[u32] {
        &self.nodes[node as usize].naming_ops
    }

    /// Whether a node had a name before the recording.
    pub(super) fn is_initial(&self, node: NodeId) -> bool {
        self.nodes[node as usize].is_initial
    }

    /// The operations that renamed a node over an existing file.
    pub(super) fn replacing_ops(&self, node: NodeId) -> &[u32] {
        &self.nodes[node as usize].replacing_ops
    }

    /// The operation that removed the last name of a node.
    pub(super) fn removed_by(&self, node: NodeId) -> Option<u32> {
        self.nodes[node as usize].removed_by
    }
}

fn acknowledged_steps(recording: &Recording) -> Vec<Option<u64>> {
    let mut acknowledged = vec![recording.acknowledged_before];
    let mut newest = recording.acknowledged_before;
    for op in &recording.ops {
        if let OpEffect::Output { saved_step: Some(step), .. } = op.effect {
            newest = Some(step);
        }
        acknowledged.push(newest);
    }
    acknowledged
}

fn recent_operations(recording: &Recording) -> Vec<u32> {
    let has_saves = recording.ops.iter().any(|op| op.is_acknowledgement());
    let (mut last_save, mut save_before) = (0, 0);
    let mut recent_from = vec![0];
    for (index, op) in recording.ops.iter().enumerate() {
        if op.is_acknowledgement() {
            (save_before, last_save) = (last_save, index as u32 + 1);
        }
        let assumed = (index + 1).saturating_sub(OPS_OF_UNKNOWN_SAVES) as u32;
        recent_from.push(if has_saves { save_before } else { assumed });
    }
    recent_from
}

fn file_operations(recording: &Recording) -> Vec<u32> {
    let mut count = 0;
    let counts = recording.ops.iter().map(|op| {
        count += u32::from(!matches!(op.effect, OpEffect::Output { .. }));
        count
    });
    [0].into_iter().chain(counts).collect()
}

fn sizes_before(recording: &Recording) -> Vec<u64> {
    let initial = |node: &crate::explore::record::FileNode| match node.kind {
        FileNodeKind::File { initial_len_bytes } => initial_len_bytes,
        _ => 0,
    };
    let mut sizes: Vec<u64> = recording.nodes.iter().map(initial).collect();
    let mut sizes_before = Vec::with_capacity(recording.ops.len());
    for op in &recording.ops {
        sizes_before.push(match op.effect {
            OpEffect::Write { node, offset, len_bytes, .. } => {
                let size = &mut sizes[node as usize];
                std::mem::replace(size, (*size).max(offset + len_bytes))
            }
            OpEffect::Resize { node, size_bytes } => std::mem::replace(&mut sizes[node as usize], size_bytes),
            _ => 0,
        });
    }
    sizes_before
}

/// Follows the names through the recording.
struct NameReplay<'a> {
    recording: &'a Recording,
    /// By directory and name.
    current: HashMap<(NodeId, &'a OsStr), NodeId>,
    /// How many names each node has.
    name_counts: Vec<u32>,
    histories: Vec<NodeHistory>,
}

impl<'a> NameReplay<'a> {
    fn new(recording: &'a Recording) -> NameReplay<'a> {
        let count = recording.nodes.len();
        let mut replay = NameReplay {
            recording,
            current: HashMap::new(),
            name_counts: vec![0; count],
            histories: vec![NodeHistory::default(); count],
        };
        for (dir, names) in &recording.initial_names {
            for (name, node) in names {
                replay.current.insert((*dir, name.as_os_str()), *node);
                replay.name_counts[*node as usize] += 1;
                replay.histories[*node as usize].is_initial = true;
            }
        }
        replay
    }

    fn histories(mut self) -> Vec<NodeHistory> {
        let recording = self.recording;
        for (op, effect) in (0..).zip(recording.ops.iter().map(|op| &op.effect)) {
            if let OpEffect::NameChanges(changes) = effect {
                self.apply(op, changes);
            }
        }
        self.histories
    }

    fn apply(&mut self, op: u32, changes: &'a [NameChange]) {
        for (part, change) in changes.iter().enumerate() {
            let name = (change.dir, change.name.as_os_str());
            let before = match change.node {
                Some(node) => self.current.insert(name, node),
                None => self.current.remove(&name),
            };
            if let Some(node) = change.node {
                self.name_counts[node as usize] += 1;
                let history = &mut self.histories[node as usize];
                history.naming_ops.push(op);
                history.removed_by = None;
                if part == 0 && changes.len() > 1 && before.is_some() {
                    history.replacing_ops.push(op);
                }
            }
            if let Some(before) = before {
                let count = &mut self.name_counts[before as usize];
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.histories[before as usize].removed_by = Some(op);
                }
            }
        }
    }
}
