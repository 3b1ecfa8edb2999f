//! The gate on real programs: every call that changes a tree is seen and done exactly once, faults land where they are
//! aimed, and nothing outlives whoever watches.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is not as it should be, and says what it skips"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::errno::Errno;
use trainwreck::explore::{ContentReader, CrashCandidate, OpRecorder, RecorderConfig, Recording, TreeEntry};
use trainwreck::gate::{
    CallDecision, CallEffect, CallHandler, CallKind, CallRule, CallRules, FilterOptions, InterceptedCall,
    RuleMatch, Swap,
};
use trainwreck::sandbox::{KillSwitch, ProcessExit};

#[path = "gate/place.rs"]
mod place;
use place::{WatchedSandbox, compile, try_compile};

const TRAINWRECK: &str = env!("CARGO_BIN_EXE_trainwreck");

fn main() -> ExitCode {
    trainwreck::sandbox::run_init_if_requested();
    let missing = trainwreck::sandbox::doctor()
        .into_iter()
        .find(|one| matches!(&one.name[..], "user-namespace" | "syscall-gate") && !one.granted);
    let mut trials = tests();
    if let Some(missing) = missing {
        eprintln!("skipped: {}: {}", missing.name, missing.detail);
        trials = trials.into_iter().map(|trial| trial.with_ignored_flag(true)).collect();
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

type TestFunction = fn() -> Result<(), Failed>;

fn tests() -> Vec<Trial> {
    let tests: [(&str, TestFunction); 12] = [
        ("every_way_to_change_a_tree_is_seen", || every_change(&compile(&[]))),
        ("a_static_binary_is_seen_as_well", static_binary),
        ("a_pool_of_python_processes_is_seen", python_process_pool),
        ("a_write_happens_exactly_once_under_a_storm_of_signals", exactly_once_under_signals),
        ("the_n_th_call_fails_with_the_errno_that_was_asked_for", fails_with_errno),
        ("a_write_and_a_read_come_short", short_transfers),
        ("a_kill_falls_before_inside_or_after_a_call", kills_around_a_call),
        ("a_file_is_swapped_between_check_and_use", swaps_a_file),
        ("a_held_up_call_holds_up_no_other", delays_one_call),
        ("when_the_harness_is_killed_the_target_dies", killed_harness_kills_target),
        ("an_ordinary_user_may", works_as_ordinary_user),
        ("it_works_below_an_outer_tracer", works_below_strace),
    ];
    tests.into_iter().map(|(name, test)| Trial::test(name, test)).collect()
}

fn every_change(program: &Path) -> Result<(), Failed> {
    record_and_compare(&[program.to_str().unwrap(), "tour"], |recording| {
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
            recording.gaps.refused_calls.iter().any(|what| what.contains("splice")),
            "{:?}",
            recording.gaps
        );
        assert!(
            recording.gaps.refused_calls.iter().any(|what| what.contains("io_uring")),
            "{:?}",
            recording.gaps
        );
        assert_eq!(recording.gaps.unknown_files, 0);
    })
}

/// What the recording makes of the operations must be what really lies there.
fn record_and_compare(words: &[&str], look: impl FnOnce(&Recording)) -> Result<(), Failed> {
    let place = WatchedSandbox::new();
    let tape = place.dir.path().join("tape");
    let through = place.sandbox.host_path(&place.watched);
    let start = RecorderConfig {
        roots: &[(place.watched.clone(), through.clone())],
        payload_log: &tape,
        output_pipes: Vec::new(),
        saved_pattern: None,
        internal_pattern: None,
    };
    let recorder =
        Arc::new(Mutex::new(OpRecorder::new(start, std::slice::from_ref(&place.watched)).unwrap()));
    let (ended, said) =
        place.run(words, &FilterOptions { extra_kinds: Vec::new(), stdio_writes: true }, &recorder);
    assert_eq!(ended, ProcessExit::Exited(0), "{said}");
    let recording = recorder.lock().unwrap().finish().unwrap();
    let tree = CrashCandidate::whole(recording.ops.len()).tree(&recording);
    let mut expected = BTreeMap::new();
    let mut reader = ContentReader::new(&recording).unwrap();
    for ((_, path), leaf) in &tree.entries {
        let is = match leaf {
            TreeEntry::Directory { .. } => "folder".into(),
            TreeEntry::Symlink(text) => text.display().to_string().into_bytes(),
            TreeEntry::File { content, .. } => content.head(&mut reader, u64::MAX).unwrap(),
        };
        expected.insert(path.clone(), is);
    }
    let mut there = BTreeMap::new();
    read_tree(&through, Path::new(""), &mut there);
    assert_eq!(expected.keys().collect::<Vec<_>>(), there.keys().collect::<Vec<_>>());
    for (path, bytes) in &expected {
        assert!(
            there[path] == *bytes,
            "{}: {} bytes recorded, {} there",
            path.display(),
            bytes.len(),
            there[path].len()
        );
    }
    look(&recording);
    Ok(())
}

fn read_tree(top: &Path, below: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(top.join(below)).unwrap().map(Result::unwrap) {
        let path = below.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        let is = if kind.is_dir() {
            read_tree(top, &path, into);
            "folder".into()
        } else if kind.is_symlink() {
            std::fs::read_link(entry.path()).unwrap().display().to_string().into_bytes()
        } else {
            std::fs::read(entry.path()).unwrap()
        };
        into.insert(path, is);
    }
}

fn static_binary() -> Result<(), Failed> {
    match try_compile(&["-static"]) {
        Some(program) => every_change(&program),
        None => {
            eprintln!("skipped: no static C library to link with");
            Ok(())
        }
    }
}

fn python_process_pool() -> Result<(), Failed> {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: no python3");
        return Ok(());
    }
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
    })
}

