//! Times single functions of the explorer: enumerating crash states, and materializing one state.
//!
//! Run: `cargo bench -p engine`. Whole programs are compared in `benches/ratios`
//! instead.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::explore::{
    CrashCandidate, ExploreScope, FileNode, FsModel, NameChange, NodeId, Op, OpEffect, Recording,
    RecordingGaps, enumerate, materialize,
};

/// Bytes of one write of a checkpoint file.
const WRITE_BYTES: u64 = 32 * 1024;

/// A synthetic recording: each save writes a temporary directory with three files of two writes, syncs,
/// renames it, and removes the checkpoint before it. 22 operations a save.
struct SaveRecording {
    recording: Recording,
}

impl SaveRecording {
    fn new(payload_log: PathBuf, saves: u32) -> SaveRecording {
        let recording = Recording {
            roots: vec!["/watched".into()],
            nodes: vec![FileNode::Directory { mode: 0o755 }],
            initial_names: BTreeMap::from([(0, BTreeMap::new())]),
            initial_paths: BTreeMap::new(),
            ops: Vec::new(),
            payload_log,
            gaps: RecordingGaps::default(),
            format_boundaries: BTreeMap::new(),
            acknowledged_before: None,
        };
        let mut synthetic = SaveRecording { recording };
        let mut previous = None;
        for save in 1..=saves {
            previous = Some(synthetic.save(save, previous));
        }
        synthetic
    }

    fn add_node(&mut self, node: FileNode) -> NodeId {
        self.recording.nodes.push(node);
        self.recording.nodes.len() as NodeId - 1
    }

    fn push(&mut self, effect: OpEffect, text: String) {
        self.recording.ops.push(Op { effect, text });
    }

    fn set_name(&mut self, dir: NodeId, name: &str, node: Option<NodeId>, text: String) {
        let change = NameChange { dir, name: name.into(), node };
        self.push(OpEffect::NameChanges(vec![change]), text);
    }

    fn save(&mut self, save: u32, previous: Option<(String, NodeId)>) -> (String, NodeId) {
        let (temporary, name) = (format!(".tmp-{save}"), format!("step-{save}"));
        let dir = self.add_node(FileNode::Directory { mode: 0o755 });
        self.set_name(0, &temporary, Some(dir), format!("mkdir({temporary})"));
        for file in ["adapter", "optimizer", "manifest"] {
            let node = self.add_node(FileNode::File { mode: 0o644, initial_len_bytes: 0 });
            self.set_name(dir, file, Some(node), format!("create({temporary}/{file})"));
            for part in 0..2 {
                let offset = part * WRITE_BYTES;
                let effect = OpEffect::Write { node, offset, len_bytes: WRITE_BYTES, payload_offset: offset };
                self.push(effect, format!("write({temporary}/{file}, {WRITE_BYTES} bytes at {offset})"));
            }
            self.push(OpEffect::Sync { node, data_only: false }, format!("fsync({temporary}/{file})"));
        }
        self.push(OpEffect::Sync { node: dir, data_only: false }, format!("fsync({temporary})"));
        let moved = [
            NameChange { dir: 0, name: name.clone().into(), node: Some(dir) },
            NameChange { dir: 0, name: temporary.clone().into(), node: None },
        ];
        self.push(OpEffect::NameChanges(moved.into()), format!("rename({temporary}, {name})"));
        self.push(OpEffect::Sync { node: 0, data_only: false }, "fsync(.)".into());
        let line = format!("saved step {save}");
        let effect = OpEffect::Output { line: line.clone(), saved_step: Some(save.into()), on_stdio: true };
        self.push(effect, format!("output({line})"));
        if let Some((old, node)) = previous {
            for file in ["adapter", "optimizer", "manifest"] {
                self.set_name(node, file, None, format!("unlink({old}/{file})"));
            }
            self.set_name(0, &old, None, format!("rmdir({old})"));
        }
        (name, dir)
    }
}

fn scope(model: FsModel) -> ExploreScope {
    let models = vec![model];
    ExploreScope { process_crashes: true, models, max_states: usize::MAX, crash_points: None }
}

fn enumeration(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("enumerate crash states");
    for saves in [1, 4] {
        let recording = SaveRecording::new(PathBuf::new(), saves).recording;
        for model in [FsModel::Posix, FsModel::Ext4] {
            let states = enumerate(&recording, &scope(model)).states.len() as u64;
            group.throughput(Throughput::Elements(states));
            let id = BenchmarkId::new(model.name(), format!("{saves} saves, {states} states"));
            group.bench_function(id, |bencher| bencher.iter(|| enumerate(&recording, &scope(model))));
        }
    }
    group.finish();
}

fn materializing(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("payload");
    std::fs::write(&log, vec![7; 2 * WRITE_BYTES as usize]).unwrap();
    let recording = SaveRecording::new(log, 4).recording;
    let candidate = CrashCandidate::whole(recording.ops.len());
    let mut group = criterion.benchmark_group("materialize a state");
    group.throughput(Throughput::Bytes(6 * WRITE_BYTES));
    group.bench_function("one checkpoint of three files of 64 KiB", |bencher| {
        let empty = || {
            let base = tempfile::tempdir_in(dir.path()).unwrap();
            std::fs::create_dir(base.path().join("0")).unwrap();
            base
        };
        let run = |base: tempfile::TempDir| {
            let path: &Path = base.path();
            materialize(&recording, &candidate, (path, vec!["0".into()]), 1_700_000_000).unwrap();
            base
        };
        bencher.iter_batched(empty, run, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, enumeration, materializing);
criterion_main!(benches);
