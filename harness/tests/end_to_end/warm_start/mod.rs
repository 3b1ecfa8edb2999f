//! Starts Python programs as new processes and as forks of an interpreter that has imported libraries, in each way in
//! which a trainer is started, and compares everything that is visible. The programs lie beside this file.

mod explored;
mod trials;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use engine::explore::{ForkedPython, ImportNotes, ServerImports};
use engine::sandbox::{
    CommandRunner, CompletedCommand, HostAccess, LaunchSpec, ProcessExit, Sandbox, SandboxSpec,
};
use explored::{
    a_bounded_time_ends_well_and_counts_what_was_not_tried, a_kept_recording_has_the_time_of_its_run,
    a_library_that_notices_the_fork_makes_new_processes_of_all_recoveries,
    recoveries_that_end_their_group_or_the_interpreter_are_tried_all_the_same,
    slow_recoveries_are_forked_without_being_told, what_a_library_sees_of_the_files_is_not_hidden_by_a_fork,
};
use libtest_mimic::Trial;
use trials::{
    a_target_that_notices_the_fork_is_a_new_process_in_all_trials,
    modules_that_are_named_are_imported_once_or_the_reason_is_said,
    trials_that_are_forked_end_as_trials_with_new_processes,
};

use crate::support::machine::{GATE, Need, SANDBOX, missing};
use crate::support::program_files::write_script;

const DESCRIBE: &str = include_str!("describe.py");
const ENDINGS: &str = include_str!("endings.py");
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A library with one habit, and whether a fork may share it.
struct Library {
    name: &'static str,
    source: &'static str,
    is_shared: bool,
}

const fn library(name: &'static str, source: &'static str, is_shared: bool) -> Library {
    Library { name, source, is_shared }
}

const LIBRARIES: [Library; 25] = [
    library("plain", "import json, decimal", true),
    // Those that look come before the one that changes the directory.
    library("reads_arguments", "import sys; arguments = list(sys.argv)", true),
    library("asks_whether_it_exists", "import os; found = os.path.exists('watched/latest')", false),
    library("asks_for_its_size", "import pathlib; size = pathlib.Path('watched').stat().st_mtime", false),
    library("lists_it", "import glob; names = glob.glob('watched/*')", false),
    library("reads_it", "import io\ntry: io.open('watched/latest')\nexcept OSError: pass", false),
    library("reads_the_linked_one", "import os; found = os.access('linked/latest', 0)", false),
    library("reads_the_given_one", "import sys, os; found = os.path.isfile(sys.argv[1] + '/latest')", false),
    library("uses_a_reader", "import reads_it", false),
    library("looks_beside_it", "import os; found = os.path.exists('watched-not'), os.listdir('path')", true),
    library(
        "has_thread",
        "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        false,
    ),
    library("has_socket", "import socket; pair = socket.socketpair()", false),
    library("has_file", "file = open(__file__)", false),
    library("has_pipe", "import os; pipe = os.pipe()", false),
    library("changes_directory", "import os; os.chdir('/')", false),
    library("sets_same_variable", "import os; os.environ['SAME'] = 'always'", true),
    library("sets_other_variable", "import os; os.environ['OTHER'] = os.urandom(8).hex()", false),
    library("reads_variable", "import os; backend = os.environ.get('BACKEND', 'none')", true),
    library("uses_thread", "import has_thread", false),
    library("catches_thread", "try:\n    import has_thread\nexcept Exception:\n    has_thread = None", false),
    library("catches_all", "try:\n    import has_thread\nexcept:\n    has_thread = None", false),
    library("uses_program", "import own", false),
    library("random_state", "import random, tempfile, uuid; random.random()", true),
    library(
        "at_fork",
        "import os; forks = []\nos.register_at_fork(after_in_child=lambda: forks.append(1))",
        true,
    ),
    library("at_exit", "import atexit; atexit.register(print, 'exit of a library')", true),
];

