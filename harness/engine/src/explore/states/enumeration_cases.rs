//! Recordings whose states were once not tried, or took too long. Tests only.

use std::collections::BTreeMap;
use std::path::PathBuf;

use scenarios::{CrashCategory, EnumerationRule, PAGE_BYTES};

use super::{Enumeration, ExploreScope, FsModel, TreeEntry, enumerate};
use crate::explore::record::{
    ByteSource, FileAttributes, FileContent, FileNode, FileNodeKind, NameChange, NodeId, Op, OpEffect,
    OpKind, Recording, RecordingGaps,
};

/// Node 0 is the watched directory, node 1 a file `old` of 16 pages.
struct CaseRecording {
    recording: Recording,
    payload_len: u64,
}

impl CaseRecording {
    fn new() -> CaseRecording {
        let kind = FileNodeKind::File { initial_len_bytes: 16 * PAGE_BYTES };
        let recording = Recording {
            roots: vec!["/watched".into()],
            nodes: vec![FileNode::directory(), FileNode { attributes: 0, kind }],
            attribute_sets: vec![FileAttributes::with_mode(0o755)],
            initial_names: BTreeMap::from([(0, BTreeMap::from([("old".into(), 1)]))]),
            initial_paths: BTreeMap::new(),
            ops: Vec::new(),
            payload_log: PathBuf::new(),
            gaps: RecordingGaps::default(),
            format_boundaries: BTreeMap::new(),
            acknowledged_before: None,
            lower_layers: Vec::new(),
        };
        CaseRecording { recording, payload_len: 0 }
    }

    fn push(&mut self, kind: OpKind, effect: OpEffect) {
        self.recording.ops.push(Op { kind, effect, text: String::new() });
    }

    fn create(&mut self, name: &str) -> NodeId {
        self.recording.nodes.push(FileNode::new_file());
        let node = self.recording.nodes.len() as NodeId - 1;
        let change = NameChange { dir: 0, name: name.into(), node: Some(node) };
        self.push(OpKind::Create, OpEffect::NameChanges(vec![change]));
        node
    }

    fn rename(&mut self, node: NodeId, from: &str, to: &str) {
        let new = NameChange { dir: 0, name: to.into(), node: Some(node) };
        let old = NameChange { dir: 0, name: from.into(), node: None };
        self.push(OpKind::Rename, OpEffect::NameChanges(vec![new, old]));
    }

    fn write(&mut self, node: NodeId, first_page: u64, pages: u64) {
        let (offset, len_bytes, payload_offset) =
            (first_page * PAGE_BYTES, pages * PAGE_BYTES, self.payload_len);
        self.payload_len += len_bytes;
        self.push(OpKind::Write, OpEffect::Write { node, offset, len_bytes, payload_offset });
    }

    fn print(&mut self, saved_step: Option<u64>) {
        let effect = OpEffect::Output { line: "line".into(), saved_step, on_stdio: true };
        self.push(OpKind::Output, effect);
    }

    /// A save of several files, none of which is synced.
    fn save_unsynced(&mut self, step: u64, files: u32) {
        for file in 0..files {
            let node = self.create(&format!("{step}-{file}.tmp"));
            self.write(node, 0, 1);
            self.rename(node, &format!("{step}-{file}.tmp"), &format!("{step}-{file}"));
        }
        self.print(Some(step));
    }

    fn enumerate(&self, models: &[FsModel]) -> Enumeration {
        let scope = ExploreScope {
            process_crashes: true,
            models: models.to_vec(),
            max_states: usize::MAX,
            crash_points: None,
        };
        enumerate(&self.recording, &scope)
    }

    /// Whether some state has a file with this content.
    fn has_state(&self, model: FsModel, name: &str, content: &FileContent) -> bool {
        self.enumerate(&[model]).states.iter().any(|state| {
            let tree = state.candidate().tree(&self.recording);
            let entry = tree.entries.get(&(0, PathBuf::from(name)));
            matches!(entry, Some(TreeEntry::File { content: found, .. }) if found == content)
        })
    }
}

/// The reader of such a file may look only at its beginning and its end.
#[test]
fn a_renamed_file_of_many_writes_can_have_a_hole_in_the_middle() {
    for hole in [1, 5, 10] {
        let mut case = CaseRecording::new();
        let node = case.create("tmp");
        (0..12).for_each(|page| case.write(node, page, 1));
        case.rename(node, "tmp", "new");
        let mut content = FileContent::default();
        for page in (0..12).filter(|page| *page != hole) {
            let source = ByteSource::PayloadLog(page * PAGE_BYTES);
            content.put(page * PAGE_BYTES, PAGE_BYTES, source);
        }
        assert!(case.has_state(FsModel::Ext4, "new", &content), "ext4, {hole}");
        assert!(case.has_state(FsModel::Posix, "new", &content), "posix, {hole}");
        assert!(!case.has_state(FsModel::Btrfs, "new", &content), "btrfs, {hole}");
    }
}

