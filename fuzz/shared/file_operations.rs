//! Enumerates the crash states of a sequence of file operations, and checks these properties:
//!
//! - The final tree equals that of a simple file system of maps and byte arrays.
//! - No two states have the same tree, and the name of a state gives the same tree again.
//! - After a sync of everything, a power loss loses nothing.
//! - A power loss may lose nothing, so the tree of every crash point is among its states.
//!
//! Shared by the fuzz target and by `harness/tests/corpus.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use arbitrary::{Arbitrary, Unstructured};
use engine::explore::{
    ByteSource, ContentPiece, CrashCandidate, ExploreScope, FileAttributes, FileNode, FileTree, FsModel,
    NameChange, NodeId, Op, OpEffect, OpKind, Recording, RecordingGaps, TreeEntry, enumerate,
};

/// One operation. Names are small numbers, so that operations often act on the same file.
#[derive(Debug, Arbitrary)]
pub(crate) enum Step {
    Create { name: u8 },
    Write { name: u8, offset: u16, len: u16 },
    Truncate { name: u8, size: u16 },
    Zero { name: u8, offset: u16, len: u16 },
    Rename { from: u8, to: u8 },
    Link { from: u8, to: u8 },
    Unlink { name: u8 },
    Sync { name: u8, data_only: bool },
    SyncDirectory,
    SyncAll,
    Saved { step: u8 },
}

/// Maximum number of operations in one case: the number of states grows with the square of the pending
/// operations.
const MAX_STEPS: usize = 24;
/// Number of names in the only directory.
const NAMES: u8 = 6;

/// A minimal file system: maps names to files, and files to bytes. A byte is its position in the payload log,
/// or `None` for a zero.
#[derive(Default)]
struct SimpleFs {
    names: BTreeMap<u8, usize>,
    files: Vec<Vec<Option<u64>>>,
}

struct Builder {
    recording: Recording,
    fs: SimpleFs,
    payload_len: u64,
}

impl Builder {
    fn new() -> Builder {
        let recording = Recording {
            roots: vec!["/watched".into()],
            nodes: vec![FileNode::directory()],
            attribute_sets: vec![FileAttributes::with_mode(0o755)],
            initial_names: BTreeMap::from([(0, BTreeMap::new())]),
            initial_paths: BTreeMap::new(),
            ops: Vec::new(),
            payload_log: PathBuf::new(),
            gaps: RecordingGaps::default(),
            format_boundaries: BTreeMap::new(),
            acknowledged_before: None,
            lower_layers: Vec::new(),
        };
        Builder { recording, fs: SimpleFs::default(), payload_len: 0 }
    }

    fn push(&mut self, kind: OpKind, effect: OpEffect) {
        let text = format!("{}({})", kind.name(), self.recording.ops.len());
        self.recording.ops.push(Op { kind, effect, text });
    }

    fn set_names(&mut self, kind: OpKind, changes: &[(u8, Option<NodeId>)]) {
        let change = |(name, node): &(u8, Option<NodeId>)| NameChange {
            dir: 0,
            name: format!("n{name}").into(),
            node: *node,
        };
        self.push(kind, OpEffect::NameChanges(changes.iter().map(change).collect()));
    }

    /// The file with this name, and its node. The directory is node 0, so file `i` is node `i + 1`.
    fn file(&self, name: u8) -> Option<(usize, NodeId)> {
        self.fs.names.get(&(name % NAMES)).map(|file| (*file, *file as NodeId + 1))
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Create { name } if self.file(name).is_none() => {
                self.fs.names.insert(name % NAMES, self.fs.files.len());
                self.fs.files.push(Vec::new());
                self.recording.nodes.push(FileNode::new_file());
                let node = self.fs.files.len() as NodeId;
                self.set_names(OpKind::Create, &[(name % NAMES, Some(node))]);
            }
            Step::Write { name, offset, len } if len > 0 => {
                let Some((file, node)) = self.file(name) else { return };
                let (from, end) = (usize::from(offset), usize::from(offset) + usize::from(len));
                let bytes = &mut self.fs.files[file];
                bytes.resize(bytes.len().max(end), None);
                let payload_offset = self.payload_len;
                for (byte, position) in bytes[from..end].iter_mut().zip(payload_offset..) {
                    *byte = Some(position);
                }
                self.payload_len += u64::from(len);
                let (offset, len_bytes) = (offset.into(), len.into());
                self.push(OpKind::Write, OpEffect::Write { node, offset, len_bytes, payload_offset });
            }
            Step::Truncate { name, size } => {
                let Some((file, node)) = self.file(name) else { return };
                self.fs.files[file].resize(size.into(), None);
                self.push(OpKind::Truncate, OpEffect::Resize { node, size_bytes: size.into() });
            }
            Step::Zero { name, offset, len } if len > 0 => {
                let Some((file, node)) = self.file(name) else { return };
                let (from, end) = (usize::from(offset), usize::from(offset) + usize::from(len));
                let bytes = &mut self.fs.files[file];
                bytes.resize(bytes.len().max(end), None);
                bytes[from..end].fill(None);
                self.push(
                    OpKind::Punch,
                    OpEffect::Zero { node, offset: offset.into(), len_bytes: len.into() },
                );
            }
            Step::Rename { from, to } if from % NAMES != to % NAMES => {
                let Some((file, node)) = self.file(from) else { return };
                self.fs.names.remove(&(from % NAMES));
                self.fs.names.insert(to % NAMES, file);
                self.set_names(OpKind::Rename, &[(to % NAMES, Some(node)), (from % NAMES, None)]);
            }
            Step::Link { from, to } if self.file(to).is_none() => {
                let Some((file, node)) = self.file(from) else { return };
                self.fs.names.insert(to % NAMES, file);
                self.set_names(OpKind::Link, &[(to % NAMES, Some(node))]);
            }
            Step::Unlink { name } if self.file(name).is_some() => {
                self.fs.names.remove(&(name % NAMES));
                self.set_names(OpKind::Unlink, &[(name % NAMES, None)]);
            }
            Step::Sync { name, data_only } => {
                let Some((_, node)) = self.file(name) else { return };
                let kind = if data_only { OpKind::Fdatasync } else { OpKind::Fsync };
                self.push(kind, OpEffect::Sync { node, data_only });
            }
            Step::SyncDirectory => self.push(OpKind::Fsync, OpEffect::Sync { node: 0, data_only: false }),
            Step::SyncAll => self.push(OpKind::Sync, OpEffect::SyncAll),
            Step::Saved { step } => {
                let line = format!("saved step {step}");
                let effect = OpEffect::Output { line, saved_step: Some(step.into()), on_stdio: true };
                self.push(OpKind::Output, effect);
            }
            _ => {}
        }
    }
}

