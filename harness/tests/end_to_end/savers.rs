//! Trainers that save in many ways, each with one defect: `explore` must find it under process crashes and power
//! losses, and give the first finding the right cause. In the sound trainer that does the same without the defect it must
//! find nothing.
//!
//! `cargo test --test end_to_end -- savers::`. The trainers are the styles of `targets/savers.py` and
//! `targets/savers.c`. Those of `targets/causes.sh` are in `causes.rs`.

use std::ffi::OsString;
use std::process::Command;

use libtest_mimic::Failed;
use libtest_mimic::Trial;
use scenarios::{Cause, CrashCategory, CrashModel, EnumerationRule, Exploration, Outcome};

use crate::support::c_target;
use crate::support::command::{TRAINWRECK, output_text, workspace};
use crate::support::machine::{GATE, Need, missing};
use crate::support::trial::{name_in, trial};

/// A way to save with a defect.
#[derive(Clone, Copy)]
struct Saver {
    style: &'static str,
    cause: Cause,
    outcome: Outcome,
    shown_by: Shown,
}

/// What shows a defect.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    ByKill,
    OnlyByPowerLoss,
}

const fn saver(style: &'static str, cause: Cause, outcome: Outcome, shown_by: Shown) -> Saver {
    Saver { style, cause, outcome, shown_by }
}

/// The styles of `targets/savers.py`.
const IN_PYTHON: [Saver; 11] = {
    use Cause::{
        AcknowledgedTooEarly, DirectoryNotSynced, MarkerBeforeData, MixedSaves, NoFsyncBeforeRename,
        OldDeletedFirst, WrittenInPlace,
    };
    use Outcome::{Crashed, LostWork, Restarted};
    use Shown::{ByKill, OnlyByPowerLoss};
    [
        saver("swapped-directories", OldDeletedFirst, Restarted, ByKill),
        saver("latest-link", OldDeletedFirst, Restarted, ByKill),
        saver("no-journal", WrittenInPlace, Crashed, ByKill),
        saver("journal-not-gone", DirectoryNotSynced, LostWork, OnlyByPowerLoss),
        saver("archives", WrittenInPlace, Crashed, ByKill),
        saver("shard", NoFsyncBeforeRename, Crashed, OnlyByPowerLoss),
        saver("mapping", WrittenInPlace, Crashed, ByKill),
        saver("ranks", MixedSaves, Crashed, ByKill),
        saver("manifest", MarkerBeforeData, Crashed, ByKill),
        saver("log", WrittenInPlace, Crashed, ByKill),
        saver("thread", AcknowledgedTooEarly, LostWork, ByKill),
    ]
};

/// The styles of `targets/savers.c`.
const IN_C: [Saver; 7] = {
    use Cause::{DirectoryNotSynced, NoFsyncBeforeRename, RenameFallsBackToCopy, WrittenInPlace};
    use Outcome::{Crashed, Restarted};
    use Shown::{ByKill, OnlyByPowerLoss};
    [
        saver("slot", WrittenInPlace, Crashed, ByKill),
        saver("direct", NoFsyncBeforeRename, Crashed, OnlyByPowerLoss),
        saver("dsync", DirectoryNotSynced, Restarted, OnlyByPowerLoss),
        saver("allocated", NoFsyncBeforeRename, Crashed, OnlyByPowerLoss),
        saver("copied", RenameFallsBackToCopy, Crashed, ByKill),
        saver("linked", WrittenInPlace, Crashed, ByKill),
        saver("directory", DirectoryNotSynced, Restarted, OnlyByPowerLoss),
    ]
};

const RESUMED: [&str; 2] = ["--resumed", r"^resumed from step (?<step>\d+)"];
const PROGRESS: [&str; 4] = ["--step", r"^step (?<step>\d+)", "--same", r"^finished with (\d+)"];
/// Some states of every kind.
const SOME_STATES: [&str; 2] = ["--max-states", "200"];
/// Nothing is judged but the enumeration.
const NO_RECOVERY: [&str; 6] = ["--resume", "true", "--check", "true", "--max-states", "1"];

/// What `savers.py` imports.
const MODULES: &str = "json,mmap,os,shutil,sqlite3,tarfile,threading,zipfile,zlib";

pub(crate) fn trials() -> Vec<Trial> {
    let without_python = missing(GATE.iter().chain(&[Need::Program("python3")]));
    let without_gate = missing(&GATE);
    let mut trials = Vec::new();
    for (savers, missing, in_python) in [(&IN_PYTHON[..], without_python, true), (&IN_C, without_gate, false)]
    {
        for saver in savers.iter().copied() {
            let name = format!("{}_is_found_and_without_it_nothing_is", saver.style.replace('-', "_"));
            trials.push(trial(name_in(module_path!(), &name), missing.as_deref(), move || {
                check(saver, in_python)
            }));
        }
    }
    trials.extend(trials![
        missing(GATE.iter().chain(&[Need::Program("python3")]));
        shards_that_are_not_synced_are_found_and_synced_ones_are_not,
        hundreds_of_changes_that_are_not_synced_are_enumerated_within_bounds,
        lines_of_output_add_no_states,
    ]);
    trials
}

