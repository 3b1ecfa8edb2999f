//! Random programs: changes and syncs of several files in several directories, chosen by a seed, performed on a
//! mounted file system, and recorded as operations. Must not know what a crash leaves of them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use engine::explore::{
    FileAttributes, FileNode, NameChange, NodeId, Op, OpEffect, OpKind, Recording, RecordingGaps,
};

use crate::file_systems::MountedDisk;
use crate::support::seeded_random::SeededRandom;
use crate::sys::write_range;

/// Longer than the interval in which journals are committed.
const SLEEP: Duration = Duration::from_millis(1200);
/// The names that a program uses, so that it meets the same ones again.
const NAMES: [&str; 5] = ["one", "two", "three", "four", "five"];
/// The longest write, in bytes.
const MAX_WRITE_BYTES: usize = 14_000;

/// A program that was run, with its operations.
pub(crate) struct RecordedProgram {
    pub(crate) recording: Recording,
    /// The bytes of all writes.
    pub(crate) payload: Vec<u8>,
    /// By operation: how many requests the disk had got when it began and when it had ended.
    pub(crate) spans: Vec<RequestSpan>,
    /// The nodes of each inode number: numbers of removed files are used again.
    pub(crate) nodes_by_inode: HashMap<u64, Vec<NodeId>>,
}

/// The requests that a disk got during one operation: a range of indexes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestSpan {
    pub(crate) begin: usize,
    pub(crate) end: usize,
}

/// What a program does next, and how often relative to the others.
#[derive(Clone, Copy)]
enum Action {
    Create,
    MakeDirectory,
    Overwrite,
    Append,
    WritePastEnd,
    Rename,
    RenameOver,
    Link,
    Unlink,
    Shrink,
    Extend,
    Fsync,
    Fdatasync,
    SyncDirectory,
    WriteRange,
    SyncAll,
    SyncOutside,
    Sleep,
}

const ACTIONS: [(Action, usize); 18] = [
    (Action::Create, 10),
    (Action::MakeDirectory, 2),
    (Action::Overwrite, 14),
    (Action::Append, 14),
    (Action::WritePastEnd, 3),
    (Action::Rename, 8),
    (Action::RenameOver, 8),
    (Action::Link, 4),
    (Action::Unlink, 5),
    (Action::Shrink, 5),
    (Action::Extend, 3),
    (Action::Fsync, 10),
    (Action::Fdatasync, 10),
    (Action::SyncDirectory, 5),
    (Action::WriteRange, 6),
    (Action::SyncAll, 1),
    (Action::SyncOutside, 5),
    (Action::Sleep, 0),
];

/// A name of the program.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct NodeName {
    dir: NodeId,
    name: &'static str,
}

/// Runs one program.
struct ProgramRun<'a> {
    mounted: &'a MountedDisk,
    random: &'a mut SeededRandom,
    program: RecordedProgram,
    /// The directories, which are neither renamed nor removed.
    directories: BTreeMap<NodeId, PathBuf>,
    files: BTreeMap<NodeName, NodeId>,
    sizes: HashMap<NodeId, u64>,
    sleeps: bool,
}

/// What a program does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ProgramKind {
    /// This many random operations. `sleeps`: once, longer than the interval in which the journal is committed.
    Random { op_count: usize, sleeps: bool },
    /// A new file, and a sync of another one that was overwritten in place: the new name is lost.
    CreateBeforeSyncOfAnother,
}