/// Performs every change by itself, as a recording does.
struct PerformAll;

impl CallHandler for PerformAll {
    fn decide(&mut self, _call: &InterceptedCall) -> CallDecision {
        CallDecision::Perform
    }
}

fn exactly_once_under_signals() -> Result<(), Failed> {
    let place = WatchedSandbox::new();
    let program = compile(&[]);
    let overseer = Arc::new(Mutex::new(PerformAll));
    let (ended, said) =
        place.run(&[program.to_str().unwrap(), "storm", "20000"], &FilterOptions::default(), &overseer);
    assert_eq!(ended, ProcessExit::Exited(0));
    let signals: u32 = said.trim().strip_prefix("signals ").unwrap().parse().unwrap();
    assert!(signals > 200, "a storm: {said}");
    let written = String::from_utf8(place.file("storm").unwrap()).unwrap();
    let twice = written.lines().zip(0..).find(|(line, n)| line.parse::<u32>().ok() != Some(*n));
    assert_eq!((twice, written.lines().count()), (None, 20_000));
    Ok(())
}

/// Rules, and what came of them.
struct RuleInjector {
    rules: CallRules,
    matches: Vec<RuleMatch>,
    swapped_paths: Vec<PathBuf>,
    kill_switch: KillSwitch,
}

impl CallHandler for RuleInjector {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision {
        let Some(hit) = self.rules.on_call(call) else { return CallDecision::Continue };
        self.matches.push(hit.clone());
        hit.decision
    }

    fn on_effect(&mut self, done: CallEffect) {
        if let CallEffect::Swapped { path } = done {
            self.swapped_paths.push(path);
        }
    }

    fn kill_target(&mut self) {
        self.kill_switch.kill_all().unwrap();
    }
}

/// One rule on `big` of the program's `big`; how it ended, what it said, the place as it is then.
fn run_with_fault(
    kind: CallKind,
    decision: CallDecision,
) -> (ProcessExit, String, WatchedSandbox, Vec<PathBuf>) {
    run_mode_with_fault("big", "big", kind, decision, false)
}

fn run_mode_with_fault(
    what: &str,
    file: &str,
    kind: CallKind,
    decision: CallDecision,
    from_then_on: bool,
) -> (ProcessExit, String, WatchedSandbox, Vec<PathBuf>) {
    let place = WatchedSandbox::new();
    let paths = Some(globset::Glob::new(file).unwrap().compile_matcher());
    let rule = CallRule { kinds: vec![kind], paths, nth: 1, persistent: from_then_on, decision };
    let rules = CallRules::new(place.watched.clone(), vec![rule]);
    let injector = RuleInjector {
        rules,
        matches: Vec::new(),
        swapped_paths: Vec::new(),
        kill_switch: place.sandbox.kill_switch(),
    };
    let injector = Arc::new(Mutex::new(injector));
    let interest = FilterOptions {
        extra_kinds: vec![CallKind::Read, CallKind::OpenRead, CallKind::Stat],
        stdio_writes: false,
    };
    let (ended, said) = place.run(&[compile(&[]).to_str().unwrap(), what], &interest, &injector);
    let injector = injector.lock().unwrap();
    assert!(!injector.matches.is_empty(), "it landed");
    let swapped = injector.swapped_paths.clone();
    (ended, said, place, swapped)
}

fn fails_with_errno() -> Result<(), Failed> {
    for (kind, errno, word) in [
        (CallKind::Open, Errno::EDQUOT, "open: Disk quota exceeded"),
        (CallKind::Write, Errno::ENOSPC, "write: -1 No space left on device"),
        (CallKind::Read, Errno::EIO, "read: -1 Input/output error"),
        (CallKind::Stat, Errno::EACCES, "stat: Permission denied"),
    ] {
        let (_, said, place, _) = run_with_fault(kind, CallDecision::Fail(errno));
        assert!(said.contains(word), "{said}");
        let there = place.file("renamed").map(|bytes| bytes.len());
        let expected = match kind {
            CallKind::Open => None,
            CallKind::Write => Some(0),
            _ => Some(65536),
        };
        assert_eq!(there, expected);
    }
    // It may have happened although it failed.
    let (_, said, place, _) = run_with_fault(CallKind::Write, CallDecision::PerformThenFail(Errno::EIO));
    assert!(said.contains("write: -1 Input/output error"), "{said}");
    assert_eq!(place.file("renamed").unwrap().len(), 65536);
    Ok(())
}

