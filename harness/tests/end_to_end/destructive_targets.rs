//! Targets that destroy what they can reach: their temporary files, their own directories, the paths around
//! them, the processes beside them. What a target does to paths that it sees is its own affair: it never
//! becomes a failure of the harness, never reaches the user's files, and leaves nothing behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use libtest_mimic::Trial;

use crate::support::command::{TRAINWRECK, output_text};
use crate::support::leftovers::{MARK, processes_that_stay, run_dirs};
use crate::support::machine::{GATE, Need, SANDBOX, missing};
use crate::support::ordinary_user::{NOBODY, OrdinaryUser};
use crate::support::trial::{name_in, trial};
use crate::support::user_tree::{TreeOwner, UserTree};

/// Functions of `targets/destroys.sh` that leave the trainer's own files alone. Its result is that of any other.
const HARMLESS: [&str; 18] = [
    "none",
    "tmp",
    "tmpdir",
    "shared_memory",
    "run",
    "mode_tmp",
    "fill_root",
    "fill_tmp",
    "daemon",
    "deep",
    "locked",
    "kill_init",
    "limit_init",
    "output",
    "control",
    "mounts",
    "namespace",
    "closes",
];

/// Functions of `targets/destroys.sh` after which the trainer may fail.
const HARMFUL: [&str; 32] = [
    "mode_root",
    "state",
    "own_files",
    "above",
    "home",
    "var_tmp",
    "visible",
    "modes_visible",
    "move_itself",
    "move_above",
    "mode_here",
    "modes_here",
    "mode_watched",
    "watched_gone",
    "watched_link",
    "watched_link_etc",
    "watched_file",
    "watched_moved",
    "watched_mount",
    "watched_devices",
    "watched_names",
    "kill_all",
    "kill_group",
    "kill_parent",
    "stop_all",
    "stop_itself",
    "closes_outputs",
    "file_limit",
    "descriptor_limit",
    "process_limit",
    "memory_limit",
    "fork",
];

/// Functions for which a state takes seconds.
const SLOW: [&str; 1] = ["cpu_limit"];

/// What runs the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Explore,
    /// With a crash, in a directory of the target's own.
    RunCrash,
    /// With faults in a place that may be gone.
    RunFaults,
}

const VERBS: [Verb; 3] = [Verb::Explore, Verb::RunCrash, Verb::RunFaults];

/// Who runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    ThisUser,
    Nobody,
}

/// One invocation.
#[derive(Debug, Clone, Copy)]
struct Destruction {
    name: &'static str,
    verb: Verb,
    runner: Runner,
    is_harmless: bool,
}

pub(crate) fn trials() -> Vec<Trial> {
    let needs = missing(SANDBOX.iter().chain(&GATE));
    let ordinary = [Need::OrdinaryUserWith("syscall-gate"), Need::Program("setpriv")];
    let ordinary = missing(SANDBOX.iter().chain(&GATE).chain(&ordinary));
    let mut trials = vec![trial(
        name_in(module_path!(), "each_function_of_the_target_is_tried"),
        None,
        each_function_is_tried,
    )];
    for (runner, missing) in [(Runner::ThisUser, needs), (Runner::Nobody, ordinary)] {
        for verb in VERBS {
            let harmless = HARMLESS.iter().map(|name| (*name, true));
            let others = HARMFUL.iter().chain(&SLOW).map(|name| (*name, false));
            for (name, is_harmless) in harmless.chain(others) {
                let destruction = Destruction { name, verb, runner, is_harmless };
                trials.push(destruction.trial(missing.as_deref()));
            }
        }
    }
    trials
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/destroys.sh")
}

fn each_function_is_tried() {
    let text = std::fs::read_to_string(script()).unwrap();
    let functions = text.lines().filter_map(|line| line.strip_prefix("name_")?.split("()").next());
    let mut functions: Vec<&str> = functions.collect();
    let mut tried: Vec<&str> = HARMLESS.iter().chain(&HARMFUL).chain(&SLOW).copied().collect();
    functions.sort_unstable();
    tried.sort_unstable();
    assert_eq!(functions, tried);
}

impl Destruction {
    fn trial(self, missing: Option<&str>) -> Trial {
        let Destruction { name, verb, runner, .. } = self;
        trial(
            name_in(module_path!(), &format!("{runner:?}_{verb:?}_{name}").to_lowercase()),
            missing,
            move || self.check(),
        )
    }

