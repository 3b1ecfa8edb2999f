//! Runs the commands that `explore` prints, as they are printed: each must show the same cause, outcome and crash again.
//! Also what is kept of an exploration, and what makes a finding unconfirmed.
//!
//! `cargo test --test end_to_end -- repeats::`. Most trainers are styles of `targets/causes.sh`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;
use scenarios::{Exploration, Finding};

use crate::support::command::{TRAINWRECK, output_text, workspace};
use crate::support::machine::{GATE, missing};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        missing(&GATE);
        commands_after_a_kill_repeat_their_findings,
        commands_after_a_power_loss_repeat_their_findings,
        commands_without_any_crash_repeat_their_findings,
        commands_after_a_second_crash_repeat_their_findings,
        a_command_with_any_bytes_in_it_repeats_its_finding,
        a_warm_recovery_is_repeated_cold_and_warm,
        a_state_is_found_by_its_files_where_operations_have_other_numbers,
        a_new_recording_that_differs_is_told_and_a_kept_one_is_exact,
        a_recording_is_kept_only_within_its_bound_and_refused_if_it_has_changed,
        no_changed_byte_of_a_kept_recording_goes_unnoticed,
        a_kept_recording_is_used_again_and_neither_kept_twice_nor_overwritten,
        a_state_after_other_promises_is_another_state,
        a_finding_that_fails_only_once_is_not_confirmed,
        the_files_and_the_output_of_failing_states_are_kept,
        a_name_that_the_model_does_not_allow_is_refused,
    ]
}

const SAVED: [&str; 2] = ["--saved", r"^saved step (?<step>\d+)"];
const RESUMED: [&str; 2] = ["--resumed", r"^resumed from step (?<step>\d+)"];
const STEP: [&str; 2] = ["--step", r"^step (?<step>\d+)"];
const CONSUMED: [&str; 2] = ["--consumed", r"^step (?<step>\d+) ate (?<value>\d+)"];

/// A directory whose name a shell would not leave as it is, and in which everything runs.
struct Place {
    dir: tempfile::TempDir,
}

struct Ran {
    code: Option<i32>,
    text: String,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(place.path()).unwrap();
        place
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("it's \"here\" $HOME")
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    fn explore<A: AsRef<OsStr>>(&self, args: &[A]) -> Ran {
        let mut explorer = Command::new(TRAINWRECK);
        explorer.arg("explore").args(args).current_dir(self.path());
        Ran::of(explorer)
    }

    /// Runs a command as a user who pastes it into a shell.
    fn paste(&self, command: &str) -> Ran {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(self.path());
        Ran::of(shell)
    }

    fn result(&self) -> Exploration {
        Exploration::parse(&std::fs::read_to_string(self.path().join("result.json")).unwrap()).unwrap()
    }

    /// Checks that each command of the last exploration shows its finding again.
    fn repeat_all(&self, explored: &Ran) {
        let result = self.result();
        assert!(!result.findings.is_empty(), "{}", explored.text);
        result.findings.iter().for_each(|finding| self.repeat(finding, explored));
    }

    fn repeat(&self, finding: &Finding, explored: &Ran) {
        let Finding { cause, repeat, state, .. } = finding;
        assert!(explored.text.contains(&format!("repeat: {repeat}\n")), "{repeat}: {}", explored.text);
        let repeated = self.paste(repeat);
        let text = &repeated.text;
        assert_eq!(repeated.code, Some(1), "{repeat}: {text}: {}", explored.text);
        assert_eq!(text.contains("the kept recording has "), repeat.contains("--recording "), "{text}");
        let (model, _) = state.split_once(':').unwrap();
        let outcome = finding.outcome;
        let heading = match &finding.controls {
            Some(_) => format!("\n1. {cause} -> {outcome}: 1 state"),
            None => format!("\n1. {cause} -> {outcome}: 1 state, under {model}\n"),
        };
        assert!(text.contains(&heading), "{heading}: {text}: {}", explored.text);
        assert!(!text.contains("\n2. ") && !text.contains("not confirmed"), "{text}");
        assert!(text.contains(&format!("--state '{state}'")), "{state}: {text}");
        let shows_model =
            finding.controls.is_some() || finding.under.iter().any(|under| under.name() == model);
        assert!(shows_model, "{state} is no state of {:?}", finding.under);
    }
}