/// Libraries that notice a fork, which the trainers of `explored` use.
const NOTICING_LIBRARIES: [Library; 3] = [
    library("notices_fork", "def check(text): assert os.getpid() == pid", true),
    library(
        "notices_fork_late",
        "import json\ndef check(text): json.loads('' if '\"step\": 7' in text and os.getpid() != pid else text)",
        true,
    ),
    library("notices_fork_at_failure", "def check(text): assert text or os.getpid() == pid", true),
];

/// Libraries whose import depends on the files of a crash state, which the trainers of `explored` use: each refuses a
/// file that is empty.
const LOOKING_LIBRARIES: [Library; 5] = [
    library(
        "looks_at_size",
        "import os, time; time.sleep(0.4); path = 'runs/latest'\nis_bad = os.path.exists(path) and not os.path.getsize(path)\ndef check(text): assert not is_bad",
        false,
    ),
    library(
        "looks_by_name",
        "import sys, time; time.sleep(0.4)\ntry: is_bad = not open(sys.argv[1] + '/latest').read()\nexcept OSError: is_bad = False\ndef check(text): assert not is_bad",
        false,
    ),
    library(
        "looks_by_program",
        "import subprocess, time; time.sleep(0.4)\nis_bad = not subprocess.call('test -e runs/latest -a ! -s runs/latest', shell=True)\ndef check(text): assert not is_bad",
        true,
    ),
    library("slow_import", "import time; time.sleep(0.4)\ndef check(text): pass", true),
    library("never_looks", "import time; time.sleep(0.4)\ndef check(text): assert text", true),
];

/// Prints which libraries were imported in this process, and what must be as in a new process.
const USES_LIBRARIES: &str = r#"
import os
os.environ["BACKEND"] = "jax"
import own
import LIBRARIES
print("shared", *[m.__name__ for m in [LIBRARIES] if m.pid != os.getpid()])
print("own", own.pid == os.getpid(), "backend", reads_variable.backend, os.environ["SAME"], len(os.environ["OTHER"]))
print("arguments", reads_arguments.arguments)
os.chdir("/tmp")
import random, tempfile, uuid
print("random", random.random(), uuid.uuid4(), next(tempfile._get_candidate_names()), os.urandom(4).hex())
"#;

pub(crate) fn trials() -> Vec<Trial> {
    // Those that last longest come first.
    let mut trials = trials![
        missing(GATE.iter().chain([&Need::Program("python3")]));
        recoveries_that_end_their_group_or_the_interpreter_are_tried_all_the_same,
        a_library_that_notices_the_fork_makes_new_processes_of_all_recoveries,
        what_a_library_sees_of_the_files_is_not_hidden_by_a_fork,
        slow_recoveries_are_forked_without_being_told,
        a_target_that_notices_the_fork_is_a_new_process_in_all_trials,
        trials_that_are_forked_end_as_trials_with_new_processes,
        a_bounded_time_ends_well_and_counts_what_was_not_tried,
        a_kept_recording_has_the_time_of_its_run,
        modules_that_are_named_are_imported_once_or_the_reason_is_said,
    ];
    let with_python = missing(SANDBOX.iter().chain([&Need::Program("python3")]));
    trials.extend(trials![
        with_python;
        a_fork_ends_as_a_new_process_however_a_program_ends,
        a_fork_starts_as_a_new_process_in_each_way_of_starting_python,
        libraries_that_a_fork_would_not_share_well_are_imported_by_each_fork,
        code_of_the_user_is_imported_by_each_fork_wherever_it_is_installed,
        wrappers_and_special_options_are_not_forked,
    ]);
    trials
}

/// A directory with programs and a virtual environment, seen at the same path in a sandbox.
struct Stage {
    dir: tempfile::TempDir,
    python: String,
    sandbox: Sandbox,
}

/// One way of starting a program.
struct Start {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Start {
    fn new(argv: &[&str]) -> Start {
        Start { argv: argv.iter().map(OsString::from).collect(), env: Vec::new() }
    }