#[test]
fn one_write_in_place_can_leave_old_pages_between_new_ones() {
    let mut case = CaseRecording::new();
    case.write(1, 0, 16);
    let mut content = FileContent::initial(1, 16 * PAGE_BYTES);
    let payload = ByteSource::PayloadLog;
    content.put(0, PAGE_BYTES, payload(0));
    content.put(15 * PAGE_BYTES, PAGE_BYTES, payload(15 * PAGE_BYTES));
    for model in [FsModel::Ext4, FsModel::Xfs, FsModel::Posix] {
        assert!(case.has_state(model, "old", &content), "{model:?}");
    }
    assert!(!case.has_state(FsModel::Btrfs, "old", &content));
}

#[test]
fn lines_of_output_that_acknowledge_nothing_add_no_candidates() {
    let with_lines = |lines: usize| {
        let mut case = CaseRecording::new();
        for step in 1..=3 {
            (0..lines).for_each(|_| case.print(None));
            case.save_unsynced(step, 2);
        }
        case.enumerate(&FsModel::ALL).counts
    };
    assert_eq!(with_lines(500), with_lines(0));
}

/// Without any bound, the states of this one are hundreds of millions.
#[test]
fn many_files_that_are_never_synced_are_sampled_and_the_rest_is_counted() {
    let mut case = CaseRecording::new();
    (1..=25).for_each(|step| case.save_unsynced(step, 8));
    let counts = case.enumerate(&[FsModel::Posix]).counts;
    assert!(counts.not_enumerated_by_rule[&EnumerationRule::Budget].count > 1_000_000, "{counts:?}");
    assert!((10_000..200_000).contains(&counts.states), "{}", counts.states);
    // Every kill is tried all the same, and each crash point has power losses.
    let points = case.recording.ops.len() as u64 + 1;
    assert_eq!(counts.candidates[&CrashCategory::Process], points);
    assert!(counts.candidates[&CrashCategory::Power] > 8 * points, "{counts:?}");
}

#[test]
fn the_same_recording_has_the_same_states_in_the_same_order() {
    let mut case = CaseRecording::new();
    (1..=3).for_each(|step| case.save_unsynced(step, 4));
    let names = || -> Vec<String> {
        let states = case.enumerate(&FsModel::ALL).states;
        states.iter().map(|state| state.candidate().name()).collect()
    };
    assert_eq!(names(), names());
}

#[test]
fn what_btrfs_may_write_with_another_sync_is_counted() {
    let early = |case: &CaseRecording, model: FsModel| {
        let by_rule = case.enumerate(&[model]).counts.not_enumerated_by_rule;
        by_rule.get(&EnumerationRule::EarlyChanges).map(|counted| (counted.count, counted.at_least))
    };
    let sync = |case: &mut CaseRecording, node| {
        case.push(OpKind::Fsync, OpEffect::Sync { node, data_only: false });
    };
    // A file that was synced is renamed: one more candidate at each crash point until everything is synced.
    let mut renamed = CaseRecording::new();
    let node = renamed.create("a");
    renamed.rename(node, "a", "b");
    assert_eq!(early(&renamed, FsModel::Btrfs), None, "it was not synced");
    sync(&mut renamed, node);
    renamed.rename(node, "b", "c");
    renamed.create("d");
    assert_eq!(early(&renamed, FsModel::Btrfs), Some((4, true)), "two names at each of two crash points");
    assert_eq!(early(&renamed, FsModel::Ext4), None);
    renamed.push(OpKind::Sync, OpEffect::SyncAll);
    renamed.create("e");
    assert_eq!(early(&renamed, FsModel::Btrfs), Some((4, true)));
    // The directory of a file that was not synced is synced.
    let mut listed = CaseRecording::new();
    let node = listed.create("a");
    listed.write(node, 0, 1);
    assert_eq!(early(&listed, FsModel::Btrfs), None);
    sync(&mut listed, 0);
    let counted = early(&listed, FsModel::Btrfs);
    assert!(counted.is_some_and(|(count, at_least)| count > 0 && at_least), "{counted:?}");
    sync(&mut listed, node);
    listed.create("b");
    assert_eq!(early(&listed, FsModel::Btrfs), counted, "it is durable");
}
