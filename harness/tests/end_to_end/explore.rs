//! Runs the explorer on small trainers, each with one style of saving. It must find each known-bad style with
//! its cause, and nothing in the correct one.
//!
//! `cargo test --test end_to_end -- explore::`. Not covered: targets that need a GPU.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scenarios::Exploration;
use serde_json::Value;

use crate::support::command::{TRAINWRECK, output_text, run_trainwreck, saver, workspace};
use crate::support::machine::{GATE, missing};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        missing(&GATE);
        a_correct_saver_gives_no_finding,
        a_file_written_in_place_is_found,
        a_rename_without_fsync_is_found_and_only_under_power_loss,
        a_directory_that_is_not_synced_is_found,
        an_old_checkpoint_deleted_first_is_found,
        a_marker_before_its_data_is_found,
        an_unfinished_directory_taken_is_found,
        files_of_mixed_saves_are_found,
        the_command_of_a_finding_repeats_exactly_that_state,
        a_bound_counts_what_it_left_out,
        a_useless_recording_exits_with_3_and_the_reason,
        wrong_arguments_exit_with_2_and_what_to_do,
        a_recovery_that_hangs_is_reported_as_hung,
        a_slow_recovery_that_ends_when_it_is_repeated_is_not_confirmed,
        a_program_that_a_crash_removes_is_a_finding,
        a_command_that_cannot_be_started_exits_with_2_and_what_to_do,
        a_large_environment_reaches_the_trainer_and_its_recoveries,
        a_check_that_fails_makes_the_state_corrupt,
        exit_code_0_alone_is_never_a_success,
        samples_consumed_twice_are_found,
        a_recovery_broken_by_a_second_crash_is_found_at_depth_2,
        a_target_file_replaces_the_options_and_a_page_is_written,
        a_killed_explorer_leaves_no_recovery_running,
        an_interrupted_exploration_counts_what_it_did_not_try,
    ]
}

/// A trainer that saves three times. Its recoveries sleep for `sleep_s`, a text that identifies them.
fn spawn_explorer_with_slow_recoveries(dir: &Path, sleep_s: &str, options: &[&str]) -> Child {
    let watch = dir.join("runs");
    std::fs::create_dir(&watch).unwrap();
    let save = "echo data > runs/new; mv runs/new runs/checkpoint; echo saved step";
    let script = format!("if [ -e runs/checkpoint ]; then sleep {sleep_s}; fi; {save} 1; {save} 2; {save} 3");
    Command::new(TRAINWRECK)
        .args(["explore", "--watch", "runs", "--saved", r"^saved step (?<step>\d+)", "--jobs", "2"])
        .args(options)
        .args(["--", "sh", "-c", &script])
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn is_sleeping(sleep_s: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let command_line = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).ok();
    processes.filter_map(command_line).any(|line| line == format!("sleep\0{sleep_s}\0").as_bytes())
}

/// Waits until `done`, at most for some seconds. Returns whether it is.
fn wait_until(done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    done()
}

/// The recovery would sleep for longer than the test waits for its end.
fn a_killed_explorer_leaves_no_recovery_running() {
    let dir = tempfile::tempdir().unwrap();
    let mut explorer = spawn_explorer_with_slow_recoveries(dir.path(), "59.25", &[]);
    assert!(wait_until(|| is_sleeping("59.25")), "no recovery was started");
    explorer.kill().unwrap();
    explorer.wait().unwrap();
    assert!(wait_until(|| !is_sleeping("59.25")), "a recovery outlives the explorer");
}

fn an_interrupted_exploration_counts_what_it_did_not_try() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("result.json");
    let options = ["--json", json.to_str().unwrap()];
    let explorer = spawn_explorer_with_slow_recoveries(dir.path(), "1.37", &options);
    assert!(wait_until(|| is_sleeping("1.37")), "no recovery was started");
    // The undamaged states are tried first; then two states of many at the same time.
    std::thread::sleep(Duration::from_secs(3));
    kill(Pid::from_raw(explorer.id().cast_signed()), Signal::SIGTERM).unwrap();
    let output = explorer.wait_with_output().unwrap();
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    let exploration = Exploration::parse(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert!(exploration.untried > 0, "{text}");
    assert!(text.contains(&format!("; {} states were not tried", exploration.untried)), "{text}");
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
    let arguments = command.iter().map(|argument| match *argument {
        "SAVER" => saver.to_str().unwrap().to_owned(),
        "WATCH" => watch.to_str().unwrap().to_owned(),
        argument => argument.to_owned(),
    });
    let output = Command::new(TRAINWRECK)
        .args(["explore", "--json", json.to_str().unwrap(), "--watch", watch.to_str().unwrap()])
        .args(["--saved", r"^saved step (?<step>\d+)", "--resumed", r"^resumed from step (?<step>\d+)"])
        .args(options)
        .arg("--")
        .args(arguments)
        .output()
        .unwrap();
    let files: Vec<_> = std::fs::read_dir(&watch).unwrap().collect();
    assert!(files.is_empty(), "the explorer changed the watched directory: {files:?}");
    let text = output_text(&output);
    let json = std::fs::read(&json).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    ExploreRun { code: output.status.code(), json: json.unwrap_or_default(), text }
}

