//! Targets that a recording loses easily: at a limit of open files, with many threads or processes, with buffered
//! output, with processes that outlive the main one, with changes that no call explains. Each is explored by the
//! built command, most of them as a usual shell starts it: with 1,024 open files.

use std::path::PathBuf;
use std::process::{Command, Output};

use libtest_mimic::Trial;
use scenarios::{Cause, Exploration, ExplorationNote, Finding, Outcome};

use crate::support::c_target;
use crate::support::command::{TRAINWRECK, output_text};
use crate::support::machine::{GATE, Need, missing};
use crate::support::ordinary_user::OrdinaryUser;
use crate::support::program_files::copy_program;

pub(crate) fn trials() -> Vec<Trial> {
    let python = [Need::Program("python3")];
    let mut trials = trials![
        missing(&GATE);
        a_child_that_saves_later_is_waited_for_while_recording_and_in_each_recovery,
        a_process_that_stays_is_named_and_its_saves_weaken_the_result,
        a_recovery_that_leaves_processes_is_counted,
        a_program_that_buffers_its_output_is_noticed_and_one_that_flushes_is_not,
        an_accepted_path_outside_of_the_watched_directories_is_invalid_input,
        an_accepted_path_that_was_not_needed_is_named,
    ];
    trials.extend(trials![
        missing(GATE.iter().chain(&python));
        a_target_at_its_limit_of_open_files_gets_its_error_and_goes_on,
        hundreds_of_short_processes_are_recorded,
        a_bug_in_the_last_of_hundreds_of_threads_is_found,
        python_does_not_buffer_its_output_unless_the_user_says_so,
        a_sync_of_another_file_saves_no_rename_in_a_journal,
    ]);
    trials.extend(trials![
        missing(GATE.iter().chain(&[Need::Program("unshare")]));
        a_change_that_no_call_explains_is_an_error_or_accepted_by_its_path,
    ]);
    trials.extend(trials![
        missing(&[Need::OrdinaryUserWith("syscall-gate")]);
        calls_of_a_program_that_forbids_to_be_followed_are_an_error_or_accepted,
    ]);
    trials
}

/// A watched directory, and a place for the result.
struct Workplace {
    dir: tempfile::TempDir,
}

/// What one exploration gave.
struct Explored {
    code: i32,
    text: String,
    /// `None`: nothing was judged.
    exploration: Option<Exploration>,
}

impl Workplace {
    fn new() -> Workplace {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("runs")).unwrap();
        Workplace { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `explore` with a directory `runs` and 1,024 open files.
    fn command(&self, options: &[&str], target: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 1024; exec \"$0\" \"$@\"", TRAINWRECK, "explore", "--watch", "runs"]);
        command.args(["--json", "result.json", "--jobs", "2"]).args(options).arg("--").args(target);
        command.current_dir(self.dir.path()).env("TMPDIR", self.dir.path()).env_remove("PYTHONUNBUFFERED");
        command
    }

    fn explore(&self, options: &[&str], target: &[&str]) -> Explored {
        self.result_of(&self.command(options, target).output().unwrap())
    }

    fn explore_shell(&self, options: &[&str], script: &str) -> Explored {
        self.explore(options, &["sh", "-c", script])
    }

    fn explore_python(&self, options: &[&str], script: &str) -> Explored {
        self.explore(options, &["python3", "-c", script])
    }

    fn result_of(&self, output: &Output) -> Explored {
        let json = std::fs::read_to_string(self.path("result.json"));
        let exploration = json.ok().map(|text| Exploration::parse(&text).unwrap());
        Explored { code: output.status.code().unwrap(), text: output_text(output), exploration }
    }
}

impl Explored {
    fn exploration(&self) -> &Exploration {
        self.exploration.as_ref().unwrap_or_else(|| panic!("{}", self.text))
    }

    fn count(&self, kind: &str) -> u64 {
        self.exploration().operations.get(kind).copied().unwrap_or(0)
    }

    fn assert_code(&self, code: i32) {
        assert_eq!(self.code, code, "{}", self.text);
    }
}

/// Judges each recovery by its exit code alone, and tries few states.
const FEW_STATES: [&str; 6] = ["--crash", "process", "--max-states", "6", "--check", "true"];
const STEPS: [&str; 4] =
    ["--saved", r"^saved step (?<step>\d+)", "--resumed", r"^resumed from step (?<step>\d+)"];

