//! Target files with the built command: mistakes are refused before anything runs, and what a file opens of the
//! host and of the environment reaches the target. `scenarios/tests` has each mistake by itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use libtest_mimic::Trial;
use scenarios::{BaselineFacts, Event, Record};

use crate::support::command::{TRAINWRECK, output_text};
use crate::support::machine::{SANDBOX, missing};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        an_unknown_placeholder_is_refused_by_check_and_run_and_nothing_is_created,
        what_only_this_machine_lacks_is_a_note,
        a_target_or_a_data_file_that_does_not_exist_is_shown_at_its_place,
        a_directory_that_cannot_be_writable_is_invalid_input,
    ];
    trials.extend(trials![
        missing(&SANDBOX);
        a_target_gets_the_variables_that_it_inherits_and_the_record_has_their_names,
        a_secret_that_is_not_inherited_does_not_reach_the_target,
    ]);
    trials
}

const TARGET: &str = r#"
version: 1
id: env
title: checks its environment
program: sh
places: {data: data}
inherit: [TW_GIVEN, TW_UNSET, TW_BOTH, HOME]
environment: {TW_OWN: '{data}/x', TW_BOTH: own, TW_BRACES: '{{data}}'}
start:
  - '{program}'
  - -c
  - |
    [ "$TW_GIVEN" = "a secret" ] && [ -z "${TW_UNSET+x}" ] && [ "$TW_BOTH" = own ] &&
        [ "$TW_OWN" = "$1/data/x" ] && [ "$TW_BRACES" = "{{data}}" ] && [ "$HOME" = /a/home ] || exit 7
    echo "step 1"
    sleep 0.2
  - sh
  - '{root}'
announces: {step: '^step (?<step>\d+)'}
timeouts: {stall: 10 s, finish: 20 s}
"#;

const SCENARIO: &str = r"
version: 1
id: own-01
title: killed
severity: low
target: {use: target.yaml}
method:
  - crash: {when: {step: 1}}
expect:
  - always: {restarts: {max: 3}}
";

/// A directory with the two files, in which the command runs.
struct Project {
    dir: tempfile::TempDir,
}

