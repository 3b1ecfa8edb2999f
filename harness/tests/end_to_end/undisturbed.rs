//! Runs without any fault: one that fails says how it ended and what it printed last, and `ablate` runs each
//! target without its guard undisturbed before it calls anything caught. Connections that nobody answers are
//! named.
//!
//! `cargo test --test end_to_end -- undisturbed::`. Not covered: the time limit of `prepare`, which is a minute.

use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;

use crate::support::command::{TRAINWRECK, output_text, workspace};
use crate::support::machine::{GATE, Need, SANDBOX, missing};
use crate::support::program_files::{copy_program, write_script};

const TARGET: &str = r"
version: 1
id: shell
title: a few lines of shell
program: PROGRAM
places: {checkpoints: ckpt}
prepare: [[/bin/sh, -c, 'PREPARE', '{checkpoints}']]
generate: {text: [/bin/sh, -c, 'GENERATE', '{file}']}
submit: [/bin/sh, -c, 'SUBMIT', '{file}']
setting-args: ['{key}={value}']
start: ['{program}', '{root}', '{settings}']
announces:
  step: '^step (?<step>\d+)'
  saved: '^saved step (?<step>\d+)'
  resumed: '^resumed from step (?<step>\d+)'
phases: {checkpoint-save: {begins: '^step \d+', ends: '^saved step \d+', place: checkpoints}}
same: '^finished with (?<value>\d+)'
guards: {some-guard: {guard: MODE}}
timeouts: {stall: 2 s, finish: 120 s}
";

const SCENARIO: &str = r"
version: 1
id: fs-ID
title: a stub under test
severity: extra
target: {use: target.yaml, submit: [{generate: {kind: text, samples: 1}}]}
method: [METHOD]
expect: [EXPECT]
guards: [some-guard]
";

/// A trainer that saves every third of 12 steps. Without its guard it has one defect, named by the argument.
const TRAINER: &str = r#"#!/bin/sh
cd "$1" || exit 9
mode=${2#guard=}
FIRST
[ "$mode" = no-start ] && { echo "broken from the start" >&2; exit 1; }
[ "$mode" = hangs ] && sleep 100
mkdir -p ckpt
step=0
[ -f ckpt/latest ] && [ "$mode" != forgets ] && read -r step <ckpt/latest
[ "$mode" = silent ] || echo "watching"
echo "resumed from step $step"
last=12
[ "$mode" = stops-early ] && last=11
while [ "$step" -lt $last ]; do
    sleep 0.02
    step=$((step + 1))
    echo "step $step"
    if [ $((step % 3)) -eq 0 ]; then
        echo $step >ckpt/new
        mv ckpt/new ckpt/latest
        echo "saved step $step"
    fi
done
[ "$mode" = other-result ] && step=77
echo "finished with $step"
"#;

/// Soon after the first save, so that it comes before the end on a busy machine too.
const CRASH: &str = "crash: {when: {step: 4}}";
const RECOVERS: &str = "{always: {outcome: [recovered]}}";

/// What a bad command does: prints on both outputs, with an escape sequence, and exits with 7.
const FAILS: &str = r"echo on-stdout; printf '\033[31mthe-reason\n' >&2; exit 7";
const ESCAPED_REASON: &str = "stderr: \u{241b}[31mthe-reason";

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        a_missing_program_is_a_note_for_check_and_invalid_input_for_run,
        without_the_reference_trainer_its_scenarios_are_skipped_with_the_reason,
    ];
    trials.extend(trials![
        missing(&SANDBOX);
        a_failed_baseline_shows_its_ending_and_last_lines_everywhere,
        a_baseline_ended_by_a_signal_or_a_time_limit_says_so,
        each_failed_command_before_the_target_shows_its_last_lines,
        a_failed_run_that_scenarios_share_is_shown_by_each,
        a_target_that_fails_without_its_guard_has_caught_nothing,
        a_guard_is_caught_by_harm_or_by_words_only,
    ]);
    trials.extend(trials![
        missing(&GATE);
        a_failed_recorded_run_shows_its_last_lines,
        explore_shows_the_last_lines_of_a_failed_run,
        signals_have_their_usual_effect_however_the_harness_was_started,
        without_a_guard_no_more_trials_start_once_one_has_shown_harm,
    ]);
    trials.extend(trials![
        missing(GATE.iter().chain(&[Need::Program("python3")]));
        each_connection_that_nobody_answers_is_named_with_its_remedy,
        connections_that_are_answered_are_not_named,
        a_failed_baseline_names_its_connections,
    ]);
    trials
}

