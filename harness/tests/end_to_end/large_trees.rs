//! A watched directory that is too large to be copied is an overlay for the target, and everything is as with a
//! copy: the recorded operations, the files of each crash state, the findings, also of second crashes. The user's
//! files never change. Where no overlay is possible, the directory is copied, with the reason.
//!
//! `cargo test --test end_to_end -- large_trees::`. Not covered: file systems that cannot be a layer.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use engine::explore::{
    EnumerateSpec, ExploreConfig, ExploreProgress, ExploreResult, ExploreScope, FsModel, JudgeSpec,
    LargeTreeProgress, OverlayObstacle, RecordSpec, ReplaySpec, ReportSpec, SecondCrashes, WarmStart,
    explore, explore_second_crashes,
};
use engine::sandbox::{HostAccess, LaunchSpec};
use libtest_mimic::Trial;
use regex::Regex;
use scenarios::{Exploration, Finding, SandboxHint};

use crate::support::command::{TRAINWRECK, output_text, saver};
use crate::support::machine::{GATE, Need, missing};
use crate::support::ordinary_user::{NOBODY, OrdinaryUser};
use crate::support::tree_snapshot::TreeSnapshot;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        missing(GATE.iter().chain(&[Need::Program("python3")]));
        every_crash_state_of_an_overlay_is_that_of_a_copy,
        a_warm_recovery_sees_each_crash_state_in_an_overlay,
    ];
    trials.extend(trials![
        missing(&GATE);
        the_findings_on_an_overlay_are_those_on_a_copy,
        second_crashes_on_an_overlay_are_those_on_a_copy,
        a_directory_rename_that_an_overlay_refuses_is_named,
        a_tree_with_hard_links_is_copied_and_the_reason_named,
        a_large_directory_is_announced_as_an_overlay,
    ]);
    let ordinary = missing(GATE.iter().chain(&[Need::OrdinaryUserWith("syscall-gate")]));
    trials.extend(trials![ordinary; a_large_directory_of_an_ordinary_user_is_an_overlay]);
    trials
}

/// Below this, everything is an overlay; above, everything is a copy.
const ALWAYS_OVERLAY: u64 = 0;
const ALWAYS_COPY: u64 = u64::MAX;

/// A user's directory, and what is explored in it.
struct Case {
    dir: tempfile::TempDir,
    command: Vec<OsString>,
    resume: Vec<OsString>,
    judge: JudgeSpec,
    saved: Option<Regex>,
    max_states: usize,
    warm: WarmStart,
}

/// What one exploration found.
struct Explored {
    result: ExploreResult,
    second: SecondCrashes,
    progress: Vec<LargeTreeProgress>,
}

impl Case {
    fn new(command: &[&str], resume: &[&str]) -> Case {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("runs")).unwrap();
        Case {
            dir,
            command: command.iter().map(OsString::from).collect(),
            resume: resume.iter().map(OsString::from).collect(),
            judge: JudgeSpec::default(),
            saved: None,
            max_states: 80,
            warm: WarmStart::Never,
        }
    }

    fn watched(&self) -> PathBuf {
        self.dir.path().join("runs").canonicalize().unwrap()
    }

    fn launch(&self, argv: &[OsString]) -> LaunchSpec {
        let argv = argv.iter().map(|part| if part == "WATCH" { self.watched().into() } else { part.clone() });
        let path = ("PATH".into(), std::env::var_os("PATH").unwrap());
        LaunchSpec { argv: argv.collect(), env: vec![path], cwd: Some(self.dir.path().into()) }
    }

    fn config(&self, max_copied_bytes: u64, work_dir: &Path) -> ExploreConfig {
        let scope = ExploreScope {
            process_crashes: true,
            models: vec![FsModel::Posix, FsModel::Ext4],
            max_states: self.max_states,
            crash_points: None,
        };
        let watched_dirs = vec![self.watched()];
        ExploreConfig {
            record: RecordSpec {
                originals: None,
                time_limit: None,
                watched_dirs: watched_dirs.clone(),
                command: self.launch(&self.command),
                host_access: HostAccess::default(),
                saved_pattern: self.saved.clone(),
                announced: Vec::new(),
                unfollowed: Vec::new(),
                first_crash: None,
                max_copied_bytes,
                work_dir: work_dir.into(),
                cancelled: || false,
            },
            kept_recording: None,
            keep_recording: None,
            keep_files: None,
            enumerate: EnumerateSpec { scope, only_state: None },
            second_state: None,
            replay: ReplaySpec {
                watched_dirs,
                resume: self.launch(&self.resume),
                check: None,
                host_access: HostAccess::default(),
                timeout: Duration::from_secs(60),
                jobs: 2,
                warm: self.warm.clone(),
                work_dir: work_dir.into(),
                began_unix_s: 1_800_000_000,
                cancelled: || false,
                deadline: None,
            },
            judge: self.judge.clone(),
            report: ReportSpec::default(),
        }
    }

    /// Explores, with second crashes if `depth` is 2. The user's files must be as before.
    fn explore(&self, max_copied_bytes: u64, depth: u32) -> Explored {
        let work = tempfile::tempdir().unwrap();
        let before = TreeSnapshot::of(self.dir.path(), Path::new("/nothing"));
        let config = self.config(max_copied_bytes, &work.path().canonicalize().unwrap());
        let progress = Mutex::new(Vec::new());
        let report = |progressed: ExploreProgress| {
            if let ExploreProgress::LargeTree(large) = progressed {
                progress.lock().unwrap().push(large);
            }
        };
        let result = explore(&config, &report).unwrap_or_else(|error| panic!("{error}"));
        let second = match depth {
            2 => explore_second_crashes(&config, &result, &report).unwrap_or_else(|error| panic!("{error}")),
            _ => SecondCrashes::default(),
        };
        let after = TreeSnapshot::of(self.dir.path(), Path::new("/nothing"));
        assert_eq!(before.differences(&after), [""; 0]);
        Explored { result, second, progress: progress.into_inner().unwrap() }
    }

    /// Explores with overlays and with copies. Returns both.
    fn explore_both(&self, depth: u32) -> [Explored; 2] {
        let explored = [ALWAYS_OVERLAY, ALWAYS_COPY].map(|bytes| self.explore(bytes, depth));
        assert!(matches!(explored[0].progress[..], [LargeTreeProgress::Overlaid { .. }]));
        assert_eq!(explored[1].progress, []);
        explored
    }
}

