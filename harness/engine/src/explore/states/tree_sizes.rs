//! How large the tree is at each crash point: what its digest costs. Pure; an estimate.

use std::collections::HashMap;
use std::ffi::OsStr;

use crate::explore::record::{NodeId, OpEffect, Recording};

/// Counts names and pieces, operation by operation. Names below a directory that is removed or replaced still count.
pub(super) struct TreeSizes<'r> {
    current: HashMap<(NodeId, &'r OsStr), NodeId>,
    nodes: Vec<NodeSize>,
    total: u64,
}

#[derive(Clone, Copy, Default)]
struct NodeSize {
    names: u64,
    pieces: u64,
    /// Where a write would have to begin to need no further piece, in the file and in the payload log.
    end: Option<(u64, u64)>,
}

impl<'r> TreeSizes<'r> {
    /// The size after each number of operations.
    pub(super) fn of(recording: &'r Recording) -> Vec<u32> {
        let mut sizes = TreeSizes {
            current: HashMap::new(),
            nodes: vec![NodeSize::default(); recording.nodes.len()],
            total: 0,
        };
        for (dir, names) in &recording.initial_names {
            names.iter().for_each(|(name, node)| sizes.set_name(*dir, name, Some(*node)));
        }
        let mut totals = vec![sizes.total as u32];
        for op in &recording.ops {
            sizes.apply(&op.effect);
            totals.push(u32::try_from(sizes.total).unwrap_or(u32::MAX));
        }
        totals
    }

    fn apply(&mut self, effect: &'r OpEffect) {
        match effect {
            OpEffect::NameChanges(changes) => {
                changes.iter().for_each(|change| self.set_name(change.dir, &change.name, change.node));
            }
            OpEffect::Write { node, offset, len_bytes, payload_offset } => {
                let is_next = self.nodes[*node as usize].end == Some((*offset, *payload_offset));
                self.nodes[*node as usize].end = Some((offset + len_bytes, payload_offset + len_bytes));
                self.add_pieces(*node, u64::from(!is_next));
            }
            OpEffect::Resize { node, size_bytes: 0 } => {
                let size = &mut self.nodes[*node as usize];
                self.total -= size.names * size.pieces;
                *size = NodeSize { names: size.names, ..NodeSize::default() };
            }
            OpEffect::Resize { node, .. } | OpEffect::Zero { node, .. } => self.add_pieces(*node, 1),
            OpEffect::SetAttributes { .. }
            | OpEffect::Sync { .. }
            | OpEffect::SyncAll
            | OpEffect::Output { .. } => {}
        }
    }

    fn add_pieces(&mut self, node: NodeId, pieces: u64) {
        let size = &mut self.nodes[node as usize];
        size.pieces += pieces;
        self.total += size.names * pieces;
    }

    fn set_name(&mut self, dir: NodeId, name: &'r OsStr, node: Option<NodeId>) {
        let before = match node {
            Some(node) => self.current.insert((dir, name), node),
            None => self.current.remove(&(dir, name)),
        };
        if let Some(size) = before.map(|node| &mut self.nodes[node as usize]) {
            size.names -= 1;
            self.total -= 1 + size.pieces;
        }
        if let Some(size) = node.map(|node| &mut self.nodes[node as usize]) {
            size.names += 1;
            self.total += 1 + size.pieces;
        }
    }
}
