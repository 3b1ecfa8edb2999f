//! Random trees one after the other in one place, with recoveries between them that read, change or damage them, held
//! against the same trees built from nothing. Tests only.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, FileType, OpenOptions, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use proptest::prelude::*;
use scenarios::PAGE_BYTES;
use tempfile::TempDir;

use super::materialize::{MaterializePlace, Materializer};
use super::small_file_cache::{MAX_SMALL_FILE_BYTES, SmallFileCache};
use crate::explore::record::{
    ByteSource, FileAttributes, FileContent, FileNode, NodeId, Recording, RecordingGaps,
};
use crate::explore::states::{EntryAttributes, FileTree, TreeEntry};

const NAMES: [&str; 5] = ["a", "b", "b.tmp", "c", "d"];
/// Small, small with several pages, and large.
const LENGTHS: [u64; 4] = [0, 100, 3 * PAGE_BYTES, MAX_SMALL_FILE_BYTES + PAGE_BYTES];
const PAYLOAD_BYTES: u64 = 8 * MAX_SMALL_FILE_BYTES;

/// An entry of a random tree. Most are alike in consecutive trees, so that there is something that stays.
#[derive(Debug, Clone, Copy)]
enum RandomEntry {
    Absent,
    Directory { set: u32 },
    File { length: usize, offset: u64, set: u32, node: Option<NodeId> },
    Symlink,
    Pipe,
}

/// One tree after another: what differs, by the place of the name, when its directory last changed, and what the recovery
/// on it does to which name.
#[derive(Debug, Clone)]
struct Step {
    changes: Vec<(usize, RandomEntry)>,
    /// The attributes of the watched directory.
    root_set: u32,
    last_change: u32,
    deed: (usize, usize),
}

