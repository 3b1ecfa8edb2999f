//! The files of a user stay as they are, whatever the target does and however the command ends: contents,
//! names, modes, owners, links, attributes, mtime and ctime are compared around random invocations of every
//! command. Nothing else of a run remains either: no process, directory, mount or cgroup.
//!
//! By hand, with more invocations, every fifth of which is killed with SIGKILL, and with another seed:
//! `TRAINWRECK_INVOCATIONS=50 TRAINWRECK_SEED=7 cargo test -p trainwreck --test user_files`

#![expect(clippy::unwrap_used, reason = "a test stops at the first failure")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use support::command::TRAINWRECK;
use support::leftovers::{MARK, cgroups_of, mounts_with, processes_that_stay, run_dirs};
use support::machine::{GATE, Need, SANDBOX, missing};
use support::ordinary_user::NOBODY;
use support::seeded_random::SeededRandom;
use support::tree_snapshot::TreeSnapshot;
use support::user_tree::{TreeOwner, UserTree};

/// How long an invocation may take. A test that meets it fails.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Owner and group of a project that a group shares.
const OTHER_USER: u32 = 61_234;
const SHARED_GROUP: u32 = 61_235;

fn main() -> ExitCode {
    let needs = || SANDBOX.iter().chain(&GATE).chain(&[Need::Program("python3")]);
    let mut trials = trials![
        missing(&[Need::Program("python3")]);
        every_careless_habit_harms_a_project_that_nothing_protects,
    ];
    trials.extend(trials![
        missing(needs());
        a_target_without_bad_habits_is_judged_in_the_project,
        a_project_in_a_home_stays_as_it_is,
        a_project_below_tmp_stays_as_it_is,
        nothing_leads_a_target_out_of_its_view_of_the_host,
    ]);
    let ordinary = [Need::OrdinaryUserWith("syscall-gate"), Need::Program("setpriv")];
    trials.extend(trials![
        missing(needs().chain(&ordinary));
        a_target_without_bad_habits_is_judged_for_an_ordinary_user,
        a_target_without_bad_habits_is_judged_for_a_member_of_a_group,
        a_project_of_an_ordinary_user_stays_as_it_is,
        a_project_that_a_group_shares_stays_as_it_is,
    ]);
    support::trial::run(trials)
}

/// Habits of `targets/careless.sh`, apart from those that need a second process or end with the rest.
const SHELL_HABITS: [&str; 13] = [
    "logs",
    "home",
    "temporary",
    "modes",
    "rename",
    "truncate",
    "hardlink",
    "through_link",
    "dates",
    "special",
    "daemon",
    "rename_itself",
    "wipe",
];

/// Habits of `targets/careless.py`.
const PYTHON_HABITS: [&str; 11] = [
    "mapping",
    "attributes",
    "owners",
    "times",
    "copy_range",
    "hardlink",
    "exchange",
    "descriptor",
    "allocate",
    "process_root",
    "wipe",
];

/// What the command is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    /// `run`, with a kill in the middle, and without `--out`.
    Run,
    /// `run`, with a kill at each call of a save, in the target's own root.
    RunAtCalls,
    Ablate,
    ExploreProcess,
    ExplorePower,
    ExploreTwice,
    ExploreWarm,
    ExploreTarget,
    /// A watched directory that is not there yet.
    ExploreMissing,
    Check,
    Analyze,
    List,
    Doctor,
    Recover,
    Schema,
}

/// All of them: those that run a target come first.
const VERBS: [Verb; 15] = [
    Verb::Run,
    Verb::RunAtCalls,
    Verb::Ablate,
    Verb::ExploreProcess,
    Verb::ExplorePower,
    Verb::ExploreTwice,
    Verb::ExploreWarm,
    Verb::ExploreTarget,
    Verb::ExploreMissing,
    Verb::Check,
    Verb::Analyze,
    Verb::List,
    Verb::Doctor,
    Verb::Recover,
    Verb::Schema,
];