const SAME: [&str; 2] = ["--same", r"^final sum (\w+)"];

fn causes(explore_run: &ExploreRun) -> Vec<&str> {
    explore_run.json["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["cause"].as_str().unwrap())
        .collect()
}

/// Checks that a style has a finding with this cause and outcome under these crashes. There may be other
/// findings.
fn check(style: &str, cause: &str, outcome: &str, under: &[&str]) {
    let explore_run = explore(&SAME, &["SAVER", style, "WATCH"]);
    assert_eq!(explore_run.code, Some(1), "{}", explore_run.text);
    let findings = explore_run.json["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["cause"] == cause && finding["outcome"] == outcome);
    let finding = finding.unwrap_or_else(|| panic!("{style}: {}", explore_run.text));
    findings.iter().for_each(assert_shows_what_was_lost);
    for crash in under {
        assert!(finding["under"].as_array().unwrap().iter().any(|name| name == crash), "{finding}");
    }
    let advice = finding["advice"].as_str().unwrap();
    assert!(!advice.is_empty() && explore_run.text.contains(advice));
}

/// The name of a state is `OPS-LOST..~TORN`: what it names must be among the operations that are shown, unless
/// some of them are left out.
fn assert_shows_what_was_lost(finding: &Value) {
    let fates: Vec<&str> = finding["operations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|operation| operation["fate"].as_str().unwrap())
        .collect();
    let state = finding["state"].as_str().unwrap();
    let is_shown = |wanted: &[&str]| fates.iter().any(|fate| *fate == "omitted" || wanted.contains(fate));
    assert!(!state.contains('~') || is_shown(&["torn"]), "{finding}");
    assert!(!state.contains('-') || is_shown(&["lost", "half-lost", "zeroes"]), "{finding}");
}

fn a_correct_saver_gives_no_finding() {
    let explore_run = explore(&SAME, &["SAVER", "correct", "WATCH"]);
    assert_eq!(explore_run.code, Some(0), "{}", explore_run.text);
    assert!(causes(&explore_run).is_empty());
    let outcomes = &explore_run.json["outcomes"];
    assert!(outcomes["process"]["recovered"].as_u64().unwrap() > 10, "{outcomes}");
    assert!(outcomes["power"]["recovered"].as_u64().unwrap() > 40, "{outcomes}");
    assert!(explore_run.json["never_synced"].as_array().unwrap().is_empty());
}

fn a_file_written_in_place_is_found() {
    check("in-place", "written-in-place", "crashed", &["process", "ext4", "xfs", "btrfs", "posix"]);
}

fn a_rename_without_fsync_is_found_and_only_under_power_loss() {
    let explore_run = explore(&SAME, &["SAVER", "no-fsync", "WATCH"]);
    assert_eq!(causes(&explore_run), ["no-fsync-before-rename"], "{}", explore_run.text);
    let under = explore_run.json["findings"][0]["under"].as_array().unwrap();
    assert!(under.iter().all(|crash| crash != "process") && under.iter().any(|crash| crash == "ext4"));
}

fn a_directory_that_is_not_synced_is_found() {
    check("no-directory-fsync", "directory-not-synced", "lost-work", &["xfs", "btrfs", "posix"]);
}

fn an_old_checkpoint_deleted_first_is_found() {
    check("delete-first", "old-deleted-first", "restarted", &["process"]);
}

fn a_marker_before_its_data_is_found() {
    check("marker-first", "marker-before-data", "crashed", &["process"]);
}

fn an_unfinished_directory_taken_is_found() {
    check("manifest-first", "unfinished-directory-taken", "crashed", &["process"]);
}

fn files_of_mixed_saves_are_found() {
    check("two-files", "mixed-saves", "crashed", &["process"]);
}

fn the_command_of_a_finding_repeats_exactly_that_state() {
    let explore_run = explore(&SAME, &["SAVER", "delete-first", "WATCH"]);
    let state = explore_run.json["findings"][0]["state"].as_str().unwrap();
    let repeated = explore(&[&SAME[..], &["--state", state]].concat(), &["SAVER", "delete-first", "WATCH"]);
    assert_eq!(repeated.code, Some(1), "{}", repeated.text);
    assert!(repeated.text.contains("1 states in"), "{}", repeated.text);
}

fn a_bound_counts_what_it_left_out() {
    let options = [&SAME[..], &["--max-states", "20"]].concat();
    let explore_run = explore(&options, &["SAVER", "no-fsync", "WATCH"]);
    let left_out = explore_run.json["left_out"]["power"].as_u64().unwrap();
    let distinct = explore_run.json["distinct"]["power"].as_u64().unwrap();
    assert_eq!(left_out, distinct - 20, "{}", explore_run.text);
    let [states, beyond, max] =
        ["states", "states_left_out", "max_states"].map(|name| explore_run.json[name].as_u64().unwrap());
    assert_eq!((states - beyond, max), (20, 20), "a state of both kinds of crash counts once");
    for expected in [
        format!("20 of {distinct} states tried"),
        format!("{beyond} of {states} states left out by --max-states 20"),
    ] {
        assert!(explore_run.text.contains(&expected), "{expected}: {}", explore_run.text);
    }
    let all = explore(&[&SAME[..], &["--max-states", "all"]].concat(), &["SAVER", "no-fsync", "WATCH"]);
    assert_eq!(all.json["tried"].as_u64(), Some(states));
    assert!(all.json["max_states"].is_null() && !all.text.contains("left out"), "{}", all.text);
    assert_eq!(causes(&explore_run), ["no-fsync-before-rename"], "representatives of each group come first");
}

fn a_useless_recording_exits_with_3_and_the_reason() {
    for (command, expected) in [
        (vec!["/bin/sh", "-c", "echo saved step 1"], "nothing was recorded"),
        (vec!["/bin/sh", "-c", ": > \"$0/x\"; exit 7", "WATCH"], "exit code 7"),
        (vec!["/bin/false"], "exit code 1"),
        (vec!["/bin/sh", "-c", ": > \"$0/x\"", "WATCH"], "no line of the command's output matches `--saved`"),
    ] {
        let explore_run = explore(&[], &command);
        assert_eq!(explore_run.code, Some(3), "{}", explore_run.text);
        assert!(explore_run.text.contains(expected), "{expected}: {}", explore_run.text);
    }
}

fn wrong_arguments_exit_with_2_and_what_to_do() {
    for (options, expected) in [
        (["--same", "x"], "needs exactly one group"),
        (["--same", "("], "--same"),
        (["--state", "what"], "not the name of a state"),
        (["--timeout", "soon"], "10s"),
    ] {
        let explore_run = explore(&options, &["SAVER", "correct", "WATCH"]);
        assert_eq!(explore_run.code, Some(2), "{}", explore_run.text);
        assert!(explore_run.text.contains(expected), "{expected}: {}", explore_run.text);
    }
}

fn a_recovery_that_hangs_is_reported_as_hung() {
    let script = "cd \"$0\"; if [ -e a ] && ! [ -e b ]; then sleep 100; fi; : > a; : > b; \
        echo saved step 1; echo resumed from step 1";
    let options = ["--timeout", "300ms", "--crash", "process"];
    let explore_run = explore(&options, &["/bin/sh", "-c", script, "WATCH"]);
    assert_eq!(explore_run.json["findings"][0]["outcome"], "hung", "{}", explore_run.text);
    assert_eq!(explore_run.json["findings"][0]["confirmation"]["failed"], 2, "{}", explore_run.text);
    assert!(!explore_run.text.contains("not confirmed"), "{}", explore_run.text);
    assert_eq!(explore_run.code, Some(1), "{}", explore_run.text);
}

/// The recovery takes longer than the limit, and less than three times the limit.
fn a_slow_recovery_that_ends_when_it_is_repeated_is_not_confirmed() {
    let script = "cd \"$0\"; if [ -e a ] && ! [ -e b ]; then sleep 1.5; fi; : > a; : > b; \
        echo saved step 1; echo resumed from step 1";
    let options = ["--timeout", "1s", "--crash", "process"];
    let explore_run = explore(&options, &["/bin/sh", "-c", script, "WATCH"]);
    assert_eq!(explore_run.code, Some(3), "{}", explore_run.text);
    assert_eq!(explore_run.json["findings"][0]["outcome"], "hung", "{}", explore_run.text);
    assert_eq!(explore_run.json["findings"][0]["confirmation"]["other"], "recovered", "{}", explore_run.text);
    assert!(explore_run.text.contains("1 of 1 findings not confirmed"), "{}", explore_run.text);
}

/// The trainer's program is a link in the watched directory, which the trainer replaces.
fn a_program_that_a_crash_removes_is_a_finding() {
    let dir = tempfile::tempdir().unwrap();
    let shell = dir.path().join("shell");
    std::os::unix::fs::symlink("/bin/sh", &shell).unwrap();
    let script = "cd \"$0\"; rm shell; ln -s /bin/sh shell; echo saved step 1";
    let output = Command::new(TRAINWRECK)
        .args(["explore", "--crash", "process", "--saved", r"^saved step (?<step>\d+)", "--watch"])
        .arg(dir.path())
        .arg("--")
        .arg(&shell)
        .args(["-c", script])
        .arg(dir.path())
        .output()
        .unwrap();
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("-> crashed") && text.contains("could not start `"), "{text}");
}

fn a_command_that_cannot_be_started_exits_with_2_and_what_to_do() {
    let explore_run = explore(&[], &["/nonexistent/trainer"]);
    assert_eq!(explore_run.code, Some(2), "{}", explore_run.text);
    assert!(explore_run.text.contains("there is no program `/nonexistent/trainer`"), "{}", explore_run.text);
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target.yaml");
    let value = "x".repeat(128 * 1024);
    let reference = std::fs::read_to_string(workspace().join("scenarios/targets/reference.yaml")).unwrap();
    let reference = reference.replace("program: target-trainer", "program: /bin/sh");
    std::fs::write(&target, format!("{reference}\nenvironment: {{LONG: \"{value}\"}}\n")).unwrap();
    let explored = run_trainwreck(&["explore", "--target", target.to_str().unwrap()]);
    let text = output_text(&explored);
    assert_eq!(explored.status.code(), Some(2), "{text}");
    assert!(text.contains("argument list too long") && text.contains("ulimit"), "{text}");
}

/// Batch systems and module systems set environments of this size.
fn a_large_environment_reaches_the_trainer_and_its_recoveries() {
    let dir = tempfile::tempdir().unwrap();
    let script = "cd \"$0\"; [ ${#V0}${#V9} = 100000100000 ] || exit 9; : > a; echo saved step 1";
    let mut command = Command::new(TRAINWRECK);
    command.args(["explore", "--crash", "process", "--saved", r"^saved step (?<step>\d+)", "--watch"]);
    command.arg(dir.path()).args(["--check", "true", "--", "/bin/sh", "-c", script]).arg(dir.path());
    for number in 0..10 {
        command.env(format!("V{number}"), "x".repeat(100_000));
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
}

fn a_check_that_fails_makes_the_state_corrupt() {
    let script = "cd \"$0\"; [ -e a ] && [ ! -e b ] && : > half; : > a; : > b; \
        echo saved step 1; echo resumed from step 1";
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

/// A trainer that deletes everything at each start. `HALF` is what it does first if a save was half done.
const WIPES: &str = "cd \"$0\"; [ -e a ] && [ ! -e b ] && HALF; rm -f a b; echo resumed from step 0; \
    for s in 1 2 3; do echo step $s; echo $s > a; echo $s > b; echo saved step $s; done; echo sum 3";

/// Explores the trainer above with these options only. Returns the exit code and the output.
fn explore_wiping_trainer(half: &str, options: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let watch = dir.path().to_str().unwrap();
    let output = Command::new(TRAINWRECK)
        .args(["explore", "--crash", "process", "--watch", watch])
        .args(options)
        .args(["--", "/bin/sh", "-c", &WIPES.replace("HALF", half), watch])
        .output()
        .unwrap();
    (output.status.code(), output_text(&output))
}

fn exit_code_0_alone_is_never_a_success() {
    let saved = ["--saved", r"^saved step (?<step>\d+)"];
    let resumed = ["--resumed", r"^resumed from step (?<step>\d+)"];
    let step = ["--step", r"^step (?<step>\d+)"];
    let refused = ["--refused-exit", "9"];
    let cannot_tell: [&[&str]; 7] =
        [&[], &saved, &resumed, &step, &refused, &[saved, step].concat(), &[resumed, step, refused].concat()];
    for options in cannot_tell {
        for half in [":", "exit 9"] {
            let (code, text) = explore_wiping_trainer(half, options);
            let has_finding = half == "exit 9" && !options.contains(&"--refused-exit");
            assert_eq!(code, Some(if has_finding { 1 } else { 3 }), "{options:?}: {text}");
            let first_line = text.lines().next().unwrap();
            assert!(first_line.starts_with("checks: exit code only; cannot notice: lost work"), "{text}");
            assert!(text.contains("not judged") && !text.contains("recovered"), "{options:?}: {text}");
        }
    }
    let (code, text) = explore_wiping_trainer(":", &[saved, resumed].concat());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("-> restarted"), "{text}");
    // What was asked for held: nothing else is claimed.
    for can_tell in [["--same", r"^sum (\d)"], ["--check", "true"]] {
        let (code, text) = explore_wiping_trainer(":", &can_tell);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.lines().next().unwrap().contains("cannot notice: lost work"), "{text}");
    }
    let never_printed = ["--consumed", "^batch (?<step>x) (?<value>x)"];
    let (code, text) = explore_wiping_trainer(":", &never_printed);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("matches `--consumed`"), "{text}");
}

/// A trainer in shell that saves by rename. `RESUME` runs first if there is a save; `BATCH` is then the
/// number of the last batch.
const SCRIPT: &str = "cd \"$0\"; s=0; b=0; if [ -e v ]; then RESUME; s=$(cat v); b=BATCH; fi; \
    echo resumed from step $s; \
    while [ $s -lt 4 ]; do s=$((s+1)); b=$((b+1)); echo step $s batch $b; \
    echo $s > v.tmp; mv v.tmp v; echo saved step $s; done";

fn script(resume: &str, batch: &str) -> String {
    SCRIPT.replace("RESUME", resume).replace("BATCH", batch)
}

fn samples_consumed_twice_are_found() {
    let consumed = r"^step (?<step>\d+) batch (?<value>\d+)";
    let options = ["--crash", "process", "--consumed", consumed];
    let correct = explore(&options, &["/bin/sh", "-c", &script(":", "$s"), "WATCH"]);
    assert_eq!(correct.code, Some(0), "{}", correct.text);
    let twice = explore(&options, &["/bin/sh", "-c", &script(":", "0"), "WATCH"]);
    assert_eq!(twice.json["findings"][0]["outcome"], "corrupt", "{}", twice.text);
    assert!(twice.text.contains("consumed `1`, but `"), "{}", twice.text);
}

fn a_recovery_broken_by_a_second_crash_is_found_at_depth_2() {
    let risky = script("mv v v.old; mv v.old v", "$s");
    let command = ["/bin/sh", "-c", risky.as_str(), "WATCH"];
    let once = explore(&["--crash", "process"], &command);
    assert_eq!(once.code, Some(0), "{}", once.text);
    let twice = explore(&["--crash", "process", "--depth", "2"], &command);
    assert_eq!(twice.code, Some(1), "{}", twice.text);
    let second_crashes = twice.json["second"].as_array().unwrap().iter();
    let findings: Vec<_> =
        second_crashes.flat_map(|explored| explored["findings"].as_array().unwrap()).collect();
    assert!(findings.iter().any(|finding| finding["outcome"] == "restarted"), "{}", twice.text);
    let correct = script(":", "$s");
    let correct = explore(&["--crash", "process", "--depth", "2"], &["/bin/sh", "-c", &correct, "WATCH"]);
    assert_eq!(correct.code, Some(0), "{}", correct.text);
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
    let (code, page, stderr) = run(&[], "correct");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(page.contains("The command recovered from every crash state that was tried"));
    // Only kills: the power losses of a run without syncs take most of a minute to enumerate.
    let (code, page, stderr) = run(&["--without", "atomic-save", "--crash", "process"], "in-place");
    assert_eq!(code, Some(1), "{stderr}");
    assert!(page.contains("written-in-place"), "{page}");
    let (code, _, stderr) = run(&["--without", "nothing"], "unknown");
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("its guards are: "), "{stderr}");
}
