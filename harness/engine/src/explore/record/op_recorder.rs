//! Records the effects of the target's calls as operations. Knows neither crash states nor recoveries.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use scenarios::{ExplorationNote, PAGE_BYTES};

use super::attribute_changes::{AttributeChange, AttributeTable, AttributeTracker, PendingCall};
use super::attributes::{CurrentTimes, FileAttributes, FileTime};
use super::content::{ByteSource, ContentReader, FileContent};
use super::content_difference::for_each_difference;
use super::current_names::CurrentNames;
use super::final_tree::{AcceptedDifferences, ExpectedTree, TreeComparison};
use super::format_boundaries::format_boundaries;
use super::initial_tree::{InitialTree, WatchedRoot};
use super::payload_log::PayloadLog;
use super::pinned_files::PinnedFiles;
use super::recorded_lines::{RecordedLine, RecordedLines};
use super::recorder_config::RecorderConfig;
use super::recording::{
    FileNode, FileNodeKind, NameChange, NodeId, Op, OpEffect, OpKind, Recording, RecordingGaps,
};
use super::unfollowed_calls::UnfollowedCalls;
use super::unseen_writes::UnseenWrites;
use crate::explore::tree_difference::TreeDifference;
use crate::gate::{
    CallDecision, CallEffect, CallHandler, CallKind, DirectoryEntry, FileId, GateFailure, InterceptedCall,
};

/// Changes through a mapping are recorded in parts of this size.
const PAGE: usize = PAGE_BYTES as usize;

/// Builds a [`Recording`] from the effects of the target's calls.
pub struct OpRecorder {
    pub(super) recording: Recording,
    pub(super) node_by_file_id: HashMap<FileId, NodeId>,
    pub(super) names: CurrentNames,
    pub(super) contents: HashMap<NodeId, FileContent>,
    attributes: AttributeTable,
    attribute_tracker: AttributeTracker,
    pub(super) payload_log: PayloadLog,
    /// Files with a writable shared mapping, each with a descriptor that reads it.
    pub(super) mapped_files: BTreeMap<NodeId, OwnedFd>,
    pinned_files: PinnedFiles,
    output_lines: RecordedLines,
    /// The first error of the harness; `finish` returns it.
    pub(super) failure: Option<Error>,
    gate_failure: Option<GateFailure>,
    /// Calls that the target forbids to follow, if they are let through.
    unfollowed_calls: Option<UnfollowedCalls>,
    /// How many of the operations are no lines of output.
    operation_count: u64,
    /// Writes that the kernel performs by itself.
    pub(super) unseen_writes: UnseenWrites,
    /// When the recording began, by the clock of the file system.
    began: FileTime,
}

impl OpRecorder {
    /// Indexes the watched directories as they are now.
    ///
    /// # Errors
    /// A watched directory cannot be read, or the payload log cannot be created.
    pub fn new(config: RecorderConfig<'_>) -> Result<OpRecorder, Error> {
        let initial = InitialTree::index(config.roots, config.originals)?;
        let mut attribute_tracker = AttributeTracker::default();
        for (node, file) in (0..).zip(&initial.nodes) {
            attribute_tracker.set(node, initial.attributes.get(file.attributes).clone());
        }
        let gaps = RecordingGaps {
            owners_not_kept: initial.owners_not_kept,
            files_left_out: initial.files_left_out,
            ..RecordingGaps::default()
        };
        let roots: Vec<PathBuf> = config.roots.iter().map(|root| root.seen_by_target.clone()).collect();
        let pinned_files = PinnedFiles::new(config.roots, initial.nodes.len());
        let recording = Recording {
            roots: roots.clone(),
            nodes: initial.nodes,
            attribute_sets: Vec::new(),
            initial_names: initial.names.clone(),
            initial_paths: initial.paths,
            ops: Vec::new(),
            payload_log: config.payload_log.into(),
            gaps,
            format_boundaries: BTreeMap::new(),
            acknowledged_before: None,
            lower_layers: Vec::new(),
        };
        let payload_log = PayloadLog::create(config.payload_log)?;
        let began = CurrentTimes::read(File::open(config.payload_log)?.as_fd())?.changed;
        Ok(OpRecorder {
            recording,
            node_by_file_id: initial.node_by_file_id,
            names: CurrentNames::new(roots, initial.names),
            contents: initial.contents,
            attributes: initial.attributes,
            attribute_tracker,
            payload_log,
            mapped_files: BTreeMap::new(),
            pinned_files,
            output_lines: RecordedLines::new(
                config.output_pipes,
                config.saved_pattern,
                config.phase,
                config.announced,
            ),
            unseen_writes: UnseenWrites::default(),
            began,
            failure: None,
            gate_failure: None,
            operation_count: 0,
            unfollowed_calls: None,
        })
    }