/// How many of `VERBS` run a target.
const RUNNING_VERBS: usize = 9;

/// The signal that ends an invocation early, and when.
#[derive(Debug, Clone, Copy)]
struct EarlyEnd {
    signal: Signal,
    after: Duration,
    to_group: bool,
}

/// One invocation of the command.
#[derive(Debug)]
struct Invocation {
    number: usize,
    verb: Verb,
    /// The target's script: `sh` or `py`.
    language: &'static str,
    /// What the target does apart from training, separated by commas.
    habits: String,
    end: Option<EarlyEnd>,
}

/// Who runs the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    ThisUser,
    Nobody,
    /// `nobody`, as a member of the shared group.
    GroupMember,
}

/// A project, and all that the invocations need outside of it.
struct Stage {
    tree: UserTree,
    /// Files of the test: scenario, target, scripts, output.
    files: tempfile::TempDir,
    runner: Runner,
    /// Value of TMPDIR. `None`: it is not set.
    temporary: Option<PathBuf>,
    /// Marks the processes of this stage.
    mark: String,
}

impl Stage {
    fn new(tree: UserTree, runner: Runner, has_temporary: bool) -> Stage {
        let files = tempfile::Builder::new().prefix("trainwreck-files-").tempdir_in("/var/tmp").unwrap();
        let open = |path: &Path| {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        };
        open(files.path());
        let temporary = has_temporary.then(|| files.path().join("tmp"));
        if let Some(temporary) = &temporary {
            std::fs::create_dir(temporary).unwrap();
            open(temporary);
        }
        let mark = format!("{}", files.path().file_name().unwrap().display());
        let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets");
        for script in ["careless.sh", "careless.py"] {
            std::fs::copy(targets.join(script), files.path().join(script)).unwrap();
            open(&files.path().join(script));
        }
        if runner != Runner::ThisUser {
            std::fs::copy(TRAINWRECK, files.path().join("trainwreck")).unwrap();
        }
        Stage { tree, files, runner, temporary, mark }
    }

    fn file(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    /// A command in the project, as the user that owns or shares it.
    fn command(&self, arguments: &[String]) -> Command {
        let own = self.file("trainwreck");
        let (program, identity): (&str, &[&str]) = match self.runner {
            Runner::ThisUser => (TRAINWRECK, &[]),
            Runner::Nobody => ("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups", &own]),
            Runner::GroupMember => ("setpriv", &["--reuid=65534", "--regid=65534", "--groups=61235", &own]),
        };
        let mut command = Command::new(program);
        command.args(identity).args(arguments).current_dir(self.tree.project());
        command.env("HOME", self.tree.home()).env(MARK, &self.mark).process_group(0);
        // Without cargo, nothing is built.
        command.env_remove("CARGO").env_remove("XDG_STATE_HOME").env_remove("TMPDIR");
        command.envs(self.temporary.iter().map(|temporary| ("TMPDIR", temporary)));
        command
    }

