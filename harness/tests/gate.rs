//! Tests of the gate on real programs: every call that changes the file tree is intercepted and performed
//! exactly once, faults are injected at the intended calls, and the target does not outlive the harness.

#![expect(clippy::unwrap_used, reason = "a test panics at the first unexpected result")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::explore::{
    ContentReader, CrashCandidate, OpRecorder, RecorderConfig, Recording, TreeEntry, WatchedRoot,
};
use engine::gate::{
    CallDecision, CallEffect, CallHandler, CallKind, CallRule, CallRules, FilterOptions, GateFailure,
    InterceptedCall, RuleMatch, Swap,
};
use engine::sandbox::{KillSwitch, ProcessExit};
use libtest_mimic::Trial;
use nix::errno::Errno;

use support::c_target;
use support::command::{TRAINWRECK, wait_for};
use support::machine::{GATE, Need, missing};
use support::ordinary_user::OrdinaryUser;
use support::program_files::copy_program;
use support::watched_sandbox::WatchedSandbox;

fn main() -> ExitCode {
    engine::sandbox::run_init_if_requested();
    support::trial::run(tests())
}

fn tests() -> Vec<Trial> {
    let mut trials = trials![
        missing(&GATE);
        every_way_to_change_a_tree_is_intercepted,
        a_write_happens_exactly_once_under_frequent_signals,
        a_program_that_fills_its_standard_error_ends,
        the_n_th_call_fails_with_the_chosen_errno,
        a_write_and_a_read_are_shortened,
        a_kill_happens_before_during_or_after_a_call,
        a_file_is_swapped_between_check_and_use,
        a_delayed_call_delays_no_other,
        a_delay_lasts_until_what_is_due_before_its_end_is_done,
        the_target_ends_when_the_harness_is_killed,
    ];
    let with = |need| missing(GATE.iter().chain([&need]));
    trials.extend(trials![with(Need::StaticLibc); calls_of_a_static_binary_are_intercepted]);
    trials
        .extend(trials![with(Need::Program("python3")); calls_of_a_pool_of_python_processes_are_intercepted]);
    trials.extend(trials![with(Need::OrdinaryUserWith("syscall-gate")); an_ordinary_user_can_explore]);
    trials.extend(trials![with(Need::Program("strace")); explore_works_below_strace]);
    trials
}

fn every_way_to_change_a_tree_is_intercepted() {
    every_change(&calls(&[]));
}

fn calls_of_a_static_binary_are_intercepted() {
    every_change(&calls(&["-static"]));
}

/// The compiled `targets/calls.c`.
fn calls(flags: &[&str]) -> PathBuf {
    c_target::compile("calls.c", flags).unwrap()
}

fn every_change(program: &Path) {
    record_and_compare(&[program.to_str().unwrap(), "every-change"], |recording| {
        let kinds = recording.count_by_kind();
        for kind in [
            "create",
            "write",
            "truncate",
            "allocate",
            "punch",
            "rename",
            "exchange",
            "link",
            "symlink",
            "unlink",
            "mkdir",
            "rmdir",
            "fsync",
            "fdatasync",
            "sync",
            "mapped-write",
        ] {
            assert!(kinds.contains_key(kind), "no {kind}: {kinds:?}");
        }
        assert!(
            recording.gaps.refused_calls.iter().any(|feature| feature.contains("io_uring")),
            "{:?}",
            recording.gaps
        );
        assert_eq!(recording.gaps.unknown_files, 0);
    });
}

