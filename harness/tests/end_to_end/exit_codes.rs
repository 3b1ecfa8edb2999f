//! The exit codes of the built command: the same table everywhere, a table of mistakes with the code and the
//! message of each, and the codes of runs that judge nothing. `command.rs` has those of ordinary runs,
//! `interruptions.rs` those of runs that end early.

use std::path::Path;
use std::process::{Command, Output};

use assert_cmd::assert::OutputAssertExt;
use libtest_mimic::Trial;

use crate::support::command::{TRAINWRECK, output_text, run_trainwreck, saver, workspace};
use crate::support::machine::{GATE, SANDBOX, missing};
use crate::support::program_files::copy_program;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        help_readme_and_code_show_the_same_table_of_exit_codes,
        each_mistake_has_its_exit_code_and_its_message,
        a_report_without_a_place_is_invalid_input,
        a_missing_program_is_invalid_input,
        ablate_without_any_guard_has_nothing_to_rely_on,
    ];
    trials.extend(trials![
        missing(&SANDBOX);
        a_skipped_scenario_counts_if_it_was_named_or_all_are_required,
        a_trial_that_no_scenario_has_is_invalid_input,
        a_cut_record_is_never_judged_as_survived,
        without_out_the_report_goes_to_the_state_and_latest_points_to_it,
    ]);
    trials.extend(trials![
        missing(&GATE);
        each_mistake_of_a_recorded_run_has_its_exit_code_and_its_message,
        a_mutated_name_of_a_state_names_another_state_or_none,
    ]);
    trials
}

/// A directory with files that mistakes can be made with. `TMPDIR` and the user's state are in it.
struct Workplace {
    dir: tempfile::TempDir,
}