impl Ran {
    fn of(mut command: Command) -> Ran {
        let output = command.output().unwrap();
        Ran { code: output.status.code(), text: output_text(&output) }
    }
}

fn causes_script() -> String {
    workspace().join("harness/tests/targets/causes.sh").display().to_string()
}

/// Explores styles of the trainer and runs each printed command, with a kept recording and without one.
fn check_styles(styles: &[&str], options: &[&[&str]]) {
    for style in styles {
        for out in [&[][..], &["--out", "the report"]] {
            let place = Place::new();
            let script = causes_script();
            let own = ["--json", "result.json", "--watch", "my runs"];
            let command = ["--", "sh", &script, style, "my runs"];
            let explored = place.explore(&[out, &own, &options.concat(), &command].concat());
            assert_eq!(explored.code, Some(1), "{}", explored.text);
            assert_eq!(place.path().join("the report/recording/operations").exists(), !out.is_empty());
            for finding in &place.result().findings {
                assert_eq!(finding.repeat.contains("--recording 'the report/recording'"), !out.is_empty());
            }
            place.repeat_all(&explored);
        }
    }
}

fn commands_after_a_kill_repeat_their_findings() {
    let short = ["--timeout", "10s"];
    check_styles(
        &["in-place", "deleted-first", "too-early", "unfinished", "lock-fails"],
        &[&["--crash", "process"], &SAVED, &RESUMED, &STEP, &short],
    );
}

fn commands_after_a_power_loss_repeat_their_findings() {
    check_styles(&["no-fsync"], &[&SAVED, &RESUMED, &STEP]);
    check_styles(
        &["in-place", "no-order"],
        &[&["--crash=power", "--model", "ext4,posix"], &SAVED, &RESUMED, &STEP],
    );
}

fn commands_without_any_crash_repeat_their_findings() {
    check_styles(
        &["other-samples", "starts-over", "pruned"],
        &[&["--crash", "process"], &SAVED, &RESUMED, &STEP, &CONSUMED],
    );
}

/// Saves well, but a recovery notes in place from where it resumed, and cannot read an empty note.
const NOTES_RESUMES: &str = r#"
if [ -e runs/resumed ] && ! read -r from < runs/resumed; then echo "Error: empty note" >&2; exit 1; fi
n=0
[ -e runs/s ] && read -r n < runs/s
echo "resumed from step $n"
[ "$n" -gt 0 ] && echo "$n" > runs/resumed
while [ "$n" -lt 4 ]; do n=$((n + 1)); echo "step $n"; echo "$n" > runs/new; mv runs/new runs/s; echo "saved step $n"; done
"#;

fn commands_after_a_second_crash_repeat_their_findings() {
    for out in [&[][..], &["--out", "the report"]] {
        let place = Place::new();
        place.write("trainer.sh", NOTES_RESUMES);
        let explored = place.explore(&in_place_options(&[out, &["--depth", "2"]].concat()));
        let result = place.result();
        assert!(explored.code == Some(1) && result.findings.is_empty(), "{}", explored.text);
        let findings: Vec<&Finding> = result.second.iter().flat_map(|second| &second.findings).collect();
        assert!(findings.len() > 1, "{}", explored.text);
        for Finding { cause, outcome, repeat, state, .. } in findings {
            assert!(explored.text.contains(&format!("repeat: {repeat}\n")), "{repeat}: {}", explored.text);
            assert_eq!(repeat.contains("--recording 'the report/recording'"), !out.is_empty(), "{repeat}");
            let repeated = place.paste(repeat);
            let text = &repeated.text;
            assert_eq!(repeated.code, Some(1), "{repeat}: {text}: {}", explored.text);
            let [heading, counts] = [
                format!("\n  {cause} -> {outcome}: "),
                format!("1 of 1 states tried: 1 {outcome} (process)"),
            ];
            assert!(text.contains(&heading) && text.contains(&counts), "{heading}{counts}: {text}");
            assert!(state.starts_with("process:") && text.contains(&format!("-state '{state}'")), "{text}");
            assert!(!text.contains("not confirmed") && text.matches(" -> ").count() == 1, "{text}");
        }
    }
    let place = Place::new();
    place.write("trainer.sh", NOTES_RESUMES);
    let explore =
        |second: &str| place.explore(&in_place_options(&["--state", "process:12", "--second-state", second]));
    for (second, code) in [("process:900", 2), ("nothing", 2)] {
        let ran = explore(second);
        let names_it = ran.text.contains("--second-state: ") && ran.text.contains(&format!("`{second}`"));
        assert!(ran.code == Some(code) && names_it, "{}", ran.text);
    }
    let alone = place.explore(&in_place_options(&["--second-state", "process:3"]));
    assert!(alone.code == Some(2) && alone.text.contains("--state"), "{}", alone.text);
}