    fn with(mut self, name: &str, value: &str) -> Start {
        self.env.push((name.into(), value.into()));
        self
    }
}

impl Stage {
    fn new() -> Stage {
        let dir = tempfile::tempdir().unwrap();
        // `python3` may be a script that looks for the interpreter.
        let output =
            Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        let python = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let top = dir.path().canonicalize().unwrap();
        let shared = top.join("shared");
        for new in ["shared/WORK", "sandbox"] {
            std::fs::create_dir_all(top.join(new)).unwrap();
        }
        let spec = SandboxSpec {
            dir: top.join("sandbox"),
            mounts: Vec::new(),
            binds: Vec::new(),
            cgroups: Vec::new(),
            visible_root: None,
            distinct_pids: true,
            host_access: HostAccess { writable: vec![shared.clone()], ..HostAccess::default() },
            cwd: shared,
        };
        Stage { dir, python, sandbox: Sandbox::build(spec).unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("shared").join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_script(&path, text, 0o755);
    }

    /// Makes a virtual environment with the libraries. Returns its interpreter.
    fn venv(&self) -> String {
        let venv = self.text("venv");
        let made = Command::new(&self.python).args(["-m", "venv", "--without-pip", &venv]).status().unwrap();
        assert!(made.success());
        let site = self.site();
        let others = NOTICING_LIBRARIES.iter().chain(&LOOKING_LIBRARIES);
        for Library { name, source, .. } in LIBRARIES.iter().chain(others) {
            let common = "import os; pid = os.getpid()\ndef check(text): pass";
            self.write(&format!("{site}/{name}.py"), &format!("{common}\n{source}\n"));
        }
        format!("{venv}/bin/python")
    }

    /// The directory of the libraries of that environment.
    fn site(&self) -> String {
        let lib = std::fs::read_dir(self.path("venv/lib")).unwrap().next().unwrap().unwrap().file_name();
        format!("venv/lib/{}/site-packages", lib.to_str().unwrap())
    }

    /// What the crash states of a recovery would be in.
    fn watched(&self) -> [PathBuf; 1] {
        [self.path("watched")]
    }

    fn launch(&self, start: &Start) -> LaunchSpec {
        let path = std::env::join_paths([
            Path::new(&self.python).parent().unwrap(),
            Path::new("/usr/bin"),
            Path::new("/bin"),
        ]);
        let usual = [("PATH".into(), path.unwrap()), ("LANG".into(), "C.UTF-8".into())];
        let env = usual.into_iter().chain(start.env.iter().cloned()).collect();
        LaunchSpec { argv: start.argv.clone(), env, cwd: Some(self.path("")) }
    }

    fn run(&self, launch: &LaunchSpec, runner: CommandRunner) -> Seen {
        let work = self.path("WORK");
        std::fs::remove_dir_all(&work).unwrap();
        std::fs::create_dir(&work).unwrap();
        let command = self.sandbox.store_command(launch, runner).unwrap();
        let completed = self.sandbox.run_fresh(command, TIME_LIMIT, 1 << 20).unwrap();
        Seen { completed, files: file_texts(&work) }
    }

    fn new_process(&self, start: &Start) -> Seen {
        self.run(&self.launch(start), CommandRunner::NewProcess)
    }

    /// Runs a program in a fork that notes its imports, then forks it from an interpreter that has imported them.
    fn forked(&self, start: &Start) -> Forked {
        let launch = self.launch(start);
        let mut noting = self.fork(&launch, &ServerImports::Noting);
        let notes = ImportNotes::take_from(&mut noting.completed);
        let forks = notes.map(|notes| {
            let imports = ServerImports::Noted(notes);
            [self.fork(&launch, &imports), self.run_request(&launch, &imports)]
        });
        Forked { noting, forks }
    }

    fn fork(&self, launch: &LaunchSpec, imports: &ServerImports) -> Seen {
        let forked =
            ForkedPython::of(launch, imports, &self.watched()).unwrap_or_else(|| panic!("{launch:?}"));
        self.sandbox.start_fork_server(&forked.server).unwrap();
        self.run_request(launch, imports)
    }

    /// The same in the server that was started last.
    fn run_request(&self, launch: &LaunchSpec, imports: &ServerImports) -> Seen {
        self.run(
            &ForkedPython::of(launch, imports, &self.watched()).unwrap().request,
            CommandRunner::ForkServer,
        )
    }

    /// Compares a new process with forks.
    fn compare(&self, name: &str, start: &Start) {
        let new = self.new_process(start);
        let Forked { noting, forks } = self.forked(start);
        noting.assert_like(&new, &format!("{name}, noting"));
        for fork in forks.iter().flatten() {
            fork.assert_like(&new, name);
        }
        let leaves_no_notes =
            name.contains("leaves_at_once") || !matches!(new.completed.exit, Some(ProcessExit::Exited(_)));
        assert!(forks.is_some() || leaves_no_notes, "{name}: nothing was noted\n{new:?}");
    }
}

struct Forked {
    noting: Seen,
    forks: Option<[Seen; 2]>,
}

/// What is visible of a run.
#[derive(Debug)]
struct Seen {
    completed: CompletedCommand,
    files: Vec<String>,
}

impl Seen {
    fn assert_like(&self, new: &Seen, name: &str) {
        let parts = |seen: &Seen| {
            let CompletedCommand { exit, stdout, stderr, left_processes, .. } = &seen.completed;
            let exit = format!("{exit:?}, left processes: {left_processes}");
            [exit, stdout.trim_end().to_owned(), without_numbers(stderr.trim_end()), seen.files.join("\n")]
        };
        // A shell gives its commands another signal mask than it has itself.
        let parts = |seen: &Seen| match name.starts_with("/bin/sh") {
            true => parts(seen).map(|part| without_line(&part, "mask ")),
            false => parts(seen),
        };
        for (forked, expected) in parts(self).iter().zip(&parts(new)) {
            assert!(forked == expected, "{name}\n--- forked:\n{forked}\n--- new process:\n{expected}");
        }
    }
}

/// The names and texts of the files, without those that differ from run to run.
fn file_texts(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut texts: Vec<String> = entries
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            format!("{}: {text}", path.file_name().unwrap().to_string_lossy())
        })
        .collect();
    texts.sort();
    texts
}