    /// The command line of an invocation. Writes the files that it names.
    fn arguments(&self, invocation: &Invocation) -> Vec<String> {
        let [target, scenario] = ["target.yaml", "scenario.yaml"].map(|name| self.file(name));
        let script = self.file(&format!("careless.{}", invocation.language));
        let interpreter = if invocation.language == "sh" { "sh" } else { "python3" };
        self.write_scenario(invocation, interpreter, &script);
        let trainer = ["--", interpreter, &script, &invocation.habits];
        let explore = |options: &[&str]| {
            let common = ["explore", "--saved", r"^saved step (?<step>\d+)", "--timeout", "5s"];
            let resumed = ["--resumed", r"^resumed from step (?<step>\d+)"];
            strings(&[&common[..], &resumed, options, &trainer].concat())
        };
        let process = ["--watch", "runs", "--crash", "process"];
        let power = ["--watch", "runs", "--crash", "power", "--max-states", "20"];
        let out = self.file(&format!("out-{}", invocation.number));
        let record = self.file("record.jsonl");
        match invocation.verb {
            Verb::Run => strings(&["run", &scenario]),
            Verb::RunAtCalls => strings(&["run", &scenario, "--out", &out, "--jobs", "4"]),
            Verb::Ablate => strings(&["ablate", &scenario, "--out", &out]),
            Verb::ExploreProcess => explore(&process),
            Verb::ExplorePower => explore(&[&power[..], &["--out", &out]].concat()),
            Verb::ExploreTwice => explore(&[&process[..], &["--depth", "2", "--max-states", "6"]].concat()),
            Verb::ExploreWarm => explore(&[&process[..], &["--warm", "json,shutil"]].concat()),
            Verb::ExploreTarget => strings(&["explore", "--target", &target, "--max-states", "20"]),
            Verb::ExploreMissing => explore(&["--watch", "not/there", "--crash", "process"]),
            Verb::Check => strings(&["check", &scenario, &target]),
            Verb::Analyze => strings(&["analyze", &record]),
            Verb::List => strings(&["list"]),
            Verb::Doctor => strings(&["doctor"]),
            Verb::Recover => strings(&["recover"]),
            Verb::Schema => strings(&["schema", "target"]),
        }
    }

    fn write_scenario(&self, invocation: &Invocation, interpreter: &str, script: &str) {
        // Calls are intercepted in the target's own root only, so that it trains there then.
        let dir = if invocation.verb == Verb::RunAtCalls { "{root}" } else { "." };
        let train =
            format!("cp may-be-harmed \"$0\" 2>/dev/null; cd \"$0\" && exec {interpreter} {script} \"$@\"");
        let start = format!("[sh, -c, '{train}', '{dir}', '{}', '{{settings}}']", invocation.habits);
        let environment = format!("{{{MARK}: {}, HOME: '{}'}}", self.mark, self.tree.home().display());
        let target = TARGET.replace("START", &start).replace("ENVIRONMENT", &environment);
        let method = match invocation.verb {
            Verb::RunAtCalls => "crash: {when: {call: {during: checkpoint-save, at: every}}, max-trials: 6}",
            _ => "crash: {when: {step: 3}}",
        };
        std::fs::write(self.file("target.yaml"), target).unwrap();
        std::fs::write(self.file("scenario.yaml"), SCENARIO.replace("METHOD", method)).unwrap();
    }

    /// Runs the invocation to its end, or until its signal. Returns the process ID and the exit.
    fn run(&self, invocation: &Invocation) -> (u32, ExitStatus) {
        let output = File::create(self.file("output")).unwrap();
        let mut command = self.command(&self.arguments(invocation));
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let mut child = command.spawn().unwrap();
        let pid = child.id();
        if let Some(end) = invocation.end {
            std::thread::sleep(end.after);
            // The invocation may have ended before.
            let _ = match (end.to_group, Pid::from_raw(pid.cast_signed())) {
                (true, group) => killpg(group, end.signal),
                (false, process) => kill(process, end.signal),
            };
        }
        (pid, wait(&mut child, invocation))
    }

    /// What is left of an invocation.
    fn leftovers(&self, invocation: &Invocation, pid: u32) -> Vec<String> {
        let mut left = processes_that_stay(&self.mark);
        left.extend(mounts_with(&self.mark));
        if invocation.end.is_some_and(|end| end.signal == Signal::SIGKILL) {
            // Whoever comes next removes the directories and cgroups of a killed run.
            let status = self.command(&["recover".into()]).output().unwrap().status;
            left.extend((!status.success()).then(|| format!("`recover`: {status}")));
        }
        let (temporary, only) = match &self.temporary {
            Some(temporary) => (temporary.as_path(), None),
            None => (Path::new("/tmp"), Some(pid)),
        };
        let paths = run_dirs(temporary, only).into_iter().chain(cgroups_of(pid));
        left.extend(paths.map(|path| path.display().to_string()));
        let of_target = PathBuf::from(format!("/tmp/x-{}", self.mark));
        left.extend(of_target.exists().then(|| of_target.display().to_string()));
        left
    }

