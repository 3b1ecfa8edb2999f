//! Compares the model of ext4 with a real ext4: a file system on a loop device is shut down at random points
//! of a recorded run. The files after the journal is replayed must be among the states that the model allows.
//!
//! `cargo test -p trainwreck --test ext4`, as root. `SEED=N` repeats a failure. Not covered: the other file
//! systems.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first failure, and prints how many crashes it compared"
)]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
#[path = "../support/mod.rs"]
mod support;
mod sys;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};

use engine::explore::{
    ContentReader, CrashCandidate, ExploreScope, FileTree, FsModel, OpRecorder, RecorderConfig, Recording,
    TreeEntry, WatchedRoot, enumerate,
};
use engine::gate::{
    CallDecision, CallEffect, CallHandler, FileId, FilterOptions, GateFailure, InterceptedCall,
};
use libtest_mimic::Failed;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use support::command::saver;
use support::machine::{GATE, missing};
use support::watched_sandbox::WatchedSandbox;
use sys::{ShutdownMode, shut_down};

/// The files below the watched directory with their bytes; `None` for directories.
type Files = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Records, and shuts the file system down after a number of operations. Unlike in the explorer, syncs are
/// performed.
struct ShutdownRecorder {
    recorder: OpRecorder,
    shutdown_after_ops: u64,
    op_count: u64,
    disk: File,
    shutdown_mode: ShutdownMode,
}

impl CallHandler for ShutdownRecorder {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision {
        self.recorder.decide(call)
    }

    fn on_payload(&mut self, bytes: &[u8]) {
        self.recorder.on_payload(bytes);
    }

    fn on_effect(&mut self, effect: CallEffect) {
        if self.op_count > self.shutdown_after_ops {
            return;
        }
        self.recorder.on_effect(effect);
        self.op_count += 1;
        if self.op_count > self.shutdown_after_ops {
            shut_down(&self.disk, self.shutdown_mode).unwrap();
        }
    }

    fn observes_pipe(&self, _: FileId) -> bool {
        false
    }

    fn on_failure(&mut self, failure: GateFailure) {
        panic!("{failure}");
    }
}

/// A mounted ext4 file system on a loop device. Dropping it unmounts it.
struct LoopDisk {
    image: PathBuf,
    mount_point: PathBuf,
}

impl LoopDisk {
    /// Makes the file system in an image in `dir`. Fails where this machine cannot do it.
    fn new(dir: &Path) -> Result<LoopDisk, Failed> {
        let disk = LoopDisk { image: dir.join("image"), mount_point: dir.join("disk") };
        std::fs::create_dir_all(&disk.mount_point).unwrap();
        File::create(&disk.image).unwrap().set_len(48 << 20).unwrap();
        let options = "lazy_itable_init=0,lazy_journal_init=0";
        run_command(Command::new("mkfs.ext4").args(["-q", "-F", "-E", options]).arg(&disk.image))?;
        disk.mount()?;
        std::fs::create_dir(disk.mount_point.join("work")).unwrap();
        nix::unistd::syncfs(File::open(&disk.mount_point).unwrap()).unwrap();
        Ok(disk)
    }

    fn mount(&self) -> Result<(), Failed> {
        run_command(
            Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&self.image).arg(&self.mount_point),
        )
    }

    fn remount(&self) {
        umount2(&self.mount_point, MntFlags::empty()).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.mount_point, MntFlags::MNT_DETACH);
    }
}

fn run_command(command: &mut Command) -> Result<(), Failed> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
    }
}

