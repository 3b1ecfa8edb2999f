//! Listens to the gate and writes down what happens: the overseer of a recording.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Error, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use regex::Regex;

use super::content::{ByteSource, FileContent};
use super::format_boundaries::format_boundaries;
use super::recording::{FileNode, NameChange, NodeId, Op, OpEffect, Recording, RecordingGaps};
use crate::gate::{CallDecision, CallEffect, CallHandler, CallKind, DirectoryEntry, FileId, InterceptedCall};

/// Payloads up to this size are compared with earlier ones, so that equal writes are the same bytes.
const MAX_DEDUPLICATED_BYTES: usize = 64 * 1024;
/// Bytes of a line of the target's output that are kept.
const MAX_LINE_BYTES: usize = 4096;
/// Paths outside that are named.
const MAX_OUTSIDE_PATHS: usize = 50;

/// Writes a recording down.
pub struct OpRecorder {
    recording: Recording,
    node_by_key: HashMap<FileId, NodeId>,
    names: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    contents: HashMap<NodeId, FileContent>,
    payload_log: BufWriter<File>,
    payload_log_len_bytes: u64,
    /// Where the current call's bytes begin on the tape.
    payload_start: u64,
    payload_head: Vec<u8>,
    offset_by_digest: HashMap<[u8; 32], u64>,
    mapped_files: Vec<(NodeId, OwnedFd)>,
    output_pipes: Vec<FileId>,
    partial_lines: HashMap<FileId, Vec<u8>>,
    saved_pattern: Option<Regex>,
    internal_pattern: Option<Regex>,
    failure: Option<Error>,
    kill_target: Box<dyn FnMut() + Send>,
}

/// What a recording starts from.
pub struct RecorderConfig<'a> {
    /// Each watched folder: as the target names it, where its files lie for the harness.
    pub roots: &'a [(PathBuf, PathBuf)],
    /// Where the tape is to be written.
    pub payload_log: &'a Path,
    /// Pipes of the target's outputs.
    pub output_pipes: Vec<FileId>,
    pub saved_pattern: Option<Regex>,
    /// Lines in other pipes that are written down as well.
    pub internal_pattern: Option<Regex>,
}

impl OpRecorder {
    /// Takes stock of the watched folders as they are now; `originals` is where unchanged contents stay readable.
    pub fn new(start: RecorderConfig<'_>, originals: &[PathBuf]) -> Result<OpRecorder, Error> {
        let recording = Recording {
            roots: start.roots.iter().map(|(root, _)| root.clone()).collect(),
            nodes: Vec::new(),
            initial_names: BTreeMap::new(),
            initial_paths: BTreeMap::new(),
            ops: Vec::new(),
            payload_log: start.payload_log.into(),
            gaps: RecordingGaps::default(),
            format_boundaries: BTreeMap::new(),
            acknowledged_before: None,
        };
        let mut recorder = OpRecorder {
            recording,
            node_by_key: HashMap::new(),
            names: BTreeMap::new(),
            contents: HashMap::new(),
            payload_log: BufWriter::with_capacity(
                MAX_DEDUPLICATED_BYTES,
                File::create_new(start.payload_log)?,
            ),
            payload_log_len_bytes: 0,
            payload_start: 0,
            payload_head: Vec::new(),
            offset_by_digest: HashMap::new(),
            mapped_files: Vec::new(),
            output_pipes: start.output_pipes,
            partial_lines: HashMap::new(),
            saved_pattern: start.saved_pattern,
            internal_pattern: start.internal_pattern,
            failure: None,
            kill_target: Box::new(|| ()),
        };
        for (_, real) in start.roots {
            let facts = std::fs::metadata(real)?;
            recorder.add_node(metadata_key(&facts), FileNode::Directory { mode: facts.mode() & 0o7777 });
        }
        for (number, (_, real)) in start.roots.iter().enumerate() {
            recorder.index_directory(number as NodeId, real, &originals[number])?;
        }
        recorder.recording.initial_names = recorder.names.clone();
        Ok(recorder)
    }