fn without_line(text: &str, start: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(start)).collect();
    lines.join("\n")
}

/// Addresses and process numbers differ from run to run.
fn without_numbers(text: &str) -> String {
    regex::Regex::new("0x[0-9a-f]+|Thread-[0-9]+").unwrap().replace_all(text, "#").into_owned()
}

fn a_fork_starts_as_a_new_process_in_each_way_of_starting_python() {
    let stage = Stage::new();
    let python = &stage.python;
    let venv = stage.venv();
    stage.write("train.py", DESCRIBE);
    stage.write("beside.py", "value = 'beside the program'");
    stage.write("pkg/__init__.py", "");
    stage.write("pkg/train.py", &format!("from . import near\n{DESCRIBE}"));
    stage.write("pkg/near.py", "");
    stage.write("sub/train.py", DESCRIBE);
    stage.write("sub/beside.py", "value = 'in sub'");
    stage.write("app/__main__.py", DESCRIBE);
    stage.write("app/beside.py", "value = 'in app'");
    stage.write("path/beside.py", "value = 'in PYTHONPATH'");
    stage.write("path/sitecustomize.py", "import os, sys; sys.customized = 1; os.environ['SITE'] = 'own'");
    stage.write("script", &format!("#!{python}\n{DESCRIBE}"));
    stage.write("env-script", &format!("#!/usr/bin/env python3\n{DESCRIBE}"));
    stage.write("split-script", &format!("#!/usr/bin/env -S python3 -u -B\n{DESCRIBE}"));
    stage.write("venv-script", &format!("#!{venv}\n{DESCRIBE}"));
    std::os::unix::fs::symlink("sub/train.py", stage.path("link.py")).unwrap();
    let [absolute, script, path, sub] = ["train.py", "script", "path", "sub"].map(|name| stage.text(name));
    let p: &str = python;
    let ways: Vec<Start> = vec![
        Start::new(&[p, "train.py", "--lr", "1", ""]),
        Start::new(&[p, "./train.py"]),
        Start::new(&[p, ".//sub/../train.py"]),
        Start::new(&[p, &absolute]),
        Start::new(&[p, "sub/train.py"]),
        Start::new(&[p, "link.py"]),
        Start::new(&[p, "-m", "train", "-m", "x"]),
        Start::new(&[p, "-u", "-m", "pkg.train"]),
        Start::new(&[p, "-c", DESCRIBE, "x", "-c"]),
        Start::new(&[p, "app", "x"]),
        Start::new(&[p, "-u", "-B", "train.py"]),
        Start::new(&[p, "-Xdev", "-W", "error::UserWarning", "train.py"]),
        Start::new(&[p, "-O", "-X", "utf8", "train.py"]),
        Start::new(&[p, "-E", "train.py"]).with("PYTHONPATH", &path),
        Start::new(&[p, "-s", "-S", "train.py"]),
        Start::new(&[p, "-I", "-m", "train"]),
        Start::new(&[p, "-I", "train.py"]),
        Start::new(&[p, "-I", &format!("{sub}/train.py")]).with("PYTHONPATH", &path),
        Start::new(&[&script, "x"]),
        Start::new(&["./script", "x"]),
        Start::new(&["./env-script", "x"]),
        Start::new(&["./split-script", "x"]),
        Start::new(&["./venv-script", "x"]),
        Start::new(&["env", "A=1", "B=", p, "train.py"]),
        Start::new(&["/usr/bin/env", "python3", "train.py"]),
        Start::new(&["/bin/sh", "-c", "python3 train.py --lr=1  x"]),
        Start::new(&["/bin/sh", "-c", "./script x"]),
        Start::new(&["python3", "train.py"]),
        Start::new(&[&venv, "train.py"]),
        Start::new(&["venv/bin/python", "-m", "train"]),
        Start::new(&[p, "train.py"]).with("PYTHONPATH", &path),
        Start::new(&[p, "-m", "train"]).with("PYTHONPATH", &format!("{path}:{sub}")),
        Start::new(&[p, "train.py"]).with("PYTHONHASHSEED", "0").with("PYTHONUNBUFFERED", "1"),
        Start::new(&[p, "train.py"]).with("PYTHONSAFEPATH", "1").with("PYTHONPATH", &path),
        Start::new(&[p, "train.py"])
            .with("PYTHONFAULTHANDLER", "1")
            .with("PYTHONIOENCODING", "latin-1:replace"),
        Start::new(&[p, "train.py"]).with("LC_ALL", "C").with("PYTHONOPTIMIZE", "2"),
        Start::new(&[p, "missing.py"]),
        Start::new(&[p, "-m", "missing"]),
        Start::new(&[p, "-m", "pkg"]),
        Start::new(&[p, "path"]),
        Start::new(&["/bin/sh", "-c", "python3 missing.py"]),
    ];
    for start in &ways {
        let words = start.argv.iter().map(|word| word.to_string_lossy());
        let words: Vec<String> = words.map(|word| word.chars().take(60).collect()).collect();
        stage.compare(&format!("{} {:?}", words.join(" "), start.env), start);
    }
    stage.sandbox.close().unwrap();
}