/// The tree of `targets/large_tree.py`, changed by the recorded run and described by each recovery.
fn described_tree() -> Case {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/large_tree.py");
    let script = script.to_str().unwrap();
    let mut case = Case::new(
        &["python3", "-B", script, "change", "WATCH"],
        &["python3", "-B", script, "describe", "WATCH"],
    );
    case.judge.refused_exits = vec![3];
    let made = Command::new("python3").args(["-B", script, "make"]).arg(case.watched()).status().unwrap();
    assert!(made.success());
    case
}

/// What each recovery printed, by the name of its state.
fn printed(explored: &Explored) -> BTreeMap<String, Vec<String>> {
    let lines = |tried: &engine::explore::TriedState| {
        tried.result.last_lines.iter().map(|line| line.line.clone()).collect::<Vec<_>>()
    };
    explored.result.tried.iter().map(|tried| (tried.state.candidate().name(), lines(tried))).collect()
}

fn operations(explored: &Explored) -> Vec<&str> {
    explored.result.recording.ops.iter().map(|op| op.text.as_str()).collect()
}

fn assert_same_states(case: &Case) {
    let [overlay, copy] = case.explore_both(1);
    let (operations, expected) = (operations(&overlay), operations(&copy));
    for (operation, expected) in operations.iter().zip(&expected) {
        assert_eq!(operation, expected);
    }
    assert_eq!(operations.len(), expected.len());
    for explored in [&overlay, &copy] {
        assert_eq!(explored.result.recording.gaps.unknown_files, 0);
        assert_eq!(explored.result.recording.gaps.refused_renames, [""; 0].map(PathBuf::from));
    }
    let (states, expected) = (printed(&overlay), printed(&copy));
    assert_eq!(states.len(), case.max_states);
    for (name, lines) in &states {
        assert!(lines.iter().any(|line| line.starts_with("tree ")), "{lines:?}");
        assert_eq!(Some(lines), expected.get(name), "state {name}");
    }
    assert_eq!(states.len(), expected.len());
}

fn every_crash_state_of_an_overlay_is_that_of_a_copy() {
    assert_same_states(&described_tree());
}

fn a_warm_recovery_sees_each_crash_state_in_an_overlay() {
    let mut case = described_tree();
    case.max_states = 30;
    case.warm = WarmStart::Modules(vec!["hashlib".into(), "mmap".into(), "shutil".into()]);
    assert_same_states(&case);
}

/// The example trainer in a directory with files that it does not touch.
fn trainer(style: &str) -> Case {
    let saver = saver();
    let argv = [saver.to_str().unwrap(), style, "WATCH"];
    let mut case = Case::new(&argv, &argv);
    case.saved = Some(Regex::new(r"^saved step (?<step>\d+)").unwrap());
    case.judge = JudgeSpec {
        resumed: Some(Regex::new(r"^resumed from step (?<step>\d+)").unwrap()),
        same: Some(Regex::new(r"^final sum (\w+)").unwrap()),
        ..JudgeSpec::default()
    };
    add_untouched_files(&case);
    case
}

fn add_untouched_files(case: &Case) {
    std::fs::create_dir(case.watched().join("base")).unwrap();
    std::fs::write(case.watched().join("base/model"), vec![7; 100_000]).unwrap();
    std::fs::write(case.watched().join("notes"), "mine").unwrap();
}

/// An exploration without what the clock decides.
fn timeless(result: &ExploreResult) -> Exploration {
    Exploration { seconds: 0.0, states_per_second: 0.0, recording_seconds: 0.0, ..result.exploration() }
}

/// An exploration without what the clock decides, and without the digests in the names of states. Those of second
/// crashes tell a copy from an overlay, which holds the files of the first crash in another way; no command names
/// them.
fn without_digests(result: &ExploreResult) -> Exploration {
    let mut exploration = timeless(result);
    for finding in &mut exploration.findings {
        finding.state.truncate(finding.state.find('@').unwrap());
    }
    exploration
}