    fn check(self) {
        let owner = TreeOwner { uid: NOBODY, gid: NOBODY, is_group_writable: false };
        let tree =
            UserTree::create_in(Path::new("/var/tmp"), (self.runner == Runner::Nobody).then_some(owner));
        let before = tree.snapshot();
        let stage = Stage::new(self.runner);
        let output = stage.run(self, &tree);
        let text = output_text(&output);
        let differences = before.differences(&tree.snapshot());
        assert!(differences.is_empty(), "{self:?}: {differences:#?}\n{text}");
        let left = processes_that_stay(&stage.mark);
        let dirs = run_dirs(&stage.path("tmp"), None);
        assert!(left.is_empty() && dirs.is_empty(), "{self:?}: {left:#?} {dirs:#?}\n{text}");
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 1 | 3)), "{self:?}: {}\n{text}", output.status);
        let is_certain = self.is_harmless && self.verb != Verb::RunFaults;
        assert!(!is_certain || code == Some(0), "{self:?}: {}\n{text}", output.status);
    }
}

/// A copy of the command that `nobody` can reach. It is there once: a program that is being written cannot be
/// started.
fn program_of_nobody() -> PathBuf {
    static COPY: OnceLock<OrdinaryUser> = OnceLock::new();
    COPY.get_or_init(|| OrdinaryUser::with_programs(&[TRAINWRECK.as_ref()])).path("trainwreck")
}

/// The files of one invocation.
struct Stage {
    dir: tempfile::TempDir,
    mark: String,
    runner: Runner,
}

impl Stage {
    fn new(runner: Runner) -> Stage {
        let dir = tempfile::Builder::new().prefix("trainwreck-files-").tempdir_in("/var/tmp").unwrap();
        let open = |path: &Path| {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        };
        open(dir.path());
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        open(&dir.path().join("tmp"));
        std::fs::copy(script(), dir.path().join("destroys.sh")).unwrap();
        let mark = dir.path().file_name().unwrap().display().to_string();
        Stage { dir, mark, runner }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, destruction: Destruction, tree: &UserTree) -> Output {
        let [script, out, scenario] =
            ["destroys.sh", "out", "scenario.yaml"].map(|name| self.path(name).display().to_string());
        let mut command = match self.runner {
            Runner::ThisUser => Command::new(TRAINWRECK),
            Runner::Nobody => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program_of_nobody());
                command
            }
        };
        match destruction.verb {
            Verb::Explore => {
                command.args(["explore", "--watch", "runs", "--crash", "process", "--max-states", "6"]);
                command.args([
                    "--jobs",
                    "1",
                    "--timeout",
                    "2s",
                    "--record-timeout",
                    "4s",
                    "--saved",
                    r"^saved step (?<step>\d+)",
                ]);
                command.args(["--resumed", r"^resumed from step (?<step>\d+)", "--out", &out]);
                command.args(["--", "sh", &script, destruction.name]);
            }
            Verb::RunCrash | Verb::RunFaults => {
                self.write_scenario(destruction);
                command.args(["run", &scenario, "--jobs", "1", "--out", &out]);
            }
        }
        command.current_dir(tree.project()).env("HOME", tree.home()).env(MARK, &self.mark);
        command.env("TMPDIR", self.path("tmp")).env_remove("CARGO").env_remove("XDG_STATE_HOME");
        command.output().unwrap()
    }

    fn write_scenario(&self, destruction: Destruction) {
        let method = match destruction.verb {
            Verb::RunFaults => FAULTS,
            _ => "  - crash: {when: {step: 3}}\n",
        };
        let script = self.path("destroys.sh").display().to_string();
        let target = TARGET.replace("SCRIPT", &script).replace("NAME", destruction.name);
        let target = target.replace("TEMPORARY", &self.path("tmp").display().to_string());
        std::fs::write(self.path("target.yaml"), target.replace("MARK", &self.mark)).unwrap();
        std::fs::write(self.path("scenario.yaml"), SCENARIO.replace("METHOD", method)).unwrap();
    }
}

const TARGET: &str = r#"
version: 1
id: destroys
title: a trainer that destroys what it can reach
program: /bin/sh
places: {checkpoints: runs}
start: [sh, -c, 'cd "$0" && exec sh SCRIPT NAME', '{root}']
environment: {TRAINWRECK_TEST_MARK: MARK, TMPDIR: 'TEMPORARY'}
announces:
  step: '^step (?<step>\d+)'
  saved: '^saved step (?<step>\d+)'
  resumed: '^resumed from step (?<step>\d+)'
same: '^finished with (?<value>\d+)'
timeouts: {stall: 2 s, finish: 4 s}
"#;

const FAULTS: &str = "
  - plant: {place: checkpoints, files: [{name: decoy.jsonl, holds: {nested-json: 20}}], when: {step: 3}}
  - vanish: {place: checkpoints, files: 4, holds: {nested-json: 20}, when: {step: 3}}
  - read-only: {place: checkpoints, when: {step: 3}, until: {after: 50 ms}}
";

const SCENARIO: &str = r"
version: 1
id: destroys-01
title: a trainer that destroys what it can reach
severity: extra
target: {use: target.yaml}
method:
METHOD
expect:
  - always: {outcome: [recovered]}
";
