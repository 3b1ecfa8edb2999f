//! A user's project with a careless target. Runs invocations of the command in it, and checks after each that
//! nothing of the user has changed and that nothing is left. Must not know any test.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::invocation::{Invocation, Verb, invocations};
use crate::support::command::TRAINWRECK;
use crate::support::leftovers::{MARK, cgroups_of, mounts_with, processes_that_stay, run_dirs};
use crate::support::program_files::copy_program;
use crate::support::tree_snapshot::TreeSnapshot;
use crate::support::user_tree::UserTree;

/// How long an invocation may take. A test that meets it fails.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Who runs the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runner {
    ThisUser,
    Nobody,
    /// `nobody`, as a member of the shared group.
    GroupMember,
}

/// A project, and all that the invocations need outside of it.
pub(crate) struct Stage {
    pub(crate) tree: UserTree,
    /// Files of the test: scenario, target, scripts, output.
    files: tempfile::TempDir,
    pub(crate) runner: Runner,
    /// Value of TMPDIR. `None`: it is not set.
    temporary: Option<PathBuf>,
    /// Marks the processes of this stage.
    mark: String,
}

impl Stage {
    pub(crate) fn new(tree: UserTree, runner: Runner, has_temporary: bool) -> Stage {
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
            copy_program(&targets.join(script), &files.path().join(script));
            open(&files.path().join(script));
        }
        if runner != Runner::ThisUser {
            copy_program(TRAINWRECK.as_ref(), &files.path().join("trainwreck"));
        }
        Stage { tree, files, runner, temporary, mark }
    }

    pub(crate) fn file(&self, name: &str) -> String {
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
    pub(crate) fn check(&self, invocation: &Invocation, before: &TreeSnapshot) -> ExitStatus {
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
    pub(crate) fn check_invocations(&self, seed: u64) {
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