    /// From now on, calls that the target forbids to follow are let through. What they change is known only from a
    /// comparison.
    pub(super) fn let_unfollowed_calls_through(&mut self) {
        self.unfollowed_calls.get_or_insert_default();
    }

    /// How many file operations were recorded so far.
    pub(super) fn operation_count(&self) -> u64 {
        self.operation_count
    }

    /// How many bytes were written so far, to files and to observed pipes.
    pub(super) fn written_bytes(&self) -> u64 {
        self.payload_log.len_bytes()
    }

    /// What the user has to know about accepted differences and calls.
    pub(super) fn unfollowed_notes(&self, accepted: Vec<AcceptedDifferences>) -> Vec<ExplorationNote> {
        let calls = self.unfollowed_calls.as_ref().and_then(UnfollowedCalls::note);
        let has_calls = calls.is_some();
        let differences = accepted.into_iter().filter_map(|accepted| accepted.note(has_calls));
        calls.into_iter().chain(differences).collect()
    }

    /// The failure of the gate, if it has failed: the recording is not complete then.
    pub fn gate_failure(&self) -> Option<GateFailure> {
        self.gate_failure.clone()
    }

    /// Compares what was recorded with the files that are really there. Call it after [`finish`](Self::finish).
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn differences(&self, roots: &[WatchedRoot]) -> Result<Vec<TreeDifference>, Error> {
        Ok(self.compare(roots, &[])?.differences)
    }

