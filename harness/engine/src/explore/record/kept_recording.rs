//! Keeps a recording in a directory, and reads it back: the operations in one file, and the bytes that they refer to in
//! files that are named by the digest of their content. Knows no crash states.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use scenarios::{ExplorationNote, SandboxHint};
use serde::{Deserialize, Serialize};

use super::attributes::FileAttributes;
use super::gated_run::CommandRecording;
use super::record_spec::RecordSpec;
use super::recording::{AttributesId, FileNode, NameChange, NodeId, Op, OpEffect, Recording, RecordingGaps};
use crate::explore::error::KeptRecordingError;
use crate::file_error::{FileError, file_error};
use crate::sandbox::ProcessExit;

/// The number of the format. Another version of Trainwreck may write another one.
const FORMAT: u32 = 3;
/// The file with the operations, which ends with its digest.
const OPERATIONS_FILE: &str = "operations";
/// The directory with the bytes.
const CONTENTS_DIR: &str = "contents";
/// How long the digest is.
const DIGEST_BYTES: usize = blake3::OUT_LEN;
/// As many bytes are copied at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Where to keep a recording.
#[derive(Debug, Clone)]
pub struct KeepRecordingSpec {
    /// The directory, which does not exist yet.
    pub dir: PathBuf,
    /// A recording with more bytes is not kept.
    pub max_bytes: u64,
}

/// Whether a recording was kept.
#[derive(Debug)]
pub enum KeptRecording {
    /// It was.
    Kept,
    /// It has more bytes than may be kept.
    TooLarge {
        /// How many it has.
        len_bytes: u64,
        /// How many it may have.
        max_bytes: u64,
    },
    /// A watched directory is an overlay of the user's own, and the files in that are too many to be copied.
    HasOverlays,
    /// It could not be written.
    Failed(FileError),
}

/// The digest of the bytes of a file. Its name in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct ContentId([u8; 32]);

