//! Notices what the target's calls on attributes have changed. The kernel performs these calls, so the
//! attributes are read before the call and again before the next call is recorded. Knows no operations.

use std::collections::HashMap;
use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};

use super::attributes::{CurrentTimes, FileAttributes};
use super::recording::{AttributesId, NodeId};
use crate::gate::CallKind;

/// At most this many calls are waited for. A call that changes nothing is waited for until its thread makes
/// another call.
const MAX_PENDING: usize = 64;

/// Sets of attributes, each once.
#[derive(Default)]
pub(super) struct AttributeTable {
    sets: Vec<FileAttributes>,
    ids: HashMap<FileAttributes, AttributesId>,
}

/// A call that the kernel performs, or has performed.
pub(super) struct PendingCall {
    pub(super) kind: CallKind,
    pub(super) tid: i32,
    pub(super) node: NodeId,
    file: OwnedFd,
    times: CurrentTimes,
}

/// The attributes that a file has after a call.
pub(super) struct AttributeChange {
    pub(super) kind: CallKind,
    pub(super) node: NodeId,
    pub(super) attributes: FileAttributes,
    /// The modification time became the time of the call.
    pub(super) touches: bool,
}

/// The current attributes of all nodes, and the calls that may change them.
#[derive(Default)]
pub(super) struct AttributeTracker {
    current: HashMap<NodeId, FileAttributes>,
    pending: Vec<PendingCall>,
}

impl AttributeTable {
    /// The id of a set, which is added if it is new.
    pub(super) fn id_of(&mut self, set: FileAttributes) -> AttributesId {
        if let Some(id) = self.ids.get(&set) {
            return *id;
        }
        let id = self.sets.len() as AttributesId;
        self.sets.push(set.clone());
        self.ids.insert(set, id);
        id
    }

    /// A set.
    pub(super) fn get(&self, id: AttributesId) -> &FileAttributes {
        &self.sets[id as usize]
    }

    /// All sets, by id.
    pub(super) fn sets(&self) -> &[FileAttributes] {
        &self.sets
    }
}

impl PendingCall {
    /// Reads the times before the call.
    ///
    /// # Errors
    /// The times cannot be read.
    pub(super) fn new(kind: CallKind, tid: i32, node: NodeId, file: OwnedFd) -> Result<PendingCall, Error> {
        let times = CurrentTimes::read(file.as_fd())?;
        Ok(PendingCall { kind, tid, node, file, times })
    }

    /// What the call has changed, compared with the attributes before it. `None`: nothing so far.
    fn change(&self, before: &FileAttributes) -> Result<Option<AttributeChange>, Error> {
        let mut attributes = FileAttributes::read_without_times(self.file.as_fd())?;
        (attributes.modified, attributes.accessed) = (before.modified, before.accessed);
        let mut touches = false;
        if self.kind == CallKind::Utimens {
            let now = CurrentTimes::read(self.file.as_fd())?;
            // A time that is the time of the change was not chosen by the target.
            if now.modified != self.times.modified {
                touches = now.modified == now.changed;
                attributes.modified = (!touches).then_some(now.modified);
            }
            if now.accessed != self.times.accessed {
                attributes.accessed = (now.accessed != now.changed).then_some(now.accessed);
            }
        }
        if attributes == *before && !touches {
            return Ok(None);
        }
        Ok(Some(AttributeChange { kind: self.kind, node: self.node, attributes, touches }))
    }
}

impl AttributeTracker {
    /// Sets what a node has. Called for each node before anything else.
    pub(super) fn set(&mut self, node: NodeId, attributes: FileAttributes) {
        self.current.insert(node, attributes);
    }

    /// What a node has now. `None` for an unknown node.
    pub(super) fn current(&self, node: NodeId) -> Option<&FileAttributes> {
        self.current.get(&node)
    }

    /// Waits for a call.
    pub(super) fn expect(&mut self, call: PendingCall) {
        if self.pending.len() >= MAX_PENDING {
            self.pending.remove(0);
        }
        self.pending.push(call);
    }

    /// The content of a node, or a name in it, changed, so that its modification time is no longer the one that
    /// was set.
    pub(super) fn forget_set_time(&mut self, node: NodeId) {
        if let Some(current) = self.current.get_mut(&node) {
            current.modified = None;
        }
    }

    /// The changes that have happened by now. `tid`: the thread that makes a call now, whose earlier calls have
    /// therefore ended.
    ///
    /// # Errors
    /// The attributes of a file cannot be read.
    pub(super) fn take_changes(&mut self, tid: Option<i32>) -> Result<Vec<AttributeChange>, Error> {
        let mut changes = Vec::new();
        for call in std::mem::take(&mut self.pending) {
            let Some(current) = self.current.get_mut(&call.node) else { continue };
            match call.change(current)? {
                Some(change) => {
                    *current = change.attributes.clone();
                    changes.push(change);
                }
                None if tid == Some(call.tid) => {}
                None => self.pending.push(call),
            }
        }
        Ok(changes)
    }
}