fn entries() -> impl Strategy<Value = RandomEntry> {
    // Rarely a name of a file that has others, or of one that is read-only or has other attributes.
    let set = prop_oneof![8 => Just(0_u32), 1 => 1..5_u32];
    let node = prop_oneof![9 => Just(None), 1 => Just(Some(1_000))];
    let file = (0..LENGTHS.len(), 0..3_u64, set.clone(), node);
    prop_oneof![
        3 => Just(RandomEntry::Absent),
        2 => set.prop_map(|set| RandomEntry::Directory { set }),
        10 => file.prop_map(|(length, offset, set, node)| RandomEntry::File { length, offset, set, node }),
        1 => Just(RandomEntry::Symlink),
        1 => Just(RandomEntry::Pipe),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let places = NAMES.len() * (1 + NAMES.len());
    let changes = prop::collection::vec((0..places, entries()), 0..4);
    let deed = prop_oneof![5 => Just(0), 1 => 0..DEEDS.len()];
    let root_set = prop_oneof![9 => Just(0_u32), 1 => 1..5_u32];
    let step = (changes, root_set, 0..200_u32, (deed, 0..places));
    let first = prop::collection::vec((0..places, entries()), 8..20);
    let step =
        step.prop_map(|(changes, root_set, last_change, deed)| Step { changes, root_set, last_change, deed });
    (first, prop::collection::vec(step, 2..12)).prop_map(|(first, mut steps)| {
        steps[0].changes = first;
        steps
    })
}

/// The place of a name: in the watched directory, or in a directory in it.
fn path_of(place: usize) -> PathBuf {
    let name = NAMES[place % NAMES.len()];
    match place / NAMES.len() {
        0 => name.into(),
        dir => Path::new(NAMES[dir - 1]).join(name),
    }
}

/// `xattrs`: those of some files.
fn recording(dir: &Path, xattrs: BTreeMap<OsString, Vec<u8>>) -> Recording {
    let log = dir.join("log");
    let bytes: Vec<u8> = (0..PAYLOAD_BYTES).map(|index| (index / 512 * 31 + index) as u8).collect();
    std::fs::write(&log, bytes).unwrap();
    let with_mode = FileAttributes::with_mode;
    Recording {
        roots: vec!["/watched".into()],
        nodes: vec![FileNode::directory()],
        attribute_sets: vec![
            with_mode(0o755),
            with_mode(0o500),
            with_mode(0o2775),
            FileAttributes { xattrs, ..with_mode(0o755) },
            with_mode(0o700),
        ],
        initial_names: BTreeMap::from([(0, BTreeMap::new())]),
        initial_paths: BTreeMap::new(),
        ops: Vec::new(),
        payload_log: log,
        gaps: RecordingGaps::default(),
        format_boundaries: BTreeMap::new(),
        acknowledged_before: None,
        lower_layers: Vec::new(),
    }
}

/// The extended attributes that files in a directory get: none where the kernel has none, as in memory before 6.6.
fn xattrs_in(dir: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let plain = FileAttributes::with_mode(0o600);
    let xattrs = BTreeMap::from([(OsString::from("user.note"), b"1".to_vec())]);
    let file = File::create(dir.join("file")).unwrap();
    let applied = FileAttributes { xattrs: xattrs.clone(), ..plain.clone() }.apply(file.as_fd(), &plain);
    if applied.is_ok() { xattrs } else { BTreeMap::new() }
}

/// The tree of the present entries whose directories are there.
fn tree_of(present: &BTreeMap<usize, RandomEntry>, root_set: u32, last_change: u32) -> FileTree {
    let attributes = |set, last_change| EntryAttributes { set, keeps_time: false, last_change };
    let mut tree = FileTree { roots: vec![attributes(root_set, last_change)], ..FileTree::default() };
    for (place, entry) in present {
        let path = path_of(*place);
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        let has_parent = parent.is_none_or(|parent| {
            matches!(tree.entries.get(&(0, parent.into())), Some(TreeEntry::Directory { .. }))
        });
        let own_node = *place as NodeId;
        let entry = match *entry {
            _ if !has_parent => continue,
            RandomEntry::Absent => continue,
            RandomEntry::Directory { set } => {
                TreeEntry::Directory { attributes: attributes(set, last_change) }
            }
            RandomEntry::File { length, offset, set, node } => {
                let mut content = FileContent::default();
                if LENGTHS[length] > 0 {
                    content.put(0, LENGTHS[length], ByteSource::PayloadLog(offset * PAGE_BYTES));
                }
                // All names of one file have the same content.
                let shared = node.and_then(|node| {
                    tree.entries
                        .values()
                        .find(|entry| matches!(entry, TreeEntry::File { node: other, .. } if *other == node))
                });
                let attributes = attributes(set, offset as u32);
                let new = TreeEntry::File { node: node.unwrap_or(own_node), content, attributes };
                shared.cloned().unwrap_or(new)
            }
            RandomEntry::Symlink => TreeEntry::Symlink {
                node: own_node,
                target: "a".into(),
                attributes: EntryAttributes { keeps_time: true, ..attributes(0, 0) },
            },
            RandomEntry::Pipe => TreeEntry::Pipe { node: own_node, attributes: attributes(0, 0) },
        };
        tree.entries.insert((0, path), entry);
    }
    tree
}

/// All that a target can see of a name, but for its inode number and the time of its last change of status.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    kind: FileType,
    attributes: FileAttributes,
    /// In a file system in memory, a directory counts those in it.
    links: u64,
    len: u64,
    blocks: u64,
    content: Vec<u8>,
}

/// What is below a directory, in the order in which it is listed.
fn list(top: &Path, relative: &Path, all: &mut Vec<Seen>) {
    let path = top.join(relative);
    let metadata = path.symlink_metadata().unwrap();
    let kind = metadata.file_type();
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = nix::fcntl::open(&path, flags, Mode::empty()).unwrap();
    all.push(Seen {
        path: relative.into(),
        kind,
        attributes: FileAttributes::read(opened.as_fd()).unwrap(),
        links: metadata.nlink(),
        len: metadata.len(),
        blocks: metadata.blocks(),
        content: Vec::new(),
    });
    if kind.is_dir() {
        let names: Vec<_> =
            std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.iter().for_each(|name| list(top, &relative.join(name), all));
    }
}