    /// Compares what was recorded with the files that are really there. Differences at the paths `accepted` are
    /// counted apart.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn compare(
        &self,
        roots: &[WatchedRoot],
        accepted: &[PathBuf],
    ) -> Result<TreeComparison, Error> {
        let expected = ExpectedTree {
            recording: &self.recording,
            names: self.names.by_directory(),
            contents: &self.contents,
            attributes: &self.attribute_tracker,
            began: self.began,
        };
        expected.compare(roots, accepted)
    }

    /// Adds a node that a call has just created. `file`: a descriptor of it.
    pub(super) fn add_node(&mut self, file_id: FileId, file: &OwnedFd, kind: FileNodeKind) -> NodeId {
        let attributes = FileAttributes::read_without_times(file.as_fd()).unwrap_or_else(|error| {
            self.failure.get_or_insert(error);
            FileAttributes::with_mode(0)
        });
        let id = self.recording.nodes.len() as NodeId;
        self.note_owner(&attributes, || PathBuf::from(format!("(file {id})")));
        self.attribute_tracker.set(id, attributes.clone());
        let attributes = self.attributes.id_of(attributes);
        self.recording.nodes.push(FileNode { attributes, kind });
        self.node_by_file_id.insert(file_id, id);
        id
    }

    fn note_owner(&mut self, attributes: &FileAttributes, path: impl FnOnce() -> PathBuf) {
        if !attributes.has_settable_owner() {
            self.recording.gaps.owners_not_kept.add(path);
        }
    }

    pub(super) fn expect_attribute_change(&mut self, call: Result<PendingCall, Error>) {
        match call {
            Ok(call) => self.attribute_tracker.expect(call),
            Err(error) => drop(self.failure.get_or_insert(error)),
        }
    }

    /// Records the changes of attributes that have happened by now. `tid`: the thread that makes a call now.
    fn record_attribute_changes(&mut self, tid: Option<i32>) {
        match self.attribute_tracker.take_changes(tid) {
            Ok(changes) => changes.into_iter().for_each(|change| self.record_attributes(change)),
            Err(error) => drop(self.failure.get_or_insert(error)),
        }
    }

    fn record_attributes(&mut self, change: AttributeChange) {
        let AttributeChange { kind, node, attributes, touches } = change;
        let path = self.display_path(node);
        self.note_owner(&attributes, || PathBuf::from(&path));
        let (kind, operands) = match kind {
            CallKind::Chown => (OpKind::Chown, format!("{path}, {}:{}", attributes.uid, attributes.gid)),
            CallKind::Utimens => (OpKind::Utimes, path),
            CallKind::SetXattr => (OpKind::SetXattr, path),
            _ => (OpKind::Chmod, format!("{path}, {:04o}", attributes.mode)),
        };
        let attributes = self.attributes.id_of(attributes);
        self.push_op(kind, OpEffect::SetAttributes { node, attributes, touches }, &operands);
    }

    /// Returns the recording. The target must have ended.
    ///
    /// # Errors
    /// The payload log could not be written, or a mapped file could not be read.
    pub fn finish(&mut self) -> Result<Recording, Error> {
        self.record_attribute_changes(None);
        self.record_unseen_writes(None, None);
        for node in self.mapped_files.keys().copied().collect::<Vec<_>>() {
            self.record_mapped_changes(node);
        }
        self.mapped_files.clear();
        let last_lines = self.output_lines.take_last_lines();
        self.record_lines(last_lines);
        self.recording.gaps.notes.extend(self.output_lines.note());
        self.payload_log.flush()?;
        self.recording.attribute_sets = self.attributes.sets().to_vec();
        match self.failure.take() {
            Some(error) => Err(error),
            None => Ok(self.recording.clone()),
        }
    }

    /// Records an operation. `operands`: what its text has between the parentheses.
    pub(super) fn push_op(&mut self, kind: OpKind, effect: OpEffect, operands: &str) {
        let text = format!("{}({operands})", kind.name());
        self.operation_count += u64::from(kind != OpKind::Output);
        self.recording.ops.push(Op { kind, effect, text });
    }

    fn display_path(&self, node: NodeId) -> String {
        self.relative_path(&self.names.path_of(node))
    }

    /// With a single watched directory, the path below it; with several, the whole path.
    fn relative_path(&self, path: &Path) -> String {
        let short = match &self.recording.roots[..] {
            [root] => path.strip_prefix(root).unwrap_or(path),
            _ => path,
        };
        if short.as_os_str().is_empty() { ".".into() } else { short.display().to_string() }
    }

    fn directory_of(&mut self, entry: &DirectoryEntry) -> Option<NodeId> {
        let dir = self.node_by_file_id.get(&entry.dir).copied();
        self.recording.gaps.unknown_files += u64::from(dir.is_none());
        dir
    }

    pub(super) fn known_node(&mut self, file_id: FileId) -> Option<NodeId> {
        let node = self.node_by_file_id.get(&file_id).copied();
        self.recording.gaps.unknown_files += u64::from(node.is_none());
        self.pin(node?);
        node
    }

    /// Keeps a file open that is changed for the first time, if it may lose its identity otherwise.
    fn pin(&mut self, node: NodeId) {
        if self.pinned_files.wants(node) {
            self.pinned_files.pin(node, &self.names.path_of(node));
        }
    }

    fn change_names(&mut self, kind: OpKind, changes: Vec<NameChange>, operands: &str) {
        for change in &changes {
            self.attribute_tracker.forget_set_time(change.dir);
            self.names.apply(change);
        }
        self.push_op(kind, OpEffect::NameChanges(changes), operands);
    }

    pub(super) fn set_name(&mut self, kind: OpKind, entry: &DirectoryEntry, node: NodeId) {
        let Some(dir) = self.directory_of(entry) else { return };
        let change = NameChange { dir, name: entry.name.clone(), node: Some(node) };
        self.change_names(kind, vec![change], &self.relative_path(&entry.path));
    }

    pub(super) fn remove_name(&mut self, kind: OpKind, entry: &DirectoryEntry) {
        let Some(dir) = self.directory_of(entry) else { return };
        let change = NameChange { dir, name: entry.name.clone(), node: None };
        self.change_names(kind, vec![change], &self.relative_path(&entry.path));
    }

    pub(super) fn record_rename(&mut self, from: &DirectoryEntry, to: &DirectoryEntry, exchanged: bool) {
        let (Some(from_dir), Some(to_dir)) = (self.directory_of(from), self.directory_of(to)) else { return };
        let Some(node) = self.names.node_at(from_dir, &from.name) else {
            self.recording.gaps.unknown_files += 1;
            return;
        };
        // The kernel does nothing if both are names of one file.
        if !exchanged && self.names.node_at(to_dir, &to.name) == Some(node) {
            return;
        }
        self.record_mapped_changes(node);
        let other = if exchanged { self.names.node_at(to_dir, &to.name) } else { None };
        let change = |dir, entry: &DirectoryEntry, node| NameChange { dir, name: entry.name.clone(), node };
        let changes = vec![change(to_dir, to, Some(node)), change(from_dir, from, other)];
        let kind = if exchanged { OpKind::Exchange } else { OpKind::Rename };
        let operands = format!("{}, {}", self.relative_path(&from.path), self.relative_path(&to.path));
        self.change_names(kind, changes, &operands);
        self.pin(node);
    }

    pub(super) fn record_write(&mut self, kind: OpKind, node: NodeId, offset: u64, len_bytes: u64) {
        let payload_offset = self.payload_log.offset_of_payload(len_bytes);
        self.attribute_tracker.forget_set_time(node);
        let boundaries = format_boundaries(offset, self.payload_log.head());
        if !boundaries.is_empty() {
            self.recording.format_boundaries.insert(self.recording.ops.len() as u32, boundaries);
        }
        self.contents.entry(node).or_default().put(offset, len_bytes, ByteSource::PayloadLog(payload_offset));
        let operands = format!("{}, {len_bytes} bytes at {offset}", self.display_path(node));
        self.push_op(kind, OpEffect::Write { node, offset, len_bytes, payload_offset }, &operands);
    }

    pub(super) fn record_resize(&mut self, kind: OpKind, node: NodeId, size_bytes: u64) {
        self.contents.entry(node).or_default().resize(size_bytes);
        self.attribute_tracker.forget_set_time(node);
        let operands = format!("{}, {size_bytes}", self.display_path(node));
        self.push_op(kind, OpEffect::Resize { node, size_bytes }, &operands);
    }

    pub(super) fn record_zeroes(&mut self, node: NodeId, offset: u64, len_bytes: u64) {
        self.contents.entry(node).or_default().put(offset, len_bytes, ByteSource::Zeroes);
        self.attribute_tracker.forget_set_time(node);
        let operands = format!("{}, {len_bytes} bytes at {offset}", self.display_path(node));
        self.push_op(OpKind::Punch, OpEffect::Zero { node, offset, len_bytes }, &operands);
    }

    /// Records what a shared mapping has changed since the last look, as writes.
    fn record_mapped_changes(&mut self, node: NodeId) {
        let Some(fd) = self.mapped_files.get(&node) else { return };
        let recorded =
            fd.try_clone().and_then(|fd| self.record_differences(OpKind::MappedWrite, node, &File::from(fd)));
        if let Err(error) = recorded {
            self.failure.get_or_insert(error);
        }
    }

    /// Records what a file has that is not recorded, as writes of whole pages.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn record_differences(
        &mut self,
        kind: OpKind,
        node: NodeId,
        file: &File,
    ) -> Result<(), Error> {
        self.payload_log.flush()?;
        let known = self.contents.entry(node).or_default().clone();
        let mut changed: Vec<u64> = Vec::new();
        for_each_difference(&known, &ContentReader::new(&self.recording)?, file, &mut |chunk| {
            let pages = chunk.expected.chunks(PAGE).zip(chunk.found.chunks(PAGE)).enumerate();
            let differing = pages.filter(|(_, (expected, found))| expected != found);
            changed.extend(differing.map(|(index, _)| chunk.offset + (index * PAGE) as u64));
            Ok(())
        })?;
        let mut page = [0; PAGE];
        for offset in changed {
            let len_bytes = file.read_at(&mut page, offset)?;
            self.payload_log.begin_payload();
            self.on_payload(&page[..len_bytes]);
            self.record_write(kind, node, offset, len_bytes as u64);
        }
        Ok(())
    }

    fn record_lines(&mut self, lines: Vec<RecordedLine>) {
        for RecordedLine { text, saved_step, on_stdio } in lines {
            let operands = text.clone();
            self.push_op(OpKind::Output, OpEffect::Output { line: text, saved_step, on_stdio }, &operands);
        }
    }

    pub(super) fn record_output(&mut self, pipe: FileId, thread: i32) {
        // The bytes stay in the payload log, but no operation refers to them: they are part of no file.
        let lines = self.output_lines.add(pipe, thread, self.payload_log.head());
        self.record_lines(lines);
    }

    pub(super) fn record_created(&mut self, entry: &DirectoryEntry, file_id: FileId, file: &OwnedFd) {
        let node = self.add_node(file_id, file, FileNodeKind::File { initial_len_bytes: 0 });
        self.set_name(OpKind::Create, entry, node);
    }

    pub(super) fn record_link(&mut self, file_id: FileId, entry: &DirectoryEntry, new_id: FileId) {
        let Some(node) = self.known_node(file_id) else { return };
        self.node_by_file_id.insert(new_id, node);
        self.set_name(OpKind::Link, entry, node);
    }

    pub(super) fn record_sync(&mut self, file_id: FileId, data_only: bool) {
        let Some(node) = self.known_node(file_id) else { return };
        self.record_mapped_changes(node);
        let kind = if data_only { OpKind::Fdatasync } else { OpKind::Fsync };
        self.push_op(kind, OpEffect::Sync { node, data_only }, &self.display_path(node));
    }
}