/// Saves in place. What it wrote before the run is in each of its states.
const IN_PLACE: &str = r#"
[ -e longer ] && { : > runs/w; rm runs/w; }
[ -e runs/id ] || cat ${ID:-/proc/sys/kernel/random/uuid} > runs/id
n=0
[ -e runs/s ] && { read -r n < runs/s || { echo "Error: torn" >&2; exit 1; }; }
echo "resumed from step $n"
while [ "$n" -lt 3 ]; do n=$((n + 1)); echo "step $n"; echo "$n" > runs/s; echo "saved step $n"; done
"#;

fn in_place_options<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let own = ["--json", "result.json", "--watch", "runs", "--crash", "process"];
    [&own[..], &SAVED, &RESUMED, &STEP, more, &["--", "sh", "trainer.sh"]].concat()
}

fn a_command_with_any_bytes_in_it_repeats_its_finding() {
    let place = Place::new();
    let watch = OsStr::from_bytes(b"runs\t\xff \x1b[31m'\n");
    std::fs::create_dir(place.path().join(watch)).unwrap();
    let script = "cd \"$0\" || exit 9\n\tn=0; test -e s && { read -r n <s || exit 1; }\n\
                  echo \"resumed from step $n\"\nwhile test $n -lt 3; do n=$((n+1)); echo $n >s; \
                  echo \"saved step $n\"; done # `'\"$(nothing)";
    let options = ["--json=result.json", "--out", "--report", "--crash", "process"];
    let own = options.iter().chain(&SAVED).chain(&RESUMED).map(OsString::from);
    let args: Vec<OsString> = own
        .chain(["--watch".into(), watch.into(), "--".into(), "sh".into(), "-c".into()])
        .chain([script.into(), watch.into()])
        .collect();
    // A value that begins with a dash is none.
    let args: Vec<OsString> =
        args.into_iter().map(|arg| if arg == "--report" { "./--report".into() } else { arg }).collect();
    let explored = place.explore(&args);
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    place.repeat_all(&explored);
    // The page and the file have the same command as the screen.
    let page = std::fs::read_to_string(place.path().join("--report/explore.html")).unwrap();
    let shown = place.result().findings[0].repeat.replace('&', "&amp;").replace('<', "&lt;");
    assert!(page.contains(&shown.replace('>', "&gt;").replace('"', "&quot;")), "{shown}");
}

fn a_warm_recovery_is_repeated_cold_and_warm() {
    let place = Place::new();
    place.write(
        "trainer.py",
        "import json, os, sys\nn = 0\nif os.path.exists('runs/s'):\n    n = json.load(open('runs/s'))\n\
         print('resumed from step', n)\nwhile n < 3:\n    n += 1\n    with open('runs/s', 'w') as f:\n        \
         json.dump(n, f)\n    print('saved step', n)\n",
    );
    let own = ["--json", "result.json", "--watch", "runs", "--crash", "process", "--warm", "json"];
    let command = ["--", "python3", "trainer.py"];
    let explored = place.explore(&[&own[..], &SAVED, &RESUMED, &command].concat());
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    place.repeat_all(&explored);
}