fn a_target_at_its_limit_of_open_files_gets_its_error_and_goes_on() {
    let script = "
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
files, errors = [], 0
for number in range(60):
    try: files.append(open(f'runs/shard-{number}', 'w'))
    except OSError: errors += 1
for file in files: file.write('shard'); file.close()
assert errors > 20 and len(os.listdir('runs')) == len(files)
open('runs/last', 'w').close()
";
    let options = [&FEW_STATES[..], &["--resume", "true"]].concat();
    let explored = Workplace::new().explore_python(&options, script);
    explored.assert_code(0);
    assert!((30..40).contains(&explored.count("create")), "{}", explored.text);
    assert_eq!(explored.count("write"), explored.count("create") - 1, "{}", explored.text);
}

fn hundreds_of_short_processes_are_recorded() {
    let script = "
import os
for number in range(520):
    if os.fork() == 0:
        os.close(os.open(f'runs/new-{number}', os.O_CREAT | os.O_WRONLY))
        os._exit(0)
    os.wait()
";
    let options = [&FEW_STATES[..], &["--resume", "true"]].concat();
    let explored = Workplace::new().explore_python(&options, script);
    explored.assert_code(0);
    assert_eq!(explored.count("create"), 520, "{}", explored.text);
}

/// Correct saves of always the same bytes, each in a thread of its own. The last one is written in place.
fn a_bug_in_the_last_of_hundreds_of_threads_is_found() {
    let script = "
import os, sys, threading
def save(number):
    name = 'runs/ckpt' if number == LAST else 'runs/new'
    fd = os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.write(fd, b'saved'); os.fsync(fd); os.close(fd)
    if number != LAST: os.rename(name, 'runs/ckpt')
    fd = os.open('runs', os.O_RDONLY); os.fsync(fd); os.close(fd)
for number in range(520):
    thread = threading.Thread(target=save, args=(number,)); thread.start(); thread.join()
";
    let options = [
        "--crash",
        "process",
        "--check",
        "true",
        "--resume",
        "test ! -e runs/ckpt || grep -q saved runs/ckpt",
    ];
    let sound = Workplace::new().explore_python(&options, &script.replace("LAST", "-1"));
    sound.assert_code(0);
    assert_eq!(sound.count("rename"), 520, "{}", sound.text);
    let bad = Workplace::new().explore_python(&options, &script.replace("LAST", "519"));
    bad.assert_code(1);
    let causes: Vec<Cause> = bad.exploration().findings.iter().map(|finding| finding.cause).collect();
    assert_eq!(causes, [Cause::WrittenInPlace], "{}", bad.text);
}

/// Deletes the old checkpoint first: a kill then loses all work, if the save was acknowledged before.
const DELETES_FIRST: &str = "
import os
step = int(open('runs/ckpt').read()) if os.path.exists('runs/ckpt') else 0
print('resumed from step', step)
while step < 2:
    step += 1
    with open('runs/new', 'w') as file: file.write(str(step)); file.flush(); os.fsync(file.fileno())
    if os.path.exists('runs/ckpt'): os.remove('runs/ckpt')
    os.rename('runs/new', 'runs/ckpt')
    directory = os.open('runs', os.O_RDONLY); os.fsync(directory); os.close(directory)
    print('saved step', step)
";

fn python_does_not_buffer_its_output_unless_the_user_says_so() {
    let options = [&STEPS[..], &["--crash", "process"]].concat();
    let explored = Workplace::new().explore_python(&options, DELETES_FIRST);
    explored.assert_code(1);
    let findings = &explored.exploration().findings;
    let is_known = |cause: &Cause| findings.iter().any(|finding| finding.cause == *cause);
    assert!(is_known(&Cause::OldDeletedFirst), "{}", explored.text);
    assert_eq!(explored.exploration().notes, [], "{}", explored.text);
    let workplace = Workplace::new();
    let mut command = workplace.command(&options, &["python3", "-c", DELETES_FIRST]);
    let output = command.env("PYTHONUNBUFFERED", "").output().unwrap();
    let explored = workplace.result_of(&output);
    explored.assert_code(3);
    assert_eq!(explored.exploration().notes, [ExplorationNote::BufferedOutput { lines: 2 }]);
    assert!(explored.text.contains("the trainer's output is buffered"), "{}", explored.text);
}

fn a_program_that_buffers_its_output_is_noticed_and_one_that_flushes_is_not() {
    let program = c_target::compile("buffered.c", &[]).unwrap();
    let program = program.to_str().unwrap();
    let explored = Workplace::new().explore(&STEPS, &[program, "runs"]);
    explored.assert_code(3);
    assert_eq!(explored.exploration().notes, [ExplorationNote::BufferedOutput { lines: 3 }]);
    let explored = Workplace::new().explore(&STEPS, &[program, "runs", "flush"]);
    explored.assert_code(0);
    assert_eq!(explored.exploration().notes, [], "{}", explored.text);
}

