//! Exit codes by generated tables: every combination of what an exploration may check with what a trainer may
//! do, several verdicts at once, expectations with trials left out, damaged records, results that cannot be
//! written. `exit_codes.rs` has the codes of single mistakes.
//!
//! `cargo test --test end_to_end -- exit_tables::`. Not covered: a harness that fails.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use libtest_mimic::Trial;
use scenarios::{Event, Exploration, Record, Verdict};

use crate::support::command::{TRAINWRECK, output_text, wait_for};
use crate::support::machine::{GATE, SANDBOX, missing};
use crate::support::program_files::write_script;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        missing(&SANDBOX);
        of_several_verdicts_the_first_code_counts_and_analyze_agrees,
        a_damaged_record_is_never_better_than_the_intact_one,
        a_report_that_cannot_be_written_is_said_after_the_result,
    ];
    trials.extend(trials![
        missing(&GATE);
        each_check_of_an_exploration_has_its_exit_code_with_each_trainer,
        what_never_happened_in_some_trials_is_not_a_violation,
        an_exploration_that_cannot_be_written_is_said_after_the_result,
    ]);
    trials.extend(trials![output_that_is_lost_is_no_success]);
    trials
}

/// A directory with a trainer, its files, and what the command leaves.
struct Workplace {
    dir: tempfile::TempDir,
}

impl Workplace {
    fn new() -> Workplace {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tmp", "runs"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Workplace { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        write_script(&self.path(name), text, 0o755);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(TRAINWRECK);
        command.args(args).current_dir(self.dir.path()).env("TMPDIR", self.path("tmp"));
        command.env("XDG_STATE_HOME", self.path("state"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Checks the exit code. Returns what was printed.
    fn check(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args);
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        text
    }
}

/// A trainer of two steps that saves each. As `bad`, it writes its checkpoint in place, and goes on from an empty
/// one with other samples and another result. `quiet` changes no file, `fails` and `hangs` never end well,
/// `sticks` hangs when it resumes.
const EXPLORED_TRAINER: &str = r#"#!/bin/sh
mode=$1
case $mode in
    fails) echo x >runs/x; exit 7 ;;
    hangs) echo x >runs/x; sleep 100 ;;
    quiet) echo "saved step 1"; echo "final 2"; exit 0 ;;
esac
step=0 kind=b
if [ -e runs/ckpt ]; then
    [ "$mode" = sticks ] && sleep 100
    read -r step <runs/ckpt || { step=0 kind=x; : >runs/broken; }
fi
echo "resumed from step $step"
while [ "$step" -lt 2 ]; do
    step=$((step + 1))
    echo "step $step consumed $kind$step"
    if [ "$mode" = bad ]; then
        : >runs/ckpt
        echo $step >>runs/ckpt
    else
        echo $step >runs/new
        mv runs/new runs/ckpt
    fi
    echo "saved step $step"
done
echo "final $step$kind"
"#;

const SAVED: [&str; 2] = ["--saved", r"^saved step (?<step>\d+)"];
const RESUMED: [&str; 2] = ["--resumed", r"^resumed from step (?<step>\d+)"];
const SAME: [&str; 2] = ["--same", r"^final (\S+)"];
const CONSUMED: [&str; 2] = ["--consumed", r"^step (?<step>\d+) consumed (?<value>\S+)"];
const CHECK: [&str; 2] = ["--check", "test -s runs/ckpt && ! test -e runs/broken"];

/// Which of the five checks a number selects, by its bits.
fn checks_of(number: u32) -> Vec<&'static str> {
    let all = [SAVED, RESUMED, SAME, CONSUMED, CHECK];
    let selected = all.into_iter().enumerate().filter(|(bit, _)| number >> bit & 1 == 1);
    selected.flat_map(|(_, check)| check).collect()
}

/// Whether anything but the exit code decides.
fn judges(number: u32) -> bool {
    number & 0b11 == 0b11 || number >> 2 > 0
}

