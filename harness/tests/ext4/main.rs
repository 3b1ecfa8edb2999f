//! The model of ext4 against ext4: a real one, on a loop device, is shut down at random moments of a recorded run, and
//! what is found after its journal was replayed must be among the states that the model allows.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is not as it should be, and says what it skips"
)]

mod sys;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use trainwreck::explore::{
    ContentReader, CrashCandidate, ExploreScope, FileTree, FsModel, OpRecorder, RecorderConfig, Recording,
    TreeEntry, enumerate,
};
use trainwreck::gate::{
    CallDecision, CallEffect, CallHandler, FileId, FilterOptions, InterceptedCall, WatchedMounts,
    build_filter, mount_id, serve_notifications,
};
use trainwreck::sandbox::{BindMount, LaunchSpec, Sandbox, SandboxSpec};

use sys::{ShutdownMode, shut_down};

/// Files and folders below the watched one, with their bytes.
type Files = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Records; after so many operations the file system goes away. Syncs are real ones here.
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

    fn on_effect(&mut self, done: CallEffect) {
        if self.op_count > self.shutdown_after_ops {
            return;
        }
        self.recorder.on_effect(done);
        self.op_count += 1;
        if self.op_count > self.shutdown_after_ops {
            shut_down(&self.disk, self.shutdown_mode).unwrap();
        }
    }

    fn observes_pipe(&self, _: FileId) -> bool {
        false
    }
}

/// A loop device with an ext4 on it, mounted; gone when dropped.
struct LoopDisk {
    image: PathBuf,
    mount_point: PathBuf,
}

