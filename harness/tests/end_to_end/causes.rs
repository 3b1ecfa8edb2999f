//! A table of trainers with one defect each: `explore` must find it, and give every finding the right cause. For
//! each of them there is a sound trainer that does the same without the defect, in which it must find nothing.
//!
//! `cargo test --test end_to_end -- causes::`. The trainers are the styles of `targets/causes.sh`. Not covered:
//! `error-swallowed`, which no crash shows.

use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;
use scenarios::{Cause, ControlFiles, Exploration, Finding, Outcome};

use crate::support::command::{TRAINWRECK, output_text, workspace};
use crate::support::machine::{GATE, missing};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        missing(&GATE);
        defects_that_a_kill_shows_have_their_causes,
        defects_that_a_power_loss_shows_have_their_causes,
        defects_of_the_resume_have_their_causes,
        locks_of_a_killed_process_are_found,
        sound_trainers_give_no_finding,
        outcomes_that_differ_in_what_an_older_save_has_left_are_one_finding,
        a_resume_command_that_does_not_work_is_told_apart_from_a_trainer_that_does_not_resume,
        jobs_are_held_to_their_own_promises,
        a_lost_job_is_found,
        a_wrong_resume_does_not_hide_a_torn_file,
        different_messages_of_one_finding_are_counted,
        the_advice_fits_a_file_a_pointer_and_a_directory,
        the_command_of_a_finding_shows_the_same_cause_and_outcome,
        a_pattern_that_no_recovery_matches_is_no_finding,
        without_a_save_the_finished_run_is_a_control,
        a_bound_on_the_controls_counts_what_it_left_out,
        a_finished_run_and_a_mistyped_directory_are_told_apart,
    ]
}

const SAVED: [&str; 2] = ["--saved", r"^saved step (?<step>\d+)"];
const RESUMED: [&str; 2] = ["--resumed", r"^resumed from step (?<step>\d+)"];
const STEP: [&str; 2] = ["--step", r"^step (?<step>\d+)"];
const CONSUMED: [&str; 2] = ["--consumed", r"^step (?<step>\d+) ate (?<value>\d+)"];
const SAME: [&str; 2] = ["--same", r"^finished with (\d+)"];
const KILLS: [&str; 2] = ["--crash", "process"];
/// For trainers that hang: each state in which they do takes that long.
const SHORT: [&str; 2] = ["--timeout", "1s"];

struct Explored {
    code: Option<i32>,
    text: String,
    exploration: Option<Exploration>,
}

impl Explored {
    fn findings(&self) -> &[Finding] {
        &self.exploration.as_ref().unwrap_or_else(|| panic!("{}", self.text)).findings
    }
}

/// Explores a style of the trainer in an empty directory.
fn explore_with(options: &[&[&str]], style: &str) -> Explored {
    let dir = tempfile::tempdir().unwrap();
    explore_in(dir.path(), options, style)
}

fn explore_in(dir: &Path, options: &[&[&str]], style: &str) -> Explored {
    let watch = dir.join("runs");
    std::fs::create_dir_all(&watch).unwrap();
    let json = dir.join("result.json");
    let mut explorer = Command::new(TRAINWRECK);
    explorer.args(["explore", "--json"]).arg(&json).arg("--watch").arg(&watch);
    explorer.args(options.concat()).args(["--", "sh"]);
    explorer.arg(workspace().join("harness/tests/targets/causes.sh")).arg(style).arg(&watch);
    let output = explorer.output().unwrap();
    let text = format!("{style}: {}", output_text(&output));
    let exploration = std::fs::read_to_string(&json).ok().map(|json| Exploration::parse(&json).unwrap());
    Explored { code: output.status.code(), text, exploration }
}

/// A trainer with a defect, and what every finding must say of it.
struct Defect {
    style: &'static str,
    cause: Cause,
    outcome: Outcome,
}

const fn defect(style: &'static str, cause: Cause, outcome: Outcome) -> Defect {
    Defect { style, cause, outcome }
}