    fn index_directory(&mut self, dir: NodeId, real: &Path, original: &Path) -> Result<(), Error> {
        for entry in std::fs::read_dir(real)? {
            let entry = entry?;
            let facts = entry.metadata()?;
            let (path, original) = (entry.path(), original.join(entry.file_name()));
            let mode = facts.mode() & 0o7777;
            let kind = if facts.is_dir() {
                FileNode::Directory { mode }
            } else if facts.is_symlink() {
                FileNode::Symlink { target: std::fs::read_link(&path)? }
            } else {
                FileNode::File { mode, initial_len_bytes: facts.len() }
            };
            let key = metadata_key(&facts);
            let node = match self.node_by_key.get(&key) {
                Some(node) if !facts.is_dir() => *node,
                _ => self.add_node(key, kind),
            };
            self.names.entry(dir).or_default().insert(entry.file_name(), node);
            if facts.is_dir() {
                self.index_directory(node, &path, &original)?;
            } else if facts.is_file() {
                self.contents.insert(node, FileContent::initial(node, facts.len()));
                self.recording.initial_paths.insert(node, original);
            }
        }
        Ok(())
    }

    fn add_node(&mut self, key: FileId, kind: FileNode) -> NodeId {
        let id = self.recording.nodes.len() as NodeId;
        self.recording.nodes.push(kind);
        self.node_by_key.insert(key, id);
        id
    }

    /// What was written down. The target has ended.
    pub fn finish(&mut self) -> Result<Recording, Error> {
        for node in self.mapped_files.iter().map(|(node, _)| *node).collect::<Vec<_>>() {
            self.record_mapped_changes(node);
        }
        self.mapped_files.clear();
        for pipe in self.partial_lines.keys().copied().collect::<Vec<_>>() {
            let rest = self.partial_lines.remove(&pipe).unwrap_or_default();
            if !rest.is_empty() {
                self.record_line(pipe, &rest);
            }
        }
        self.payload_log.flush()?;
        match self.failure.take() {
            Some(error) => Err(error),
            None => Ok(self.recording.clone()),
        }
    }

    /// What is to be done when the target must be killed.
    pub fn set_kill_target(&mut self, strike: Box<dyn FnMut() + Send>) {
        self.kill_target = strike;
    }

    fn push_op(&mut self, what: OpEffect, text: String) {
        self.recording.ops.push(Op { effect: what, text });
    }

    fn display_path(&self, node: NodeId) -> String {
        self.relative_path(&self.recording.path_of(node, self.recording.ops.len()))
    }

    /// A path without the watched folder in front of it, where there is only one.
    fn relative_path(&self, path: &Path) -> String {
        let short = match &self.recording.roots[..] {
            [root] => path.strip_prefix(root).unwrap_or(path),
            _ => path,
        };
        if short.as_os_str().is_empty() { ".".into() } else { short.display().to_string() }
    }

    fn directory_of(&mut self, place: &DirectoryEntry) -> Option<NodeId> {
        let dir = self.node_by_key.get(&place.dir).copied();
        self.recording.gaps.unknown_files += u64::from(dir.is_none());
        dir
    }

    fn known_node(&mut self, key: FileId) -> Option<NodeId> {
        let node = self.node_by_key.get(&key).copied();
        self.recording.gaps.unknown_files += u64::from(node.is_none());
        node
    }

    /// Changes names, in the tree and in the recording.
    fn change_names(&mut self, changes: Vec<NameChange>, text: String) {
        for change in &changes {
            let names = self.names.entry(change.dir).or_default();
            match change.node {
                Some(node) => drop(names.insert(change.name.clone(), node)),
                None => drop(names.remove(&change.name)),
            }
        }
        self.push_op(OpEffect::NameChanges(changes), text);
    }

    fn set_name(&mut self, place: &DirectoryEntry, node: NodeId, text: &str) {
        let Some(dir) = self.directory_of(place) else { return };
        let text = format!("{text}({})", self.relative_path(&place.path));
        self.change_names(vec![NameChange { dir, name: place.name.clone(), node: Some(node) }], text);
    }

