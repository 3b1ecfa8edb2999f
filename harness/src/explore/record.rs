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

use super::content::{Content, Source};
use super::landmarks::landmarks;
use super::recording::{Blind, NameChange, Node, NodeId, Op, Recording, What};
use crate::gate::{Call, Decision, Done, Key, Kind, Overseer, Place};

/// Payloads up to this size are compared with earlier ones, so that equal writes are the same bytes.
const COMPARED: usize = 64 * 1024;
/// Bytes of a line of the target's output that are kept.
const LINE_MAX: usize = 4096;
/// Paths outside that are named.
const OUTSIDE_MAX: usize = 50;

/// Writes a recording down.
pub struct Recorder {
    recording: Recording,
    nodes: HashMap<Key, NodeId>,
    tree: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    contents: HashMap<NodeId, Content>,
    tape: BufWriter<File>,
    taped: u64,
    /// Where the current call's bytes begin on the tape.
    from: u64,
    head: Vec<u8>,
    known: HashMap<[u8; 32], u64>,
    mapped: Vec<(NodeId, OwnedFd)>,
    pipes: Vec<Key>,
    partial: HashMap<Key, Vec<u8>>,
    saved: Option<Regex>,
    inner: Option<Regex>,
    failure: Option<Error>,
    strike: Box<dyn FnMut() + Send>,
}

/// What a recording starts from.
pub struct Start<'a> {
    /// Each watched folder: as the target names it, where its files lie for the harness.
    pub roots: &'a [(PathBuf, PathBuf)],
    /// Where the tape is to be written.
    pub tape: &'a Path,
    /// Pipes of the target's outputs.
    pub pipes: Vec<Key>,
    pub saved: Option<Regex>,
    /// Lines in other pipes that are written down as well.
    pub inner: Option<Regex>,
}

impl Recorder {
    /// Takes stock of the watched folders as they are now; `originals` is where unchanged contents stay readable.
    pub fn new(start: Start<'_>, originals: &[PathBuf]) -> Result<Recorder, Error> {
        let recording = Recording {
            roots: start.roots.iter().map(|(root, _)| root.clone()).collect(),
            nodes: Vec::new(),
            initial: BTreeMap::new(),
            sources: BTreeMap::new(),
            ops: Vec::new(),
            tape: start.tape.into(),
            blind: Blind::default(),
            landmarks: BTreeMap::new(),
            promised_before: None,
        };
        let mut recorder = Recorder {
            recording,
            nodes: HashMap::new(),
            tree: BTreeMap::new(),
            contents: HashMap::new(),
            tape: BufWriter::with_capacity(COMPARED, File::create_new(start.tape)?),
            taped: 0,
            from: 0,
            head: Vec::new(),
            known: HashMap::new(),
            mapped: Vec::new(),
            pipes: start.pipes,
            partial: HashMap::new(),
            saved: start.saved,
            inner: start.inner,
            failure: None,
            strike: Box::new(|| ()),
        };
        for (_, real) in start.roots {
            let facts = std::fs::metadata(real)?;
            recorder.node(key_of(&facts), Node::Folder { mode: facts.mode() & 0o7777 });
        }
        for (number, (_, real)) in start.roots.iter().enumerate() {
            recorder.take_stock(number as NodeId, real, &originals[number])?;
        }
        recorder.recording.initial = recorder.tree.clone();
        Ok(recorder)
    }

    fn take_stock(&mut self, dir: NodeId, real: &Path, original: &Path) -> Result<(), Error> {
        for entry in std::fs::read_dir(real)? {
            let entry = entry?;
            let facts = entry.metadata()?;
            let (path, original) = (entry.path(), original.join(entry.file_name()));
            let mode = facts.mode() & 0o7777;
            let kind = if facts.is_dir() {
                Node::Folder { mode }
            } else if facts.is_symlink() {
                Node::Link { text: std::fs::read_link(&path)? }
            } else {
                Node::File { mode, initial: facts.len() }
            };
            let key = key_of(&facts);
            let node = match self.nodes.get(&key) {
                Some(node) if !facts.is_dir() => *node,
                _ => self.node(key, kind),
            };
            self.tree.entry(dir).or_default().insert(entry.file_name(), node);
            if facts.is_dir() {
                self.take_stock(node, &path, &original)?;
            } else if facts.is_file() {
                self.contents.insert(node, Content::initial(node, facts.len()));
                self.recording.sources.insert(node, original);
            }
        }
        Ok(())
    }

