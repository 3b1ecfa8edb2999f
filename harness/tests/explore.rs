//! The explorer on small trainers that save in one style each: what is wrong is found with its cause, what is right is let alone.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is not as it should be, and says what it skips"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;

const TRAINWRECK: &str = env!("CARGO_BIN_EXE_trainwreck");

fn main() -> ExitCode {
    trainwreck::sandbox::run_init_if_requested();
    let missing = trainwreck::sandbox::doctor()
        .into_iter()
        .find(|one| matches!(&one.name[..], "user-namespace" | "syscall-gate") && !one.granted);
    if let Some(missing) = &missing {
        eprintln!("skipped: {}: {}", missing.name, missing.detail);
    }
    let tests: [(&str, fn()); 17] = [
        ("a_correct_saver_gives_no_finding", a_correct_saver_gives_no_finding),
        ("what_is_written_in_place_is_found", a_file_written_in_place_is_found),
        (
            "a_rename_without_fsync_is_found_and_only_under_power_loss",
            a_rename_without_fsync_is_found_and_only_under_power_loss,
        ),
        ("a_folder_that_is_not_synced_is_found", a_directory_that_is_not_synced_is_found),
        ("an_old_one_deleted_first_is_found", an_old_checkpoint_deleted_first_is_found),
        ("a_marker_written_first_is_found", a_marker_before_its_data_is_found),
        ("a_manifest_before_its_data_is_found", an_unfinished_directory_taken_is_found),
        ("two_files_replaced_one_after_the_other_are_found", files_of_mixed_saves_are_found),
        ("a_finding_s_command_repeats_just_that_state", the_command_of_a_finding_repeats_exactly_that_state),
        ("a_bound_says_what_it_left_out", a_bound_counts_what_it_left_out),
        (
            "what_can_not_be_learned_from_is_said_with_exit_code_3",
            a_useless_recording_exits_with_3_and_the_reason,
        ),
        (
            "wrong_arguments_are_told_with_what_to_do_and_exit_code_2",
            wrong_arguments_exit_with_2_and_what_to_do,
        ),
        ("a_recovery_that_hangs_is_told_so", a_recovery_that_hangs_is_reported_as_hung),
        ("a_check_that_fails_makes_the_state_corrupt", a_check_that_fails_makes_the_state_corrupt),
        ("samples_that_are_consumed_twice_are_found", samples_consumed_twice_are_found),
        (
            "a_recovery_that_a_second_crash_breaks_is_found_at_depth_2",
            a_recovery_broken_by_a_second_crash_is_found_at_depth_2,
        ),
        (
            "a_target_file_says_all_that_the_options_say_and_a_page_is_written",
            a_target_file_replaces_the_options_and_a_page_is_written,
        ),
    ];
    let trial = |(name, test): (&str, fn())| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&Arguments::from_args(), tests.into_iter().map(trial).collect()).exit_code()
}

/// The tiny trainer of `examples/saver.rs`, which cargo builds beside the tests.
fn saver() -> PathBuf {
    Path::new(TRAINWRECK).parent().unwrap().join("examples/saver")
}

struct ExploreRun {
    code: Option<i32>,
    json: Value,
    text: String,
}

fn explore(options: &[&str], command: &[&str]) -> ExploreRun {
    let dir = tempfile::tempdir().unwrap();
    let watch = dir.path().join("checkpoints");
    std::fs::create_dir(&watch).unwrap();
    let json = dir.path().join("result.json");
    let saver = saver();
    let words = command.iter().map(|word| match *word {
        "SAVER" => saver.to_str().unwrap().to_owned(),
        "WATCH" => watch.to_str().unwrap().to_owned(),
        word => word.to_owned(),
    });
    let output = Command::new(TRAINWRECK)
        .args(["explore", "--json", json.to_str().unwrap(), "--watch", watch.to_str().unwrap()])
        .args(["--saved", r"^saved step (?<step>\d+)", "--resumed", r"^resumed from step (?<step>\d+)"])
        .args(options)
        .arg("--")
        .args(words)
        .output()
        .unwrap();
    let left: Vec<_> = std::fs::read_dir(&watch).unwrap().collect();
    assert!(left.is_empty(), "the watched folder itself is never touched: {left:?}");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let json = std::fs::read(&json).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    ExploreRun { code: output.status.code(), json: json.unwrap_or_default(), text }
}

const SAME: [&str; 2] = ["--same", r"^final sum (\w+)"];

fn causes(explored: &ExploreRun) -> Vec<&str> {
    explored.json["findings"].as_array().unwrap().iter().map(|one| one["cause"].as_str().unwrap()).collect()
}