/// Checks that each defect is found, and that no finding has another cause.
fn check(defects: &[Defect], options: &[&[&str]]) {
    for Defect { style, cause, outcome } in defects {
        let explored = explore_with(options, style);
        assert_eq!(explored.code, Some(1), "{}", explored.text);
        let causes: Vec<Cause> = explored.findings().iter().map(|finding| finding.cause).collect();
        assert!(causes.iter().all(|found| found == cause), "{causes:?}: {}", explored.text);
        let has_outcome = explored.findings().iter().any(|finding| finding.all_outcomes().contains(outcome));
        assert!(has_outcome, "{outcome}: {}", explored.text);
    }
}

fn defects_that_a_kill_shows_have_their_causes() {
    use Cause::{
        AcknowledgedTooEarly, MarkerBeforeData, MixedSaves, NewestPruned, OldDeletedFirst,
        RenameFallsBackToCopy, UnfinishedDirectoryTaken, WrittenInPlace,
    };
    let defects = [
        defect("in-place", WrittenInPlace, Outcome::Crashed),
        defect("in-place-pointer", WrittenInPlace, Outcome::Crashed),
        // A directory of the whole run is no checkpoint, although it has a number.
        defect("in-place-run", WrittenInPlace, Outcome::Crashed),
        defect("copied", RenameFallsBackToCopy, Outcome::Crashed),
        defect("unfinished", UnfinishedDirectoryTaken, Outcome::Crashed),
        defect("deleted-first", OldDeletedFirst, Outcome::Restarted),
        defect("tidies", OldDeletedFirst, Outcome::Restarted),
        defect("marker-first", MarkerBeforeData, Outcome::Crashed),
        defect("mixed", MixedSaves, Outcome::Crashed),
        defect("too-early", AcknowledgedTooEarly, Outcome::LostWork),
        defect("background", AcknowledgedTooEarly, Outcome::Restarted),
        defect("background-burst", AcknowledgedTooEarly, Outcome::LostWork),
        defect("background-directory", AcknowledgedTooEarly, Outcome::LostWork),
        defect("pruned", NewestPruned, Outcome::LostWork),
        defect("pruned-directory", NewestPruned, Outcome::LostWork),
    ];
    check(&defects, &[&KILLS, &SAVED, &RESUMED, &STEP]);
}

/// Each syncs all that no other cause asks for.
fn defects_that_a_power_loss_shows_have_their_causes() {
    let defects = [
        defect("no-fsync", Cause::NoFsyncBeforeRename, Outcome::Crashed),
        defect("no-directory-sync", Cause::DirectoryNotSynced, Outcome::LostWork),
        defect("no-order", Cause::OrderNotEnforced, Outcome::Crashed),
        defect("too-early", Cause::AcknowledgedTooEarly, Outcome::LostWork),
    ];
    check(&defects, &[&["--crash", "power"], &SAVED, &RESUMED, &STEP]);
}

fn defects_of_the_resume_have_their_causes() {
    let defects = [
        defect("other-samples", Cause::ResumeDiffers, Outcome::Corrupt),
        defect("later-samples", Cause::ResumeDiffers, Outcome::Corrupt),
        defect("other-value", Cause::ResumeDiffers, Outcome::Corrupt),
        defect("ends-early", Cause::ResumeDiffers, Outcome::EndedEarly),
        defect("starts-over", Cause::DoesNotResume, Outcome::Restarted),
        defect("silent", Cause::DoesNotResume, Outcome::Restarted),
        defect("crashes", Cause::DoesNotResume, Outcome::Crashed),
    ];
    let options: [&[&str]; 5] = [&SAVED, &RESUMED, &STEP, &CONSUMED, &SAME];
    check(&defects, &options);
    for defect in &defects {
        let explored = explore_with(&options, defect.style);
        assert_eq!(explored.findings().len(), 1, "one defect is one finding: {}", explored.text);
        let controls = explored.findings()[0].controls.as_ref().unwrap();
        assert_eq!(controls.first, ControlFiles::Saved { step: 3 }, "{}", explored.text);
    }
    let advice = |style| explore_with(&options, style).findings()[0].advice.clone();
    assert!(advice("other-samples").contains("the position in the data and the random states"));
    assert!(advice("later-samples").contains("the epoch number"));
    assert!(advice("other-value").contains("the optimizer, the scheduler"));
    assert!(advice("ends-early").contains("ended too early"));
}