    /// Runs an invocation and checks what it left. Returns the exit.
    fn check(&self, invocation: &Invocation, before: &TreeSnapshot) -> ExitStatus {
        let (pid, exit) = self.run(invocation);
        let left = self.leftovers(invocation, pid);
        let output = std::fs::read_to_string(self.file("output")).unwrap_or_default();
        let differences = before.differences(&self.tree.snapshot());
        assert!(
            left.is_empty() && differences.is_empty(),
            "{invocation:?} as {:?} ended with {exit}\nfiles of the user:\n  {}\nleft: {left:#?}\n{output}",
            self.runner,
            differences.join("\n  ")
        );
        // A target that harms itself ends in many ways, but the harness never fails because of it.
        let is_harness_failure = exit.code().is_some_and(|code| matches!(code, 4 | 5 | 101));
        assert!(!is_harness_failure, "{invocation:?} as {:?} ended with {exit}\n{output}", self.runner);
        exit
    }

    /// Runs random invocations, and checks after each.
    fn check_invocations(&self, seed: u64) {
        let quiet =
            Invocation { number: 0, verb: Verb::Run, language: "sh", habits: "none".into(), end: None };
        let before = self.tree.snapshot();
        assert!(before.node_count() > 30);
        // The record for `analyze`.
        self.check(&quiet, &before);
        let state = self.tree.home().join(".local/state/trainwreck/latest/record.jsonl");
        std::fs::copy(&state, self.file("record.jsonl")).unwrap_or_else(|error| {
            panic!(
                "`{}`: {error}\n{}",
                state.display(),
                std::fs::read_to_string(self.file("output")).unwrap()
            )
        });
        for invocation in invocations(seed) {
            self.check(&invocation, &before);
        }
    }
}

const TARGET: &str = r"
version: 1
id: careless
title: a trainer with bad habits
program: /bin/sh
places: {checkpoints: runs}
prepare: [[mkdir, -p, '{checkpoints}']]
setting-args: ['--set', '{key}={value}']
start: START
environment: ENVIRONMENT
announces:
  step: '^step (?<step>\d+)'
  saved: '^saved step (?<step>\d+)'
  resumed: '^resumed from step (?<step>\d+)'
phases: {checkpoint-save: {begins: '^step \d+', ends: '^saved step \d+', place: checkpoints}}
same: '^finished with (?<value>\d+)'
timeouts: {stall: 3 s, finish: 10 s}
guards: {tidy: {tidy: 'false'}}
";

const SCENARIO: &str = r"
version: 1
id: user-01
title: a careless trainer
severity: extra
target: {use: target.yaml}
method: [METHOD]
guards: [tidy]
expect:
  - always: {outcome: [recovered]}
";