/// `cause` is found, first of all or beside others that follow from it, under these crashes.
fn check(style: &str, cause: &str, outcome: &str, under: &[&str]) {
    let explored = explore(&SAME, &["SAVER", style, "WATCH"]);
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    let findings = explored.json["findings"].as_array().unwrap();
    let found = findings.iter().find(|one| one["cause"] == cause && one["outcome"] == outcome);
    let found = found.unwrap_or_else(|| panic!("{style}: {}", explored.text));
    for crash in under {
        assert!(found["under"].as_array().unwrap().iter().any(|one| one == crash), "{found}");
    }
    let advice = found["advice"].as_str().unwrap();
    assert!(!advice.is_empty() && explored.text.contains(advice));
}

fn a_correct_saver_gives_no_finding() {
    let explored = explore(&SAME, &["SAVER", "correct", "WATCH"]);
    assert_eq!(explored.code, Some(0), "{}", explored.text);
    assert!(causes(&explored).is_empty());
    let outcomes = &explored.json["outcomes"];
    assert!(outcomes["process"]["recovered"].as_u64().unwrap() > 10, "{outcomes}");
    assert!(outcomes["power"]["recovered"].as_u64().unwrap() > 40, "{outcomes}");
    assert!(explored.json["never_synced"].as_array().unwrap().is_empty());
}

fn a_file_written_in_place_is_found() {
    check("in-place", "written-in-place", "crashed", &["process", "ext4", "xfs", "btrfs", "posix"]);
}

fn a_rename_without_fsync_is_found_and_only_under_power_loss() {
    let explored = explore(&SAME, &["SAVER", "no-fsync", "WATCH"]);
    assert_eq!(causes(&explored), ["no-fsync-before-rename"], "{}", explored.text);
    let under = explored.json["findings"][0]["under"].as_array().unwrap();
    assert!(under.iter().all(|crash| crash != "process") && under.iter().any(|crash| crash == "ext4"));
}

fn a_directory_that_is_not_synced_is_found() {
    check("no-folder-fsync", "folder-not-synced", "lost-work", &["xfs", "btrfs", "posix"]);
}

fn an_old_checkpoint_deleted_first_is_found() {
    check("delete-first", "old-deleted-first", "restarted", &["process"]);
}

fn a_marker_before_its_data_is_found() {
    check("marker-first", "marker-written-first", "crashed", &["process"]);
}

fn an_unfinished_directory_taken_is_found() {
    check("manifest-first", "manifest-before-data", "crashed", &["process"]);
}

fn files_of_mixed_saves_are_found() {
    check("two-files", "files-replaced-one-by-one", "crashed", &["process"]);
}

fn the_command_of_a_finding_repeats_exactly_that_state() {
    let explored = explore(&SAME, &["SAVER", "delete-first", "WATCH"]);
    let state = explored.json["findings"][0]["state"].as_str().unwrap();
    let again = explore(&[&SAME[..], &["--state", state]].concat(), &["SAVER", "delete-first", "WATCH"]);
    assert_eq!(again.code, Some(1), "{}", again.text);
    assert!(again.text.contains("1 states in"), "{}", again.text);
}

fn a_bound_counts_what_it_left_out() {
    let options = [&SAME[..], &["--max-states", "20"]].concat();
    let explored = explore(&options, &["SAVER", "no-fsync", "WATCH"]);
    let left_out = explored.json["left_out"]["power"].as_u64().unwrap();
    let distinct = explored.json["distinct"]["power"].as_u64().unwrap();
    assert_eq!(left_out, distinct - 20, "{}", explored.text);
    assert_eq!(causes(&explored), ["no-fsync-before-rename"], "representatives come first");
}

fn a_useless_recording_exits_with_3_and_the_reason() {
    for (command, words) in [
        (vec!["/bin/sh", "-c", "echo saved step 1"], "nothing was recorded"),
        (vec!["/bin/sh", "-c", ": > \"$0/x\"; exit 7", "WATCH"], "exit code 7"),
        (vec!["/bin/false"], "exit code 1"),
        (vec!["/bin/sh", "-c", ": > \"$0/x\"", "WATCH"], "no line of the command's output matches --saved"),
    ] {
        let explored = explore(&[], &command);
        assert_eq!(explored.code, Some(3), "{}", explored.text);
        assert!(explored.text.contains(words), "{words}: {}", explored.text);
    }
}

fn wrong_arguments_exit_with_2_and_what_to_do() {
    for (options, words) in [
        (["--same", "x"], "needs exactly one group"),
        (["--same", "("], "--same"),
        (["--state", "what"], "not the name of a state"),
        (["--timeout", "soon"], "10s"),
    ] {
        let explored = explore(&options, &["SAVER", "correct", "WATCH"]);
        assert_eq!(explored.code, Some(2), "{}", explored.text);
        assert!(explored.text.contains(words), "{words}: {}", explored.text);
    }
}