fn locks_of_a_killed_process_are_found() {
    let options: [&[&str]; 5] = [&KILLS, &SAVED, &RESUMED, &STEP, &SHORT];
    let defects = [
        defect("lock", Cause::StaleLock, Outcome::Hung),
        defect("lock-fails", Cause::StaleLock, Outcome::Crashed),
        defect("run-lock", Cause::StaleLock, Outcome::Crashed),
        defect("hangs", Cause::DoesNotResume, Outcome::Hung),
    ];
    check(&defects, &options);
    let advice = explore_with(&options, "lock-fails").findings()[0].advice.clone();
    assert!(advice.contains("lock`") && advice.contains("flock"), "{advice}");
}

fn sound_trainers_give_no_finding() {
    for style in ["sound", "sound-directory", "sound-marker", "sound-lock", "sound-pruned", "sound-from-0"] {
        let explored = explore_with(&[&SAVED, &RESUMED, &STEP, &CONSUMED, &SAME], style);
        assert_eq!(explored.code, Some(0), "{}", explored.text);
        assert!(explored.findings().is_empty(), "{}", explored.text);
        let controls = &explored.exploration.as_ref().unwrap().controls;
        assert!(controls.iter().all(|control| control.outcome == Outcome::Recovered), "{}", explored.text);
    }
}

fn outcomes_that_differ_in_what_an_older_save_has_left_are_one_finding() {
    for (style, crash) in
        [("background", "process"), ("background-directory", "process"), ("no-directory-sync", "power")]
    {
        let explored = explore_with(&[&["--crash", crash], &SAVED, &RESUMED, &STEP], style);
        let [finding] = explored.findings() else { panic!("{}", explored.text) };
        let mut outcomes = finding.all_outcomes();
        outcomes.sort();
        assert_eq!(outcomes, [Outcome::LostWork, Outcome::Restarted], "{}", explored.text);
        let most = finding.outcomes.iter().map(|count| count.states).max().unwrap();
        assert!(most < finding.states, "{}", explored.text);
        assert!(explored.text.contains(" restarted"), "{}", explored.text);
        // The line is that of the state that is shown.
        let from =
            if finding.outcome == Outcome::Restarted { "resumed from step 0," } else { "although step" };
        assert!(finding.error.contains(from), "{}", explored.text);
    }
}

/// Explores the trainer with this command for its recoveries, in which `DIR` is the watched directory.
fn explore_with_resume(style: &str, resume: &str) -> Explored {
    let dir = tempfile::tempdir().unwrap();
    let resume = resume.replace("DIR", dir.path().join("runs").to_str().unwrap());
    explore_in(dir.path(), &[&KILLS, &SAVED, &RESUMED, &STEP, &["--resume", &resume]], style)
}

fn a_resume_command_that_does_not_work_is_told_apart_from_a_trainer_that_does_not_resume() {
    for (resume, part) in [
        ("nosuch-trainer DIR", "exit code 127"),
        ("/etc DIR", "exit code 126"),
        ("echo 'usage: train [--resume PATH]' >&2; exit 2", "usage: train [--resume PATH]"),
    ] {
        let explored = explore_with_resume("sound", resume);
        assert_eq!(explored.code, Some(2), "{}", explored.text);
        for part in [part, "the command of `--resume` does not work", "correct it"] {
            assert!(explored.text.contains(part), "{part}: {}", explored.text);
        }
    }
    let trainer = workspace().join("harness/tests/targets/causes.sh");
    let right = format!("sh {} STYLE DIR", trainer.display());
    let sound = explore_with_resume("sound", &right.replace("STYLE", "sound"));
    assert_eq!(sound.code, Some(0), "{}", sound.text);
    // It fails only where there is a save, with the exit code of wrong arguments.
    let fails = format!("{} || exit 2", right.replace("STYLE", "crashes"));
    let explored = explore_with_resume("sound", &fails);
    let causes: Vec<Cause> = explored.findings().iter().map(|finding| finding.cause).collect();
    assert_eq!(causes, [Cause::DoesNotResume], "{}", explored.text);
}