impl ContentId {
    fn path_in(self, dir: &Path) -> PathBuf {
        dir.join(CONTENTS_DIR).join(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

/// What [`OPERATIONS_FILE`] contains.
#[derive(Serialize, Deserialize)]
struct StoredRecording {
    format: u32,
    roots: Vec<OsString>,
    nodes: Vec<FileNode>,
    attribute_sets: Vec<FileAttributes>,
    initial_names: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    initial_contents: BTreeMap<NodeId, ContentId>,
    ops: Vec<Op>,
    payload_log: ContentId,
    gaps: StoredGaps,
    format_boundaries: BTreeMap<u32, Vec<u64>>,
    acknowledged_before: Option<u64>,
    saved_pattern: Option<String>,
    /// The program and its arguments.
    command: Vec<OsString>,
    /// The lines of the run.
    output: String,
    /// How long the run took.
    seconds: f64,
}

impl StoredRecording {
    /// Whether it can be of a real run: each name is one name, and each number is of something that it contains. The
    /// files of a state are written on the host too, where another name would lead out of their directory.
    fn is_possible(&self) -> bool {
        let (nodes, sets) = (self.nodes.len() as u64, self.attribute_sets.len() as u64);
        let is_node = |node: NodeId| u64::from(node) < nodes;
        let is_set = |set: AttributesId| u64::from(set) < sets;
        let is_name = |name: &OsString| {
            let parts: Vec<Component<'_>> = Path::new(name).components().collect();
            matches!(parts[..], [Component::Normal(part)] if part == name.as_os_str())
        };
        let is_change = |change: &NameChange| {
            is_node(change.dir) && is_name(&change.name) && change.node.is_none_or(is_node)
        };
        let is_effect = |op: &Op| match &op.effect {
            OpEffect::NameChanges(changes) => changes.iter().all(is_change),
            OpEffect::SetAttributes { node, attributes, .. } => is_node(*node) && is_set(*attributes),
            OpEffect::Write { node, .. }
            | OpEffect::Resize { node, .. }
            | OpEffect::Zero { node, .. }
            | OpEffect::Sync { node, .. } => is_node(*node),
            OpEffect::SyncAll | OpEffect::Output { .. } => true,
        };
        let mut initial = self.initial_names.iter();
        initial.all(|(dir, names)| {
            is_node(*dir) && names.iter().all(|(name, node)| is_name(name) && is_node(*node))
        }) && self.roots.len() as u64 <= nodes
            && self.nodes.iter().all(|node| is_set(node.attributes))
            && self.initial_contents.keys().all(|node| is_node(*node))
            && self.ops.iter().all(is_effect)
    }
}

/// The parts of [`RecordingGaps`] that are shown, or that recoveries depend on.
#[derive(Serialize, Deserialize)]
struct StoredGaps {
    refused_calls: Vec<String>,
    outside_paths: Vec<OsString>,
    mapped_paths: Vec<OsString>,
    unknown_files: u64,
    outlived: Duration,
    /// Hints and notes, as JSON: their fields may be left out.
    hints: String,
    notes: String,
}

impl StoredGaps {
    fn of(gaps: &RecordingGaps) -> StoredGaps {
        // Neither can fail: both have names as keys.
        let json = |text: Result<String, serde_json::Error>| text.unwrap_or_default();
        StoredGaps {
            refused_calls: gaps.refused_calls.clone(),
            outside_paths: gaps.outside_paths.iter().map(OsString::from).collect(),
            mapped_paths: gaps.mapped_paths.iter().map(OsString::from).collect(),
            unknown_files: gaps.unknown_files,
            outlived: gaps.outlived,
            hints: json(serde_json::to_string(&gaps.sandbox_hints)),
            notes: json(serde_json::to_string(&gaps.notes)),
        }
    }

    fn restore(self) -> Result<RecordingGaps, serde_json::Error> {
        let hints: Vec<SandboxHint> = serde_json::from_str(&self.hints)?;
        let notes: Vec<ExplorationNote> = serde_json::from_str(&self.notes)?;
        Ok(RecordingGaps {
            refused_calls: self.refused_calls,
            outside_paths: self.outside_paths.into_iter().map(PathBuf::from).collect(),
            mapped_paths: self.mapped_paths.into_iter().map(PathBuf::from).collect(),
            unknown_files: self.unknown_files,
            outlived: self.outlived,
            sandbox_hints: hints,
            notes,
            ..RecordingGaps::default()
        })
    }
}

/// Keeps the recording of a run that ended well. What was written of one that cannot be kept is removed.
pub(in crate::explore) fn keep_recording(
    recorded: &CommandRecording,
    of: &RecordSpec,
    spec: &KeepRecordingSpec,
) -> KeptRecording {
    let recording = &recorded.recording;
    if recording.lower_layers.iter().any(|layers| !layers.is_empty()) {
        return KeptRecording::HasOverlays;
    }
    let kept = len_bytes(recording).and_then(|len_bytes| match len_bytes > spec.max_bytes {
        true => Ok(KeptRecording::TooLarge { len_bytes, max_bytes: spec.max_bytes }),
        false => write(recorded, of, &spec.dir).map(|()| KeptRecording::Kept),
    });
    kept.unwrap_or_else(|error| {
        // What is left of it is of no use, and the error that is reported is the first one.
        let _ = std::fs::remove_dir_all(&spec.dir);
        KeptRecording::Failed(error)
    })
}

/// How many bytes the files have to which a recording refers.
fn len_bytes(recording: &Recording) -> Result<u64, FileError> {
    let files = recording.initial_paths.values().chain([&recording.payload_log]);
    files.map(|path| path.metadata().map(|file| file.len()).map_err(file_error("read", path))).sum()
}

fn write(recorded: &CommandRecording, of: &RecordSpec, dir: &Path) -> Result<(), FileError> {
    let recording = &recorded.recording;
    let contents = dir.join(CONTENTS_DIR);
    std::fs::create_dir_all(&contents).map_err(file_error("create", &contents))?;
    let store = |path: &PathBuf| store_content(path, dir);
    let initial = recording.initial_paths.iter().map(|(node, path)| Ok((*node, store(path)?)));
    let stored = StoredRecording {
        format: FORMAT,
        roots: recording.roots.iter().map(OsString::from).collect(),
        nodes: recording.nodes.clone(),
        attribute_sets: recording.attribute_sets.clone(),
        initial_names: recording.initial_names.clone(),
        initial_contents: initial.collect::<Result<_, FileError>>()?,
        ops: recording.ops.clone(),
        payload_log: store(&recording.payload_log)?,
        gaps: StoredGaps::of(&recording.gaps),
        format_boundaries: recording.format_boundaries.clone(),
        acknowledged_before: recording.acknowledged_before,
        saved_pattern: of.saved_pattern.as_ref().map(ToString::to_string),
        command: of.command.argv.clone(),
        output: recorded.output.clone(),
        seconds: recorded.seconds,
    };
    let path = dir.join(OPERATIONS_FILE);
    let bytes = postcard::to_allocvec(&stored).map_err(Error::other).map(|mut bytes| {
        let digest = blake3::hash(&bytes);
        bytes.extend(digest.as_bytes());
        bytes
    });
    bytes.and_then(|bytes| std::fs::write(&path, bytes)).map_err(file_error("write", &path))
}

/// Copies a file to its name among the contents, if it is not there yet.
fn store_content(from: &Path, dir: &Path) -> Result<ContentId, FileError> {
    let new = dir.join(CONTENTS_DIR).join("new");
    let mut source = File::open(from).map_err(file_error("read", from))?;
    let target = File::create(&new).map_err(file_error("create", &new))?;
    let id = copy_sparsely(&mut source, &target).map_err(file_error("copy to the report", from))?;
    let path = id.path_in(dir);
    std::fs::rename(&new, &path).map_err(file_error("create", &path))?;
    Ok(id)
}

/// Copies all bytes. Chunks of zeroes become holes.
fn copy_sparsely(source: &mut File, target: &File) -> Result<ContentId, Error> {
    use std::os::unix::fs::FileExt;
    let (mut hasher, mut chunk, mut offset) = (blake3::Hasher::new(), vec![0; CHUNK_BYTES], 0);
    loop {
        let len_bytes = match source.read(&mut chunk) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        if len_bytes == 0 {
            break;
        }
        let bytes = &chunk[..len_bytes];
        hasher.update(bytes);
        if bytes.iter().any(|byte| *byte != 0) {
            target.write_all_at(bytes, offset)?;
        }
        offset += len_bytes as u64;
    }
    target.set_len(offset)?;
    Ok(ContentId(*hasher.finalize().as_bytes()))
}

/// Reads a kept recording of these directories and with this pattern, and checks that nothing of it has changed. If it
/// is of another command, a note says so.
///
/// # Errors
/// It cannot be read, is of something else, or has changed.
pub(in crate::explore) fn read_recording(
    dir: &Path,
    of: &RecordSpec,
) -> Result<CommandRecording, KeptRecordingError> {
    let path = dir.join(OPERATIONS_FILE);
    let bytes = std::fs::read(&path).map_err(file_error::<KeptRecordingError>("read", &path))?;
    let other_format = || KeptRecordingError::OtherFormat { path: path.clone() };
    // The number of the format comes first, so that it can be read whatever follows.
    let (format, _) = postcard::take_from_bytes::<u32>(&bytes).map_err(|_| other_format())?;
    (format == FORMAT).then_some(()).ok_or_else(other_format)?;
    let damaged = || KeptRecordingError::Damaged { path: path.clone() };
    let (bytes, digest) = bytes.split_last_chunk::<DIGEST_BYTES>().ok_or_else(damaged)?;
    (blake3::hash(bytes) == *digest).then_some(()).ok_or_else(damaged)?;
    let stored: StoredRecording = postcard::from_bytes(bytes).map_err(|_| other_format())?;
    // Its digest says that it is whole, and not who has written it.
    stored.is_possible().then_some(()).ok_or_else(damaged)?;
    let mut gaps = stored.gaps.restore().map_err(|_| other_format())?;
    if stored.command != of.command.argv {
        let words = stored.command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>();
        gaps.notes.push(ExplorationNote::RecordingOfOther { command: words.join(" ") });
    }
    let roots: Vec<PathBuf> = stored.roots.into_iter().map(PathBuf::from).collect();
    if roots != of.watched_dirs {
        return Err(KeptRecordingError::OtherDirectories {
            recorded: roots,
            watched: of.watched_dirs.clone(),
        });
    }
    if stored.saved_pattern != of.saved_pattern.as_ref().map(ToString::to_string) {
        return Err(KeptRecordingError::OtherSavedPattern);
    }
    let checked = |id: ContentId| -> Result<PathBuf, KeptRecordingError> {
        let path = id.path_in(dir);
        match digest_of_file(&path).map_err(file_error::<KeptRecordingError>("read", &path))? == id {
            true => Ok(path),
            false => Err(KeptRecordingError::Damaged { path }),
        }
    };
    let initial = stored.initial_contents.into_iter().map(|(node, id)| Ok((node, checked(id)?)));
    let recording = Recording {
        nodes: stored.nodes,
        attribute_sets: stored.attribute_sets,
        initial_names: stored.initial_names,
        initial_paths: initial.collect::<Result<_, KeptRecordingError>>()?,
        ops: stored.ops,
        payload_log: checked(stored.payload_log)?,
        gaps,
        format_boundaries: stored.format_boundaries,
        acknowledged_before: stored.acknowledged_before,
        lower_layers: vec![Vec::new(); roots.len()],
        roots,
    };
    Ok(CommandRecording {
        recording,
        ended: Some(ProcessExit::Exited(0)),
        output: stored.output,
        last_lines: Vec::new(),
        seconds: stored.seconds,
    })
}

fn digest_of_file(path: &Path) -> Result<ContentId, Error> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(ContentId(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::super::recording::{FileNodeKind, OpKind};
    use super::*;

    /// A directory with a file in it, and one renaming of the file to `name`.
    fn recording(name: &str) -> StoredRecording {
        let attributes = FileAttributes {
            mode: 0o600,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
            modified: None,
            accessed: None,
        };
        let change = NameChange { dir: 0, name: name.into(), node: Some(1) };
        let (kind, text) = (OpKind::Rename, String::new());
        StoredRecording {
            format: FORMAT,
            roots: vec!["/watched".into()],
            nodes: vec![FileNode::directory(), FileNode::new_file()],
            attribute_sets: vec![attributes],
            initial_names: BTreeMap::from([(0, BTreeMap::from([("file".into(), 1)]))]),
            initial_contents: BTreeMap::new(),
            ops: vec![Op { kind, effect: OpEffect::NameChanges(vec![change]), text }],
            payload_log: ContentId([0; 32]),
            gaps: StoredGaps::of(&RecordingGaps::default()),
            format_boundaries: BTreeMap::new(),
            acknowledged_before: None,
            saved_pattern: None,
            command: Vec::new(),
            output: String::new(),
            seconds: 1.0,
        }
    }

    /// Another name would lead out of the directory in which the files of a state are written.
    #[test]
    fn a_recording_with_a_name_that_is_a_path_or_with_an_unknown_number_is_not_possible() {
        for name in ["new", " ", "...", "a b", "\u{e9}"] {
            assert!(recording(name).is_possible(), "{name}");
        }
        for name in ["", ".", "..", "/", "/etc", "a/b", "../x", "a/", "./a", "a/.."] {
            assert!(!recording(name).is_possible(), "{name}");
            let initial = BTreeMap::from([(0, BTreeMap::from([(OsString::from(name), 1)]))]);
            assert!(!StoredRecording { initial_names: initial, ..recording("new") }.is_possible(), "{name}");
        }
        let symlink = FileNodeKind::Symlink { target: "../..".into() };
        let nodes = vec![FileNode::directory(), FileNode { attributes: 1, kind: symlink }];
        assert!(!StoredRecording { nodes, ..recording("new") }.is_possible(), "attributes");
        let initial = BTreeMap::from([(0, BTreeMap::from([(OsString::from("file"), 2)]))]);
        assert!(!StoredRecording { initial_names: initial, ..recording("new") }.is_possible(), "a node");
        let ops = vec![
            OpEffect::Write { node: 2, offset: 0, len_bytes: 1, payload_offset: 0 },
            OpEffect::Resize { node: 2, size_bytes: 0 },
            OpEffect::Zero { node: 2, offset: 0, len_bytes: 1 },
            OpEffect::Sync { node: 2, data_only: false },
            OpEffect::SetAttributes { node: 1, attributes: 1, touches: false },
            OpEffect::NameChanges(vec![NameChange { dir: 2, name: "a".into(), node: None }]),
        ];
        for effect in ops {
            let mut recording = recording("new");
            recording.ops[0].effect = effect;
            assert!(!recording.is_possible(), "{:?}", recording.ops[0].effect);
        }
    }
}