fn a_state_is_found_by_its_files_where_operations_have_other_numbers() {
    let place = Place::new();
    place.write("trainer.sh", IN_PLACE);
    place.write("fixed", "an id\n");
    let script = ["--", "env", "ID=fixed", "sh", "trainer.sh"];
    let own = ["--json", "result.json", "--watch", "runs", "--crash", "process"];
    let explored = place.explore(&[&own[..], &SAVED, &RESUMED, &STEP, &script].concat());
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    let finding = place.result().findings[0].clone();
    // Two more operations come first.
    place.write("longer", "");
    let repeated = place.paste(&finding.repeat);
    assert_eq!(repeated.code, Some(1), "{}", repeated.text);
    let (position, contents) = finding.state.split_once('@').unwrap();
    let op_count: u32 = position.strip_prefix("process:").unwrap().parse().unwrap();
    let (files, _) = contents.split_once('.').unwrap();
    let moved = format!("in this recording the state is process:{}@{files}.", op_count + 2);
    assert!(repeated.text.contains(&moved), "{moved}: {}", repeated.text);
    let heading = format!("1. {} -> {}: 1 state, under process", finding.cause, finding.outcome);
    assert!(repeated.text.contains(&heading), "{heading}: {}", repeated.text);
}

fn a_new_recording_that_differs_is_told_and_a_kept_one_is_exact() {
    let place = Place::new();
    place.write("trainer.sh", IN_PLACE);
    let explored = place.explore(&in_place_options(&[]));
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    let repeated = place.paste(&place.result().findings[0].repeat);
    assert_eq!(repeated.code, Some(3), "{}", repeated.text);
    assert!(repeated.text.contains("this recording differs from the one in which"), "{}", repeated.text);
    let explored = place.explore(&in_place_options(&["--out", "report"]));
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    // The kept recording needs neither the same files nor the same run.
    std::fs::create_dir_all(place.path().join("runs")).unwrap();
    place.write("runs/other", "a new file");
    place.write("longer", "");
    place.repeat_all(&explored);
    let all = place.explore(&in_place_options(&["--recording", "report/recording"]));
    assert_eq!(all.code, Some(1), "{}", all.text);
}

fn a_recording_is_kept_only_within_its_bound_and_refused_if_it_has_changed() {
    let place = Place::new();
    place.write("trainer.sh", IN_PLACE);
    let explored = place.explore(&in_place_options(&["--out", "small", "--keep-recording", "10"]));
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    assert!(explored.text.contains("the recording is not kept, because it has"), "{}", explored.text);
    assert!(!place.path().join("small/recording").exists() && !explored.text.contains("--recording '"));
    let explored = place.explore(&in_place_options(&["--out", "report"]));
    assert!(!explored.text.contains("not kept"), "{}", explored.text);
    let repeat = place.result().findings[0].repeat.clone();
    let other =
        place.explore(&["--recording", "report/recording", "--watch", "runs", "--", "sh", "trainer.sh"]);
    assert_eq!(other.code, Some(2), "{}", other.text);
    assert!(other.text.contains("another `--saved`"), "{}", other.text);
    let elsewhere = repeat.replace("--watch runs", "--watch others");
    let elsewhere = place.paste(&elsewhere);
    assert!(
        elsewhere.code == Some(2) && elsewhere.text.contains("the recording is of"),
        "{}",
        elsewhere.text
    );
    let contents = place.path().join("report/recording/contents");
    let log = std::fs::read_dir(&contents).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&log).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let damaged = place.paste(&repeat);
    assert_eq!(damaged.code, Some(2), "{}", damaged.text);
    assert!(damaged.text.contains("the recording is damaged"), "{}", damaged.text);
    std::fs::write(place.path().join("report/recording/operations"), "something else").unwrap();
    let foreign = place.paste(&repeat);
    assert!(foreign.code == Some(2) && foreign.text.contains("is not a recording"), "{}", foreign.text);
}

