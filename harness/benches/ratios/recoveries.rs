//! Measures how many commands per second a sandbox runs, compared with starting the same program with the same
//! pipes and no sandbox.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use engine::sandbox::{
    CommandRunner, HostAccess, LaunchSpec, ProcessExit, Sandbox, SandboxSpec, StoredCommand, current_dir,
};

use crate::{RatioLimit, Row, median};

/// Time for one program and one way of starting it, in each round.
const ROUND_TIME: Duration = Duration::from_millis(250);
const ROUNDS: usize = 15;

/// A program that stands for a recovery.
struct BenchedProgram {
    title: &'static str,
    launch: LaunchSpec,
    /// Roughly how long it runs, so that a round starts a fitting number of them.
    typical: Duration,
    jobs: usize,
}

/// Compares commands per second in the sandbox with bare ones, for three programs and one or two jobs.
pub(crate) fn in_sandbox_against_bare() -> Vec<Row> {
    let script = "read step < /proc/sys/kernel/pid_max; echo \"resumed from step $step\"";
    let shell = || launch(&["/bin/sh", "-c", script]);
    let instant = || launch(&["/bin/true"]);
    let (short, long) = (Duration::from_micros(700), Duration::from_millis(40));
    let mut programs = Vec::new();
    for (jobs, titles) in [
        (1, ["recoveries/s in the sandbox against bare fork + exec: true, 1 job", "the same: sh, 1 job"]),
        (2, ["the same: true, 2 jobs", "the same: sh, 2 jobs"]),
    ] {
        programs.push(BenchedProgram { title: titles[0], launch: instant(), typical: short, jobs });
        programs.push(BenchedProgram { title: titles[1], launch: shell(), typical: short, jobs });
    }
    if let Some(python) = find_python() {
        let title = "the same: a new python3, 1 job";
        programs.push(BenchedProgram {
            title,
            launch: launch(&[&python, "-c", "pass"]),
            typical: long,
            jobs: 1,
        });
    }
    programs.iter().map(measure_program).collect()
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
    let sandboxes: Vec<Sandbox> = (0..program.jobs)
        .map(|job| {
            let dir = dir.path().join(job.to_string());
            std::fs::create_dir(&dir).unwrap();
            let spec = SandboxSpec {
                dir,
                mounts: Vec::new(),
                binds: Vec::new(),
                memory_cgroup: false,
                visible_root: None,
                distinct_pids: false,
                host_access: HostAccess::default(),
                cwd: current_dir().unwrap(),
            };
            Sandbox::build(spec).unwrap()
        })
        .collect();
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
    sandboxes.into_iter().for_each(|sandbox| sandbox.close().unwrap());
    let rate = |of: fn(&(f64, f64)) -> f64| median(rounds.iter().map(of).collect());
    Row {
        title: program.title,
        measured: format!("{:.0} of {:.0} /s", rate(|round| round.0), rate(|round| round.1)),
        ratio: Some(rate(|round| round.0 / round.1)),
        limit: RatioLimit::Unlimited,
    }
}

/// How many commands all jobs together end in a second, each job starting `calls` of them one after the other.
fn commands_per_second(jobs: usize, calls: usize, run: &(dyn Fn(usize) + Sync)) -> f64 {
    let all_ready = Barrier::new(jobs);
    let seconds = std::thread::scope(|scope| {
        let work = |job: usize| {
            all_ready.wait();
            let start = Instant::now();
            (0..calls).for_each(|_| run(job));
            start.elapsed().as_secs_f64()
        };
        let threads: Vec<_> = (0..jobs).map(|job| scope.spawn(move || work(job))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(0.0, f64::max)
    });
    (calls * jobs) as f64 / seconds
}

fn run_in_sandbox(sandbox: &Sandbox, command: StoredCommand) {
    let completed = sandbox.run_stored(command, Duration::from_secs(20), 4096).unwrap();
    assert_eq!(completed.exit, Some(ProcessExit::Exited(0)));
}

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