    fn remove_name(&mut self, place: &DirectoryEntry, text: &str) {
        let Some(dir) = self.directory_of(place) else { return };
        let text = format!("{text}({})", self.relative_path(&place.path));
        self.change_names(vec![NameChange { dir, name: place.name.clone(), node: None }], text);
    }

    fn node_at(&self, dir: NodeId, name: &OsString) -> Option<NodeId> {
        self.names.get(&dir)?.get(name).copied()
    }

    fn record_rename(&mut self, from: &DirectoryEntry, to: &DirectoryEntry, exchanged: bool) {
        let (Some(from_dir), Some(to_dir)) = (self.directory_of(from), self.directory_of(to)) else { return };
        let Some(node) = self.node_at(from_dir, &from.name) else {
            self.recording.gaps.unknown_files += 1;
            return;
        };
        self.record_mapped_changes(node);
        let other = if exchanged { self.node_at(to_dir, &to.name) } else { None };
        let change = |dir, place: &DirectoryEntry, node| NameChange { dir, name: place.name.clone(), node };
        let changes = vec![change(to_dir, to, Some(node)), change(from_dir, from, other)];
        let word = if exchanged { "exchange" } else { "rename" };
        let text = format!("{word}({}, {})", self.relative_path(&from.path), self.relative_path(&to.path));
        self.change_names(changes, text);
    }

    fn record_write(&mut self, node: NodeId, offset: u64, bytes: u64, word: &str) {
        let at = self.deduplicated_offset(bytes);
        let landmarks = format_boundaries(offset, &self.payload_head);
        if !landmarks.is_empty() {
            self.recording.format_boundaries.insert(self.recording.ops.len() as u32, landmarks);
        }
        self.contents.entry(node).or_default().put(offset, bytes, ByteSource::PayloadLog(at));
        let text = format!("{word}({}, {bytes} bytes at {offset})", self.display_path(node));
        self.push_op(OpEffect::Write { node, offset, len_bytes: bytes, payload_offset: at }, text);
    }

    /// Equal bytes have one place on the tape: small payloads are looked for among the earlier ones.
    fn deduplicated_offset(&mut self, bytes: u64) -> u64 {
        if bytes as usize == self.payload_head.len() {
            let digest = *blake3::hash(&self.payload_head).as_bytes();
            return *self.offset_by_digest.entry(digest).or_insert(self.payload_start);
        }
        self.payload_start
    }

    fn record_resize(&mut self, node: NodeId, size: u64, text: String) {
        self.contents.entry(node).or_default().resize(size);
        self.push_op(OpEffect::Resize { node, size_bytes: size }, text);
    }

    /// What a mapping has changed since the content was last known becomes writes.
    fn record_mapped_changes(&mut self, node: NodeId) {
        let Some(at) = self.mapped_files.iter().position(|(of, _)| *of == node) else { return };
        let Ok(file) = self.mapped_files[at].1.try_clone().map(File::from) else { return };
        if let Err(error) = self.record_differences(node, &file) {
            self.failure.get_or_insert(error);
        }
    }

    fn record_differences(&mut self, node: NodeId, file: &File) -> Result<(), Error> {
        self.payload_log.flush()?;
        let known = self.contents.entry(node).or_default().clone();
        let mut before = tempfile::tempfile()?;
        let view = Recording { ops: Vec::new(), nodes: Vec::new(), ..self.recording.clone() };
        known.write_to(&mut super::content::ContentReader::new(&view)?, &mut before)?;
        let (mut old, mut new, mut offset) = ([0; 4096], [0; 4096], 0);
        loop {
            let read = file.read_at(&mut new, offset)?;
            if read == 0 {
                return Ok(());
            }
            let had = before.read_at(&mut old, offset)?;
            if old[..had.min(read)] != new[..had.min(read)] || had < read {
                self.begin_payload();
                self.on_payload(&new[..read]);
                self.record_write(node, offset, read as u64, "mapped-write");
            }
            offset += read as u64;
        }
    }