/// The main process ends at once. Its child saves a second later, in the recoveries too: without that, the check
/// fails.
fn a_child_that_saves_later_is_waited_for_while_recording_and_in_each_recovery() {
    for outputs in ["", ">/dev/null 2>&1"] {
        let script = format!(
            "echo 1 > runs/ckpt; setsid sh -c 'sleep 1.2; echo 99 > runs/late; sync .' {outputs} & exit 0"
        );
        let options = [
            "--crash",
            "process",
            "--max-states",
            "2",
            "--resume",
            &script,
            "--check",
            "grep -q 99 runs/late",
        ];
        let explored = Workplace::new().explore_shell(&options, &script);
        explored.assert_code(0);
        assert_eq!(explored.count("create"), 2, "{}", explored.text);
        assert!(
            explored.text.contains("waits for 1 process of the trainer that still runs")
                || explored.text.contains("waits for 2 processes"),
            "{}",
            explored.text
        );
        assert_eq!(explored.exploration().notes, [], "{}", explored.text);
    }
}

fn a_process_that_stays_is_named_and_its_saves_weaken_the_result() {
    let options = [&FEW_STATES[..], &["--record-timeout", "2s", "--resume", "true"]].concat();
    let is_running = |explored: &Explored, is_saving: bool| match &explored.exploration().notes[..] {
        [ExplorationNote::StillRunning { programs, saving, .. }] => {
            *saving == is_saving && !programs.is_empty() && explored.text.contains("`sleep`")
        }
        _ => false,
    };
    let idle = "echo 1 > runs/ckpt; sleep 1000 & exit 0";
    let explored = Workplace::new().explore_shell(&options, idle);
    explored.assert_code(0);
    assert!(is_running(&explored, false), "{}", explored.text);
    let saving = "echo 1 > runs/ckpt; (while :; do echo 2 > runs/ckpt; sleep 0.2; done) & exit 0";
    let explored = Workplace::new().explore_shell(&options, saving);
    explored.assert_code(3);
    assert!(is_running(&explored, true), "{}", explored.text);
}

fn a_recovery_that_leaves_processes_is_counted() {
    let leaves = [&FEW_STATES[..], &["--resume", "sleep 1000 & exit 0"]].concat();
    let explored = Workplace::new().explore_shell(&leaves, "echo 1 > runs/ckpt");
    explored.assert_code(0);
    let recoveries = explored.exploration().tried;
    let expected = ExplorationNote::RecoveriesCutOff { count: recoveries, recoveries };
    assert_eq!(explored.exploration().notes, [expected], "{}", explored.text);
    // Its child ends a moment after the main process.
    let leaves_none = [&FEW_STATES[..], &["--resume", "sleep 0.02 & exit 0"]].concat();
    let explored = Workplace::new().explore_shell(&leaves_none, "echo 1 > runs/ckpt");
    explored.assert_code(0);
    assert_eq!(explored.exploration().notes, [], "{}", explored.text);
}

/// Writes through another mount of the same directory, where no call is seen.
const UNSEEN_WRITE: &str = "mkdir -p runs/cache /tmp/cache; echo 1 > runs/ckpt; \
    unshare -rm sh -c 'mount --bind runs/cache /tmp/cache && echo x > /tmp/cache/file' || exit 1";

fn a_change_that_no_call_explains_is_an_error_or_accepted_by_its_path() {
    let options = [&FEW_STATES[..], &["--resume", "true"]].concat();
    let explored = Workplace::new().explore_shell(&options, UNSEEN_WRITE);
    explored.assert_code(4);
    assert!(explored.exploration.is_none(), "{}", explored.text);
    for part in ["runs/cache/file` was created", "explore with `--unfollowed PATH`"] {
        assert!(explored.text.contains(part), "{part}: {}", explored.text);
    }
    for named in ["runs/cache/file", "runs/cache", "runs"] {
        let options = [&options[..], &["--unfollowed", named]].concat();
        let explored = Workplace::new().explore_shell(&options, UNSEEN_WRITE);
        explored.assert_code(3);
        let notes = &explored.exploration().notes;
        assert!(matches!(&notes[..], [ExplorationNote::Unfollowed { count: 1, .. }]), "{}", explored.text);
        assert!(explored.text.contains("accepted by `--unfollowed"), "{}", explored.text);
    }
    // A finding is a finding, and another path does not help.
    let failing = ["--crash", "process", "--resume", "false", "--unfollowed", "runs/cache"];
    Workplace::new().explore_shell(&failing, UNSEEN_WRITE).assert_code(1);
    let other = [&options[..], &["--unfollowed", "runs/ckpt"]].concat();
    Workplace::new().explore_shell(&other, UNSEEN_WRITE).assert_code(4);
}