/// Records a program, and compares the tree that the recording yields with the tree that is really there.
fn record_and_compare(argv: &[&str], check: impl FnOnce(&Recording)) {
    let setup = WatchedSandbox::new();
    let payload_log = setup.dir.path().join("payload");
    let host_dir = setup.sandbox.host_path(&setup.watched);
    let root = WatchedRoot { seen_by_target: setup.watched.clone(), seen_by_harness: host_dir.clone() };
    let config = RecorderConfig {
        roots: &[root],
        originals: &[vec![setup.watched.clone()]],
        payload_log: &payload_log,
        output_pipes: Vec::new(),
        saved_pattern: None,
        announced: Vec::new(),
        phase: None,
    };
    let recorder = Arc::new(Mutex::new(OpRecorder::new(config).unwrap()));
    let (exit, output) = setup.run(
        argv,
        &FilterOptions { extra_kinds: Vec::new(), connections: false, ..FilterOptions::default() },
        &recorder,
    );
    assert_eq!(exit, ProcessExit::Exited(0), "{output}");
    let recording = recorder.lock().unwrap().finish().unwrap();
    let tree = CrashCandidate::whole(recording.ops.len()).tree(&recording);
    let mut expected = BTreeMap::new();
    let mut reader = ContentReader::new(&recording).unwrap();
    for ((_, path), entry) in &tree.entries {
        let bytes = match entry {
            TreeEntry::Directory { .. } => "directory".into(),
            TreeEntry::Symlink { target, .. } => target.display().to_string().into_bytes(),
            TreeEntry::Pipe { .. } => "pipe".into(),
            TreeEntry::File { content, .. } => content.head(&mut reader, u64::MAX).unwrap(),
        };
        expected.insert(path.clone(), bytes);
    }
    let mut actual = BTreeMap::new();
    read_tree(&host_dir, Path::new(""), &mut actual);
    assert_eq!(expected.keys().collect::<Vec<_>>(), actual.keys().collect::<Vec<_>>());
    for (path, bytes) in &expected {
        assert!(
            actual[path] == *bytes,
            "{}: {} bytes recorded, {} bytes in the file",
            path.display(),
            bytes.len(),
            actual[path].len()
        );
    }
    check(&recording);
}

/// Reads all files below `top/relative` into a map.
fn read_tree(top: &Path, relative: &Path, tree: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(top.join(relative)).unwrap().map(Result::unwrap) {
        let path = relative.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        let bytes = if kind.is_dir() {
            read_tree(top, &path, tree);
            "directory".into()
        } else if kind.is_symlink() {
            std::fs::read_link(entry.path()).unwrap().display().to_string().into_bytes()
        } else {
            std::fs::read(entry.path()).unwrap()
        };
        tree.insert(path, bytes);
    }
}

fn calls_of_a_pool_of_python_processes_are_intercepted() {
    let script = "
import multiprocessing, os
def save(n):
    with open(f'shard-{n}.tmp', 'w') as f:
        f.write(f'{os.getpid()} {n}' * 1000); f.flush(); os.fsync(f.fileno())
    os.replace(f'shard-{n}.tmp', f'shard-{n}')
if __name__ == '__main__':
    for method in ('fork', 'spawn'):
        with multiprocessing.get_context(method).Pool(3) as pool: pool.map(save, range(8))
";
    let file = tempfile::Builder::new().suffix(".py").tempfile().unwrap();
    std::fs::write(file.path(), script).unwrap();
    record_and_compare(&["python3", "-B", file.path().to_str().unwrap()], |recording| {
        let kinds = recording.count_by_kind();
        assert_eq!(kinds["rename"], 16, "{kinds:?}");
        assert_eq!(kinds["fsync"], 16);
    });
}

/// Performs every call in the supervisor, as a recording does.
struct PerformAll;

impl CallHandler for PerformAll {
    fn decide(&mut self, _call: &InterceptedCall) -> CallDecision {
        CallDecision::Perform
    }

    fn on_failure(&mut self, failure: GateFailure) {
        panic!("{failure}");
    }
}

/// How the target of a test with signals runs.
#[derive(Debug, Clone, Copy)]
enum SignalRun {
    Bare,
    Performed,
    Recorded,
}