fn each_check_of_an_exploration_has_its_exit_code_with_each_trainer() {
    let workplace = Workplace::new();
    workplace.write("train", EXPLORED_TRAINER);
    let explore = |options: &[&str], mode: &str, code: i32| {
        let fixed = ["explore", "--watch", "runs", "--crash", "process", "--timeout", "1s", "--jobs", "2"];
        workplace.check(&[&fixed[..], options, &["--", "./train", mode]].concat(), code)
    };
    let json = ["--json", "result.json"];
    let bad = explore(&[&SAME[..], &json].concat(), "bad", 1);
    let result = std::fs::read_to_string(workplace.path("result.json")).unwrap();
    let bad_state = Exploration::parse(&result).unwrap_or_else(|error| panic!("{error}: {bad}"));
    let bad_state = bad_state.findings[0].state.clone();
    // Each check alone, none, those that judge only together, and all.
    for number in [0b00000, 0b00001, 0b00010, 0b00011, 0b00100, 0b01000, 0b10000, 0b11111] {
        let checks = checks_of(number);
        let with = |more: &[&'static str]| [&checks[..], more].concat();
        let [sound_code, bad_code] = if judges(number) { [0, 1] } else { [3, 3] };
        let sound = explore(&checks, "sound", sound_code);
        assert_eq!(sound.contains("recovered from every state"), judges(number), "{number:b}: {sound}");
        explore(&checks, "bad", bad_code);
        explore(&with(&["--state", "process:1"]), "sound", sound_code);
        explore(&with(&["--max-states", "1"]), "sound", sound_code);
        explore(&with(&["--state", "process:99999"]), "sound", 2);
        // Whether step 1 had been acknowledged before that state decides for `--saved` with `--resumed`.
        if number != 0b00011 {
            let repeated = [&checks[..], &["--state", &bad_state]].concat();
            explore(&repeated, "bad", bad_code);
        }
    }
    for number in [0b00000, 0b00111] {
        let checks = checks_of(number);
        explore(&checks, "quiet", 3);
        explore(&checks, "fails", 3);
        explore(&[&checks[..], &["--state", "process:1"]].concat(), "fails", 3);
    }
    let hung = explore(&["--record-timeout", "300ms"], "hangs", 3);
    assert!(hung.contains("exceeded its time limit without any fault"), "{hung}");
    // It hangs without any crash: a finding of its own.
    explore(&SAME, "sticks", 1);
    // A pattern that nothing matches checks nothing.
    let unmatched = [
        ["--saved", r"^none (?<step>\d+)"],
        ["--same", r"^none (\S+)"],
        ["--consumed", r"^none (?<step>\d+) (?<value>\S+)"],
    ];
    for options in unmatched {
        explore(&options, "sound", 3);
    }
    assert_eq!(std::fs::read_dir(workplace.path("runs")).unwrap().count(), 0);
}

/// A trainer that saves every third of 12 steps. Without its guard it starts from step 0 again.
const SCENARIO_TRAINER: &str = r#"#!/bin/sh
cd "$1" || exit 9
mkdir -p ckpt
step=0
[ -f ckpt/latest ] && [ "$2" != guard=forgets ] && read -r step <ckpt/latest
echo "resumed from step $step"
while [ "$step" -lt 12 ]; do
    step=$((step + 1))
    echo "step $step"
    if [ $((step % 3)) -eq 0 ]; then
        echo $step >ckpt/new
        mv ckpt/new ckpt/latest
        echo "saved step $step"
    fi
    sleep 0.01
done
echo "finished with $step"
"#;

const TARGET: &str = r"
version: 1
id: shell
title: a few lines of shell
program: PROGRAM
places: {checkpoints: ckpt}
prepare: [[/bin/mkdir, -p, '{checkpoints}']]
setting-args: ['{key}={value}']
start: ['{program}', '{root}', '{settings}']
announces:
  step: '^step (?<step>\d+)'
  saved: '^saved step (?<step>\d+)'
  resumed: '^resumed from step (?<step>\d+)'
phases: {checkpoint-save: {begins: '^step \d+', ends: '^saved step \d+', place: checkpoints}}
same: '^finished with (?<value>\d+)'
guards: {some-guard: {guard: forgets}}
timeouts: {stall: 5 s, finish: 20 s}
";

const SCENARIO: &str = r"
version: 1
id: fs-ID
title: a stub under test
severity: extra
target: {use: target.yaml}
method: [METHOD]
expect: [EXPECT]
guards: [some-guard]
";

const CRASH: &str = "crash: {when: {step: 8}}";
const RECOVERS: &str = "{always: {outcome: [recovered]}}";

impl Workplace {
    fn with_target() -> Workplace {
        let workplace = Workplace::new();
        workplace.write("train", SCENARIO_TRAINER);
        let program = workplace.path("train");
        workplace.write("target.yaml", &TARGET.replace("PROGRAM", program.to_str().unwrap()));
        workplace
    }

    /// Writes a scenario. Returns the name of its file.
    fn scenario(&self, id: &str, method: &str, expect: &str) -> String {
        let text = SCENARIO.replace("ID", id).replace("METHOD", method).replace("EXPECT", expect);
        let name = format!("{id}.yaml");
        self.write(&name, &text);
        name
    }

    fn record(&self, out: &str) -> String {
        std::fs::read_to_string(self.path(out).join("record.jsonl")).unwrap()
    }
}

/// Which of several exit codes counts.
fn first_of(codes: &[i32]) -> i32 {
    *[2, 4, 130, 1, 5, 3, 0].iter().find(|code| codes.contains(code)).unwrap()
}

fn of_several_verdicts_the_first_code_counts_and_analyze_agrees() {
    let workplace = Workplace::with_target();
    let survived = workplace.scenario("01", CRASH, RECOVERS);
    let violated = workplace.scenario("02", CRASH, "{always: {outcome: [hung]}}");
    let inconclusive = workplace.scenario("03", "crash: {when: {step: 40}}", RECOVERS);
    let files = [(&survived, 0), (&violated, 1), (&inconclusive, 3)];
    for selection in 1..1_usize << files.len() {
        let chosen: Vec<_> = files.iter().enumerate().filter(|(bit, _)| selection >> bit & 1 == 1).collect();
        let codes: Vec<i32> = chosen.iter().map(|(_, (_, code))| *code).collect();
        let names: Vec<&str> = chosen.iter().map(|(_, (name, _))| name.as_str()).collect();
        let out = format!("run-{selection}");
        workplace.check(&[&["run"], &names[..], &["--out", &out]].concat(), first_of(&codes));
        let again = workplace.check(&["analyze", &out], first_of(&codes));
        assert!(!again.contains("DIFFERS"), "{again}");
    }
    // Without the guard each of them is caught, or inconclusive.
    for (name, code) in [(&survived, 0), (&inconclusive, 3)] {
        workplace.check(&["ablate", name, "--out", &format!("ablate-{name}")], code);
        workplace.check(&["analyze", &format!("ablate-{name}")], code);
    }
    // A scenario that survives without its guard is missed.
    let missed = workplace.scenario("04", CRASH, "{always: {outcome: [recovered, restarted, lost-work]}}");
    workplace.check(&["ablate", &missed, "--out", "missed"], 1);
    workplace.check(&["analyze", "missed"], 1);
    workplace.check(&["ablate", &missed, &survived, &inconclusive, "--out", "both"], 1);
    workplace.check(&["run", &survived, "--trial", "9", "--out", "trial"], 2);
    // With and without the guard in one command: the first code of both counts.
    let files = [(&survived, [0, 0]), (&violated, [1, 0]), (&inconclusive, [3, 3]), (&missed, [0, 1])];
    for selection in 1..1_usize << files.len() {
        let chosen: Vec<_> = files.iter().enumerate().filter(|(bit, _)| selection >> bit & 1 == 1).collect();
        let codes: Vec<[i32; 2]> = chosen.iter().map(|(_, (_, codes))| *codes).collect();
        let names: Vec<&str> = chosen.iter().map(|(_, (name, _))| name.as_str()).collect();
        let out = format!("both-{selection}");
        let expected = first_of(codes.as_flattened());
        let text =
            workplace.check(&[&["ablate", "--with-guards"], &names[..], &["--out", &out]].concat(), expected);
        let with = |code| codes.iter().filter(|[with, _]| *with == code).count();
        let without = |code| codes.iter().filter(|[_, without]| *without == code).count();
        let summary = format!(
            "{} survived, {} violated, {} of {} guards caught, {} missed, {} inconclusive, 0 skipped",
            with(0),
            with(1),
            without(0),
            codes.len(),
            without(1),
            with(3) + without(3),
        );
        assert!(text.contains(&summary), "{summary}: {text}");
        workplace.check(&["analyze", &out], expected);
    }
}

/// The exit code of `analyze` for a text in the place of a record.
fn analyzed(workplace: &Workplace, text: &str) -> (i32, String) {
    std::fs::create_dir_all(workplace.path("damaged")).unwrap();
    std::fs::write(workplace.path("damaged/record.jsonl"), text).unwrap();
    let output = workplace.run(&["analyze", "damaged"]);
    (output.status.code().unwrap(), output_text(&output))
}

fn a_damaged_record_is_never_better_than_the_intact_one() {
    let workplace = Workplace::with_target();
    let survived = workplace.scenario("01", CRASH, RECOVERS);
    let violated = workplace.scenario("02", CRASH, "{always: {outcome: [hung]}}");
    for (out, args, code) in [
        ("survived", &["run", &survived][..], 0),
        ("violated", &["run", &violated], 1),
        ("caught", &["ablate", &survived], 0),
    ] {
        workplace.check(&[args, &["--out", out]].concat(), code);
        let record = workplace.record(out);
        assert_eq!(analyzed(&workplace, &record).0, code);
        let lines: Vec<&str> = record.lines().collect();
        let joined = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let mut damaged = Vec::new();
        for index in 0..lines.len() {
            let (before, after) = lines.split_at(index);
            damaged.push(joined(&[before, &[lines[index]], after].concat()));
            if index + 1 < lines.len() {
                damaged.push(joined(&[before, &after[1..]].concat()));
                damaged.push(joined(&[before, &[after[1], after[0]], &after[2..]].concat()));
                damaged.push(joined(
                    &[before, &[&lines[index][..lines[index].len() / 2]], &after[1..]].concat(),
                ));
            }
        }
        for text in &damaged {
            let (found, printed) = analyzed(&workplace, text);
            assert_eq!(found, 2, "{out}: {printed}");
            assert!(printed.contains("line ") && !printed.contains("survived"), "{printed}");
        }
        // Cut after a line, and within it.
        let mut end = 0;
        for line in &lines {
            for cut in [end + line.len() / 2, end + line.len() - 1, end + line.len() + 1] {
                let (found, printed) = analyzed(&workplace, &record[..cut]);
                let is_whole = cut == record.len();
                assert!(
                    is_whole || [2, 3].contains(&found) || found == code && code == 1,
                    "{cut}: {printed}"
                );
                let has_verdict = record[..cut].contains("\"judged\"");
                let says = printed.contains("survived") || out == "caught" && printed.contains("violated");
                assert!(has_verdict || !says, "{cut}: {printed}");
            }
            end += line.len() + 1;
        }
    }
}

fn verdict_name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Survived => "survived",
        Verdict::Violated { .. } => "violated",
        Verdict::Inconclusive { .. } => "inconclusive",
        Verdict::Skipped { .. } => "skipped",
    }
}