/// The files of a scenario and its target, in a directory of their own.
struct Files {
    dir: tempfile::TempDir,
    /// What each start does first. `MEMORY` is a directory that all of them share.
    first: &'static str,
    mode: &'static str,
    prepare: String,
    generate: String,
    submit: String,
    method: &'static str,
    expect: &'static str,
}

/// What the command printed, and its reports.
struct Reported {
    code: Option<i32>,
    printed: String,
    /// What was printed, the page, the JUnit file and the summary.
    texts: Vec<String>,
}

impl Files {
    fn new() -> Files {
        Files {
            dir: tempfile::tempdir().unwrap(),
            first: ":",
            mode: "none",
            prepare: "mkdir -p \"$0\"".into(),
            generate: ": > \"$0\"".into(),
            submit: ":".into(),
            method: CRASH,
            expect: RECOVERS,
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, id: &str) -> String {
        let trainer = self.path("trainer.sh");
        let first = self.first.replace("MEMORY", &self.path("memory"));
        write_script(trainer.as_ref(), &TRAINER.replace("FIRST", &first), 0o755);
        let quoted = |script: &str| script.replace('\'', "''");
        let target = TARGET
            .replace("PROGRAM", &trainer)
            .replace("PREPARE", &quoted(&self.prepare))
            .replace("GENERATE", &quoted(&self.generate))
            .replace("SUBMIT", &quoted(&self.submit))
            .replace("MODE", self.mode);
        std::fs::write(self.path("target.yaml"), target).unwrap();
        let scenario = SCENARIO.replace("ID", id).replace("METHOD", self.method);
        let path = self.path(&format!("{id}.yaml"));
        std::fs::write(&path, scenario.replace("EXPECT", self.expect)).unwrap();
        path
    }

    /// Runs `verb` on scenarios with these ids, and analyzes the record.
    fn report(&self, verb: &str, ids: &[&str]) -> Reported {
        self.report_with(verb, ids, &[])
    }

    fn report_with(&self, verb: &str, ids: &[&str], options: &[&str]) -> Reported {
        let (out, memory) = (self.path("out"), self.path("memory"));
        std::fs::create_dir(&memory).unwrap();
        let scenarios: Vec<String> = ids.iter().map(|id| self.write(id)).collect();
        let mut command = Command::new(TRAINWRECK);
        command.arg(verb).args(options).args(&scenarios).args([
            "--jobs",
            "1",
            "--out",
            &out,
            "--writable",
            &memory,
        ]);
        let output = command.output().unwrap();
        let printed = output_text(&output);
        let report = |name: &str| {
            std::fs::read_to_string(Path::new(&out).join(name)).unwrap_or_else(|_| panic!("{printed}"))
        };
        let texts = ["report.html", "junit.xml", "summary.md"].map(report);
        let texts = [vec![printed.clone()], texts.to_vec()].concat();
        let record = format!("{out}/record.jsonl");
        let again = Command::new(TRAINWRECK).args(["analyze", &record]).output().unwrap();
        let again_text = output_text(&again);
        assert_eq!(again.status.code(), output.status.code(), "{printed}{again_text}");
        assert!(again_text.contains("as recorded"), "{again_text}");
        Reported { code: output.status.code(), printed, texts }
    }
}

impl Reported {
    /// Asserts that nothing could be judged, and that each report has these texts and no escape sequence.
    fn assert_inconclusive(&self, expected: &[&str]) {
        assert_eq!(self.code, Some(3), "{}", self.printed);
        for (index, text) in self.texts.iter().enumerate() {
            let text = text.replace("&#96;", "`");
            for expected in expected {
                // Markdown shows a backtick as an apostrophe.
                let other = expected.replace('`', "'");
                assert!(text.contains(expected) || text.contains(&other), "{index}: {expected}: {text}");
            }
            assert!(!text.contains('\u{1b}'), "{index}: {text}");
        }
    }
}

fn a_failed_baseline_shows_its_ending_and_last_lines_everywhere() {
    let files = Files { first: FAILS, ..Files::new() };
    let expected = ["the baseline run ended with exit code 7", "stdout: on-stdout", ESCAPED_REASON];
    let reported = files.report("run", &["01"]);
    reported.assert_inconclusive(&expected);
    assert_eq!(
        reported.printed.matches("the-reason").count(),
        1,
        "only the last attempt: {}",
        reported.printed
    );
}

fn a_baseline_ended_by_a_signal_or_a_time_limit_says_so() {
    let killed = Files { first: "echo last-words; kill -9 $$", ..Files::new() };
    killed.report("run", &["01"]).assert_inconclusive(&["was ended by signal 9", "stdout: last-words"]);
    let late = Files { first: "echo last-words; sleep 100", ..Files::new() };
    late.report("run", &["01"]).assert_inconclusive(&["exceeded its time limit", "stdout: last-words"]);
}

fn each_failed_command_before_the_target_shows_its_last_lines() {
    let fails = || FAILS.to_owned();
    let failing = [
        ("prepare", Files { prepare: fails(), ..Files::new() }),
        ("generate", Files { generate: fails(), ..Files::new() }),
        ("submit", Files { submit: fails(), ..Files::new() }),
    ];
    for (command, files) in failing {
        let ended = format!("`{command}` command ended with exit code 7");
        files.report("run", &["01"]).assert_inconclusive(&[&ended, "stdout: on-stdout", ESCAPED_REASON]);
    }
}

fn a_failed_run_that_scenarios_share_is_shown_by_each() {
    for files in [Files { first: FAILS, ..Files::new() }, Files { prepare: FAILS.into(), ..Files::new() }] {
        let reported = files.report("run", &["01", "02"]);
        reported.assert_inconclusive(&["which was run once for several scenarios,", ESCAPED_REASON]);
        for text in &reported.texts {
            assert_eq!(text.matches("the-reason").count(), 2, "{text}");
        }
    }
}

/// While it is recorded, the target sees its root at another path.
fn a_failed_recorded_run_shows_its_last_lines() {
    // The first start is the baseline's, the second one resumes from its files.
    let first = "echo started >>MEMORY/starts
[ $(wc -l <MEMORY/starts) = 3 ] && { echo seen >&2; exit 6; }";
    let method = "crash-states: {of: [process], during: checkpoint-save}";
    let files = Files { first, method, ..Files::new() };
    let reported = files.report("run", &["01"]);
    reported.assert_inconclusive(&["the recorded run ended with exit code 6", "stderr: seen"]);
}

fn explore_shows_the_last_lines_of_a_failed_run() {
    let failing = "if [ -e \"$0/x\" ]; then echo stale-lock >&2; exit 4; fi; : > \"$0/x\"";
    let same_again = "date +%N > \"$0/x\"; echo value $(cat \"$0/x\")";
    let nothing_to_compare = ["already `corrupt`", "`--same` found", "in the baseline run"];
    for (script, code, expected) in [
        (FAILS, 3, ["exit code 7 without any fault", "stdout: on-stdout", ESCAPED_REASON]),
        // The recovery from the files of the finished run: a finding, because the run itself went well.
        (failing, 1, ["does-not-resume -> crashed", "the files of the finished run", "output: stale-lock"]),
        (same_again, 3, nothing_to_compare),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let watch = dir.path().to_str().unwrap();
        let same: &[&str] = if script == same_again { &["--same", r"^value (\d+)"] } else { &[] };
        let mut explorer = Command::new(TRAINWRECK);
        explorer.args(["explore", "--watch", watch]).args(same).args(["--", "/bin/sh", "-c", script, watch]);
        let output = explorer.output().unwrap();
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(expected.iter().all(|expected| text.contains(expected)), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}

/// `nohup` and shells in the background let what they start ignore SIGHUP, SIGINT and SIGQUIT, and init blocks
/// SIGCHLD. Asked in the recorded run and in the recoveries, without a shell, which would change both.
fn signals_have_their_usual_effect_however_the_harness_was_started() {
    let program = r#"/^SigIgn:/ && $2 !~ /[08]$/ || /^SigBlk:/ && $2 !~ /^0+$/ { print; bad = 1 }
END { if (bad) exit 7; print 1 >out; print "value 1" }"#;
    let dir = tempfile::tempdir().unwrap();
    let watch = dir.path().to_str().unwrap();
    let out = format!("out={watch}/x");
    let mut explorer = Command::new("/bin/sh");
    explorer.args(["-c", "trap '' HUP INT QUIT; exec \"$0\" \"$@\"", TRAINWRECK]);
    explorer.args(["explore", "--watch", watch, "--same", r"^value (\d+)"]);
    explorer.args(["--", "awk", "-v", &out, program, "/proc/self/status"]);
    let output = explorer.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
}

fn a_target_that_fails_without_its_guard_has_caught_nothing() {
    for (mode, expected) in [
        ("no-start", "ended with exit code 1"),
        ("hangs", "exceeded its time limit"),
        ("stops-early", "ended at step 11, the baseline at step 12"),
        ("other-result", "ended with [77], the baseline with [12]"),
    ] {
        let reported = Files { mode, ..Files::new() }.report("ablate", &["01"]);
        let expected = format!("the undisturbed run without the guard {expected}");
        reported.assert_inconclusive(&[&expected, "not known whether the guard matters"]);
        assert!(reported.printed.contains("0 of 1 guards caught"), "{}", reported.printed);
    }
    let no_start = Files { mode: "no-start", ..Files::new() }.report("ablate", &["01"]);
    no_start.assert_inconclusive(&["stderr: broken from the start"]);
}

fn a_guard_is_caught_by_harm_or_by_words_only() {
    let expect = "{always: {outcome: [recovered]}}, {reached: {output: '^watching'}}";
    let ablate = |mode, method| Files { mode, method, expect, ..Files::new() }.report("ablate", &["01"]);
    for (mode, expected) in [("forgets", "caught by harm"), ("silent", "caught by words only")] {
        let reported = ablate(mode, CRASH);
        assert_eq!(reported.code, Some(0), "{}", reported.printed);
        for text in &reported.texts {
            assert!(text.contains(expected), "{mode}: {text}");
        }
    }
    assert!(ablate("silent", CRASH).printed.contains("1 of 1 guards caught (1 by words only)"));
    let missed = ablate("none", CRASH);
    assert_eq!(missed.code, Some(1), "{}", missed.printed);
    // The run ends before this step, so the fault is never effective: what is missing then shows nothing.
    let too_late = "crash: {when: {step: 40}}";
    ablate("silent", too_late).assert_inconclusive(&["the faults were not effective in 1 of 1 trials"]);
}

fn without_a_guard_no_more_trials_start_once_one_has_shown_harm() {
    let method =
        "crash: {when: {call: {to: [write, rename], on: 'ckpt/**', during: checkpoint-save, at: every}}}";
    let expect = "{always: {outcome: [recovered]}}, {reached: {output: '^watching'}}";
    let ablate = |mode, options: &[&str]| {
        Files { mode, method, expect, ..Files::new() }.report_with("ablate", &["01"], options)
    };
    // Missing words do not stop it so soon: a later trial may show harm.
    for (mode, options, stops) in
        [("forgets", &[][..], true), ("forgets", &["--keep-going"], false), ("silent", &[], false)]
    {
        let reported = ablate(mode, options);
        assert_eq!(reported.code, Some(0), "{}", reported.printed);
        for text in &reported.texts {
            let is_stopped = text.contains("not needed");
            assert_eq!(is_stopped, stops, "{mode} {options:?}: {text}");
        }
        assert_eq!(
            reported.printed.contains("1 trial tried"),
            stops,
            "{mode} {options:?}: {}",
            reported.printed
        );
    }
    let repeat = ablate("forgets", &["--keep-going"]).texts.join("\n");
    assert!(repeat.contains(" --keep-going"), "{repeat}");
}

fn a_missing_program_is_a_note_for_check_and_invalid_input_for_run() {
    let files = Files::new();
    let scenario = files.write("01");
    let target = files.path("target.yaml");
    let text = std::fs::read_to_string(&target).unwrap();
    std::fs::write(&target, text.replace(&files.path("trainer.sh"), "pyton3")).unwrap();
    for file in [&target, &scenario] {
        let output = Command::new(TRAINWRECK).args(["check", file]).output().unwrap();
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.contains("there is no program `pyton3`"), "{text}");
    }
    let out = files.path("out");
    let output = Command::new(TRAINWRECK).args(["run", &scenario, "--out", &out]).output().unwrap();
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("`pyton3`") && !text.contains("cargo build"), "{text}");
}

/// As after an installation of the command alone.
fn without_the_reference_trainer_its_scenarios_are_skipped_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("trainwreck");
    copy_program(TRAINWRECK.as_ref(), &copy);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&copy);
        command.args(arguments).current_dir(dir.path());
        command.env_remove("CARGO").env("PATH", "/usr/bin:/bin").output().unwrap()
    };
    let output = run(&["run", "fs-02", "--out", "out"]);
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("skipped") && text.contains("the reference trainer is not here"), "{text}");
    let shipped = workspace().join("scenarios/library/filesystem/fs-02-inodes-exhausted.yaml");
    let output = run(&["check", shipped.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
}

/// Connects to the addresses that its arguments name, then saves.
const CONNECTING_TRAINER: &str = r#"
import socket, sys

QUERY = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x0bhuggingface\x02co\0\0\x01\0\x01"

def connect(family, address):
    client = socket.socket(family)
    try:
        client.connect(address)
    except OSError as error:
        print("failed:", error)
    client.close()

def lose():
    for _ in range(3):
        connect(socket.AF_INET, ("192.0.2.1", 443))
    connect(socket.AF_INET6, ("2001:db8::1", 8443))
    connect(socket.AF_INET, ("127.0.0.1", 9))
    connect(socket.AF_UNIX, "host.sock")
    connect(socket.AF_UNIX, "no-such-socket")
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.sendto(QUERY, ("127.0.0.53", 53))
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.53", 53))
    except OSError:
        pass

def meet():
    for family, address in [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, "own.sock")]:
        server = socket.socket(family)
        server.bind(address)
        # As a client that starts before its server.
        connect(family, server.getsockname())
        server.listen()
        connect(family, server.getsockname())
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", receiver.getsockname())

