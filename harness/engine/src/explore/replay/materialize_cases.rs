//! Trees of large files, one after the other, with recoveries between them that damage every file. Tests only.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use scenarios::PAGE_BYTES;

use super::materialize::{MaterializePlace, Materializer};
use super::small_file_cache::SmallFileCache;
use crate::explore::record::{
    ContentReader, FileAttributes, FileNode, NameChange, NodeId, Op, OpEffect, OpKind, Recording,
    RecordingGaps,
};
use crate::explore::states::{CrashState, ExploreScope, FileTree, FsModel, TreeEntry, enumerate};

/// Of each file. More than what counts as small.
const FILE_PAGES: u64 = 64;
const FILE_BYTES: u64 = FILE_PAGES * PAGE_BYTES;
const FILES: u32 = 3;
const SAVES: u32 = 3;

/// Saves three files each time, without any sync, so that many states have torn files. One is read-only.
fn recording(dir: &Path) -> Recording {
    let log = dir.join("log");
    let bytes: Vec<u8> =
        (0..FILE_BYTES * u64::from(FILES * SAVES)).map(|index| (index / 512 * 31 + index) as u8).collect();
    std::fs::write(&log, bytes).unwrap();
    let mut recording = Recording {
        roots: vec!["/watched".into()],
        nodes: vec![FileNode::directory()],
        attribute_sets: vec![FileAttributes::with_mode(0o755), FileAttributes::with_mode(0o444)],
        initial_names: BTreeMap::from([(0, BTreeMap::new())]),
        initial_paths: BTreeMap::new(),
        ops: Vec::new(),
        payload_log: log,
        gaps: RecordingGaps::default(),
        format_boundaries: BTreeMap::new(),
        acknowledged_before: None,
        lower_layers: Vec::new(),
    };
    let mut payload_offset = 0;
    for _ in 0..SAVES {
        for file in 0..FILES {
            let attributes = u32::from(file == 2);
            recording.nodes.push(FileNode { attributes, ..FileNode::new_file() });
            let node = recording.nodes.len() as NodeId - 1;
            let name = |name: String, node| NameChange { dir: 0, name: name.into(), node };
            let mut push = |kind, effect| recording.ops.push(Op { kind, effect, text: String::new() });
            let (temporary, path) = (format!("{file}.tmp"), file.to_string());
            push(OpKind::Create, OpEffect::NameChanges(vec![name(temporary.clone(), Some(node))]));
            let write = OpEffect::Write { node, offset: 0, len_bytes: FILE_BYTES, payload_offset };
            push(OpKind::Write, write);
            payload_offset += FILE_BYTES;
            push(OpKind::Rename, OpEffect::NameChanges(vec![name(path, Some(node)), name(temporary, None)]));
        }
    }
    recording
}

fn states(recording: &Recording) -> Vec<CrashState> {
    let models = vec![FsModel::Posix, FsModel::Ext4];
    let scope = ExploreScope { process_crashes: true, models, max_states: 600, crash_points: None };
    enumerate(recording, &scope).states
}

/// Whether a directory has what the tree says, also its holes.
fn assert_is_tree(dir: &Path, tree: &FileTree, recording: &Recording, scratch: &Path) {
    let found: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(found.len(), tree.entries.len());
    let mut reader = ContentReader::new(recording).unwrap();
    for ((_, path), entry) in &tree.entries {
        let TreeEntry::File { content, attributes, .. } = entry else { panic!("{path:?}") };
        let path = dir.join(path);
        let metadata = path.metadata().unwrap();
        let set = recording.attributes(attributes.set);
        assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (set.mode, 1), "{path:?}");
        assert_eq!(metadata.mtime(), 1_000 + 1 + i64::from(attributes.last_change) / 100, "{path:?}");
        let anew = File::create(scratch).unwrap();
        content.write_to_file(&mut reader, &anew).unwrap();
        assert!(std::fs::read(&path).unwrap() == std::fs::read(scratch).unwrap(), "{path:?}");
        assert_eq!(metadata.blocks(), anew.metadata().unwrap().blocks(), "holes of {path:?}");
    }
}

/// What a recovery may do to its files. Those of no other state may change.
fn damage(path: &Path, way: usize) {
    let open = || OpenOptions::new().write(true).open(path);
    let done = match way % 9 {
        0 => Ok(()),
        1 => open().and_then(|file| file.write_all_at(b"damaged", PAGE_BYTES * 20)),
        2 => open().and_then(|file| file.set_len(PAGE_BYTES)),
        3 => OpenOptions::new().append(true).open(path).and_then(|file| file.write_all_at(b"more", 0)),
        4 => std::fs::set_permissions(path, Permissions::from_mode(0o777)),
        5 => std::fs::remove_file(path),
        6 => std::fs::rename(path, path.with_extension("moved")),
        7 => std::fs::hard_link(path, path.with_extension("linked")),
        // The same bytes again, at another time.
        _ => std::fs::read(path).and_then(|bytes| std::fs::write(path, bytes)),
    };
    // One file is read-only. Root may write it all the same.
    assert!(done.is_ok() || path.ends_with("2") || path.ends_with("2.tmp"), "{way}: {done:?}");
}

#[test]
fn a_recovery_that_damages_its_files_changes_no_later_tree_and_little_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let recording = recording(dir.path());
    let states = states(&recording);
    assert!(states.len() > 300, "{}", states.len());
    let written = |max_pool_bytes, damages: bool| {
        let base = tempfile::tempdir_in(dir.path()).unwrap();
        let shown = base.path().join("0");
        std::fs::create_dir(&shown).unwrap();
        let place =
            MaterializePlace { base: base.path().into(), dir_names: vec!["0".into()], began_unix_s: 1_000 };
        let small_files = SmallFileCache::default();
        let mut materializer = Materializer::new(&recording, &small_files, place, max_pool_bytes).unwrap();
        for (number, state) in states.iter().enumerate() {
            let tree = state.candidate().tree(&recording);
            materializer.materialize(tree.clone()).unwrap();
            if damages || number % 16 == 0 {
                assert_is_tree(&shown, &tree, &recording, &dir.path().join("scratch"));
            }
            let paths: Vec<_> =
                std::fs::read_dir(&shown).unwrap().map(|entry| entry.unwrap().path()).collect();
            if damages {
                paths.iter().enumerate().for_each(|(file, path)| damage(path, number / 2 + file));
            }
        }
        materializer.clear().unwrap();
        materializer.written_bytes
    };
    let unshared = written(0, false);
    let shared = written(64 * FILE_BYTES, false);
    let few = written(8 * FILE_BYTES, true);
    assert!(shared * 6 < unshared, "{shared} of {unshared} bytes");
    assert!(few < unshared, "{few} of {unshared} bytes");
}