/// Runs a program in the directory `work`.
pub(crate) fn run_program(
    mounted: &MountedDisk,
    random: &mut SeededRandom,
    kind: ProgramKind,
) -> RecordedProgram {
    let work = mounted.work();
    let attributes =
        FileAttributes { mode: 0, uid: 0, gid: 0, xattrs: BTreeMap::new(), modified: None, accessed: None };
    let recording = Recording {
        roots: vec![work.clone()],
        nodes: vec![FileNode::directory()],
        attribute_sets: vec![attributes],
        initial_names: BTreeMap::new(),
        initial_paths: BTreeMap::new(),
        ops: Vec::new(),
        payload_log: PathBuf::new(),
        gaps: RecordingGaps::default(),
        format_boundaries: BTreeMap::new(),
        acknowledged_before: None,
        lower_layers: Vec::new(),
    };
    let nodes_by_inode = [(std::fs::metadata(&work).unwrap().ino(), vec![0])].into();
    let program = RecordedProgram { recording, payload: Vec::new(), spans: Vec::new(), nodes_by_inode };
    let directories = [(0, work)].into();
    let (files, sizes) = (BTreeMap::new(), HashMap::new());
    let mut run = ProgramRun { mounted, random, program, directories, files, sizes, sleeps: false };
    match kind {
        ProgramKind::Random { op_count, sleeps } => run.act_at_random(op_count, sleeps),
        ProgramKind::CreateBeforeSyncOfAnother => run.create_before_sync_of_another(),
    }
    run.program
}