fn a_write_happens_exactly_once_under_frequent_signals() {
    let runs = [SignalRun::Bare, SignalRun::Performed, SignalRun::Recorded];
    for handler in ["restart", "interrupt"] {
        for (lines, signals, interval_us) in [("2000", "100", "1000"), ("7000", "300", "20")] {
            for run in runs {
                every_line_is_written_once(run, &["signals", lines, signals, interval_us, handler]);
            }
        }
    }
}

fn every_line_is_written_once(run: SignalRun, arguments: &[&str]) {
    let setup = WatchedSandbox::new();
    let program = calls(&[]);
    let argv = [&[program.to_str().unwrap()], arguments].concat();
    let options = FilterOptions::default();
    let (exit, output) = match run {
        SignalRun::Bare => setup.run_bare(&argv),
        SignalRun::Performed => setup.run(&argv, &options, &Arc::new(Mutex::new(PerformAll))),
        SignalRun::Recorded => {
            let root = WatchedRoot {
                seen_by_target: setup.watched.clone(),
                seen_by_harness: setup.sandbox.host_path(&setup.watched),
            };
            let payload_log = setup.dir.path().join("payload");
            let config = RecorderConfig {
                roots: std::slice::from_ref(&root),
                originals: &[vec![setup.watched.clone()]],
                payload_log: &payload_log,
                output_pipes: Vec::new(),
                saved_pattern: None,
                announced: Vec::new(),
                phase: None,
            };
            let recorder = Arc::new(Mutex::new(OpRecorder::new(config).unwrap()));
            let ended = setup.run(&argv, &options, &recorder);
            let mut recorder = recorder.lock().unwrap();
            recorder.finish().unwrap();
            assert_eq!(recorder.differences(&[root]).unwrap(), []);
            ended
        }
    };
    let title = format!("{run:?} {arguments:?}: {output}");
    assert_eq!(exit, ProcessExit::Exited(0), "{title}");
    let count = output.trim().rsplit(' ').next().unwrap().parse::<usize>().unwrap();
    let written = String::from_utf8(setup.file("lines").unwrap()).unwrap();
    let wrong_line = written.lines().zip(0..).find(|(line, n)| line.parse::<usize>().ok() != Some(*n));
    assert_eq!((wrong_line, written.lines().count()), (None, count), "{title}");
}

/// More bytes than a pipe holds: without a reader, the program would wait forever.
fn a_program_that_fills_its_standard_error_ends() {
    let setup = WatchedSandbox::new();
    let handler = Arc::new(Mutex::new(PerformAll));
    let script = "head -c 300000 /dev/zero >&2; echo done";
    let (exit, output) = setup.run(&["sh", "-c", script], &FilterOptions::default(), &handler);
    assert_eq!((exit, output.as_str()), (ProcessExit::Exited(0), "done\n"));
}

/// Injects faults by rules, and records what they did.
struct RuleInjector {
    rules: CallRules,
    matches: Vec<RuleMatch>,
    swapped_paths: Vec<PathBuf>,
    kill_switch: KillSwitch,
}

impl CallHandler for RuleInjector {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision {
        let Some(matched) = self.rules.on_call(call) else { return CallDecision::Continue };
        self.matches.push(matched.clone());
        matched.decision
    }

    fn on_effect(&mut self, effect: CallEffect) {
        if let CallEffect::Swapped { path } = effect {
            self.swapped_paths.push(path);
        }
    }

    fn kill_target(&mut self) {
        self.kill_switch.kill_all().unwrap();
    }

    fn on_failure(&mut self, failure: GateFailure) {
        panic!("{failure}");
    }
}

/// Runs the program's mode `big` with a fault at the first call of `kind` on the file `big`. Returns its
/// exit, its output, the sandbox afterwards, and the paths that were swapped.
fn run_with_fault(
    kind: CallKind,
    decision: CallDecision,
) -> (ProcessExit, String, WatchedSandbox, Vec<PathBuf>) {
    run_mode_with_fault("big", "big", kind, decision, false)
}