/// A crash at each of the calls of one save is one trial each.
fn what_never_happened_in_some_trials_is_not_a_violation() {
    let workplace = Workplace::with_target();
    let method = "crash: {when: {call: {during: checkpoint-save, at: every}}}";
    let holds = "outcome: [recovered]";
    let never = "output: '^no such line'";
    let all = ["--max-trials", "all"];
    let cut = ["--max-trials", "1"];
    let one = ["--trial", "1"];
    for (modality, fact, options, code, verdict) in [
        ("always", holds, &all, 0, "survived"),
        ("always", holds, &cut, 0, "survived"),
        ("always", never, &all, 1, "violated"),
        ("always", never, &cut, 1, "violated"),
        ("always", never, &one, 1, "violated"),
        ("sometimes", holds, &all, 0, "survived"),
        ("sometimes", holds, &cut, 0, "survived"),
        ("sometimes", never, &all, 1, "violated"),
        ("sometimes", never, &cut, 3, "inconclusive"),
        ("sometimes", never, &one, 3, "inconclusive"),
        ("reached", never, &all, 1, "violated"),
        ("reached", never, &cut, 3, "inconclusive"),
        ("reached", never, &one, 3, "inconclusive"),
    ] {
        let name = format!("{modality}-{code}-{}", options.concat());
        let scenario = workplace.scenario("05", method, &format!("{{{modality}: {{{fact}}}}}"));
        let text = workplace.check(&[&["run", &scenario, "--out", &name], &options[..]].concat(), code);
        let record = Record::parse(&workplace.record(&name)).unwrap();
        let judged = record.entries.iter().find_map(|entry| match &entry.event {
            Event::Judged { verdict, .. } => Some(verdict_name(verdict)),
            _ => None,
        });
        assert_eq!(judged, Some(verdict), "{name}: {text}");
        let again = workplace.check(&["analyze", &name], code);
        assert!(again.contains("as recorded"), "{again}");
        if code == 3 {
            assert!(text.contains("it is about all trials together"), "{text}");
            // A guard that makes no difference in the trials that ran may make one in the others.
            let ablated = format!("ablate-{name}");
            workplace.check(&[&["ablate", &scenario, "--out", &ablated], &options[..]].concat(), 3);
            workplace.check(&["analyze", &ablated], 3);
        }
    }
}