fn an_accepted_path_outside_of_the_watched_directories_is_invalid_input() {
    for outside in [".", "other", "runs/../other", "/tmp"] {
        let options = [&FEW_STATES[..], &["--unfollowed", outside]].concat();
        let explored = Workplace::new().explore_shell(&options, "echo 1 > runs/ckpt");
        explored.assert_code(2);
        assert!(explored.text.contains("in no directory of --watch"), "{}", explored.text);
    }
}

fn an_accepted_path_that_was_not_needed_is_named() {
    let options = [&FEW_STATES[..], &["--unfollowed", "runs/cache"]].concat();
    let explored = Workplace::new().explore_shell(&options, "echo 1 > runs/ckpt");
    explored.assert_code(0);
    assert!(explored.text.contains("runs/cache` was not needed"), "{}", explored.text);
}

/// An ordinary user may run a program that it may not read. The kernel then protects its process from the user.
fn calls_of_a_program_that_forbids_to_be_followed_are_an_error_or_accepted() {
    let user = OrdinaryUser::with_programs(&[TRAINWRECK.as_ref()]);
    // An overlay of an ordinary user runs no such program.
    std::fs::create_dir(user.path("real")).unwrap();
    copy_program("/bin/cp".as_ref(), &user.path("real/cp"));
    let unreadable = std::os::unix::fs::PermissionsExt::from_mode(0o111);
    std::fs::set_permissions(user.path("real/cp"), unreadable).unwrap();
    let script = "mkdir -p runs/cache; echo 1 > runs/ckpt; real/cp script runs/cache/copy";
    std::fs::write(user.path("script"), script).unwrap();
    let explore = |options: &[&str]| {
        let mut command = user.command("trainwreck");
        command.args(["explore", "--watch", "runs", "--writable", "real", "--resume", "true"]);
        command.args(FEW_STATES).args(options).args(["--", "sh", "script"]).output().unwrap()
    };
    let output = explore(&[]);
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("`--unfollowed PATH`") && text.contains("PR_SET_DUMPABLE"), "{text}");
    let output = explore(&["--unfollowed", "runs/cache"]);
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("could not be followed, the first because"), "{text}");
    let output = explore(&["--unfollowed", "runs/other"]);
    assert_eq!(output.status.code(), Some(4), "{}", output_text(&output));
    assert!(!user.path("runs/cache").exists());
}

/// The sync commits no journal, or an earlier part of it. On a real ext4 and xfs the rename was lost.
fn a_sync_of_another_file_saves_no_rename_in_a_journal() {
    let script = "
import os
steps = [int(name[5:]) for name in os.listdir('runs') if name.startswith('step-')]
done = max(steps, default=0)
print('resumed from step', done, flush=True)
def sync_directory():
    fd = os.open('runs', os.O_RDONLY); os.fsync(fd); os.close(fd)
if not os.path.exists('runs/journal'):
    fd = os.open('runs/journal', os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(4096)); os.fsync(fd); os.close(fd); sync_directory()
journal = os.open('runs/journal', os.O_RDWR)
for step in range(done + 1, 3):
    fd = os.open('runs/tmp', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, b'x' * 100); os.fsync(fd); os.close(fd)
    os.rename('runs/tmp', f'runs/step-{step}')
    os.pwrite(journal, b'%04d' % step, 0)
    SYNC
    print('saved step', step, flush=True)
";
    for model in ["ext4", "xfs"] {
        let options = [&["--crash", "power", "--model", model], &STEPS[..]].concat();
        for sync in ["os.fdatasync(journal)", "os.fsync(journal)"] {
            let explored = Workplace::new().explore_python(&options, &script.replace("SYNC", sync));
            explored.assert_code(1);
            let loses_work = |finding: &Finding| finding.outcome == Outcome::LostWork;
            assert!(explored.exploration().findings.iter().any(loses_work), "{model}\n{}", explored.text);
        }
        let sound = script.replace("SYNC", "os.fsync(journal); sync_directory()");
        Workplace::new().explore_python(&options, &sound).assert_code(0);
    }
}