/// The tree of the simple file system: the bytes of each name.
fn expected(fs: &SimpleFs) -> BTreeMap<PathBuf, Vec<Option<u64>>> {
    fs.names.iter().map(|(name, file)| (format!("n{name}").into(), fs.files[*file].clone())).collect()
}

/// The tree of a crash state, in the same form.
fn found(tree: &FileTree) -> BTreeMap<PathBuf, Vec<Option<u64>>> {
    let bytes = |piece: &ContentPiece| -> Vec<Option<u64>> {
        match piece.source {
            ByteSource::PayloadLog(from) => (from..from + piece.len_bytes).map(Some).collect(),
            ByteSource::Zeroes => vec![None; piece.len_bytes as usize],
            other => panic!("no operation of this target leaves {other:?}"),
        }
    };
    let files = tree.entries.iter().filter_map(|((_, path), entry)| match entry {
        TreeEntry::File { content, .. } => {
            Some((path.clone(), content.pieces().iter().flat_map(bytes).collect()))
        }
        _ => None,
    });
    files.collect()
}

/// The sequence that the bytes encode: one operation after the other until the bytes are used up. A `Vec<Step>`
/// would have two operations on average.
pub(crate) fn steps_of(bytes: &[u8]) -> Vec<Step> {
    let mut input = Unstructured::new(bytes);
    let step = || if input.is_empty() { None } else { Step::arbitrary(&mut input).ok() };
    std::iter::from_fn(step).take(MAX_STEPS).collect()
}

/// Checks one sequence of operations.
pub(crate) fn check(steps: &[Step]) {
    let mut builder = Builder::new();
    steps.iter().take(MAX_STEPS).for_each(|step| builder.apply(step));
    let (recording, fs) = (builder.recording, builder.fs);

    let final_candidate = CrashCandidate::whole(recording.ops.len());
    assert_eq!(found(&final_candidate.tree(&recording)), expected(&fs), "{:?}", recording.ops);

    let scope = ExploreScope {
        process_crashes: true,
        models: FsModel::ALL.to_vec(),
        max_states: usize::MAX,
        crash_points: None,
    };
    let enumeration = enumerate(&recording, &scope);
    let all: BTreeSet<[u8; 16]> = enumeration.states.iter().map(|state| state.digest).collect();
    assert_eq!(all.len(), enumeration.states.len(), "two states have the same tree");
    for state in &enumeration.states {
        for witness in state.witnesses.values() {
            let name = witness.candidate.name();
            let parsed = CrashCandidate::parse(&name).expect("the name of a state can be parsed");
            assert_eq!(parsed, witness.candidate, "{name}");
            assert_eq!(parsed.tree(&recording).digest(), state.digest, "{name}");
        }
    }
    // If the last operation is a sync of everything, a power loss loses nothing.
    if matches!(recording.ops.last().map(|op| &op.effect), Some(OpEffect::SyncAll)) {
        let points = Some(BTreeSet::from([recording.ops.len()]));
        for model in FsModel::ALL {
            let scope = ExploreScope {
                process_crashes: false,
                models: vec![model],
                max_states: usize::MAX,
                crash_points: points.clone(),
            };
            for state in enumerate(&recording, &scope).states {
                assert_eq!(state.digest, final_candidate.tree(&recording).digest(), "{model:?}");
            }
        }
    }
    for model in FsModel::ALL {
        let scope = ExploreScope {
            process_crashes: false,
            models: vec![model],
            max_states: usize::MAX,
            crash_points: None,
        };
        let enumeration = enumerate(&recording, &scope);
        if enumeration.counts.not_enumerated.values().all(|skipped| *skipped == 0) {
            let digests: BTreeSet<[u8; 16]> = enumeration.states.iter().map(|state| state.digest).collect();
            for op_count in 0..=recording.ops.len() {
                let tree = CrashCandidate::whole(op_count).tree(&recording);
                assert!(digests.contains(&tree.digest()), "{model:?}: no state without a loss at {op_count}");
            }
        }
    }
}