    fn node(&mut self, key: Key, kind: Node) -> NodeId {
        let id = self.recording.nodes.len() as NodeId;
        self.recording.nodes.push(kind);
        self.nodes.insert(key, id);
        id
    }

    /// What was written down. The target has ended.
    pub fn finish(&mut self) -> Result<Recording, Error> {
        for node in self.mapped.iter().map(|(node, _)| *node).collect::<Vec<_>>() {
            self.look_through_mapping(node);
        }
        self.mapped.clear();
        for pipe in self.partial.keys().copied().collect::<Vec<_>>() {
            let rest = self.partial.remove(&pipe).unwrap_or_default();
            if !rest.is_empty() {
                self.said(pipe, &rest);
            }
        }
        self.tape.flush()?;
        match self.failure.take() {
            Some(error) => Err(error),
            None => Ok(self.recording.clone()),
        }
    }

    /// What is to be done when the target must be killed.
    pub fn on_strike(&mut self, strike: Box<dyn FnMut() + Send>) {
        self.strike = strike;
    }

    fn push(&mut self, what: What, text: String) {
        self.recording.ops.push(Op { what, text });
    }

    fn shown(&self, node: NodeId) -> String {
        self.below(&self.recording.path_of(node, self.recording.ops.len()))
    }

    /// A path without the watched folder in front of it, where there is only one.
    fn below(&self, path: &Path) -> String {
        let short = match &self.recording.roots[..] {
            [root] => path.strip_prefix(root).unwrap_or(path),
            _ => path,
        };
        if short.as_os_str().is_empty() { ".".into() } else { short.display().to_string() }
    }

    fn dir(&mut self, place: &Place) -> Option<NodeId> {
        let dir = self.nodes.get(&place.dir).copied();
        self.recording.blind.unknown += u64::from(dir.is_none());
        dir
    }

    fn known(&mut self, key: Key) -> Option<NodeId> {
        let node = self.nodes.get(&key).copied();
        self.recording.blind.unknown += u64::from(node.is_none());
        node
    }

    /// Changes names, in the tree and in the recording.
    fn names(&mut self, changes: Vec<NameChange>, text: String) {
        for change in &changes {
            let names = self.tree.entry(change.dir).or_default();
            match change.node {
                Some(node) => drop(names.insert(change.name.clone(), node)),
                None => drop(names.remove(&change.name)),
            }
        }
        self.push(What::Names(changes), text);
    }

    fn set(&mut self, place: &Place, node: NodeId, text: &str) {
        let Some(dir) = self.dir(place) else { return };
        let text = format!("{text}({})", self.below(&place.path));
        self.names(vec![NameChange { dir, name: place.name.clone(), node: Some(node) }], text);
    }

    fn clear(&mut self, place: &Place, text: &str) {
        let Some(dir) = self.dir(place) else { return };
        let text = format!("{text}({})", self.below(&place.path));
        self.names(vec![NameChange { dir, name: place.name.clone(), node: None }], text);
    }

    fn at(&self, dir: NodeId, name: &OsString) -> Option<NodeId> {
        self.tree.get(&dir)?.get(name).copied()
    }

    fn rename(&mut self, from: &Place, to: &Place, exchanged: bool) {
        let (Some(from_dir), Some(to_dir)) = (self.dir(from), self.dir(to)) else { return };
        let Some(node) = self.at(from_dir, &from.name) else {
            self.recording.blind.unknown += 1;
            return;
        };
        self.look_through_mapping(node);
        let other = if exchanged { self.at(to_dir, &to.name) } else { None };
        let change = |dir, place: &Place, node| NameChange { dir, name: place.name.clone(), node };
        let changes = vec![change(to_dir, to, Some(node)), change(from_dir, from, other)];
        let word = if exchanged { "exchange" } else { "rename" };
        let text = format!("{word}({}, {})", self.below(&from.path), self.below(&to.path));
        self.names(changes, text);
    }

    fn wrote(&mut self, node: NodeId, offset: u64, bytes: u64, word: &str) {
        let at = self.deduplicated(bytes);
        let landmarks = landmarks(offset, &self.head);
        if !landmarks.is_empty() {
            self.recording.landmarks.insert(self.recording.ops.len() as u32, landmarks);
        }
        self.contents.entry(node).or_default().put(offset, bytes, Source::Tape(at));
        let text = format!("{word}({}, {bytes} bytes at {offset})", self.shown(node));
        self.push(What::Write { node, offset, bytes, at }, text);
    }