    fn begin_payload(&mut self) {
        self.payload_start = self.payload_log_len_bytes;
        self.payload_head.clear();
    }

    fn record_line(&mut self, pipe: FileId, line: &[u8]) {
        let own = self.output_pipes.contains(&pipe);
        let line = String::from_utf8_lossy(&line[..line.len().min(MAX_LINE_BYTES)]).trim_end().to_owned();
        if !own && !self.internal_pattern.as_ref().is_some_and(|inner| inner.is_match(&line)) {
            return;
        }
        let step = self
            .saved_pattern
            .as_ref()
            .filter(|_| own)
            .and_then(|saved| saved.captures(&line))
            .and_then(|found| found.name("step").map_or(Some(0), |step| step.as_str().parse().ok()));
        let text = format!("said({line})");
        self.push_op(OpEffect::Output { line, saved_step: step, on_stdio: own }, text);
    }

    fn record_output(&mut self, pipe: FileId) {
        // Not part of any file: off the tape again.
        let mut text = self.partial_lines.remove(&pipe).unwrap_or_default();
        text.extend_from_slice(&self.payload_head);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            self.record_line(pipe, &line);
        }
        text.truncate(MAX_LINE_BYTES);
        self.partial_lines.insert(pipe, text);
    }

    fn record_open(&mut self, place: &DirectoryEntry, key: FileId, created: bool, truncated: bool) {
        if created {
            let node = self.add_node(key, FileNode::File { mode: 0o644, initial_len_bytes: 0 });
            self.set_name(place, node, "create");
        } else if truncated && let Some(node) = self.known_node(key) {
            let text = format!("truncate({}, 0)", self.display_path(node));
            self.record_resize(node, 0, text);
        }
    }

    fn record_sync(&mut self, key: FileId, data_only: bool, word: &str) {
        let Some(node) = self.known_node(key) else { return };
        self.record_mapped_changes(node);
        let text = format!("{word}({})", self.display_path(node));
        self.push_op(OpEffect::Sync { node, data_only }, text);
    }
}

impl CallHandler for OpRecorder {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision {
        self.begin_payload();
        match call.kind {
            CallKind::OpenRead | CallKind::Read | CallKind::Stat | CallKind::Access | CallKind::Close => {
                CallDecision::Continue
            }
            _ => CallDecision::Perform,
        }
    }

    fn on_payload(&mut self, bytes: &[u8]) {
        if (self.payload_head.len() as u64) == self.payload_log_len_bytes - self.payload_start
            && self.payload_head.len() + bytes.len() <= MAX_DEDUPLICATED_BYTES
        {
            self.payload_head.extend_from_slice(bytes);
        }
        if let Err(error) = self.payload_log.write_all(bytes) {
            self.failure.get_or_insert(error);
        }
        self.payload_log_len_bytes += bytes.len() as u64;
    }

    fn on_effect(&mut self, done: CallEffect) {
        self.record_effect(done);
        self.begin_payload();
    }

    fn kill_target(&mut self) {
        (self.kill_target)();
    }

    fn needs_paths(&self) -> bool {
        false
    }

    fn performs_syncs(&self) -> bool {
        false
    }

    fn observes_pipe(&self, pipe: FileId) -> bool {
        self.internal_pattern.is_some() || self.output_pipes.contains(&pipe)
    }
}