/// Runs the command, and makes a directory in the place of a file of its report meanwhile: when it has checked its
/// options, which the first line of an exploration shows.
fn run_with_blocked_output(workplace: &Workplace, args: &[&str], blocked: &str) -> (Option<i32>, String) {
    let mut command = workplace.command(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdout, mut text) = (BufReader::new(child.stdout.take().unwrap()), String::new());
    if args[0] == "explore" {
        stdout.read_line(&mut text).unwrap();
    }
    wait_for("the report's directory", || workplace.path("out").exists());
    std::fs::create_dir(workplace.path(blocked)).unwrap();
    stdout.read_to_string(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), text + &output_text(&output))
}

fn a_report_that_cannot_be_written_is_said_after_the_result() {
    let reports = ["report.html", "junit.xml", "summary.md"];
    for blocked in reports {
        let workplace = Workplace::with_target();
        let scenario = workplace.scenario("01", CRASH, RECOVERS);
        let name = format!("out/{blocked}");
        let (code, text) = run_with_blocked_output(&workplace, &["run", &scenario, "--out", "out"], &name);
        assert_eq!(code, Some(4), "{text}");
        assert!(text.contains("1 survived") && text.contains(&format!("`out/{blocked}`")), "{text}");
        for other in reports.iter().filter(|other| **other != blocked) {
            assert!(workplace.path(&format!("out/{other}")).is_file(), "{other}: {text}");
        }
        assert!(Record::parse(&workplace.record("out")).is_ok());
    }
}