fn strings(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

/// Waits for the end of the command.
fn wait(child: &mut Child, invocation: &Invocation) -> ExitStatus {
    let deadline = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(exit) = child.try_wait().unwrap() {
            return exit;
        }
        if Instant::now() > deadline {
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            child.wait().unwrap();
            panic!("{invocation:?} did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A number from the environment.
fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Invocations with random habits of the target. Of five, one is killed and one is interrupted. Each verb
/// comes before any comes again.
fn invocations(seed: u64) -> Vec<Invocation> {
    let count = setting("TRAINWRECK_INVOCATIONS", 8);
    let mut random = SeededRandom::new(seed ^ u64::try_from(setting("TRAINWRECK_SEED", 1)).unwrap() << 8);
    let (mut any, mut running) = (Vec::new(), Vec::new());
    (1..=count)
        .map(|number| {
            let end = early_end(number, &mut random);
            // What reads only is over before a signal comes.
            let deck = if end.is_some() { &mut running } else { &mut any };
            if deck.is_empty() {
                let size = if end.is_some() { RUNNING_VERBS } else { VERBS.len() };
                deck.extend_from_slice(&VERBS[..size]);
                random.shuffle(deck);
            }
            let verb = deck.pop().unwrap();
            let is_python = verb == Verb::ExploreWarm || random.below(2) == 0;
            let mut habits = if is_python { PYTHON_HABITS.to_vec() } else { SHELL_HABITS.to_vec() };
            random.shuffle(&mut habits);
            habits.truncate(1 + random.below(4));
            let language = if is_python { "py" } else { "sh" };
            Invocation { number, verb, language, habits: habits.join(","), end }
        })
        .collect()
}

fn early_end(number: usize, random: &mut SeededRandom) -> Option<EarlyEnd> {
    let signal = match number % 5 {
        1 => Signal::SIGKILL,
        3 if random.below(2) == 0 => Signal::SIGINT,
        3 => Signal::SIGTERM,
        _ => return None,
    };
    let after = Duration::from_millis(u64::try_from(random.below(1500)).unwrap());
    Some(EarlyEnd { signal, after, to_group: random.below(2) == 0 })
}

/// Without this, the other tests would show nothing.
fn every_careless_habit_harms_a_project_that_nothing_protects() {
    // A process that stays cannot be seen in the files of this moment.
    let shell = SHELL_HABITS.iter().filter(|habit| !matches!(**habit, "daemon" | "temporary"));
    let habits = shell.map(|habit| ("sh", *habit)).chain(PYTHON_HABITS.map(|habit| ("py", habit)));
    for (language, habit) in habits.chain([("sh", "none"), ("py", "none")]) {
        // Only root may give a file away.
        if habit == "owners" && !nix::unistd::geteuid().is_root() {
            continue;
        }
        let tree = UserTree::create_in(Path::new("/var/tmp"), None);
        let before = tree.snapshot();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/targets/careless.{language}"));
        let mut command = Command::new(if language == "sh" { "sh" } else { "python3" });
        command.arg(script).arg(habit).current_dir(tree.project()).env("HOME", tree.home());
        assert!(command.output().unwrap().status.success(), "{habit}");
        let harmed = before.differences(&tree.snapshot());
        // Each trainer removes the user's own checkpoints.
        let own_harm = |line: &&String| !line.contains("/runs/checkpoint-") && !line.contains("/runs: ");
        let is_harmed = match habit {
            "none" => harmed.iter().any(|line| line.contains("removed: ") && line.contains("checkpoint-10")),
            "mapping" | "wipe" => harmed.len() > 3,
            _ => harmed.iter().filter(own_harm).any(|line| !line.ends_with("runs/latest")),
        };
        assert!(is_harmed, "{language} {habit}: {harmed:#?}");
    }
}

/// Without this, an invocation that always failed would pass as well: the target can write where it could
/// write without a sandbox, and the result is that of a sandbox of its own.
fn check_without_habits(stage: &Stage) {
    let before = stage.tree.snapshot();
    let verbs = [
        (Verb::Run, "sh"),
        (Verb::RunAtCalls, "sh"),
        (Verb::ExploreMissing, "sh"),
        (Verb::ExplorePower, "py"),
    ];
    for (number, (verb, language)) in (100..).zip(verbs) {
        let invocation = Invocation { number, verb, language, habits: "none".into(), end: None };
        let exit = stage.check(&invocation, &before);
        let output = std::fs::read_to_string(stage.file("output")).unwrap();
        let expected = match verb {
            Verb::Run => exit.code() == Some(0),
            // Nothing is written to the watched directory.
            Verb::ExploreMissing => exit.code() == Some(3),
            // Its saves are not safe in the middle.
            _ => matches!(exit.code(), Some(0 | 1)),
        };
        assert!(expected, "{invocation:?} as {:?}: {exit}\n{output}", stage.runner);
    }
}

fn a_target_without_bad_habits_is_judged_in_the_project() {
    let tree = UserTree::create_in(Path::new("/var/tmp"), None);
    check_without_habits(&Stage::new(tree, Runner::ThisUser, true));
    let tree = UserTree::create_in(Path::new("/tmp"), None);
    check_without_habits(&Stage::new(tree, Runner::ThisUser, false));
}

fn a_target_without_bad_habits_is_judged_for_an_ordinary_user() {
    let owner = TreeOwner { uid: NOBODY, gid: NOBODY, is_group_writable: false };
    let tree = UserTree::create_in(Path::new("/var/tmp"), Some(owner));
    check_without_habits(&Stage::new(tree, Runner::Nobody, true));
}

fn a_target_without_bad_habits_is_judged_for_a_member_of_a_group() {
    let owner = TreeOwner { uid: OTHER_USER, gid: SHARED_GROUP, is_group_writable: true };
    let tree = UserTree::create_in(Path::new("/var/tmp"), Some(owner));
    check_without_habits(&Stage::new(tree, Runner::GroupMember, true));
}

fn a_project_in_a_home_stays_as_it_is() {
    let tree = UserTree::create_in(Path::new("/var/tmp"), None);
    Stage::new(tree, Runner::ThisUser, true).check_invocations(1);
}

fn a_project_below_tmp_stays_as_it_is() {
    let tree = UserTree::create_in(Path::new("/tmp"), None);
    Stage::new(tree, Runner::ThisUser, false).check_invocations(2);
}

fn a_project_of_an_ordinary_user_stays_as_it_is() {
    let owner = TreeOwner { uid: NOBODY, gid: NOBODY, is_group_writable: false };
    let tree = UserTree::create_in(Path::new("/var/tmp"), Some(owner));
    Stage::new(tree, Runner::Nobody, true).check_invocations(3);
}

/// The files belong to another user. Their group, of which the user is a member, may write.
fn a_project_that_a_group_shares_stays_as_it_is() {
    let owner = TreeOwner { uid: OTHER_USER, gid: SHARED_GROUP, is_group_writable: true };
    let tree = UserTree::create_in(Path::new("/var/tmp"), Some(owner));
    Stage::new(tree, Runner::GroupMember, true).check_invocations(4);
}

/// A target that looks for ways to the user's files other than their paths: descriptors that the harness has
/// inherited, its standard error, and mounts that root could change.
const ESCAPING_TARGET: &str = r#"
echo "saved 1"
mkdir -p runs
echo new >runs/checkpoint
for fd in /proc/self/fd/* /proc/1/fd/*; do
    echo escaped 2>/dev/null >"$fd/escaped"
    rm -f "$fd/data/precious"
    case $(readlink "$fd") in */ci.log) echo escaped >"$fd" ;; esac
done 2>/dev/null
{ mount -o remount,bind,rw /; umount -l "$PWD"; umount -l /tmp; } 2>/dev/null
echo escaped >escaped
rm -f data/precious
for device in /dev/*; do [ -b "$device" ] && exit 9; done
exit 0
"#;

fn nothing_leads_a_target_out_of_its_view_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    for (name, text) in [("data/precious", "kept"), ("ci.log", "first\n"), ("t.sh", ESCAPING_TARGET)] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let command = format!(
        "exec 9<.; exec {TRAINWRECK} explore --watch runs --jobs 1 --saved 'saved (?<step>[0-9]+)' \
         --check true -- sh t.sh >>ci.log 2>&1"
    );
    let status = Command::new("sh").args(["-c", &command]).current_dir(dir.path()).status().unwrap();
    let log = std::fs::read_to_string(dir.path().join("ci.log")).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.starts_with("first\n"), "{log}");
    assert_eq!(std::fs::read_to_string(dir.path().join("data/precious")).unwrap(), "kept");
    let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    assert_eq!(names, ["ci.log", "data", "t.sh"]);
}