impl ProgramRun<'_> {
    fn act_at_random(&mut self, op_count: usize, sleeps: bool) {
        self.sleeps = sleeps;
        self.make_directory("dir");
        for name in ["one", "two"] {
            self.create(NodeName { dir: 0, name });
        }
        if self.random.below(2) == 0 {
            self.act(Action::Append);
            self.act(Action::SyncAll);
        }
        while self.program.recording.ops.len() < op_count {
            let action = self.choose_action();
            self.act(action);
        }
    }

    fn create_before_sync_of_another(&mut self) {
        let [one, two] = ["one", "two"].map(|name| NodeName { dir: 0, name });
        self.create(one.clone());
        let node = self.files[&one];
        self.write(&one, node, 0, 9000);
        self.act(Action::SyncAll);
        self.create(two.clone());
        self.write(&one, node, 500, 6000);
        let file = File::open(self.path(&one)).unwrap();
        self.sync(node, &file, true, self.text(&one));
    }

    fn choose_action(&mut self) -> Action {
        if self.sleeps && self.program.recording.ops.len() > 12 {
            self.sleeps = false;
            return Action::Sleep;
        }
        let mut choice = self.random.below(ACTIONS.iter().map(|(_, weight)| weight).sum());
        for (action, weight) in ACTIONS {
            if choice < weight {
                return action;
            }
            choice -= weight;
        }
        Action::Append
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Create => self.create_somewhere(),
            Action::MakeDirectory => {
                if self.directories.len() < 3 {
                    self.make_directory("more");
                }
            }
            Action::Overwrite => self.overwrite(),
            Action::Append => self.append(0),
            Action::WritePastEnd => {
                let gap = self.random.below(9000) as u64;
                self.append(gap);
            }
            Action::Rename => self.rename(false),
            Action::RenameOver => self.rename(true),
            Action::Link => self.link(),
            Action::Unlink => self.unlink(),
            Action::Shrink => self.resize(true),
            Action::Extend => self.resize(false),
            Action::Fsync => self.sync_file(false),
            Action::Fdatasync => self.sync_file(true),
            Action::SyncDirectory => self.sync_directory(),
            Action::WriteRange => self.write_back(),
            Action::SyncAll => {
                let root = File::open(self.mounted.root()).unwrap();
                let text = "syncfs()".to_owned();
                self.record(OpKind::Sync, OpEffect::SyncAll, text, || nix::unistd::syncfs(root).unwrap());
            }
            Action::SyncOutside => {
                let file = OpenOptions::new().append(true).open(self.mounted.outside_file()).unwrap();
                file.write_at(b"more", file.metadata().unwrap().len()).unwrap();
                file.sync_all().unwrap();
            }
            Action::Sleep => std::thread::sleep(SLEEP),
        }
    }

    fn path(&self, name: &NodeName) -> PathBuf {
        self.directories[&name.dir].join(name.name)
    }

    fn text(&self, name: &NodeName) -> String {
        let dir = self.directories[&name.dir].strip_prefix(&self.directories[&0]).unwrap();
        dir.join(name.name).display().to_string()
    }

    fn any_name(&mut self) -> NodeName {
        let dirs: Vec<NodeId> = self.directories.keys().copied().collect();
        let dir = dirs[self.random.below(dirs.len())];
        NodeName { dir, name: NAMES[self.random.below(NAMES.len())] }
    }

    fn any_file(&mut self) -> Option<(NodeName, NodeId)> {
        if self.files.is_empty() {
            return None;
        }
        let index = self.random.below(self.files.len());
        self.files.iter().nth(index).map(|(name, node)| (name.clone(), *node))
    }

    /// Performs an operation and records it.
    fn record(&mut self, kind: OpKind, effect: OpEffect, text: String, perform: impl FnOnce()) {
        let begin = self.mounted.disk().request_count();
        perform();
        let end = self.mounted.disk().request_count();
        self.program.recording.ops.push(Op { kind, effect, text });
        self.program.spans.push(RequestSpan { begin, end });
    }

    fn add_node(&mut self, node: FileNode) -> NodeId {
        self.program.recording.nodes.push(node);
        (self.program.recording.nodes.len() - 1) as NodeId
    }

    fn note_inode(&mut self, node: NodeId, path: &PathBuf) {
        let inode = std::fs::metadata(path).unwrap().ino();
        self.program.nodes_by_inode.entry(inode).or_default().push(node);
    }

    fn make_directory(&mut self, name: &'static str) {
        let name = NodeName { dir: 0, name };
        let (path, text) = (self.path(&name), format!("mkdir({})", name.name));
        let node = self.add_node(FileNode::directory());
        let effect = OpEffect::NameChanges(vec![name_change(&name, Some(node))]);
        self.record(OpKind::Mkdir, effect, text, || std::fs::create_dir(&path).unwrap());
        self.note_inode(node, &path);
        self.directories.insert(node, path);
    }

    fn create_somewhere(&mut self) {
        let name = self.any_name();
        if !self.files.contains_key(&name) {
            self.create(name);
            if self.random.below(3) > 0 {
                self.append(0);
            }
        }
    }

    fn create(&mut self, name: NodeName) {
        let (path, text) = (self.path(&name), format!("create({})", self.text(&name)));
        let node = self.add_node(FileNode::new_file());
        let effect = OpEffect::NameChanges(vec![name_change(&name, Some(node))]);
        self.record(OpKind::Create, effect, text, || drop(File::create_new(&path).unwrap()));
        self.note_inode(node, &path);
        self.files.insert(name, node);
        self.sizes.insert(node, 0);
    }

    fn write(&mut self, name: &NodeName, node: NodeId, offset: u64, len_bytes: usize) {
        let payload_offset = self.program.payload.len() as u64;
        let bytes: Vec<u8> = (0..len_bytes).map(|_| 1 + self.random.below(255) as u8).collect();
        self.program.payload.extend_from_slice(&bytes);
        let path = self.path(name);
        let text = format!("write({}, {offset}, {len_bytes} bytes)", self.text(name));
        let effect = OpEffect::Write { node, offset, len_bytes: len_bytes as u64, payload_offset };
        self.record(OpKind::Write, effect, text, || {
            OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&bytes, offset).unwrap();
        });
        let size = self.sizes.entry(node).or_default();
        *size = (*size).max(offset + len_bytes as u64);
    }

    fn overwrite(&mut self) {
        let Some((name, node)) = self.any_file() else { return };
        let size = self.sizes[&node];
        if size > 0 {
            let offset = self.random.below(size as usize);
            let len_bytes = 1 + self.random.below((size as usize - offset).min(MAX_WRITE_BYTES));
            self.write(&name, node, offset as u64, len_bytes);
        }
    }

    fn append(&mut self, gap: u64) {
        let Some((name, node)) = self.any_file() else { return };
        let offset = self.sizes[&node] + gap;
        if offset < 40_000 {
            let longest = if self.random.below(2) == 0 { 600 } else { MAX_WRITE_BYTES };
            let len_bytes = 1 + self.random.below(longest);
            self.write(&name, node, offset, len_bytes);
        }
    }

    fn rename(&mut self, over: bool) {
        let Some((old, node)) = self.any_file() else { return };
        let new = match over {
            true => self.any_file().unwrap().0,
            false => self.any_name(),
        };
        // Nothing happens if both are names of one file.
        if self.files.get(&new) == Some(&node) || (self.files.contains_key(&new) != over) {
            return;
        }
        let (from, to) = (self.path(&old), self.path(&new));
        let text = format!("rename({}, {})", self.text(&old), self.text(&new));
        let effect = OpEffect::NameChanges(vec![name_change(&new, Some(node)), name_change(&old, None)]);
        self.record(OpKind::Rename, effect, text, || std::fs::rename(&from, &to).unwrap());
        self.files.remove(&old);
        self.files.insert(new, node);
    }

    fn link(&mut self) {
        let Some((old, node)) = self.any_file() else { return };
        let new = self.any_name();
        if self.files.contains_key(&new) {
            return;
        }
        let (from, to) = (self.path(&old), self.path(&new));
        let text = format!("link({}, {})", self.text(&old), self.text(&new));
        let effect = OpEffect::NameChanges(vec![name_change(&new, Some(node))]);
        self.record(OpKind::Link, effect, text, || std::fs::hard_link(&from, &to).unwrap());
        self.files.insert(new, node);
    }

    fn unlink(&mut self) {
        let Some((name, _)) = self.any_file() else { return };
        let (path, text) = (self.path(&name), format!("unlink({})", self.text(&name)));
        let effect = OpEffect::NameChanges(vec![name_change(&name, None)]);
        self.record(OpKind::Unlink, effect, text, || std::fs::remove_file(&path).unwrap());
        self.files.remove(&name);
    }

    fn resize(&mut self, shrink: bool) {
        let Some((name, node)) = self.any_file() else { return };
        let size = self.sizes[&node];
        let size_bytes = match (shrink, self.random.below(3)) {
            (true, 0) => 0,
            (true, _) => self.random.below(size as usize + 1) as u64,
            (false, _) => size + self.random.below(9000) as u64,
        };
        let (path, text) = (self.path(&name), format!("truncate({}, {size_bytes})", self.text(&name)));
        self.record(OpKind::Truncate, OpEffect::Resize { node, size_bytes }, text, || {
            OpenOptions::new().write(true).open(&path).unwrap().set_len(size_bytes).unwrap();
        });
        self.sizes.insert(node, size_bytes);
    }

    fn sync_file(&mut self, data_only: bool) {
        let Some((name, node)) = self.any_file() else { return };
        let file = File::open(self.path(&name)).unwrap();
        self.sync(node, &file, data_only, self.text(&name));
    }

    fn sync_directory(&mut self) {
        let dirs: Vec<NodeId> = self.directories.keys().copied().collect();
        let node = dirs[self.random.below(dirs.len())];
        let data_only = self.random.below(3) == 0;
        let file = File::open(&self.directories[&node]).unwrap();
        self.sync(node, &file, data_only, format!("directory {node}"));
    }

    fn sync(&mut self, node: NodeId, file: &File, data_only: bool, text: String) {
        let (kind, call) =
            if data_only { (OpKind::Fdatasync, "fdatasync") } else { (OpKind::Fsync, "fsync") };
        self.record(
            kind,
            OpEffect::Sync { node, data_only },
            format!("{call}({text})"),
            || match data_only {
                true => file.sync_data().unwrap(),
                false => file.sync_all().unwrap(),
            },
        );
    }

    /// Writes some or all bytes of a file to the disk, as the kernel may do at any time.
    fn write_back(&mut self) {
        let Some((name, node)) = self.any_file() else { return };
        let file = File::open(self.path(&name)).unwrap();
        let (offset, len_bytes) = match self.random.below(2) {
            0 => (0, 0),
            _ => (self.random.below(self.sizes[&node] as usize + 1) as u64, 4096),
        };
        write_range(&file, offset, len_bytes).unwrap();
    }
}

fn name_change(name: &NodeName, node: Option<NodeId>) -> NameChange {
    NameChange { dir: name.dir, name: OsString::from(name.name), node }
}