    /// Equal bytes have one place on the tape: small payloads are looked for among the earlier ones.
    fn deduplicated(&mut self, bytes: u64) -> u64 {
        if bytes as usize == self.head.len() {
            let digest = *blake3::hash(&self.head).as_bytes();
            return *self.known.entry(digest).or_insert(self.from);
        }
        self.from
    }

    fn resized(&mut self, node: NodeId, size: u64, text: String) {
        self.contents.entry(node).or_default().resize(size);
        self.push(What::Resize { node, size }, text);
    }

    /// What a mapping has changed since the content was last known becomes writes.
    fn look_through_mapping(&mut self, node: NodeId) {
        let Some(at) = self.mapped.iter().position(|(of, _)| *of == node) else { return };
        let Ok(file) = self.mapped[at].1.try_clone().map(File::from) else { return };
        if let Err(error) = self.compare(node, &file) {
            self.failure.get_or_insert(error);
        }
    }

    fn compare(&mut self, node: NodeId, file: &File) -> Result<(), Error> {
        self.tape.flush()?;
        let known = self.contents.entry(node).or_default().clone();
        let mut before = tempfile::tempfile()?;
        let view = Recording { ops: Vec::new(), nodes: Vec::new(), ..self.recording.clone() };
        known.write(&mut super::content::Reader::new(&view)?, &mut before)?;
        let (mut old, mut new, mut offset) = ([0; 4096], [0; 4096], 0);
        loop {
            let read = file.read_at(&mut new, offset)?;
            if read == 0 {
                return Ok(());
            }
            let had = before.read_at(&mut old, offset)?;
            if old[..had.min(read)] != new[..had.min(read)] || had < read {
                self.begin();
                self.payload(&new[..read]);
                self.wrote(node, offset, read as u64, "mapped-write");
            }
            offset += read as u64;
        }
    }

    fn begin(&mut self) {
        self.from = self.taped;
        self.head.clear();
    }

    fn said(&mut self, pipe: Key, line: &[u8]) {
        let own = self.pipes.contains(&pipe);
        let line = String::from_utf8_lossy(&line[..line.len().min(LINE_MAX)]).trim_end().to_owned();
        if !own && !self.inner.as_ref().is_some_and(|inner| inner.is_match(&line)) {
            return;
        }
        let step = self
            .saved
            .as_ref()
            .filter(|_| own)
            .and_then(|saved| saved.captures(&line))
            .and_then(|found| found.name("step").map_or(Some(0), |step| step.as_str().parse().ok()));
        let text = format!("said({line})");
        self.push(What::Said { line, saved: step, own }, text);
    }

    fn hear(&mut self, pipe: Key) {
        // Not part of any file: off the tape again.
        let mut text = self.partial.remove(&pipe).unwrap_or_default();
        text.extend_from_slice(&self.head);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            self.said(pipe, &line);
        }
        text.truncate(LINE_MAX);
        self.partial.insert(pipe, text);
    }

    fn opened(&mut self, place: &Place, key: Key, created: bool, truncated: bool) {
        if created {
            let node = self.node(key, Node::File { mode: 0o644, initial: 0 });
            self.set(place, node, "create");
        } else if truncated && let Some(node) = self.known(key) {
            let text = format!("truncate({}, 0)", self.shown(node));
            self.resized(node, 0, text);
        }
    }

    fn synced(&mut self, key: Key, data_only: bool, word: &str) {
        let Some(node) = self.known(key) else { return };
        self.look_through_mapping(node);
        let text = format!("{word}({})", self.shown(node));
        self.push(What::Sync { node, data_only }, text);
    }
}

impl Overseer for Recorder {
    fn decide(&mut self, call: &Call) -> Decision {
        self.begin();
        match call.kind {
            Kind::OpenRead | Kind::Read | Kind::Stat | Kind::Access | Kind::Close => Decision::Let,
            _ => Decision::Perform,
        }
    }

    fn payload(&mut self, bytes: &[u8]) {
        if (self.head.len() as u64) == self.taped - self.from && self.head.len() + bytes.len() <= COMPARED {
            self.head.extend_from_slice(bytes);
        }
        if let Err(error) = self.tape.write_all(bytes) {
            self.failure.get_or_insert(error);
        }
        self.taped += bytes.len() as u64;
    }