/// Explores a daemon with three jobs. With `is_named`, each pattern has a group `job`; else only that of the end can.
fn explore_jobs(style: &str, is_named: bool, same: &str) -> Explored {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("result.json");
    let job = if is_named { r"^job (?<job>\w+): " } else { "^" };
    let mut explorer = Command::new(TRAINWRECK);
    explorer.args(["explore", "--json"]).arg(&json).arg("--watch").arg(dir.path().join("runs")).args(KILLS);
    for (option, text) in [("--saved", "saved"), ("--resumed", "resumed from"), ("--step", "")] {
        let text = if text.is_empty() { String::new() } else { format!("{text} ") };
        explorer.args([option, &format!(r"{job}{text}step (?<step>\d+)")]);
    }
    explorer.args(["--same", same, "--", "sh"]).arg(workspace().join("harness/tests/targets/jobs.sh"));
    let output = explorer.arg(style).arg(dir.path().join("runs")).output().unwrap();
    let text = format!("{style} {same}: {}", output_text(&output));
    let exploration = std::fs::read_to_string(&json).ok().map(|json| Exploration::parse(&json).unwrap());
    Explored { code: output.status.code(), text, exploration }
}

const NAMED_END: &str = r"^finished job (?<job>\w+) with (?<value>\d+)";
const UNNAMED_END: &str = r"^finished job \w+ with (\d+)";

fn jobs_are_held_to_their_own_promises() {
    for (style, is_named, same) in
        [("sound", false, NAMED_END), ("sound", false, UNNAMED_END), ("sound-named", true, NAMED_END)]
    {
        let explored = explore_jobs(style, is_named, same);
        assert_eq!(explored.code, Some(0), "{}", explored.text);
        assert!(explored.exploration.as_ref().unwrap().tried > 30, "{}", explored.text);
    }
    for (style, is_named, same, outcome) in [
        ("again", false, NAMED_END, Outcome::Restarted),
        ("again-named", true, NAMED_END, Outcome::Restarted),
        ("starts-over", false, NAMED_END, Outcome::Restarted),
        ("starts-over-named", true, NAMED_END, Outcome::Restarted),
    ] {
        let explored = explore_jobs(style, is_named, same);
        assert_eq!(explored.code, Some(1), "{}", explored.text);
        let finds = |finding: &Finding| finding.all_outcomes().contains(&outcome);
        assert!(explored.findings().iter().any(finds), "{}", explored.text);
    }
}

fn a_lost_job_is_found() {
    for (style, is_named, same) in
        [("forgets", false, NAMED_END), ("forgets", false, UNNAMED_END), ("forgets-named", true, NAMED_END)]
    {
        let explored = explore_jobs(style, is_named, same);
        assert_eq!(explored.code, Some(1), "{}", explored.text);
        let lines: Vec<&str> = explored.findings().iter().map(|finding| finding.error.as_str()).collect();
        assert!(lines.iter().all(|line| line.contains("ended without")), "{lines:?}: {}", explored.text);
    }
}

fn a_wrong_resume_does_not_hide_a_torn_file() {
    let explored = explore_with(&[&KILLS, &SAVED, &RESUMED, &STEP, &CONSUMED], "other-samples-in-place");
    let causes: Vec<Cause> = explored.findings().iter().map(|finding| finding.cause).collect();
    assert_eq!(causes, [Cause::ResumeDiffers, Cause::WrittenInPlace], "{}", explored.text);
}

fn different_messages_of_one_finding_are_counted() {
    let explored = explore_with(&[&KILLS, &SAVED, &RESUMED, &STEP], "unfinished");
    let [finding] = explored.findings() else { panic!("{}", explored.text) };
    let lines: Vec<&str> = finding.messages.iter().map(|message| message.line.as_str()).collect();
    assert!(lines.len() > 1 && lines.iter().all(|line| line.starts_with("Error: ")), "{}", explored.text);
    // Those of two steps differ only in a number.
    let states: u64 = finding.messages.iter().map(|message| message.states).sum();
    assert_eq!(states, finding.states, "{}", explored.text);
    assert!(states > lines.len() as u64, "{}", explored.text);
    assert!(explored.text.contains("different messages:"), "{}", explored.text);
    let one = explore_with(&[&KILLS, &SAVED, &RESUMED, &STEP], "in-place");
    assert!(one.findings()[0].messages.is_empty(), "{}", one.text);
    // What counts there is where it resumed, not the last line.
    let lost = explore_with(&[&KILLS, &SAVED, &RESUMED, &STEP], "pruned");
    let error = &lost.findings()[0].error;
    assert!(error.contains("resumed from step 9, although step 1"), "{}", lost.text);
}