impl LoopDisk {
    /// `Err`: why this machine can't.
    fn new(dir: &Path) -> Result<LoopDisk, String> {
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

    fn mount(&self) -> Result<(), String> {
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

fn run_command(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Runs the program until the disk goes away after so many operations (or to its end); what was recorded and what is left.
fn record_and_crash(
    disk: &LoopDisk,
    dir: &Path,
    words: &[&str],
    after: u64,
    going: ShutdownMode,
) -> (Recording, Files) {
    let (real, watched) = (disk.mount_point.join("work"), dir.join("watched"));
    let room_dir = dir.join("room");
    [&watched, &room_dir].into_iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    let binds = vec![BindMount { source: real.clone(), mount_point: watched.clone() }];
    let room = Sandbox::build(SandboxSpec { dir: room_dir, mounts: Vec::new(), binds, memory_cgroup: false })
        .unwrap();
    let tape = dir.join("tape");
    let start = RecorderConfig {
        roots: &[(watched.clone(), real)],
        payload_log: &tape,
        output_pipes: Vec::new(),
        saved_pattern: None,
        internal_pattern: None,
    };
    let recorder = OpRecorder::new(start, std::slice::from_ref(&watched)).unwrap();
    let saboteur = ShutdownRecorder {
        recorder,
        shutdown_after_ops: after,
        op_count: 0,
        disk: File::open(&disk.mount_point).unwrap(),
        shutdown_mode: going,
    };
    let saboteur = Arc::new(Mutex::new(saboteur));
    let null = || File::create("/dev/null").unwrap().into();
    let of = WatchedMounts::new([mount_id(&room.host_path(&watched)).unwrap()]);
    let argv = words.iter().map(|word| word.replace("WATCH", watched.to_str().unwrap()).into()).collect();
    let launch = LaunchSpec { argv, env: Vec::new(), cwd: Some(watched) };
    let mut attendance = None;
    let program = build_filter(&FilterOptions { extra_kinds: Vec::new(), stdio_writes: false });
    let running = room
        .spawn_filtered(&launch, program, [null(), null()], |listener| {
            attendance = Some(serve_notifications(listener, of, Arc::clone(&saboteur)));
        })
        .unwrap();
    running.wait_timeout(Duration::from_secs(60)).expect("it ends");
    room.kill_all().unwrap();
    attendance.unwrap().join();
    room.close().unwrap();
    let mut saboteur = saboteur.lock().unwrap();
    if saboteur.op_count <= saboteur.shutdown_after_ops {
        shut_down(&saboteur.disk, going).unwrap();
    }
    // What mappings have changed can't be read any more.
    let recording = saboteur.recorder.finish().unwrap();
    // It holds the file system.
    saboteur.disk = File::open("/dev/null").unwrap();
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

/// None: the model allows what is there. Names must be those of one of its states, and each file's bytes what it has in one of
/// the states with these names: whether one file's data reached the disk says nothing of another's.
fn explain_mismatch(recording: &Recording, there: &Files, states: &[CrashCandidate]) -> Option<String> {
    let mut reader = ContentReader::new(recording).unwrap();
    let mut possible: BTreeMap<&Path, Vec<Option<Vec<u8>>>> = BTreeMap::new();
    let mut named = false;
    for candidate in states {
        let files = files_of(&candidate.tree(recording), &mut reader);
        if files.keys().eq(there.keys()) {
            named = true;
            for ((path, _), bytes) in there.iter().zip(files.into_values()) {
                possible.entry(path).or_default().push(bytes);
            }
        }
    }
    if !named {
        return Some(format!("no state has these names: {:?}", there.keys().collect::<Vec<_>>()));
    }
    there.iter().find(|(path, bytes)| !possible[path.as_path()].contains(bytes)).map(|(path, bytes)| {
        let had: Vec<_> = possible[path.as_path()].iter().flatten().map(Vec::len).collect();
        let there = bytes.as_ref().map(Vec::len);
        let zeroes = bytes.iter().flatten().filter(|byte| **byte == 0).count();
        let first = bytes.iter().flatten().position(|byte| *byte == 0);
        format!(
            "`{}` has {there:?} bytes ({zeroes} zeroes, from {first:?} on) that no state gives it: {had:?}",
            path.display()
        )
    })
}

fn allowed_candidates(recording: &Recording, model: FsModel) -> Vec<CrashCandidate> {
    let moments = Some([recording.ops.len()].into());
    let scope = ExploreScope {
        process_crashes: false,
        models: vec![model],
        max_states: usize::MAX,
        crash_points: moments,
    };
    enumerate(recording, &scope).states.into_iter().map(|state| state.candidate().clone()).collect()
}

/// Numbers that look random, from a seed that a failure names.
struct SeededRandom(u64);

impl SeededRandom {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn seed() -> u64 {
    let given = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
    let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    given.unwrap_or_else(|| clock() as u64)
}

/// Crashes of each kind in each style, some milliseconds each.
const ROUNDS_PER_MODE: usize = 5;
const STYLES: [&str; 8] = [
    "correct",
    "in-place",
    "no-fsync",
    "no-folder-fsync",
    "delete-first",
    "marker-first",
    "manifest-first",
    "two-files",
];

fn main() -> ExitCode {
    trainwreck::sandbox::run_init_if_requested();
    let missing = enter_private_mount_namespace()
        .and_then(|()| LoopDisk::new(tempfile::tempdir().unwrap().path()).map(drop))
        .err();
    missing.iter().for_each(|why| eprintln!("skipped: {why}"));
    let name = "what_a_real_ext4_leaves_is_among_the_states_of_the_model";
    let trial = Trial::test(name, compare_with_real_ext4).with_ignored_flag(missing.is_some());
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

/// Mounts that are made from now on are seen by nobody else, and end with this process.
fn enter_private_mount_namespace() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("a mount namespace of its own: {error}"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(|error| error.to_string())?;
    let gate =
        trainwreck::sandbox::doctor().into_iter().find(|one| one.name == "syscall-gate" && !one.granted);
    gate.map_or(Ok(()), |gate| Err(gate.detail))
}

fn compare_with_real_ext4() -> Result<(), Failed> {
    let seed = seed();
    let mut dice = SeededRandom(seed);
    let saver = Path::new(env!("CARGO_BIN_EXE_trainwreck")).parent().unwrap().join("examples/saver");
    let (mut rounds, mut more_than_a_kill) = (0, 0);
    for style in STYLES {
        for going in [ShutdownMode::LogFlush, ShutdownMode::NoLogFlush, ShutdownMode::NoLogFlush]
            .repeat(ROUNDS_PER_MODE)
        {
            let dir = tempfile::tempdir().unwrap();
            let disk = LoopDisk::new(dir.path())?;
            let after = dice.below(60);
            let words = [saver.to_str().unwrap(), style, "WATCH", "8", "20"];
            let (recording, there) = record_and_crash(&disk, dir.path(), &words, after, going);
            let named = format!("SEED={seed}, {style} shut down after {after} operations, {going:?}");
            let found = explain_mismatch(&recording, &there, &allowed_candidates(&recording, FsModel::Ext4));
            let last = || recording.ops.iter().map(|op| op.text.as_str()).collect::<Vec<_>>().join("\n");
            assert_eq!(found, None, "{named}\n{}", last());
            // The broken twin: a model that knows kills only is not enough.
            let killed = [CrashCandidate::whole(recording.ops.len())];
            more_than_a_kill += u32::from(explain_mismatch(&recording, &there, &killed).is_some());
            rounds += 1;
        }
    }
    eprintln!("{rounds} crashes of a real ext4; {more_than_a_kill} of them left what no kill leaves");
    assert!(more_than_a_kill > 0);
    Ok(())
}