    fn done(&mut self, done: Done) {
        self.write_down(done);
        self.begin();
    }

    fn strike(&mut self) {
        (self.strike)();
    }

    fn wants_paths(&self) -> bool {
        false
    }

    fn syncs_for_real(&self) -> bool {
        false
    }

    fn hears(&self, pipe: Key) -> bool {
        self.inner.is_some() || self.pipes.contains(&pipe)
    }
}

impl Recorder {
    fn write_down(&mut self, done: Done) {
        match done {
            Done::Opened { place, node, created, truncated } => self.opened(&place, node, created, truncated),
            // Anew even where the number is known: that file is gone.
            Done::MadeNameless { node } => drop(self.node(node, Node::File { mode: 0o644, initial: 0 })),
            Done::Wrote { node, offset, bytes, synced } => {
                if let Some(id) = self.known(node) {
                    self.wrote(id, offset, bytes, "write");
                }
                if synced {
                    self.synced(node, true, "fdatasync");
                }
            }
            Done::Truncated { node, size } => {
                if let Some(id) = self.known(node) {
                    let text = format!("truncate({}, {size})", self.shown(id));
                    self.resized(id, size, text);
                }
            }
            Done::Allocated { node, size, zeroed } => {
                let Some(id) = self.known(node) else { return };
                if let Some((offset, bytes)) = zeroed {
                    self.contents.entry(id).or_default().put(offset, bytes, Source::Zeroes);
                    let text = format!("punch({}, {bytes} bytes at {offset})", self.shown(id));
                    self.push(What::Zero { node: id, offset, bytes }, text);
                }
                if self.contents.entry(id).or_default().len() != size {
                    let text = format!("allocate({}, {size})", self.shown(id));
                    self.resized(id, size, text);
                }
            }
            Done::Renamed { from, to, exchanged } => self.rename(&from, &to, exchanged),
            Done::Linked { node, place } => {
                if let Some(id) = self.known(node) {
                    self.set(&place, id, "link");
                }
            }
            Done::Symlinked { node, place, text } => {
                let id = self.node(node, Node::Link { text });
                self.set(&place, id, "symlink");
            }
            Done::Unlinked { place } => self.clear(&place, "unlink"),
            Done::MadeDir { node, place } => {
                let id = self.node(node, Node::Folder { mode: 0o755 });
                self.tree.insert(id, BTreeMap::new());
                self.set(&place, id, "mkdir");
            }
            Done::RemovedDir { place } => self.clear(&place, "rmdir"),
            Done::Synced { node, data_only } => {
                self.synced(node, data_only, if data_only { "fdatasync" } else { "fsync" });
            }
            Done::SyncedAll => self.push(What::SyncAll, "sync()".into()),
            Done::Mapped { node, file } => self.mapped(node, file),
            Done::Said { pipe } => self.hear(pipe),
            Done::Refused { what } => self.recording.blind.refused.push(what.into()),
            Done::WroteOutside { path } => self.outside(path),
            // A recording changes nothing.
            Done::Swapped { .. } => {}
        }
    }

    fn mapped(&mut self, key: Key, file: OwnedFd) {
        if let Some(node) = self.known(key)
            && self.mapped.iter().all(|(of, _)| *of != node)
        {
            let path = self.recording.path_of(node, self.recording.ops.len());
            self.recording.blind.mapped.push(path);
            self.mapped.push((node, file));
        }
    }

    fn outside(&mut self, path: PathBuf) {
        let dull = path.starts_with("/dev") || path.starts_with("/proc");
        let outside = &mut self.recording.blind.outside;
        if !dull
            && outside.len() < OUTSIDE_MAX
            && !outside.contains(&path)
            && !path.as_os_str().as_bytes().is_empty()
        {
            outside.push(path);
        }
    }
}

fn key_of(facts: &std::fs::Metadata) -> Key {
    let dev = facts.dev();
    Key { dev: u64::from(libc_major(dev)) << 32 | u64::from(libc_minor(dev)), ino: facts.ino() }
}

fn libc_major(dev: u64) -> u32 {
    nix::sys::stat::major(dev) as u32
}

fn libc_minor(dev: u64) -> u32 {
    nix::sys::stat::minor(dev) as u32
}