fn run_mode_with_fault(
    mode: &str,
    file: &str,
    kind: CallKind,
    decision: CallDecision,
    persistent: bool,
) -> (ProcessExit, String, WatchedSandbox, Vec<PathBuf>) {
    let setup = WatchedSandbox::new();
    let paths = Some(globset::Glob::new(file).unwrap().compile_matcher());
    let rule = CallRule { kinds: vec![kind], paths, nth: 1, persistent, decision };
    let rules = CallRules::new(setup.watched.clone(), vec![rule]);
    let injector = RuleInjector {
        rules,
        matches: Vec::new(),
        swapped_paths: Vec::new(),
        kill_switch: setup.sandbox.kill_switch(),
    };
    let injector = Arc::new(Mutex::new(injector));
    let options = FilterOptions {
        extra_kinds: vec![CallKind::Read, CallKind::OpenToRead, CallKind::Stat],
        connections: false,
        ..FilterOptions::default()
    };
    let (exit, output) = setup.run(&[calls(&[]).to_str().unwrap(), mode], &options, &injector);
    let injector = injector.lock().unwrap();
    assert!(!injector.matches.is_empty(), "no call matched");
    let swapped_paths = injector.swapped_paths.clone();
    (exit, output, setup, swapped_paths)
}

fn the_n_th_call_fails_with_the_chosen_errno() {
    for (kind, errno, expected_text) in [
        (CallKind::Open, Errno::EDQUOT, "open: Disk quota exceeded"),
        (CallKind::Write, Errno::ENOSPC, "write: -1 No space left on device"),
        (CallKind::Read, Errno::EIO, "read: -1 Input/output error"),
        (CallKind::Stat, Errno::EACCES, "stat: Permission denied"),
    ] {
        let (_, output, setup, _) = run_with_fault(kind, CallDecision::Fail(errno));
        assert!(output.contains(expected_text), "{output}");
        let size = setup.file("renamed").map(|bytes| bytes.len());
        let expected = match kind {
            CallKind::Open => None,
            CallKind::Write => Some(0),
            _ => Some(65536),
        };
        assert_eq!(size, expected);
    }
    // The call fails although it has taken effect.
    let (_, output, setup, _) = run_with_fault(CallKind::Write, CallDecision::PerformThenFail(Errno::EIO));
    assert!(output.contains("write: -1 Input/output error"), "{output}");
    assert_eq!(setup.file("renamed").unwrap().len(), 65536);
}

fn a_write_and_a_read_are_shortened() {
    let (_, output, setup, _) = run_with_fault(CallKind::Write, CallDecision::Short(1000));
    assert!(output.contains("write: 1000"), "{output}");
    assert_eq!(setup.file("renamed").unwrap().len(), 1000);
    let (_, output, ..) = run_with_fault(CallKind::Read, CallDecision::Short(7));
    assert!(output.contains("read: 7 \n"), "{output}");
}

fn a_kill_happens_before_during_or_after_a_call() {
    for (decision, bytes) in [
        (CallDecision::KillBefore, 0),
        (CallDecision::KillDuring(4096), 4096),
        (CallDecision::KillAfter, 65536),
    ] {
        let (exit, output, setup, _) = run_with_fault(CallKind::Write, decision);
        assert_eq!(exit, ProcessExit::Signalled(9));
        assert_eq!(output, "", "the target did nothing after the call");
        assert_eq!(setup.file("big").unwrap().len(), bytes);
        assert!(setup.sandbox.processes().is_empty());
    }
}

fn a_file_is_swapped_between_check_and_use() {
    for (swap, expected_text) in [
        (Swap::Nothing, "stat: No such file or directory"),
        (Swap::DanglingLink, "stat: No such file or directory"),
        (Swap::EmptyFile, "stat: there"),
    ] {
        let (_, output, setup, swapped_paths) = run_with_fault(CallKind::Stat, CallDecision::Swap(swap));
        assert!(output.contains(expected_text), "{output}");
        assert_eq!(swapped_paths, [setup.watched.join("big")]);
        let renamed = setup.file("renamed");
        assert_eq!(renamed.map(|bytes| bytes.len()), (swap == Swap::EmptyFile).then_some(0));
    }
}