struct Explored {
    code: Option<i32>,
    text: String,
    exploration: Exploration,
}

/// Explores a style in an empty directory, under all crashes.
fn explore(style: &str, in_python: bool) -> Explored {
    let command: Vec<OsString> = if in_python {
        vec!["python3".into(), target("savers.py"), style.into(), "runs".into()]
    } else {
        let program = c_target::compile("savers.c", &["-static"]);
        let program = program.or_else(|_| c_target::compile("savers.c", &[])).unwrap();
        vec![program.into(), style.into(), "runs".into()]
    };
    let warm: &[&str] = if in_python { &["--warm", MODULES] } else { &[] };
    explore_command(&[&RESUMED[..], &PROGRESS, &SOME_STATES, warm].concat(), &command)
}

fn target(name: &str) -> OsString {
    workspace().join("harness/tests/targets").join(name).into()
}

/// Explores a command that saves in an empty directory `runs`.
fn explore_command(options: &[&str], command: &[OsString]) -> Explored {
    let dir = tempfile::tempdir().unwrap();
    let (watch, json) = (dir.path().join("runs"), dir.path().join("result.json"));
    std::fs::create_dir(&watch).unwrap();
    let mut explorer = Command::new(TRAINWRECK);
    explorer.args(["explore", "--jobs", "2", "--json"]).arg(&json).args(["--watch", "runs"]);
    explorer.args(["--saved", r"^saved step (?<step>\d+)"]);
    let output = explorer.args(options).arg("--").args(command).current_dir(dir.path()).output().unwrap();
    let text = format!("{command:?}: {}", output_text(&output));
    let json = std::fs::read_to_string(&json).unwrap_or_else(|_| panic!("{text}"));
    Explored { code: output.status.code(), text, exploration: Exploration::parse(&json).unwrap() }
}

fn check(saver: Saver, in_python: bool) -> Result<(), Failed> {
    let Saver { style, cause, outcome, shown_by } = saver;
    let Explored { code, text, exploration } = explore(style, in_python);
    let findings = &exploration.findings;
    assert_eq!(code, Some(1), "{text}");
    let causes: Vec<Cause> = findings.iter().map(|finding| finding.cause).collect();
    assert_eq!(causes[0], cause, "{text}");
    // A rename that is half done, as only this model has it, can be a defect too.
    let mut others = findings.iter().filter(|finding| finding.cause != cause);
    assert!(others.all(|finding| finding.under == [CrashModel::Posix]), "{text}");
    assert!(findings.iter().any(|finding| finding.all_outcomes().contains(&outcome)), "{outcome}: {text}");
    let by_kill = findings.iter().any(|finding| finding.under.contains(&CrashModel::Process));
    assert_eq!(by_kill, shown_by == Shown::ByKill, "{text}");

    let Explored { code, text, exploration } = explore(&format!("sound-{style}"), in_python);
    assert_eq!((code, exploration.findings.len()), (Some(0), 0), "{text}");
    assert!(exploration.tried > 15, "{text}");
    Ok(())
}

fn shards(files: u32, saves: u32, is_synced: bool, options: &[&str]) -> Explored {
    let numbers = [files, saves, u32::from(is_synced)].map(|number| number.to_string().into());
    let command = ["python3".into(), target("shards.py"), "runs".into()];
    explore_command(options, &[&command[..], &numbers].concat())
}

fn shards_that_are_not_synced_are_found_and_synced_ones_are_not() {
    let warm = [&RESUMED[..], &SOME_STATES, &["--warm", "os,shutil"]].concat();
    let Explored { code, text, exploration } = shards(4, 3, false, &warm);
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(exploration.findings[0].cause, Cause::NoFsyncBeforeRename, "{text}");
    let Explored { code, text, exploration } = shards(4, 3, true, &warm);
    assert_eq!((code, exploration.findings.len()), (Some(0), 0), "{text}");
}

/// Without bounds, 50 saves of 12 files once had 56 million candidates.
fn hundreds_of_changes_that_are_not_synced_are_enumerated_within_bounds() {
    let Explored { code, text, exploration } = shards(20, 10, false, &NO_RECOVERY);
    assert_eq!(code, Some(0), "{text}");
    let candidates: u64 = exploration.candidates.values().sum();
    assert!((10_000..600_000).contains(&candidates), "{candidates}: {text}");
    let by_rule = &exploration.not_enumerated_by_rule;
    assert!(by_rule.get(&EnumerationRule::Budget).is_some_and(|counted| counted.count > 1_000_000), "{text}");
    // Each prefix of the operations is a state.
    assert_eq!(exploration.distinct[&CrashCategory::Process], 421, "{text}");
}

fn lines_of_output_add_no_states() {
    let explored = ["0", "3000"].map(|lines| {
        let command = ["python3".into(), target("lines.py"), "runs".into(), lines.into()];
        explore_command(&NO_RECOVERY, &command)
    });
    let [Explored { exploration: none, text, .. }, Explored { exploration: many, .. }] = explored;
    assert!(none.states > 100, "{text}");
    assert_eq!(
        (none.states, none.candidates, none.not_enumerated_by_rule),
        (many.states, many.candidates, many.not_enumerated_by_rule),
        "{text}"
    );
}