/// Each byte of the file with the operations, with one bit flipped, and its shorter and longer forms.
fn no_changed_byte_of_a_kept_recording_goes_unnoticed() {
    let place = Place::new();
    place.write("trainer.sh", IN_PLACE);
    let explored = place.explore(&in_place_options(&["--out", "report"]));
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    let repeat = place.result().findings[0].repeat.clone();
    let file = place.path().join("report/recording/operations");
    let whole = std::fs::read(&file).unwrap();
    // Each takes a process; the places are spread over the file, so that its digest is also among them.
    let places = (0..20).map(|nth| nth * (whole.len() - 1) / 19);
    let flipped = places.map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    });
    let shorter = [0, 1, 20, whole.len() - 32, whole.len() - 1].map(|len| whole[..len].to_vec());
    let longer = [&whole[..], b"x"].concat();
    for bytes in flipped.chain(shorter).chain([longer]) {
        std::fs::write(&file, bytes).unwrap();
        let refused = place.paste(&repeat);
        assert_eq!(refused.code, Some(2), "{}", refused.text);
        let names_it = ["the recording is damaged", "is not a recording"];
        assert!(names_it.iter().any(|part| refused.text.contains(part)), "{}", refused.text);
    }
    std::fs::write(&file, whole).unwrap();
    assert_eq!(place.paste(&repeat).code, Some(1));
}

fn a_kept_recording_is_used_again_and_neither_kept_twice_nor_overwritten() {
    let place = Place::new();
    place.write("trainer.sh", IN_PLACE);
    place.explore(&in_place_options(&["--out", "report"]));
    let used = ["--recording", "report/recording", "--out", "second"];
    let explored = place.explore(&in_place_options(&used));
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    assert!(!place.path().join("second/recording").exists() && !explored.text.contains("not kept"));
    assert!(!explored.text.contains("of another command"), "{}", explored.text);
    place.repeat_all(&explored);
    for (option, path) in [
        ("--json", "report/recording/operations"),
        ("--json", "report/recording/new.json"),
        ("--out", "report/recording/new"),
        ("--keep", "report/recording/new"),
    ] {
        let own =
            ["--recording", "report/recording", option, path, "--watch", "runs", "--", "sh", "trainer.sh"];
        let refused = place.explore(&own);
        assert!(refused.code == Some(2) && refused.text.contains("one is inside"), "{}", refused.text);
    }
    // A recovery that was mended can be tried, and what was not tried is said.
    place.write("mended.sh", "echo resumed from step 9");
    let mended = [&["--recording", "report/recording", "--watch", "runs"], &SAVED[..], &RESUMED].concat();
    let mended = place.explore(&[&mended[..], &["--", "sh", "mended.sh"]].concat());
    assert!(mended.text.contains("the recording is of another command, `sh trainer.sh`"), "{}", mended.text);
}

/// The files are the same, and what was promised about them is not.
fn a_state_after_other_promises_is_another_state() {
    let place = Place::new();
    let trainer = |first: &str, second: &str| {
        format!(
            "if [ -e runs/s ]; then n=$(cat runs/s); echo \"resumed from step ${{n:-0}}\"; exit; fi\n\
             echo 1 > runs/s{first}; echo 2 > runs/s{second}\n"
        )
    };
    let acknowledge = "; echo saved step 1";
    place.write("trainer.sh", &trainer(acknowledge, ""));
    let own = ["--json", "result.json", "--watch", "runs", "--crash", "process"];
    let explored = place.explore(&[&own[..], &SAVED, &RESUMED, &["--", "sh", "trainer.sh"]].concat());
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    let repeat = place.result().findings[0].repeat.clone();
    assert_eq!(place.paste(&repeat).code, Some(1));
    place.write("trainer.sh", &trainer("", acknowledge));
    let repeated = place.paste(&repeat);
    assert_eq!(repeated.code, Some(3), "{}", repeated.text);
    assert!(repeated.text.contains("this recording differs from the one in which"), "{}", repeated.text);
}

/// Its eighth recovery fails, whatever the files are.
const FLAKY: &str = r#"
n=0
if [ -e runs/s ]; then
    read -r n < runs/s
    echo x >> count/recoveries
    [ "$(wc -l < count/recoveries)" -eq 8 ] && { echo "Error: out of luck" >&2; exit 7; }
fi
echo "resumed from step $n"
while [ "$n" -lt 4 ]; do
    n=$((n + 1)); echo "step $n"; echo "$n" > runs/t; mv runs/t runs/s; echo "saved step $n"