{"lose": lose, "meet": meet}[sys.argv[1]]()
open("runs/a", "w").write("x")
print("done")
"#;

/// What an exploration of the trainer prints. A daemon of the host listens at `host.sock` meanwhile.
fn explore_connecting_trainer(mode: &str, options: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("train.py"), CONNECTING_TRAINER).unwrap();
    let _daemon = std::os::unix::net::UnixListener::bind(dir.path().join("host.sock")).unwrap();
    let mut command = Command::new(TRAINWRECK);
    command.args(["explore", "--watch", "runs", "--crash", "process", "--same", "^(done)"]).args(options);
    std::fs::create_dir(dir.path().join("runs")).unwrap();
    let output = command.args(["--", "python3", "train.py", mode]).current_dir(dir.path()).output().unwrap();
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    text
}

fn each_connection_that_nobody_answers_is_named_with_its_remedy() {
    let text = explore_connecting_trainer("lose", &[]);
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("` tried to ")).collect();
    for expected in [
        ["connect to `192.0.2.1:443` 3 times (no route)", "`HF_HUB_OFFLINE=1`"],
        ["connect to `[2001:db8::1]:8443` (no route)", "`--network host`"],
        ["connect to `127.0.0.1:9` (nothing listens there in the sandbox)", "`--network host`"],
        ["host.sock` (a socket of the host)", "`--writable "],
        ["look up the name `huggingface.co` at `127.0.0.53:53`", "`--network host`"],
        ["look up a name at `192.0.2.53:53`", "`HF_HUB_OFFLINE=1`"],
    ] {
        let is_named =
            |line: &&&str| expected.iter().all(|part| line.contains(part)) && line.contains("`python3");
        assert_eq!(lines.iter().filter(is_named).count(), 1, "{expected:?}: {text}");
    }
    assert_eq!(lines.len(), 6, "{text}");
    assert!(!text.contains("without a route"), "the same is not said twice: {text}");
}

fn connections_that_are_answered_are_not_named() {
    let text = explore_connecting_trainer("meet", &[]);
    assert!(!text.contains("` tried to "), "{text}");
    let text = explore_connecting_trainer("meet", &["--network", "host"]);
    assert!(!text.contains("` tried to "), "{text}");
}

fn a_failed_baseline_names_its_connections() {
    let first =
        r#"python3 -c 'import socket; socket.create_connection(("192.0.2.1", 443))' 2>/dev/null || exit 5"#;
    let reported = Files { first, ..Files::new() }.report("run", &["01"]);
    reported.assert_inconclusive(&["exit code 5", "tried to connect to `192.0.2.1:443` "]);
}