impl CallHandler for OpRecorder {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision {
        self.record_attribute_changes(Some(call.tid));
        self.record_unseen_writes(Some(call.tid), None);
        self.payload_log.begin_payload();
        match call.kind {
            CallKind::OpenToRead | CallKind::Read | CallKind::Stat | CallKind::Access | CallKind::Close => {
                CallDecision::Continue
            }
            _ => CallDecision::Perform,
        }
    }

    fn on_payload(&mut self, bytes: &[u8]) {
        if let Err(error) = self.payload_log.append(bytes) {
            self.failure.get_or_insert(error);
        }
    }

    fn on_effect(&mut self, effect: CallEffect) {
        // A call of another thread may have ended in the meantime.
        self.record_attribute_changes(None);
        let payload = self.payload_log.take_payload();
        self.record_unseen_writes(None, self.known_write(&effect));
        self.payload_log.resume_payload(payload);
        self.record_effect(effect);
        self.payload_log.begin_payload();
    }

    fn lets_through(&mut self, failure: &GateFailure) -> bool {
        match &mut self.unfollowed_calls {
            Some(calls) if failure.is_forbidden() => {
                calls.add(failure);
                true
            }
            _ => false,
        }
    }

    fn on_failure(&mut self, failure: GateFailure) {
        self.gate_failure.get_or_insert(failure);
    }

    fn holds(&mut self, tid: i32) -> bool {
        self.output_lines.holds(tid)
    }

    fn needs_paths(&self) -> bool {
        false
    }

    fn performs_syncs(&self) -> bool {
        false
    }

    fn observes_pipe(&self, pipe: FileId) -> bool {
        self.output_lines.observes(pipe)
    }
}