/// All that is in a directory. The contents come last: to read one changes when all names of the file were read.
fn seen(top: &Path) -> Vec<Seen> {
    let mut all = Vec::new();
    list(top, Path::new(""), &mut all);
    for Seen { path, kind, content, .. } in &mut all {
        if kind.is_file() {
            *content = std::fs::read(top.join(path)).unwrap();
        } else if kind.is_symlink() {
            *content = std::fs::read_link(top.join(path)).unwrap().into_os_string().into_encoded_bytes();
        }
    }
    all
}

/// What a recovery does to one name, if it can.
type RecoveryDeed = fn(&Path) -> std::io::Result<()>;

const DEEDS: [RecoveryDeed; 16] = [
    |_| Ok(()),
    |path| std::fs::read(path).map(drop),
    |path| std::fs::read_dir(path).map(drop),
    |path| OpenOptions::new().write(true).open(path)?.write_all_at(b"damaged", 20),
    |path| OpenOptions::new().write(true).open(path)?.set_len(10),
    |path| OpenOptions::new().write(true).open(path).map(drop),
    |path| std::fs::set_permissions(path, Permissions::from_mode(0o777)),
    |path| std::fs::remove_file(path).or_else(|_| std::fs::remove_dir_all(path)),
    |path| std::fs::rename(path, path.with_extension("moved")),
    |path| {
        std::fs::rename(path, path.with_extension("moved"))
            .and_then(|()| std::fs::rename(path.with_extension("moved"), path))
    },
    |path| std::fs::hard_link(path, path.with_extension("linked")),
    |path| std::fs::create_dir_all(path.join("more")),
    |path| std::fs::write(path.with_extension("new"), "new"),
    |path| symlink("nothing", path.with_extension("link")),
    |path| std::fs::read(path).and_then(|bytes| std::fs::write(path, bytes)),
    |path| File::open(path)?.set_modified(std::time::SystemTime::UNIX_EPOCH),
];

fn place_in(dir: &TempDir) -> MaterializePlace {
    std::fs::create_dir(dir.path().join("0")).unwrap();
    MaterializePlace { base: dir.path().into(), dir_names: vec!["0".into()], began_unix_s: 1_000 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_that_follows_another_is_the_tree_that_is_built_from_nothing(
        steps in steps(), in_memory in prop::bool::weighted(0.8)
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let new_dir = || match in_memory {
            // Without it, each tree is built from nothing.
            true => tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()),
            false => tempfile::tempdir(),
        };
        let recording = recording(scratch.path(), xattrs_in(new_dir().unwrap().path()));
        let (small_files, dir) = (SmallFileCache::default(), new_dir().unwrap());
        let mut one_place = Materializer::new(&recording, &small_files, place_in(&dir), 1 << 20).unwrap();
        let mut present = BTreeMap::new();
        for step in steps {
            present.extend(step.changes);
            let tree = tree_of(&present, step.root_set, step.last_change);
            one_place.materialize(tree.clone()).unwrap();
            let fresh_dir = new_dir().unwrap();
            let mut fresh = Materializer::new(&recording, &small_files, place_in(&fresh_dir), 0).unwrap();
            fresh.materialize(tree).unwrap();
            // What a recovery does, or that it looks at everything.
            let (deed, place) = step.deed;
            if deed % 2 == 0 {
                prop_assert_eq!(seen(&dir.path().join("0")), seen(&fresh_dir.path().join("0")));
            }
            let path = dir.path().join("0").join(path_of(place));
            // To open a pipe would wait for its other end.
            if !path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo()) {
                let _ = DEEDS[deed](&path);
            }
            fresh.clear().unwrap();
        }
        one_place.clear().unwrap();
    }
}