fn the_findings_on_an_overlay_are_those_on_a_copy() {
    for (style, is_sound) in [("correct", true), ("in-place", false), ("delete-first", false)] {
        let case = trainer(style);
        let [overlay, copy] = case.explore_both(1);
        let findings: Vec<Finding> = overlay.result.findings.clone();
        assert_eq!(findings.is_empty(), is_sound, "{style}: {findings:?}");
        assert_eq!(timeless(&overlay.result).to_json(), timeless(&copy.result).to_json(), "{style}");
    }
}

/// Its recovery moves the only checkpoint away before it writes a new one: that is found only if it is
/// interrupted too.
fn second_crashes_on_an_overlay_are_those_on_a_copy() {
    let script = "cd $0; s=0; if [ -e v ]; then s=$(cat v); mv v v.old; mv v.old v; fi; \
        echo resumed from step $s; for i in 1 2 3; do s=$((s+1)); echo $s > new; sync new; mv new v; sync .; \
        echo saved step $s; done";
    let mut case = trainer("correct");
    case.command = ["/bin/sh", "-c", script, "WATCH"].map(OsString::from).to_vec();
    case.resume = case.command.clone();
    case.judge.same = None;
    std::fs::write(case.watched().join("v"), "7\n").unwrap();
    let [overlay, copy] = case.explore_both(2);
    let second = |explored: &Explored| -> Vec<String> {
        let second = explored.second.explored.iter();
        second
            .map(|second| format!("{}: {}", second.after, without_digests(&second.result).to_json()))
            .collect()
    };
    assert!(second(&overlay).iter().any(|text| text.contains("restarted")), "{:?}", second(&overlay));
    assert_eq!(second(&overlay), second(&copy));
}

fn a_directory_rename_that_an_overlay_refuses_is_named() {
    let script = "cd $0; mv base backup; echo saved step 1";
    let mut case = trainer("correct");
    case.command = ["/bin/sh", "-c", script, "WATCH"].map(OsString::from).to_vec();
    case.resume = ["true"].map(OsString::from).to_vec();
    case.judge = JudgeSpec::default();
    let hint = SandboxHint::WatchedRename { path: case.watched().join("base").to_string_lossy().into() };
    let [overlay, copy] = case.explore_both(1);
    assert!(overlay.result.recording.gaps.sandbox_hints.contains(&hint));
    assert!(!copy.result.recording.gaps.sandbox_hints.contains(&hint));
    assert_eq!(copy.result.recording.count_by_kind().get("mkdir"), None);
    // `mv` copies the directory, and that is what is recorded.
    assert_eq!(overlay.result.recording.count_by_kind().get("mkdir"), Some(&1));
}

fn a_tree_with_hard_links_is_copied_and_the_reason_named() {
    let case = trainer("correct");
    let second_name = case.watched().join("base/model 2");
    std::fs::hard_link(case.watched().join("base/model"), &second_name).unwrap();
    let explored = case.explore(ALWAYS_OVERLAY, 1);
    assert_eq!(explored.result.findings.len(), 0);
    let [LargeTreeProgress::Copying { len_bytes: 100_004, obstacle, .. }, copied @ ..] =
        &explored.progress[..]
    else {
        panic!("{:?}", explored.progress);
    };
    assert!(matches!(obstacle, OverlayObstacle::HardLinks(_)), "{obstacle:?}");
    let end = LargeTreeProgress::Copied { done_bytes: 100_004, len_bytes: 100_004 };
    assert_eq!(copied.last(), Some(&end));
}

/// A directory with a sparse file of more than 1 GiB.
fn large_directory(dir: &Path) -> PathBuf {
    let watched = dir.join("runs");
    std::fs::create_dir(&watched).unwrap();
    File::create(watched.join("base")).unwrap().set_len(3 << 30).unwrap();
    watched
}

fn explore_large(command: &mut Command, saver: &Path, watched: &Path) {
    command.args(["explore", "--crash", "process", "--saved", r"^saved step (?<step>\d+)"]);
    command.args(["--same", r"^final sum (\w+)", "--watch"]).arg(watched).arg("--");
    let output = command.arg(saver).arg("correct").arg(watched).output().unwrap();
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("3.0 GiB: the trainer sees it as an overlay"), "{text}");
    let names: Vec<_> = std::fs::read_dir(watched).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["base"]);
}

fn a_large_directory_is_announced_as_an_overlay() {
    let dir = tempfile::tempdir().unwrap();
    let watched = large_directory(dir.path());
    explore_large(Command::new(TRAINWRECK).current_dir(dir.path()), &saver(), &watched);
}

fn a_large_directory_of_an_ordinary_user_is_an_overlay() {
    let user = OrdinaryUser::with_programs(&[&saver(), TRAINWRECK.as_ref()]);
    let watched = large_directory(&user.path(""));
    for path in [watched.clone(), watched.join("base")] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    explore_large(&mut user.command("trainwreck"), &user.path("saver"), &watched);
}