fn short_transfers() -> Result<(), Failed> {
    let (_, said, place, _) = run_with_fault(CallKind::Write, CallDecision::Short(1000));
    assert!(said.contains("write: 1000"), "{said}");
    assert_eq!(place.file("renamed").unwrap().len(), 1000);
    let (_, said, ..) = run_with_fault(CallKind::Read, CallDecision::Short(7));
    assert!(said.contains("read: 7 \n"), "{said}");
    Ok(())
}

fn kills_around_a_call() -> Result<(), Failed> {
    for (decision, bytes) in [
        (CallDecision::KillBefore, 0),
        (CallDecision::KillDuring(4096), 4096),
        (CallDecision::KillAfter, 65536),
    ] {
        let (ended, said, place, _) = run_with_fault(CallKind::Write, decision);
        assert_eq!(ended, ProcessExit::Signalled(9));
        assert_eq!(said, "", "nothing is done afterwards");
        assert_eq!(place.file("big").unwrap().len(), bytes);
        assert!(place.sandbox.processes().is_empty());
    }
    Ok(())
}

fn swaps_a_file() -> Result<(), Failed> {
    for (swap, word) in [
        (Swap::Nothing, "stat: No such file or directory"),
        (Swap::DanglingLink, "stat: No such file or directory"),
        (Swap::EmptyFile, "stat: there"),
    ] {
        let (_, said, place, swapped) = run_with_fault(CallKind::Stat, CallDecision::Swap(swap));
        assert!(said.contains(word), "{said}");
        assert_eq!(swapped, [place.watched.join("big")]);
        let renamed = place.file("renamed");
        assert_eq!(renamed.map(|bytes| bytes.len()), (swap == Swap::EmptyFile).then_some(0));
    }
    Ok(())
}

fn delays_one_call() -> Result<(), Failed> {
    let wait = CallDecision::Delay(Duration::from_millis(800));
    let began = Instant::now();
    let (ended, said, place, _) = run_mode_with_fault("beside", "slow", CallKind::Open, wait, false);
    assert_eq!((ended, &said[..]), (ProcessExit::Exited(0), "quick first: yes\n"));
    assert!(began.elapsed() > Duration::from_millis(800));
    assert_eq!(place.file("slow").unwrap(), b"slow");
    Ok(())
}

fn explore_command(program: &Path, watch: &Path, trainwreck: &str) -> Command {
    let mut command = Command::new(trainwreck);
    command.args(["explore", "--max-states", "20", "--watch"]).arg(watch).arg("--").arg(program);
    command
}

fn processes_running(program: &Path) -> Vec<u32> {
    let is = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is).collect()
}

fn killed_harness_kills_target() -> Result<(), Failed> {
    let dir = tempfile::tempdir().unwrap();
    // A name of its own, so that only what this test started is counted.
    let program = dir.path().join("for-ever");
    std::fs::copy(compile(&[]), &program).unwrap();
    let watched = dir.path().join("watched");
    std::fs::create_dir(&watched).unwrap();
    let mut harness = explore_command(&program, &watched, TRAINWRECK)
        .arg("for-ever")
        .current_dir(&watched)
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while processes_running(&program).is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!processes_running(&program).is_empty());
    harness.kill().unwrap();
    harness.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !processes_running(&program).is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(processes_running(&program), [0; 0]);
    Ok(())
}

fn works_as_ordinary_user() -> Result<(), Failed> {
    use std::os::unix::process::CommandExt;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: an ordinary user runs all of these tests");
        return Ok(());
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let for_all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(dir.path(), for_all).unwrap();
    let copied = |from: &Path, name: &str| {
        let to = dir.path().join(name);
        std::fs::copy(from, &to).unwrap();
        to
    };
    let program = copied(&compile(&[]), "calls");
    let trainwreck = copied(Path::new(TRAINWRECK), "trainwreck");
    let watched = dir.path().join("watched");
    let mut command = explore_command(&program, &watched, trainwreck.to_str().unwrap());
    let output = command
        .args(["one", "file"])
        .current_dir(dir.path())
        .env("TMPDIR", dir.path())
        .env("HOME", dir.path())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    // The file lies in the working folder, not in the watched one.
    assert_eq!(output.status.code(), Some(3), "{text}");
    let file = watched.join("file");
    let mut command = explore_command(&program, &watched, trainwreck.to_str().unwrap());
    let output = command
        .arg("one")
        .arg(&file)
        .current_dir(dir.path())
        .env("TMPDIR", dir.path())
        .env("HOME", dir.path())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    Ok(())
}

fn works_below_strace() -> Result<(), Failed> {
    if Command::new("strace").arg("--version").output().is_err() {
        eprintln!("skipped: no strace");
        return Ok(());
    }
    let dir = tempfile::tempdir().unwrap();
    let watched = dir.path().join("watched");
    let plain = explore_command(&compile(&[]), &watched, TRAINWRECK);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=rename", "-o", "/dev/null", TRAINWRECK]).args(plain.get_args());
    let output = command.arg("one").arg(watched.join("file")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