/// Runs the program until the file system is shut down after `shutdown_after_ops` operations, or to its end.
/// Returns the recording, and the files after a new mount.
fn record_and_crash(
    disk: &LoopDisk,
    command: &[&str],
    shutdown_after_ops: u64,
    shutdown_mode: ShutdownMode,
) -> (Recording, Files) {
    let real = disk.mount_point.join("work");
    let setup = WatchedSandbox::of(real.clone());
    // The recording reads it after the sandbox is gone.
    let payload_log = disk.image.with_file_name("payload-log");
    let config = RecorderConfig {
        roots: &[WatchedRoot { seen_by_target: setup.watched.clone(), seen_by_harness: real }],
        originals: &[vec![setup.watched.clone()]],
        payload_log: &payload_log,
        output_pipes: Vec::new(),
        saved_pattern: None,
        announced: Vec::new(),
        phase: None,
    };
    let recorder = OpRecorder::new(config).unwrap();
    let shutdown_recorder = ShutdownRecorder {
        recorder,
        shutdown_after_ops,
        op_count: 0,
        disk: File::open(&disk.mount_point).unwrap(),
        shutdown_mode,
    };
    let shutdown_recorder = Arc::new(Mutex::new(shutdown_recorder));
    let watched = setup.watched.to_str().unwrap();
    let argv: Vec<String> = command.iter().map(|argument| argument.replace("WATCH", watched)).collect();
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    setup.run(
        &argv,
        &FilterOptions { extra_kinds: Vec::new(), connections: false, ..FilterOptions::default() },
        &shutdown_recorder,
    );
    setup.sandbox.close().unwrap();
    let mut shutdown_recorder = shutdown_recorder.lock().unwrap();
    if shutdown_recorder.op_count <= shutdown_recorder.shutdown_after_ops {
        shut_down(&shutdown_recorder.disk, shutdown_mode).unwrap();
    }
    // Shared mappings cannot be read any more; the trainer uses none.
    let recording = shutdown_recorder.recorder.finish().unwrap();
    // The descriptor would keep the file system busy.
    shutdown_recorder.disk = File::open("/dev/null").unwrap();
    disk.remount();
    let mut files = Files::new();
    read_files_below(&disk.mount_point.join("work"), Path::new(""), &mut files);
    (recording, files)
}

fn read_files_below(top: &Path, below: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(top.join(below)).unwrap().map(Result::unwrap) {
        let path = below.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            files.insert(path.clone(), None);
            read_files_below(top, &path, files);
        } else {
            files.insert(path, Some(std::fs::read(entry.path()).unwrap()));
        }
    }
}

fn files_of(tree: &FileTree, reader: &mut ContentReader<'_>) -> Files {
    let bytes = |leaf: &TreeEntry, reader: &mut ContentReader<'_>| match leaf {
        TreeEntry::File { content, .. } => Some(content.head(reader, u64::MAX).unwrap()),
        _ => None,
    };
    tree.entries.iter().map(|((_, path), leaf)| (path.clone(), bytes(leaf, reader))).collect()
}

/// Explains what the model does not allow; `None`: it allows these files. The names must be those of one of
/// the states. The bytes of each file must be those that it has in one of the states with these names: the
/// files persist independently.
fn explain_mismatch(recording: &Recording, actual: &Files, states: &[CrashCandidate]) -> Option<String> {
    let mut reader = ContentReader::new(recording).unwrap();
    let mut possible: BTreeMap<&Path, Vec<Option<Vec<u8>>>> = BTreeMap::new();
    let mut names_match = false;
    for candidate in states {
        let files = files_of(&candidate.tree(recording), &mut reader);
        if files.keys().eq(actual.keys()) {
            names_match = true;
            for ((path, _), bytes) in actual.iter().zip(files.into_values()) {
                possible.entry(path).or_default().push(bytes);
            }
        }
    }
    if !names_match {
        return Some(format!("no state has these names: {:?}", actual.keys().collect::<Vec<_>>()));
    }
    actual.iter().find(|(path, bytes)| !possible[path.as_path()].contains(bytes)).map(|(path, bytes)| {
        let possible_lens: Vec<_> = possible[path.as_path()].iter().flatten().map(Vec::len).collect();
        let actual_len = bytes.as_ref().map(Vec::len);
        let zeroes = bytes.iter().flatten().filter(|byte| **byte == 0).count();
        let first_zero = bytes.iter().flatten().position(|byte| *byte == 0);
        format!(
            "`{}` has {actual_len:?} bytes ({zeroes} zeroes, the first at {first_zero:?}), as in no state; \
             their lengths are {possible_lens:?}",
            path.display()
        )
    })
}