fn a_delayed_call_delays_no_other() {
    let wait = CallDecision::Delay(Duration::from_millis(800));
    let start = Instant::now();
    let (exit, output, setup, _) = run_mode_with_fault("parallel", "slow", CallKind::Open, wait, false);
    assert_eq!((exit, &output[..]), (ProcessExit::Exited(0), "quick first: yes\n"));
    assert!(start.elapsed() > Duration::from_millis(800));
    assert_eq!(setup.file("slow").unwrap(), b"slow");
}

/// Delays every call by a millisecond, and is late with something that is due before that.
struct LateRun {
    done_at: Instant,
}

impl CallHandler for LateRun {
    fn decide(&mut self, _call: &InterceptedCall) -> CallDecision {
        CallDecision::Delay(Duration::from_millis(1))
    }

    fn may_end_delay(&mut self, _due: Instant) -> bool {
        Instant::now() >= self.done_at
    }

    fn on_failure(&mut self, failure: GateFailure) {
        panic!("{failure}");
    }
}

fn a_delay_lasts_until_what_is_due_before_its_end_is_done() {
    let setup = WatchedSandbox::new();
    let late = LateRun { done_at: Instant::now() + Duration::from_secs(1) };
    let done_at = late.done_at;
    let handler = Arc::new(Mutex::new(late));
    let (exit, _) = setup.run(&["sh", "-c", "echo slow >slow"], &FilterOptions::default(), &handler);
    assert_eq!(exit, ProcessExit::Exited(0));
    assert!(Instant::now() >= done_at);
    assert_eq!(setup.file("slow").unwrap(), b"slow\n");
}

/// The arguments that explore a program, which takes more arguments.
fn explore_arguments(program: &Path, watch: &Path) -> Vec<OsString> {
    let mut arguments =
        ["explore", "--max-states", "20", "--check", "true", "--watch"].map(OsString::from).to_vec();
    arguments.extend([watch.into(), "--".into(), program.into()]);
    arguments
}

fn processes_running(program: &Path) -> Vec<u32> {
    let runs_program =
        |pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(runs_program).collect()
}

fn the_target_ends_when_the_harness_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    // The copy has a unique path, so that only processes of this test are counted.
    let program = dir.path().join("forever");
    copy_program(&calls(&[]), &program);
    let watched = dir.path().join("watched");
    std::fs::create_dir(&watched).unwrap();
    let mut harness = Command::new(TRAINWRECK)
        .args(explore_arguments(&program, &watched))
        .arg("forever")
        .current_dir(&watched)
        .spawn()
        .unwrap();
    wait_for("the target to start", || !processes_running(&program).is_empty());
    harness.kill().unwrap();
    harness.wait().unwrap();
    wait_for("the target to end", || processes_running(&program).is_empty());
}

fn an_ordinary_user_can_explore() {
    let user = OrdinaryUser::with_programs(&[&calls(&[]), TRAINWRECK.as_ref()]);
    let watched = user.path("watched");
    let explore = |file: &Path| {
        let mut command = user.command("trainwreck");
        command.args(explore_arguments(&user.path("calls"), &watched)).arg("one").arg(file);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // The file is in the working directory and not in the watched one, so nothing was recorded.
    let (code, text) = explore(Path::new("file"));
    assert_eq!(code, Some(3), "{text}");
    let (code, text) = explore(&watched.join("file"));
    assert_eq!(code, Some(0), "{text}");
}

fn explore_works_below_strace() {
    let dir = tempfile::tempdir().unwrap();
    let watched = dir.path().join("watched");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=rename", "-o", "/dev/null", TRAINWRECK]);
    command.args(explore_arguments(&calls(&[]), &watched));
    let output = command.arg("one").arg(watched.join("file")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