fn an_exploration_that_cannot_be_written_is_said_after_the_result() {
    for (blocked, others) in [
        ("result.json", &["out/explore.json", "out/explore.html"][..]),
        ("out/explore.json", &["result.json", "out/explore.html"]),
        ("out/explore.html", &["result.json", "out/explore.json"]),
    ] {
        let workplace = Workplace::new();
        workplace.write("train", &EXPLORED_TRAINER.replace("step=0 kind=b", "step=0 kind=b; sleep 0.3"));
        let args =
            ["explore", "--watch", "runs", "--crash", "process", "--out", "out", "--json", "result.json"];
        let args = [&args[..], &SAME, &["--", "./train", "sound"]].concat();
        let (code, text) = run_with_blocked_output(&workplace, &args, blocked);
        assert_eq!(code, Some(4), "{text}");
        assert!(
            text.contains("recovered from every state") && text.contains(&format!("`{blocked}`")),
            "{text}"
        );
        assert!(others.iter().all(|name| workplace.path(name).is_file()), "{text}");
    }
}

fn output_that_is_lost_is_no_success() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    for args in [&["schema"][..], &["list"]] {
        let output = Command::new(TRAINWRECK).args(args).stdout(full()).output().unwrap();
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(4), "{text}");
        assert!(text.contains("could not write to standard output: No space left"), "{text}");
    }
    // Whoever closes the pipe has read enough.
    let mut child = Command::new(TRAINWRECK).arg("schema").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
