//! Every form of every call that changes a file tree, bare and recorded: the same results, the same files, and a
//! recording that yields exactly these files. What cannot be followed is refused by name.

#![expect(clippy::unwrap_used, reason = "a test panics at the first unexpected result")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use engine::explore::{OpRecorder, RecorderConfig, Recording, TreeDifference, WatchedRoot, copy_tree};
use engine::gate::FilterOptions;
use engine::sandbox::ProcessExit;
use libtest_mimic::Trial;

use support::c_target;
use support::file_tree::{FileTree, file_tree, tree_differences};
use support::machine::{GATE, missing};
use support::watched_sandbox::WatchedSandbox;

fn main() -> ExitCode {
    engine::sandbox::run_init_if_requested();
    support::trial::run(trials![
        missing(&GATE);
        every_form_of_every_call_is_as_without_the_gate_and_recorded,
        calls_of_other_interfaces_are_refused_by_name,
        a_change_without_a_call_that_can_be_followed_is_noticed,
    ] as Vec<Trial>)
}

/// What one run did.
struct RunResult {
    exit: ProcessExit,
    output: String,
    tree: FileTree,
}

fn new_sandbox() -> WatchedSandbox {
    let setup = WatchedSandbox::new();
    setup.create_files_of_every_type();
    setup
}

fn run_bare(argv: &[&str]) -> RunResult {
    let setup = new_sandbox();
    let (exit, output) = setup.run_bare(argv);
    RunResult { exit, output, tree: file_tree(&setup.sandbox.host_path(&setup.watched)) }
}

/// A recorded run, with its recording and the differences from the files that are there.
struct RecordedRun {
    result: RunResult,
    recording: Recording,
    differences: Vec<TreeDifference>,
}

fn run_recorded(argv: &[&str]) -> RecordedRun {
    record(argv, |_| ())
}

/// The differences after a run that changes nothing and a change that was not recorded.
fn record_and_change(change: fn(&Path)) -> Vec<TreeDifference> {
    record(&["true"], change).differences
}

/// Records a run, and then changes its files.
fn record(argv: &[&str], change: fn(&Path)) -> RecordedRun {
    let setup = new_sandbox();
    let host_dir = setup.sandbox.host_path(&setup.watched);
    let original = setup.dir.path().join("original");
    std::fs::create_dir(&original).unwrap();
    copy_tree(&host_dir, &original).unwrap();
    let payload_log = setup.dir.path().join("payload");
    let roots = [WatchedRoot { seen_by_target: setup.watched.clone(), seen_by_harness: host_dir.clone() }];
    let config = RecorderConfig {
        roots: &roots,
        originals: &[vec![original]],
        payload_log: &payload_log,
        output_pipes: Vec::new(),
        saved_pattern: None,
        announced: Vec::new(),
        phase: None,
    };
    let recorder = Arc::new(Mutex::new(OpRecorder::new(config).unwrap()));
    let (exit, output) = setup.run(argv, &FilterOptions::default(), &recorder);
    let mut recorder = recorder.lock().unwrap();
    assert_eq!(recorder.gate_failure(), None);
    let recording = recorder.finish().unwrap();
    change(&host_dir);
    let differences = recorder.differences(&roots).unwrap();
    RecordedRun { result: RunResult { exit, output, tree: file_tree(&host_dir) }, recording, differences }
}

fn forms_program() -> String {
    // Some calls are wrong on purpose.
    c_target::compile("forms.c", &["-w"]).unwrap().to_str().unwrap().to_owned()
}