fn the_advice_fits_a_file_a_pointer_and_a_directory() {
    let advice = |style| {
        let explored = explore_with(&[&KILLS, &SAVED, &RESUMED], style);
        explored.findings()[0].advice.clone()
    };
    assert!(advice("in-place").contains("rename it over the file"));
    assert!(advice("in-place-pointer").contains("over the pointer"));
    assert!(advice("unfinished").contains("temporary directory"));
}

fn the_command_of_a_finding_shows_the_same_cause_and_outcome() {
    let options: [&[&str]; 5] = [&KILLS, &SAVED, &RESUMED, &STEP, &CONSUMED];
    for style in ["other-samples", "starts-over", "too-early", "lock-fails", "pruned", "unfinished"] {
        let first = explore_with(&options, style);
        for finding in first.findings() {
            let state = ["--state", &finding.state];
            let repeated = explore_with(&[&options[..], &[&state]].concat(), style);
            let [found] = repeated.findings() else { panic!("{}", repeated.text) };
            let expected = (finding.cause, finding.outcome, finding.controls.is_some());
            let seen = (found.cause, found.outcome, found.controls.is_some());
            assert_eq!(seen, expected, "{} {}", first.text, repeated.text);
        }
    }
}

fn a_pattern_that_no_recovery_matches_is_no_finding() {
    let mistyped = ["--resumed", r"^Resumed at (?<step>\d+)"];
    let explored = explore_with(&[&KILLS, &SAVED, &mistyped], "sound");
    assert_eq!(explored.code, Some(3), "{}", explored.text);
    assert!(
        explored.text.contains("no line of the recoveries' output matches `--resumed`"),
        "{}",
        explored.text
    );
    // The first step of a recovery tells it too.
    let explored = explore_with(&[&KILLS, &SAVED, &mistyped, &STEP], "sound");
    assert_eq!(explored.code, Some(0), "{}", explored.text);
}

fn without_a_save_the_finished_run_is_a_control() {
    let explored = explore_with(&[&KILLS, &SAME], "other-value");
    let [finding] = explored.findings() else { panic!("{}", explored.text) };
    assert_eq!(finding.cause, Cause::ResumeDiffers, "{}", explored.text);
    assert_eq!(finding.controls.as_ref().unwrap().first, ControlFiles::Finished, "{}", explored.text);
}

fn a_bound_on_the_controls_counts_what_it_left_out() {
    let explored = explore_with(&[&KILLS, &SAVED, &RESUMED], "sound-pruned");
    let exploration = explored.exploration.as_ref().unwrap();
    // Five of twelve saves, and the finished run.
    assert_eq!((exploration.controls.len(), exploration.controls_left_out), (6, 7), "{}", explored.text);
    assert!(explored.text.contains("6 recovered; the files after 7 other saves"), "{}", explored.text);
}

fn a_finished_run_and_a_mistyped_directory_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let finished = dir.path().join("runs");
    std::fs::create_dir(&finished).unwrap();
    let trainer = workspace().join("harness/tests/targets/causes.sh");
    let status = Command::new("sh").arg(&trainer).arg("sound").arg(&finished).output().unwrap().status;
    assert!(status.success());
    let explored = explore_in(dir.path(), &[&SAVED, &RESUMED], "sound");
    assert_eq!(explored.code, Some(3), "{}", explored.text);
    for part in ["already have 1 files", "it printed `resumed from step 6`", "use an empty directory"] {
        assert!(explored.text.contains(part), "{part}: {}", explored.text);
    }
    // The command saves somewhere else.
    let mut explorer = Command::new(TRAINWRECK);
    explorer.args(["explore", "--watch"]).arg(dir.path().join("rums")).args(SAVED).args(RESUMED);
    explorer.args(["--", "sh"]).arg(trainer).arg("sound").arg(&finished);
    let text = output_text(&explorer.output().unwrap());
    assert!(text.contains("check the paths after `--watch`"), "{text}");
    assert!(!text.contains("finished run"), "{text}");
}