fn a_fork_ends_as_a_new_process_however_a_program_ends() {
    let stage = Stage::new();
    for section in ENDINGS.split("#== ").skip(1) {
        let (name, source) = section.split_once('\n').unwrap();
        stage.write(&format!("{name}.py"), source);
        stage.compare(&format!("script {name}"), &Start::new(&[&stage.python, &format!("{name}.py")]));
        stage.compare(&format!("module {name}"), &Start::new(&[&stage.python, "-m", name]));
    }
    stage.sandbox.close().unwrap();
}

fn libraries_that_a_fork_would_not_share_well_are_imported_by_each_fork() {
    let stage = Stage::new();
    let venv = stage.venv();
    stage.write("own.py", "import os; pid = os.getpid()\n");
    let names: Vec<&str> = LIBRARIES.iter().map(|library| library.name).collect();
    stage.write("train.py", &USES_LIBRARIES.replace("LIBRARIES", &names.join(", ")));
    stage.write("watched/latest", "");
    stage.write("path/beside.py", "");
    std::os::unix::fs::symlink("watched", stage.path("linked")).unwrap();
    let start = Start::new(&[&venv, "train.py", "watched", ""]);
    let lines = |seen: &Seen| -> Vec<String> {
        assert_eq!(seen.completed.exit, Some(ProcessExit::Exited(0)), "{seen:?}");
        seen.completed.stdout.lines().map(str::to_owned).collect()
    };
    let arguments = "arguments ['train.py', 'watched', '']";
    let new = lines(&stage.new_process(&start));
    let forks = stage.forked(&start).forks.unwrap().map(|fork| lines(&fork));
    assert_eq!(
        [&new[0], &new[1], &new[2], &new[4]],
        ["shared", "own True backend jax always 16", arguments, "exit of a library"]
    );
    let expected: BTreeSet<&str> =
        LIBRARIES.iter().filter(|library| library.is_shared).map(|library| library.name).collect();
    for fork in &forks {
        assert_eq!(fork[0].split(' ').skip(1).collect::<BTreeSet<_>>(), expected);
        assert_eq!([&fork[1], &fork[2], &fork[4]], [&new[1], &new[2], &new[4]]);
    }
    for (first, second) in forks[0][3].split(' ').zip(forks[1][3].split(' ')).skip(1) {
        assert_ne!(first, second, "two forks drew the same random value: {}", forks[0][3]);
    }
    stage.sandbox.close().unwrap();
}