impl Project {
    fn new(target: &str, scenario: &str) -> Project {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("target.yaml"), target).unwrap();
        std::fs::write(dir.path().join("scenario.yaml"), scenario).unwrap();
        Project { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(TRAINWRECK);
        // Under cargo, a missing program of the workspace would be built.
        command.args(args).current_dir(self.path()).env_remove("CARGO");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn names(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path()).unwrap();
        let mut names: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

/// Checks the exit code, and that each text was printed.
fn assert_prints(output: &Output, code: i32, texts: &[&str]) {
    let printed = output_text(output);
    assert_eq!(output.status.code(), Some(code), "{printed}");
    for text in texts {
        assert!(printed.contains(text), "{text}: {printed}");
    }
}

fn an_unknown_placeholder_is_refused_by_check_and_run_and_nothing_is_created() {
    let target = replaced(TARGET, "start:", "prepare: [[mkdir, -p, '{dat}']]\nstart:");
    let project = Project::new(&target, SCENARIO);
    let before = project.names();
    let texts = ["there is no placeholder `{dat}`", "did you mean `{data}`?", "[[mkdir, -p, '{dat}']]"];
    for args in [
        ["check", "target.yaml"].as_slice(),
        &["check", "scenario.yaml"],
        &["run", "scenario.yaml", "--out", "out"],
        // It relies on no guard, so that nothing of it is run.
        &["ablate", "scenario.yaml", "--out", "out"],
        &["explore", "--target", "target.yaml"],
    ] {
        assert_prints(&project.run(args), 2, &texts);
        assert_eq!(project.names(), before, "{args:?}");
    }
}

fn what_only_this_machine_lacks_is_a_note() {
    let target = replaced(TARGET, "program: sh", "program: ./none.sh\nwritable: [cache]");
    let project = Project::new(&target, &replaced(SCENARIO, "own-01", "fs-01"));
    let notes = [
        "target `env` is valid",
        "note: there is no program `./none.sh` on this machine",
        "note: `TW_UNSET` is not set here",
        "note: `writable` of target `env`: `cache`",
    ];
    assert_prints(&project.run(&["check", "target.yaml"]), 0, &notes);
    let shipped = ["scenario `fs-01` is valid", "note: a shipped scenario has the id `fs-01` too", notes[1]];
    assert_prints(&project.run(&["check", "scenario.yaml"]), 0, &shipped);
    let project = Project::new(&replaced(TARGET, "[TW_GIVEN, TW_UNSET, TW_BOTH, HOME]", "[PATH]"), SCENARIO);
    let output = project.run(&["check", "target.yaml", "scenario.yaml"]);
    assert_prints(&output, 0, &["target `env` is valid", "scenario `own-01` is valid"]);
    assert!(!output_text(&output).contains("note"), "{}", output_text(&output));
}

fn a_target_or_a_data_file_that_does_not_exist_is_shown_at_its_place() {
    for (from, to, texts) in [
        ("use: target.yaml", "use: referense", ["shipped target `referense`", "did you mean `reference`?"]),
        (
            "use: target.yaml",
            "use: target.yaml, submit: [{file: none.jsonl}]",
            ["there is no file `none.jsonl`", "data files need a command `submit`"],
        ),
        ("- always", "- always: verifies\n  - always", ["needs a command `verify`", "always: verifies"]),
    ] {
        let project = Project::new(TARGET, &replaced(SCENARIO, from, to));
        for verb in ["check", "run"] {
            assert_prints(&project.run(&[verb, "scenario.yaml"]), 2, &texts);
        }
    }
}

fn a_directory_that_cannot_be_writable_is_invalid_input() {
    let project = Project::new(TARGET, SCENARIO);
    std::fs::create_dir(project.path().join("runs")).unwrap();
    for (dir, reason) in [
        ("/", "--writable `/`"),
        ("none", "No such file or directory"),
        ("target.yaml", "not a directory"),
        ("/proc/self/fd", "the sandbox has its own `/proc`"),
        (".", "contains"),
        ("runs", "is `"),
    ] {
        let output = project.run(&["explore", "--watch", "runs", "--writable", dir, "--", "true"]);
        assert_prints(&output, 2, &[reason]);
    }
    assert_prints(
        &project.run(&["explore", "--target", "target.yaml", "--writable", "none"]),
        2,
        &["--writable `none`"],
    );
    assert_prints(&project.run(&["run", "scenario.yaml", "--writable", "none"]), 2, &["--writable `none`"]);
    let with_key = Project::new(&format!("{TARGET}writable: [target.yaml]\n"), SCENARIO);
    let reason = "`writable` of target `env`: `target.yaml`: not a directory";
    assert_prints(&with_key.run(&["run", "scenario.yaml"]), 2, &[reason]);
    // The sandboxes are below TMPDIR.
    let temporary = tempfile::tempdir().unwrap();
    let mut run = project.command(&["run", "scenario.yaml", "--out", "out", "--writable"]);
    let output = run.arg(temporary.path()).env("TMPDIR", temporary.path()).output().unwrap();
    assert_prints(&output, 2, &["contains", "where the trainer works on a copy"]);
}

/// What the run of the scenario recorded.
struct RecordedRun {
    text: String,
    inherited: Vec<String>,
    baseline: BaselineFacts,
}

fn recorded_run(project: &Project, given: Option<&str>) -> RecordedRun {
    let mut command = project.command(&["run", "scenario.yaml", "--out", "out"]);
    command.env("HOME", "/a/home").env("TW_BOTH", "of the host").env_remove("TW_UNSET");
    match given {
        Some(value) => command.env("TW_GIVEN", value),
        None => command.env_remove("TW_GIVEN"),
    };
    let output = command.output().unwrap();
    let text = std::fs::read_to_string(project.path().join("out/record.jsonl"))
        .unwrap_or_else(|error| panic!("{error}: {}", output_text(&output)));
    let (mut inherited, mut baseline) = (None, None);
    for entry in Record::parse(&text).unwrap().entries {
        match entry.event {
            Event::ScenarioStarted(started) => inherited = Some(started.inherited),
            Event::Baseline(facts) => baseline = Some(*facts),
            _ => {}
        }
    }
    RecordedRun { text, inherited: inherited.unwrap(), baseline: baseline.unwrap() }
}

fn a_target_gets_the_variables_that_it_inherits_and_the_record_has_their_names() {
    let run = recorded_run(&Project::new(TARGET, SCENARIO), Some("a secret"));
    assert!(run.baseline.ended_well, "{}", run.text);
    assert_eq!(run.inherited, ["TW_GIVEN", "HOME"]);
    // The target file has the value too, in the text of its command.
    assert_eq!(run.text.matches("a secret").count(), run.text.matches("= \\\"a secret\\\"").count());
}

fn a_secret_that_is_not_inherited_does_not_reach_the_target() {
    let target = replaced(TARGET, "[TW_GIVEN, TW_UNSET, TW_BOTH, HOME]", "[HOME]");
    let run = recorded_run(&Project::new(&target, SCENARIO), Some("a secret"));
    assert!(!run.baseline.ended_well, "{}", run.text);
    let run = recorded_run(&Project::new(TARGET, SCENARIO), None);
    assert!(!run.baseline.ended_well, "{}", run.text);
}
