//! Times single functions of the explorer: enumerating crash states, and materializing one state.
//!
//! Run: `cargo bench -p engine`. Whole programs are compared in `benches/ratios`
//! instead.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::explore::{
    CrashCandidate, ExploreScope, FileAttributes, FileNode, FsModel, MaterializePlace, NameChange, NodeId,
    Op, OpEffect, OpKind, Recording, RecordingGaps, enumerate, materialize,
};

/// Bytes of one write of a checkpoint file.
const WRITE_BYTES: u64 = 32 * 1024;

/// The files of a checkpoint.
const FILES: [&str; 3] = ["adapter", "optimizer", "manifest"];

/// A checkpoint directory under its final name.
struct Checkpoint {
    name: String,
    node: NodeId,
}

/// A synthetic recording: each save writes a temporary directory with three files of two writes, syncs,
/// renames it, and removes the checkpoint before it. 22 operations a save.
struct SaveRecording {
    recording: Recording,
}

impl SaveRecording {
    fn new(payload_log: PathBuf, saves: u32) -> SaveRecording {
        let recording = Recording {
            roots: vec!["/watched".into()],
            nodes: vec![FileNode::directory()],
            attribute_sets: vec![FileAttributes::with_mode(0o755)],
            initial_names: BTreeMap::from([(0, BTreeMap::new())]),
            initial_paths: BTreeMap::new(),
            ops: Vec::new(),
            payload_log,
            gaps: RecordingGaps::default(),
            format_boundaries: BTreeMap::new(),
            acknowledged_before: None,
            lower_layers: Vec::new(),
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

    fn push(&mut self, kind: OpKind, effect: OpEffect, operands: &str) {
        let text = format!("{}({operands})", kind.name());
        self.recording.ops.push(Op { kind, effect, text });
    }

    fn set_name(&mut self, kind: OpKind, change: NameChange, path: &str) {
        self.push(kind, OpEffect::NameChanges(vec![change]), path);
    }

    fn save(&mut self, save: u32, previous: Option<Checkpoint>) -> Checkpoint {
        let (temporary, name) = (format!(".tmp-{save}"), format!("step-{save}"));
        let node = self.add_node(FileNode::directory());
        let new_name = |dir, name: &str, node| NameChange { dir, name: name.into(), node };
        self.set_name(OpKind::Mkdir, new_name(0, &temporary, Some(node)), &temporary);
        for file in FILES {
            self.write_file(node, file, &format!("{temporary}/{file}"));
        }
        self.push(OpKind::Fsync, OpEffect::Sync { node, data_only: false }, &temporary);
        let moved = vec![new_name(0, &name, Some(node)), new_name(0, &temporary, None)];
        self.push(OpKind::Rename, OpEffect::NameChanges(moved), &format!("{temporary}, {name}"));
        self.push(OpKind::Fsync, OpEffect::Sync { node: 0, data_only: false }, ".");
        let line = format!("saved step {save}");
        let effect = OpEffect::Output { line: line.clone(), saved_step: Some(save.into()), on_stdio: true };
        self.push(OpKind::Output, effect, &line);
        if let Some(old) = previous {
            for file in FILES {
                let change = new_name(old.node, file, None);
                self.set_name(OpKind::Unlink, change, &format!("{}/{file}", old.name));
            }
            self.set_name(OpKind::Rmdir, new_name(0, &old.name, None), &old.name);
        }
        Checkpoint { name, node }
    }

    fn write_file(&mut self, dir: NodeId, name: &str, path: &str) {
        let node = self.add_node(FileNode::new_file());
        self.set_name(OpKind::Create, NameChange { dir, name: name.into(), node: Some(node) }, path);
        for offset in [0, WRITE_BYTES] {
            let effect = OpEffect::Write { node, offset, len_bytes: WRITE_BYTES, payload_offset: offset };
            self.push(OpKind::Write, effect, &format!("{path}, {WRITE_BYTES} bytes at {offset}"));
        }
        self.push(OpKind::Fsync, OpEffect::Sync { node, data_only: false }, path);
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
    // Without syncs nothing ever leaves the pending changes: the budget bounds what is enumerated.
    for saves in [10, 40] {
        let mut recording = SaveRecording::new(PathBuf::new(), saves).recording;
        recording.ops.retain(|op| !matches!(op.effect, OpEffect::Sync { .. }));
        group.throughput(Throughput::Elements(recording.ops.len() as u64));
        let id = BenchmarkId::new("ext4, operations without syncs", recording.ops.len());
        group.sample_size(10);
        group.bench_function(id, |bencher| bencher.iter(|| enumerate(&recording, &scope(FsModel::Ext4))));
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
            let place = MaterializePlace {
                base: base.path().into(),
                dir_names: vec!["0".into()],
                began_unix_s: 1_700_000_000,
            };
            materialize(&recording, &candidate, place).unwrap();
            base
        };
        bencher.iter_batched(empty, run, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, enumeration, materializing);
criterion_main!(benches);