impl Workplace {
    fn new() -> Workplace {
        let dir = tempfile::tempdir().unwrap();
        let shipped = workspace().join("scenarios/library/filesystem/fs-02-inodes-exhausted.yaml");
        for name in ["tmp", "full", "other", "runs", "empty"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["mine.yaml", "other/copy.yaml"] {
            std::fs::copy(&shipped, dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("full/file"), "").unwrap();
        std::fs::create_dir_all(dir.path().join("schemas/target-v1.json")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (link, to) in [
            ("into-runs", "runs/nothing"),
            ("astray", "nowhere/x"),
            ("loop", "loop"),
            ("page", "empty/explore.html"),
        ] {
            std::os::unix::fs::symlink(to, dir.path().join(link)).unwrap();
        }
        copy_program(&saver(), &dir.path().join("saver"));
        Workplace { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(TRAINWRECK);
        command.current_dir(self.path()).env("TMPDIR", self.path().join("tmp"));
        command.env("XDG_STATE_HOME", self.path().join("state"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// Makes the mistake, and checks its exit code and message. Nothing must be left of it.
    fn check(&self, mistake: &Mistake) {
        let Mistake { line, code, message } = mistake;
        let args: Vec<&str> = line.split_whitespace().collect();
        let output = self.run(&args);
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(*code), "`{line}`: {text}");
        assert!(text.contains(message), "`{line}` should say `{message}`: {text}");
        for new in ["new", "missing", "runs/nothing", "schemas/scenario-v1.json", "state/trainwreck/latest"] {
            assert!(!self.path().join(new).exists(), "`{line}` left `{new}`");
        }
        // What the user had, and the command was not to change.
        let kept = std::fs::read_dir(self.path().join("empty")).map(Iterator::count);
        assert_eq!(kept.ok(), Some(0), "`{line}` changed `empty`");
    }
}

/// A command line, its exit code, and a part of what it prints.
struct Mistake {
    line: &'static str,
    code: i32,
    message: &'static str,
}

const fn mistake(line: &'static str, code: i32, message: &'static str) -> Mistake {
    Mistake { line, code, message }
}

const MISTAKES: &[Mistake] = &[
    mistake("", 2, "Usage: trainwreck <COMMAND>"),
    mistake("rnu", 2, "similar subcommand exists: 'run'"),
    mistake("fs-01", 2, "unrecognized subcommand 'fs-01'"),
    mistake("run fs-0l", 2, "(nearest: `fs-01`)"),
    mistake("run fs", 2, "(there are fs-01 fs-02"),
    mistake("run fs-*", 2, "(there are fs-01 fs-02"),
    mistake("run filesystem", 2, "domain `filesystem` has fs-01"),
    mistake("run mine.yml", 2, "there is no file `mine.yml` (nearest: `mine.yaml`)"),
    mistake("run nowhere/mine.yaml", 2, "there is no directory `nowhere`"),
    mistake("run /dev/null", 2, "is neither a file nor a directory"),
    mistake("run empty", 2, "no scenario files"),
    mistake("run mine.yaml other/copy.yaml", 2, "`fs-02` is in `mine.yaml` and in `other/copy.yaml`"),
    mistake("run mine.yaml ./mine.yaml", 2, "`fs-02` is in `mine.yaml` and in `./mine.yaml`"),
    mistake("run mine.yaml fs-02", 2, "`fs-02` is in `mine.yaml` and in `scenarios/library"),
    mistake("ablate mine.yaml other", 2, "`fs-02` is in"),
    mistake("run mine.yaml --trial 0", 2, "invalid value '0'"),
    mistake("run mine.yaml --require some", 2, "invalid value 'some'"),
    mistake("run mine.yaml --out full", 2, "--out: `full` is not empty; name"),
    mistake("ablate mine.yaml --out mine.yaml", 2, "--out: `mine.yaml` is a file; name"),
    mistake("run mine.yaml --out mine.yaml/", 2, "Not a directory"),
    mistake("run mine.yaml --out mine.yaml/new", 2, "Not a directory (os error 20); name"),
    mistake("analyze nowhere", 2, "`nowhere`: No such file"),
    mistake("analyze empty", 2, "`empty/record.jsonl`: No such file"),
    mistake("explore --watch runs -- pyton3 train.py", 2, "`pyton3` is not on PATH"),
    mistake("explore --watch missing -- ./nothing", 2, "there is no program"),
    mistake("explore --watch runs -- ./mine.yaml", 2, "is not executable"),
    mistake("explore --watch runs -- ./other", 2, "is a directory, not a program"),
    mistake("explore --watch runs --out full -- ./saver correct runs", 2, "--out: `full` is not empty"),
    mistake("explore --watch runs --out mine.yaml -- ./saver correct runs", 2, "is a file"),
    mistake("explore --watch runs --out runs/new -- ./saver correct runs", 2, "contain one another"),
    mistake("explore --watch full/a --out full -- ./saver correct full/a", 2, "contain one another"),
    mistake("explore --watch runs --json runs/j -- ./saver correct runs", 2, "contain one another"),
    mistake("explore --watch runs --json nowhere/j -- ./saver correct runs", 2, "--json: could not write"),
    mistake("explore --watch runs --json other -- ./saver correct runs", 2, "is a directory"),
    mistake(
        "explore --watch runs --state what --out new -- ./saver correct runs",
        2,
        "not the name of a state",
    ),
    mistake("explore --target nothing --out new", 2, "the shipped targets are"),
    mistake("explore --watch runs --json into-runs -- ./saver correct runs", 2, "contain one another"),
    mistake("explore --watch runs --out into-runs -- ./saver correct runs", 2, "contain one another"),
    mistake("explore --watch runs --json new/../runs/j -- ./saver correct runs", 2, "contain one another"),
    mistake(
        "explore --watch runs --json astray -- ./saver correct runs",
        2,
        "--json: could not write `astray`",
    ),
    mistake("explore --watch runs --json loop -- ./saver correct runs", 2, "--json: could not write `loop`"),
    mistake("explore --watch runs --json new/ -- ./saver correct runs", 2, "is a directory"),
    mistake("explore --watch runs --json pipe -- ./saver correct runs", 2, "nothing reads from it"),
    mistake("explore --watch runs --json /dev/full -- ./saver correct runs", 2, "No space left on device"),
    mistake("explore --watch runs --out pipe -- ./saver correct runs", 2, "--out: `pipe` is a file"),
    mistake(
        "explore --watch runs --out /dev/full -- ./saver correct runs",
        2,
        "--out: `/dev/full` is a file",
    ),
    mistake(
        "explore --watch runs --out astray -- ./saver correct runs",
        2,
        "--out: could not create `astray`",
    ),
    mistake(
        "explore --watch runs --out new --json new -- ./saver correct runs",
        2,
        "write to the same place",
    ),
    mistake("explore --watch runs --out new/a --json new -- ./saver correct runs", 2, "to the same place"),
    mistake("explore --watch runs --out new --json new/explore.json -- ./saver", 2, "to the same place"),
    mistake(
        "explore --watch runs --out new --json new/../new/explore.html -- ./saver",
        2,
        "to the same place",
    ),
    mistake("explore --watch runs --out empty --json page -- ./saver correct runs", 2, "to the same place"),
    mistake("explore --watch runs --out new/b --json new/missing/j -- ./saver", 2, "--json: could not write"),
    mistake("explore --watch runs --out empty --json nowhere/j -- ./saver", 2, "--json: could not write"),
    mistake("run mine.yaml --out pipe", 2, "--out: `pipe` is a file"),
    mistake("run mine.yaml --out loop", 2, "--out: could not create `loop`"),
    mistake("ablate mine.yaml --out astray", 2, "--out: could not create `astray`"),
    mistake("analyze nowhere --out new", 2, "`nowhere`: No such file"),
    mistake("analyze other/copy.yaml --out new", 2, "not a record entry"),
    mistake("schema --write nowhere", 2, "--write: could not write `nowhere/scenario-v1.json`"),
    mistake("schema --write mine.yaml", 2, "--write: could not write `mine.yaml/scenario-v1.json`"),
    mistake("schema --write schemas", 2, "`schemas/target-v1.json`: is a directory"),
];

/// Those that only a recorded run shows.
const RECORDED_MISTAKES: &[Mistake] = &[
    mistake(
        "explore --watch runs --state process:5~9999p3 -- ./saver correct runs",
        2,
        "no state `process:5~9999p3` (nearest: `",
    ),
    mistake(
        "explore --watch runs --state process:99999 -- ./saver correct runs",
        2,
        "no state `process:99999`",
    ),
    mistake("explore --watch runs --state ext4:5-5 -- ./saver correct runs", 2, "no state `ext4:5-5`"),
    mistake("explore --watch runs --state ext4:5-3.9 -- ./saver correct runs", 2, "no state `ext4:5-3.9`"),
    mistake("explore --watch runs --out new -- /bin/true", 3, "changed no file"),
    mistake("explore --watch runs --out new/a/b -- /bin/false", 3, "exit code 1"),
];

fn each_mistake_has_its_exit_code_and_its_message() {
    let workplace = Workplace::new();
    MISTAKES.iter().for_each(|mistake| workplace.check(mistake));
    let left = std::fs::read_dir(workplace.path().join("runs")).unwrap().count();
    assert_eq!(left, 0);
}

fn each_mistake_of_a_recorded_run_has_its_exit_code_and_its_message() {
    let workplace = Workplace::new();
    RECORDED_MISTAKES.iter().for_each(|mistake| workplace.check(mistake));
}

/// Whatever a name is changed to, the answer is a state of this run, or that there is none.
fn a_mutated_name_of_a_state_names_another_state_or_none() {
    let workplace = Workplace::new();
    let trainer = ["--", "./saver", "no-fsync", "runs"];
    let saved =
        ["explore", "--watch", "runs", "--saved", r"^saved step (?<step>\d+)", "--json", "result.json"];
    workplace.run(&[&saved[..], &trainer].concat()).assert().code(1);
    let result = std::fs::read_to_string(workplace.path().join("result.json")).unwrap();
    let findings = scenarios::Exploration::parse(&result).unwrap().findings;
    let name = findings.iter().map(|finding| finding.state.as_str()).max_by_key(|name| name.len()).unwrap();
    let (name, contents) = name.split_once('@').unwrap();
    let mut mutated: Vec<String> =
        vec![name.into(), format!("{name}-0"), format!("{name}~1p1"), format!("9{name}")];
    mutated.extend([
        format!("{name}@{contents}"),
        format!("9{name}@{contents}"),
        format!("{name}@0{contents}"),
    ]);
    mutated.push(format!("{name}@{contents}").replace(&contents[..4], "0000"));
    for (index, letter) in name.char_indices() {
        let (before, after) = (&name[..index], &name[index + letter.len_utf8()..]);
        mutated.push(format!("{before}{after}"));
        mutated.push(format!("{before}{}{after}", if letter == '9' { "0" } else { "9" }));
        mutated.push(format!("{before}{letter}{letter}{after}"));
    }
    for name in &mutated {
        let output = workplace.run(&[&saved[..5], &["--state", name], &trainer].concat());
        let text = output_text(&output);
        let code = output.status.code().unwrap();
        // 3: nothing says what is right, so a recovery that ends with 0 is not judged.
        assert!([0, 1, 2, 3].contains(&code), "{name}: {code}: {text}");
        assert_eq!(code == 2, text.contains("--state: "), "{name}: {code}: {text}");
    }
}

/// The rows of a table of exit codes, each line without what is before it: the code and its meaning.
fn table_rows(text: &str, before: &str) -> Vec<(u8, String)> {
    let row = |line: &str| {
        let line = line.trim_start().strip_prefix(before)?;
        let (code, meaning) = line.trim().trim_matches('|').trim().split_once([' ', '|'])?;
        Some((code.parse().ok()?, meaning.trim_matches(['|', ' ']).to_owned()))
    };
    text.lines().filter_map(row).collect()
}

fn help_readme_and_code_show_the_same_table_of_exit_codes() {
    let source = std::fs::read_to_string(workspace().join("harness/src/exit.rs")).unwrap();
    let documented = table_rows(&source, "/// |");
    let codes: Vec<u8> = documented.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [0, 1, 2, 3, 4, 5, 130]);
    let readme = std::fs::read_to_string(workspace().join("README.md")).unwrap();
    let (_, section) = readme.split_once("| exit code | meaning |").unwrap();
    let (section, _) = section.split_once("\n\n").unwrap();
    assert_eq!(table_rows(section, "|"), documented);
    // Without line breaks, as in a wide terminal.
    let help = output_text(&run_trainwreck(&["--help"]));
    let (_, section) = help.split_once("Exit codes:").unwrap();
    let (section, precedence) = section.split_once("\n\n").unwrap();
    let words = section.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected: Vec<String> =
        documented.iter().map(|(code, meaning)| format!("{code} {meaning}")).collect();
    assert_eq!(words, expected.join(" "));
    let order = "the first of 2, 4, 130, 1, 5, 3";
    assert!([&source, &readme, precedence].iter().all(|text| text.contains(order)));
}

fn a_report_without_a_place_is_invalid_input() {
    let workplace = Workplace::new();
    let output = workplace
        .command()
        .args(["run", "fs-02"])
        .env("XDG_STATE_HOME", "relative")
        .env_remove("HOME")
        .output();
    let output = output.unwrap();
    output.clone().assert().code(2);
    assert!(output_text(&output).contains("name a directory with --out"), "{}", output_text(&output));
    std::fs::write(workplace.path().join("state"), "a file").unwrap();
    let output = workplace.run(&["run", "fs-02"]);
    output.clone().assert().code(2);
    assert!(output_text(&output).contains("--out: could not create"), "{}", output_text(&output));
}

fn without_out_the_report_goes_to_the_state_and_latest_points_to_it() {
    let workplace = Workplace::new();
    let before: Vec<_> =
        std::fs::read_dir(workplace.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    for _ in 0..2 {
        workplace.run(&["run", "fs-02"]).assert().code(0);
        let reports = workplace.path().join("state/trainwreck");
        let newest = std::fs::read_link(reports.join("latest")).unwrap();
        assert!(newest.is_relative() && reports.join(newest).join("report.html").exists());
    }
    let reports = std::fs::read_dir(workplace.path().join("state/trainwreck")).unwrap().count();
    assert_eq!(reports, 3, "two reports and the link");
    let new = std::fs::read_dir(workplace.path()).unwrap().map(|entry| entry.unwrap().path());
    let new: Vec<_> = new.filter(|path| !before.contains(path)).collect();
    assert_eq!(new, [workplace.path().join("state")]);
}

/// A copy of the command finds no library of the simulated GPU beside it, so that its scenarios are skipped.
fn a_skipped_scenario_counts_if_it_was_named_or_all_are_required() {
    let workplace = Workplace::new();
    let gpu = workspace().join("scenarios/library/hardware/hw-02-gpu-off-the-bus.yaml");
    std::fs::create_dir(workplace.path().join("gpu")).unwrap();
    std::fs::copy(&gpu, workplace.path().join("gpu/gpu.yaml")).unwrap();
    std::fs::copy(&gpu, workplace.path().join("other/gpu.yaml")).unwrap();
    copy_program(TRAINWRECK.as_ref(), &workplace.path().join("trainwreck"));
    // Also builds the trainer.
    workplace.run(&["run", "fs-02", "--out", "first"]).assert().code(0);
    let bin = Path::new(TRAINWRECK).parent().unwrap().display().to_string();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap());
    let run = |args: &[&str]| {
        let mut command = Command::new(workplace.path().join("trainwreck"));
        command.current_dir(workplace.path()).env_remove("CARGO").env("PATH", &path);
        command
            .env("TMPDIR", workplace.path().join("tmp"))
            .env("XDG_STATE_HOME", workplace.path().join("state"));
        command.args(args).output().unwrap()
    };
    for (args, code) in [
        (&["run", "gpu/gpu.yaml"][..], 3),
        (&["run", "gpu"], 3),
        (&["run", "other", "--out", "both"], 0),
        (&["run", "other", "--require", "all"], 3),
        (&["run", "other/copy.yaml", "other/gpu.yaml"], 3),
        (&["analyze", "both"], 0),
        (&["analyze", "both", "--require", "all"], 3),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", output_text(&output));
        assert!(output_text(&output).contains("skipped"), "{args:?}: {}", output_text(&output));
    }
}

/// A run that is killed leaves the beginning of a record.
fn a_cut_record_is_never_judged_as_survived() {
    let workplace = Workplace::new();
    workplace.run(&["run", "fs-02", "--out", "out"]).assert().code(0);
    let record = std::fs::read(workplace.path().join("out/record.jsonl")).unwrap();
    let lines: Vec<usize> = (0..record.len()).filter(|index| record[*index] == b'\n').collect();
    let trial_ended = String::from_utf8_lossy(&record).find("\"trial-ended\"").unwrap();
    // After each line, and within some of them.
    let within = (0..24).map(|nth| nth * record.len() / 24 + nth * 7 % 13);
    let cuts = lines.iter().map(|end| end + 1).chain(within).filter(|cut| *cut < record.len());
    std::fs::create_dir(workplace.path().join("cut")).unwrap();
    for cut in cuts {
        std::fs::write(workplace.path().join("cut/record.jsonl"), &record[..cut]).unwrap();
        let output = workplace.run(&["analyze", "cut"]);
        let text = output_text(&output);
        assert!([2, 3].contains(&output.status.code().unwrap()), "{cut}: {text}");
        assert!(cut > trial_ended || !text.contains("survived"), "{cut}: {text}");
    }
}

fn a_missing_program_is_invalid_input() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = |path: &str| std::fs::read_to_string(workspace().join("scenarios").join(path)).unwrap();
    let target = shipped("targets/reference.yaml").replace("program: target-trainer", "program: ./missing");
    std::fs::write(dir.path().join("reference"), target).unwrap();
    let scenario = dir.path().join("scenario.yaml");
    std::fs::write(&scenario, shipped("library/filesystem/fs-02-inodes-exhausted.yaml")).unwrap();
    let output = run_trainwreck(&["run", scenario.to_str().unwrap()]);
    output.clone().assert().code(2);
    assert!(output_text(&output).contains("there is no program `"), "{}", output_text(&output));
}

fn ablate_without_any_guard_has_nothing_to_rely_on() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = workspace().join("scenarios/library/filesystem/fs-02-inodes-exhausted.yaml");
    let text = std::fs::read_to_string(shipped).unwrap();
    let unguarded: String =
        text.lines().filter(|line| !line.starts_with("guards:")).map(|line| format!("{line}\n")).collect();
    let scenario = dir.path().join("scenario.yaml");
    std::fs::write(&scenario, unguarded).unwrap();
    let out = dir.path().join("out");
    let output = run_trainwreck(&["ablate", scenario.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    output.clone().assert().code(3);
    assert!(output_text(&output).contains("nothing was judged"), "{}", output_text(&output));
}

fn a_trial_that_no_scenario_has_is_invalid_input() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        run_trainwreck(&["run", "fs-02", "--trial", "99", "--out", dir.path().join("out").to_str().unwrap()]);
    output.clone().assert().code(2);
    assert!(output_text(&output).contains("this scenario has 1 trial"), "{}", output_text(&output));
}