done
"#;

fn a_finding_that_fails_only_once_is_not_confirmed() {
    let place = Place::new();
    place.write("trainer.sh", FLAKY);
    std::fs::create_dir(place.path().join("count")).unwrap();
    let explored = place.explore(&in_place_options(&["--jobs", "1", "--writable", "count"]));
    let text = &explored.text;
    assert_eq!(explored.code, Some(3), "{text}");
    let result = place.result();
    let [finding] = &result.findings[..] else { panic!("{text}") };
    let seen = finding.confirmation.unwrap();
    assert_eq!((seen.failed, seen.tried), (1, 4), "{text}");
    assert!(text.contains("not confirmed: 1 of 4 recoveries from this state were crashed"), "{text}");
    // It was printed at once, before the result.
    let met = text.find("unconfirmed: crashed, ").unwrap();
    assert!(met < text.find(" states in ").unwrap(), "{text}");
    assert!(text[met..].lines().next().unwrap().contains("out of luck"), "{text}");
}

fn the_files_and_the_output_of_failing_states_are_kept() {
    let place = Place::new();
    place.write("trainer.sh", &IN_PLACE.replace("echo \"Error", "seq 5000; echo \"Error"));
    let options = ["--keep", "kept here", "--out", "report"];
    let explored = place.explore(&in_place_options(&options));
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    let finding = place.result().findings[0].clone();
    let dir = place.path().join("kept here/1-written-in-place-crashed");
    let names = |dir: &Path| {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&dir), ["files", "state.txt", "stderr", "stdout"]);
    assert_eq!(names(&dir.join("files")), ["id", "s"]);
    assert_eq!(std::fs::read(dir.join("files/s")).unwrap(), b"", "the files are those before the recovery");
    assert_eq!(std::fs::read_to_string(dir.join("stderr")).unwrap(), "Error: torn\n");
    assert_eq!(std::fs::read_to_string(dir.join("stdout")).unwrap().lines().count(), 5000);
    let state = std::fs::read_to_string(dir.join("state.txt")).unwrap();
    assert!(state.contains(&finding.state) && state.contains("exit code 1"), "{state}");
    assert!(
        explored.text.contains(&format!("files of {}: kept here/1-", finding.state)),
        "{}",
        explored.text
    );
    assert!(!place.path().join("runs").exists(), "the user's directory is not touched");
    // Nothing that is there is overwritten.
    for (keep, part) in [("kept here", "--keep: `kept here` is not empty"), ("trainer.sh", "is a file")] {
        let refused = place.explore(&in_place_options(&["--keep", keep]));
        assert!(refused.code == Some(2) && refused.text.contains(part), "{}", refused.text);
    }
    for keep in ["runs/kept", "report/kept", "report", "."] {
        let refused = place.explore(&in_place_options(&["--keep", keep, "--out", "report"]));
        assert_eq!(refused.code, Some(2), "{keep}: {}", refused.text);
    }
    // A state that is named is kept also if it is no finding.
    let options = ["--state", "process:0", "--keep", "one"];
    let explored = place.explore(&in_place_options(&options));
    assert_eq!(explored.code, Some(0), "{}", explored.text);
    assert_eq!(names(&place.path().join("one/state")), ["files", "state.txt", "stderr", "stdout"]);
}

/// POSIX lets a rename be half lost, ext4 does not.
fn a_name_that_the_model_does_not_allow_is_refused() {
    let place = Place::new();
    // Operation 0 creates, operation 1 renames.
    let command = ["--", "sh", "-c", ": > runs/t; mv runs/t runs/s; echo done"];
    for (state, code) in
        [("posix:2-1.1", 0), ("ext4:2-1.1", 2), ("process:2-1", 2), ("ext4:2-1", 0), ("lying:2", 0)]
    {
        let own = ["--watch", "runs", "--same", "^(done)", "--state", state];
        let tried = place.explore(&[&own[..], &command].concat());
        assert_eq!(tried.code, Some(code), "{state}: {}", tried.text);
        assert_eq!(tried.text.contains("has no state"), code == 2, "{state}: {}", tried.text);
    }
}