/// Links, lists of paths and the program's own package lead to code that the user may change.
fn code_of_the_user_is_imported_by_each_fork_wherever_it_is_installed() {
    let stage = Stage::new();
    let venv = stage.venv();
    let site = stage.site();
    let module = "import os; pid = os.getpid()";
    for name in ["src/linked/__init__", "src/linked_file", "listed/by_list", "path/by_variable"] {
        stage.write(&format!("{name}.py"), module);
    }
    let link = |source: &str, name: &str| {
        std::os::unix::fs::symlink(stage.path(source), stage.path(&format!("{site}/{name}"))).unwrap();
    };
    link("src/linked", "linked");
    link("src/linked_file.py", "linked_file.py");
    stage.write(&format!("{site}/listed.pth"), &stage.text("listed"));
    stage.write(&format!("{site}/installed/__init__.py"), module);
    stage.write(&format!("{site}/installed/near.py"), module);
    let names = "plain, linked, linked_file, by_list, by_variable, installed.near";
    let program = format!(
        "import os, {names}\nprint(*[name for name in '{names}'.split(', ') if eval(name).pid != os.getpid()])"
    );
    stage.write(&format!("{site}/installed/train.py"), &program);
    stage.write("train.py", &program);
    for (words, shared) in
        [(&["train.py"][..], "plain installed.near"), (&["-m", "installed.train"], "plain")]
    {
        let start = Start::new(&[&[venv.as_str()], words].concat()).with("PYTHONPATH", &stage.text("path"));
        for fork in stage.forked(&start).forks.unwrap() {
            assert_eq!(fork.completed.stdout.trim(), shared, "{words:?}: {fork:?}");
        }
    }
    stage.sandbox.close().unwrap();
}

fn wrappers_and_special_options_are_not_forked() {
    let stage = Stage::new();
    stage.write("wrapper", "#!/bin/sh\nexec python3 train.py\n");
    stage.write("train", &format!("#!{}\n", stage.python));
    let python: &str = &stage.python;
    let of = |argv: &[&str], watched: &[PathBuf]| {
        ForkedPython::of(&stage.launch(&Start::new(argv)), &ServerImports::Noting, watched).is_some()
    };
    for argv in [
        &["./wrapper"][..],
        &["sh", "wrapper"],
        &["sh", "-c", "python3 train.py | tee log"],
        &["sh", "-c", "cd sub && python3 train.py"],
        &["nice", python, "train.py"],
        &[python, "-i", "train.py"],
        &[python],
    ] {
        assert!(!of(argv, &[]), "{argv:?}");
    }
    let inside = [stage.path("")];
    assert!(of(&["./train"], &[]) && of(&[python, "train"], &inside));
    assert!(!of(&["./train"], &inside), "the program is a part of the crash state");
    assert!(!of(&[&stage.text("venv/bin/python"), "train"], &inside), "so is the interpreter");
    stage.sandbox.close().unwrap();
}