fn a_recovery_that_hangs_is_reported_as_hung() {
    let script = "cd \"$0\"; if [ -e a ] && ! [ -e b ]; then sleep 100; fi; : > a; : > b; echo saved step 1; echo resumed from step 1";
    let options = ["--timeout", "300ms", "--crash", "process"];
    let explored = explore(&options, &["/bin/sh", "-c", script, "WATCH"]);
    assert_eq!(explored.json["findings"][0]["outcome"], "hung", "{}", explored.text);
}

fn a_check_that_fails_makes_the_state_corrupt() {
    let script = "cd \"$0\"; [ -e a ] && [ ! -e b ] && : > half; : > a; : > b; echo saved step 1; echo resumed from step 1";
    let dir = tempfile::tempdir().unwrap();
    let watch = dir.path().to_str().unwrap().to_owned();
    let output = Command::new(TRAINWRECK)
        .args([
            "explore",
            "--crash",
            "process",
            "--watch",
            &watch,
            "--check",
            &format!("! [ -e {watch}/half ]"),
        ])
        .args(["--", "/bin/sh", "-c", script, &watch])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("-> corrupt"), "{text}");
}

/// Saves by rename; `RESUME` is what it does first when it finds a save, `BATCH` the number of the first batch then.
const SCRIPT: &str = "cd \"$0\"; s=0; b=0; if [ -e v ]; then RESUME; s=$(cat v); b=BATCH; fi; echo resumed from step $s; \
    while [ $s -lt 4 ]; do s=$((s+1)); b=$((b+1)); echo step $s batch $b; echo $s > v.tmp; mv v.tmp v; echo saved step $s; done";

fn script(resume: &str, batch: &str) -> String {
    SCRIPT.replace("RESUME", resume).replace("BATCH", batch)
}

fn samples_consumed_twice_are_found() {
    let consumed = r"^step (?<step>\d+) batch (?<value>\d+)";
    let options = ["--crash", "process", "--consumed", consumed];
    let right = explore(&options, &["/bin/sh", "-c", &script(":", "$s"), "WATCH"]);
    assert_eq!(right.code, Some(0), "{}", right.text);
    let twice = explore(&options, &["/bin/sh", "-c", &script(":", "0"), "WATCH"]);
    assert_eq!(twice.json["findings"][0]["outcome"], "corrupt", "{}", twice.text);
    assert!(twice.text.contains("consumed `1`, and undisturbed `"), "{}", twice.text);
}

fn a_recovery_broken_by_a_second_crash_is_found_at_depth_2() {
    let risky = script("mv v v.old; mv v.old v", "$s");
    let words = ["/bin/sh", "-c", risky.as_str(), "WATCH"];
    let once = explore(&["--crash", "process"], &words);
    assert_eq!(once.code, Some(0), "{}", once.text);
    let twice = explore(&["--crash", "process", "--depth", "2"], &words);
    assert_eq!(twice.code, Some(1), "{}", twice.text);
    let found = twice.json["second"].as_array().unwrap().iter();
    let found: Vec<_> = found.flat_map(|again| again["findings"].as_array().unwrap()).collect();
    assert!(found.iter().any(|one| one["outcome"] == "restarted"), "{}", twice.text);
    let sound = script(":", "$s");
    let sound = explore(&["--crash", "process", "--depth", "2"], &["/bin/sh", "-c", &sound, "WATCH"]);
    assert_eq!(sound.code, Some(0), "{}", sound.text);
}

fn a_target_file_replaces_the_options_and_a_page_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let run = |more: &[&str], out: &str| {
        let out = dir.path().join(out);
        let options =
            ["explore", "--target", "reference", "--max-states", "30", "--out", out.to_str().unwrap()];
        let output = Command::new(TRAINWRECK).args(options).args(more).output().unwrap();
        let page = std::fs::read_to_string(out.join("explore.html")).unwrap_or_default();
        (output.status.code(), page, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, page, said) = run(&[], "sound");
    assert_eq!(code, Some(0), "{said}");
    assert!(page.contains("It came back from every state that was tried"));
    let (code, page, said) = run(&["--without", "sync"], "unsynced");
    assert_eq!(code, Some(1), "{said}");
    assert!(page.contains("no-fsync") || page.contains("not-synced"), "{page}");
    let (code, _, said) = run(&["--without", "nothing"], "unknown");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("it has: "), "{said}");
}