/// The candidates of a crash after the last operation.
fn allowed_candidates(recording: &Recording, model: FsModel) -> Vec<CrashCandidate> {
    let crash_points = Some([recording.ops.len()].into());
    let scope =
        ExploreScope { process_crashes: false, models: vec![model], max_states: usize::MAX, crash_points };
    enumerate(recording, &scope).states.into_iter().map(|state| state.candidate().clone()).collect()
}

/// A pseudo-random generator. A failure reports its seed.
struct SeededRandom(u64);

impl SeededRandom {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn seed() -> u64 {
    let given = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
    let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    given.unwrap_or_else(|| clock() as u64)
}

/// Crashes for each mode and style; each takes some milliseconds.
const ROUNDS_PER_MODE: usize = 5;
const STYLES: [&str; 8] = [
    "correct",
    "in-place",
    "no-fsync",
    "no-directory-fsync",
    "delete-first",
    "marker-first",
    "manifest-first",
    "two-files",
];

fn main() -> ExitCode {
    engine::sandbox::run_init_if_requested();
    let missing = enter_private_mount_namespace().or_else(|| missing(&GATE)).or_else(|| {
        let error = LoopDisk::new(tempfile::tempdir().unwrap().path()).err()?;
        error.message().map(str::to_owned)
    });
    support::trial::run(trials![missing; the_model_allows_what_a_real_ext4_leaves])
}

/// Later mounts are visible to this process only, and end with it. Returns the reason if that is impossible.
fn enter_private_mount_namespace() -> Option<String> {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
        return Some(format!("could not create a mount namespace: {error}"));
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let made_private = mount(None::<&str>, "/", None::<&str>, private, None::<&str>);
    made_private.err().map(|error| format!("could not make the mounts private: {error}"))
}

fn the_model_allows_what_a_real_ext4_leaves() -> Result<(), Failed> {
    let seed = seed();
    let mut random = SeededRandom(seed);
    let saver = saver();
    let (mut rounds, mut beyond_process_crash) = (0, 0);
    for style in STYLES {
        for shutdown_mode in [ShutdownMode::LogFlush, ShutdownMode::NoLogFlush, ShutdownMode::NoLogFlush]
            .repeat(ROUNDS_PER_MODE)
        {
            let dir = tempfile::tempdir().unwrap();
            let disk = LoopDisk::new(dir.path())?;
            let shutdown_after_ops = random.below(60);
            let command = [saver.to_str().unwrap(), style, "WATCH", "8", "20"];
            let (recording, actual) = record_and_crash(&disk, &command, shutdown_after_ops, shutdown_mode);
            let round = format!(
                "SEED={seed}, {style} shut down after {shutdown_after_ops} operations, {shutdown_mode:?}"
            );
            let mismatch =
                explain_mismatch(&recording, &actual, &allowed_candidates(&recording, FsModel::Ext4));
            let operations =
                || recording.ops.iter().map(|op| op.text.as_str()).collect::<Vec<_>>().join("\n");
            assert_eq!(mismatch, None, "{round}\n{}", operations());
            // The known-bad model allows process crashes only: it must not explain every round.
            let process_crash = [CrashCandidate::whole(recording.ops.len())];
            beyond_process_crash +=
                u32::from(explain_mismatch(&recording, &actual, &process_crash).is_some());
            rounds += 1;
        }
    }
    eprintln!(
        "{rounds} crashes of a real ext4; {beyond_process_crash} of them left files that no process crash \
         can leave"
    );
    assert!(beyond_process_crash > 0);
    Ok(())
}