impl OpRecorder {
    fn record_effect(&mut self, done: CallEffect) {
        match done {
            CallEffect::Opened { entry: place, file_id: node, created, truncated } => {
                self.record_open(&place, node, created, truncated)
            }
            // Anew even where the number is known: that file is gone.
            CallEffect::CreatedUnnamed { file_id: node } => {
                self.add_node(node, FileNode::File { mode: 0o644, initial_len_bytes: 0 });
            }
            CallEffect::Wrote { file_id: node, offset, len_bytes: bytes, synced } => {
                if let Some(id) = self.known_node(node) {
                    self.record_write(id, offset, bytes, "write");
                }
                if synced {
                    self.record_sync(node, true, "fdatasync");
                }
            }
            CallEffect::Truncated { file_id: node, size_bytes: size } => {
                if let Some(id) = self.known_node(node) {
                    let text = format!("truncate({}, {size})", self.display_path(id));
                    self.record_resize(id, size, text);
                }
            }
            CallEffect::Allocated { file_id: node, size_bytes: size, zeroed } => {
                let Some(id) = self.known_node(node) else { return };
                if let Some((offset, bytes)) = zeroed {
                    self.contents.entry(id).or_default().put(offset, bytes, ByteSource::Zeroes);
                    let text = format!("punch({}, {bytes} bytes at {offset})", self.display_path(id));
                    self.push_op(OpEffect::Zero { node: id, offset, len_bytes: bytes }, text);
                }
                if self.contents.entry(id).or_default().len() != size {
                    let text = format!("allocate({}, {size})", self.display_path(id));
                    self.record_resize(id, size, text);
                }
            }
            CallEffect::Renamed { from, to, exchanged } => self.record_rename(&from, &to, exchanged),
            CallEffect::Linked { file_id: node, entry: place } => {
                if let Some(id) = self.known_node(node) {
                    self.set_name(&place, id, "link");
                }
            }
            CallEffect::Symlinked { file_id: node, entry: place, link_text: text } => {
                let id = self.add_node(node, FileNode::Symlink { target: text });
                self.set_name(&place, id, "symlink");
            }
            CallEffect::Unlinked { entry: place } => self.remove_name(&place, "unlink"),
            CallEffect::CreatedDir { file_id: node, entry: place } => {
                let id = self.add_node(node, FileNode::Directory { mode: 0o755 });
                self.names.insert(id, BTreeMap::new());
                self.set_name(&place, id, "mkdir");
            }
            CallEffect::RemovedDir { entry: place } => self.remove_name(&place, "rmdir"),
            CallEffect::Synced { file_id: node, data_only } => {
                self.record_sync(node, data_only, if data_only { "fdatasync" } else { "fsync" });
            }
            CallEffect::SyncedAll => self.push_op(OpEffect::SyncAll, "sync()".into()),
            CallEffect::Mapped { file_id: node, file } => self.record_mapping(node, file),
            CallEffect::OutputWritten { pipe } => self.record_output(pipe),
            CallEffect::Refused { feature: what } => self.recording.gaps.refused_calls.push(what.into()),
            CallEffect::OpenedOutside { path } => self.record_outside_write(path),
            // A recording changes nothing.
            CallEffect::Swapped { .. } => {}
        }
    }

    fn record_mapping(&mut self, key: FileId, file: OwnedFd) {
        if let Some(node) = self.known_node(key)
            && self.mapped_files.iter().all(|(of, _)| *of != node)
        {
            let path = self.recording.path_of(node, self.recording.ops.len());
            self.recording.gaps.mapped_paths.push(path);
            self.mapped_files.push((node, file));
        }
    }

    fn record_outside_write(&mut self, path: PathBuf) {
        let dull = path.starts_with("/dev") || path.starts_with("/proc");
        let outside = &mut self.recording.gaps.outside_paths;
        if !dull
            && outside.len() < MAX_OUTSIDE_PATHS
            && !outside.contains(&path)
            && !path.as_os_str().as_bytes().is_empty()
        {
            outside.push(path);
        }
    }
}

fn metadata_key(facts: &std::fs::Metadata) -> FileId {
    let dev = facts.dev();
    FileId { dev: u64::from(device_major(dev)) << 32 | u64::from(device_minor(dev)), ino: facts.ino() }
}

fn device_major(dev: u64) -> u32 {
    nix::sys::stat::major(dev) as u32
}

fn device_minor(dev: u64) -> u32 {
    nix::sys::stat::minor(dev) as u32
}