fn names_of_forms(program: &str) -> Vec<String> {
    let output = std::process::Command::new(program).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn every_form_of_every_call_is_as_without_the_gate_and_recorded() {
    let program = forms_program();
    let mut wrong = Vec::new();
    let names = names_of_forms(&program);
    assert!(names.len() > 50, "{names:?}");
    for name in &names {
        let bare = run_bare(&[&program, name]);
        let RecordedRun { result, recording, differences } = run_recorded(&[&program, name]);
        assert_eq!(bare.exit, ProcessExit::Exited(0), "{name}: {}", bare.output);
        assert!(!bare.output.is_empty(), "{name} makes no call");
        for (before, after) in bare.output.lines().zip(result.output.lines()).filter(|(a, b)| a != b) {
            wrong.push(format!("{name}: bare {before}, recorded {after}"));
        }
        if bare.exit != result.exit {
            wrong.push(format!("{name}: bare {:?}, recorded {:?}", bare.exit, result.exit));
        }
        let changed = tree_differences(&bare.tree, &result.tree);
        wrong.extend(changed.iter().map(|difference| format!("{name}: {difference}")));
        wrong.extend(differences.iter().map(|difference| format!("{name}: {difference}")));
        if recording.gaps.unknown_files > 0 || !recording.gaps.refused_calls.is_empty() {
            wrong.push(format!("{name}: {:?}", recording.gaps));
        }
    }
    assert!(wrong.is_empty(), "{} of {} forms are wrong:\n{}", wrong.len(), names.len(), wrong.join("\n"));
}

fn calls_of_other_interfaces_are_refused_by_name() {
    let RecordedRun { result, recording, .. } = run_recorded(&[&forms_program(), "foreign"]);
    assert_eq!(result.exit, ProcessExit::Exited(0));
    let refused = |interface: &str| recording.gaps.refused_calls.iter().any(|call| call.contains(interface));
    let enosys = nix::errno::Errno::ENOSYS as i32;
    for line in result.output.lines() {
        let (interface, answer) = line.split_once(' ').unwrap();
        assert_eq!(answer.parse::<i32>().unwrap().abs(), enosys, "{}", result.output);
        assert!(refused(interface), "{interface}: {:?}", recording.gaps.refused_calls);
    }
    assert!(result.output.lines().count() >= 2, "{}", result.output);
}

/// Changes that a test makes to the files of a recorded run after it, so that no call explains them.
fn a_change_without_a_call_that_can_be_followed_is_noticed() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 8] = [
        ("`new` was created", |dir| std::fs::write(dir.join("new"), "new").unwrap()),
        ("`other` was removed", |dir| std::fs::remove_file(dir.join("other")).unwrap()),
        ("`other` has other bytes, from byte 6", |dir| {
            std::fs::write(dir.join("other"), "other CONTENT").unwrap()
        }),
        ("`other` has 3 bytes, 13 were", |dir| std::fs::write(dir.join("other"), "abc").unwrap()),
        ("`other` got other permissions", |dir| {
            std::fs::set_permissions(dir.join("other"), PermissionsExt::from_mode(0o600)).unwrap()
        }),
        ("`link` was replaced", |dir| {
            std::fs::remove_file(dir.join("link")).unwrap();
            std::os::unix::fs::symlink("elsewhere", dir.join("link")).unwrap()
        }),
        ("is no longer a hard link", |dir| {
            let bytes = std::fs::read(dir.join("hard")).unwrap();
            std::fs::remove_file(dir.join("hard")).unwrap();
            std::fs::write(dir.join("hard"), bytes).unwrap()
        }),
        ("`dir` got other permissions", |dir| {
            std::fs::set_permissions(dir.join("dir"), PermissionsExt::from_mode(0o700)).unwrap()
        }),
    ];
    for (expected, change) in changes {
        let differences = record_and_change(change);
        let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
        let names_only: Vec<String> = texts.iter().map(|text| without_directories(text)).collect();
        assert!(names_only.len() == 1 && names_only[0].contains(expected), "{expected}: {texts:?}");
    }
    assert_eq!(record_and_change(|_| ()), []);
}

/// Replaces each path by its last name.
fn without_directories(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let last_name = |part: &str| part.rsplit('/').next().unwrap_or_default().to_owned();
    let parts = parts.map(|(n, part)| if n % 2 == 1 { last_name(part) } else { part.to_owned() });
    parts.collect::<Vec<_>>().join("`")
}
