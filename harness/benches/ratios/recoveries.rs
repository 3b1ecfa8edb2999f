//! Measures what the sandbox costs a recovery: how many recoveries per second one sandbox for each job runs,
//! compared with `fork` and `exec` of the same program with the same environment and the same pipes, and no
//! sandbox. Both are measured in the same run, in turn. No state is materialized: that is in `explorer.rs`.
//!
//! `cargo bench -p trainwreck -- recoveries`. A ratio of 0.9 means that the sandbox takes a tenth of the rate.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use engine::sandbox::{CommandRunner, LaunchSpec, ProcessExit, Sandbox, StoredCommand};

use crate::bench_sandboxes::{build_sandboxes, close_sandboxes, commands_per_second};
use crate::{RatioLimit, Row, median};

/// Time for one program and one way of starting it, in each round.
const ROUND_TIME: Duration = Duration::from_millis(250);
const ROUNDS: usize = 15;

/// Reads a file and prints a line, as a recovery does.
const PYTHON_SCRIPT: &str = "print('resumed from step', int(open('/proc/sys/kernel/pid_max').read()))";

/// A program that stands for a recovery.
struct BenchedProgram {
    name: &'static str,
    launch: LaunchSpec,
    /// Roughly how long it runs, so that a round starts a fitting number of them.
    typical: Duration,
    jobs: usize,
}

/// Compares recoveries per second in the sandbox with bare ones, for three programs, each with one and with two
/// jobs.
pub(crate) fn in_sandbox_against_bare() -> Vec<Row> {
    let script = "read step < /proc/sys/kernel/pid_max; echo \"resumed from step $step\"";
    let (short, long) = (Duration::from_micros(700), Duration::from_millis(40));
    let mut programs = vec![
        ("/bin/true", launch(&["/bin/true"]), short),
        ("a script of sh", launch(&["/bin/sh", "-c", script]), short),
    ];
    if let Some(python) = find_python() {
        programs.push(("a script of Python", launch(&[&python, "-c", PYTHON_SCRIPT]), long));
    }
    let mut rows = Vec::new();
    for (name, launch, typical) in programs {
        for jobs in [1, 2] {
            rows.push(measure_program(&BenchedProgram { name, launch: launch.clone(), typical, jobs }));
        }
    }
    rows
}

/// The environment is this process's, as in an exploration.
fn launch(argv: &[&str]) -> LaunchSpec {
    LaunchSpec { argv: argv.iter().map(Into::into).collect(), env: std::env::vars_os().collect(), cwd: None }
}

/// The interpreter itself: `python3` may be a script that looks for one.
fn find_python() -> Option<String> {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && Path::new(&path).exists()).then_some(path)
}

fn measure_program(program: &BenchedProgram) -> Row {
    let dir = tempfile::tempdir().unwrap();
    let sandboxes = build_sandboxes(dir.path(), program.jobs);
    let store = |sandbox: &Sandbox| sandbox.store_command(&program.launch, CommandRunner::NewProcess);
    let stored: Vec<StoredCommand> = sandboxes.iter().map(|sandbox| store(sandbox).unwrap()).collect();
    let in_sandbox = |job: usize| run_in_sandbox(&sandboxes[job], stored[job]);
    let bare = |_: usize| run_bare(&program.launch);
    let calls = (ROUND_TIME.as_secs_f64() / program.typical.as_secs_f64()) as usize;
    commands_per_second(program.jobs, calls / 4, &in_sandbox);
    let rounds: Vec<(f64, f64)> = (0..ROUNDS)
        .map(|_| {
            (
                commands_per_second(program.jobs, calls, &in_sandbox),
                commands_per_second(program.jobs, calls, &bare),
            )
        })
        .collect();
    close_sandboxes(sandboxes);
    let rate = |of: fn(&(f64, f64)) -> f64| median(rounds.iter().map(of).collect());
    Row {
        title: format!(
            "recoveries/s in the sandbox against bare fork + exec: {}, jobs: {}",
            program.name, program.jobs
        ),
        measured: format!("{:.0} of {:.0} /s", rate(|round| round.0), rate(|round| round.1)),
        ratio: Some(rate(|round| round.0 / round.1)),
        limit: RatioLimit::Unlimited,
    }
}

/// As each recovery of an exploration: first undoes what the one before it has changed.
fn run_in_sandbox(sandbox: &Sandbox, command: StoredCommand) {
    let completed = sandbox.run_fresh(command, Duration::from_secs(20), 4096).unwrap();
    assert_eq!(completed.exit, Some(ProcessExit::Exited(0)));
}

/// With the standard library, which starts it through posix_spawn(3): faster than a plain fork of this process.
fn run_bare(launch: &LaunchSpec) {
    let (program, arguments) = launch.argv.split_first().unwrap();
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(launch.env.iter().cloned())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
}
