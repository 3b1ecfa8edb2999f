//! Measures the explorer's states per second: compared with the recovery command alone, compared with killing
//! and restarting the trainer under strace, and with a warm Python compared with a new one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use engine::explore::{
    EnumerateSpec, ExploreConfig, ExploreResult, ExploreScope, FsModel, JudgeSpec, MAX_COPIED_BYTES,
    RecordSpec, ReplaySpec, ReportSpec, WarmStart, explore,
};
use engine::sandbox::{CommandRunner, HostAccess, LaunchSpec, Sandbox, StoredCommand};

use crate::bench_sandboxes::{build_sandboxes, close_sandboxes, commands_per_second};
use crate::{RatioLimit, Row, median};

const JOBS: usize = 2;

/// Compiles a program that exits at once.
fn compile_instant_program(dir: &Path) -> LaunchSpec {
    let (source, program) = (dir.join("instant.c"), dir.join("instant"));
    std::fs::write(&source, "int main(void) { return 0; }").unwrap();
    let compiled = |flags: &[&str]| {
        let done = Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(&source).args(flags).output();
        done.is_ok_and(|output| output.status.success())
    };
    assert!(compiled(&["-static"]) || compiled(&[]), "a C compiler is needed");
    launch(&[program.to_str().unwrap()])
}

fn launch(argv: &[&str]) -> LaunchSpec {
    let path = ("PATH".into(), std::env::var_os("PATH").unwrap());
    LaunchSpec { argv: argv.iter().map(Into::into).collect(), env: vec![path], cwd: None }
}

fn explore_config(
    dir: &Path,
    watched_dir: PathBuf,
    command: LaunchSpec,
    resume: LaunchSpec,
) -> ExploreConfig {
    let work_dir = dir.join("work");
    let _ = std::fs::remove_dir_all(&work_dir);
    std::fs::create_dir_all(&work_dir).unwrap();
    let scope = ExploreScope {
        process_crashes: true,
        models: FsModel::ALL.to_vec(),
        max_states: 2000,
        crash_points: None,
    };
    ExploreConfig {
        record: RecordSpec {
            watched_dirs: vec![watched_dir.clone()],
            originals: None,
            command,
            host_access: HostAccess::default(),
            saved_pattern: None,
            announced: Vec::new(),
            unfollowed: Vec::new(),
            first_crash: None,
            max_copied_bytes: MAX_COPIED_BYTES,
            work_dir: work_dir.clone(),
            time_limit: None,
            cancelled: || false,
        },
        kept_recording: None,
        keep_recording: None,
        keep_files: None,
        enumerate: EnumerateSpec { scope, only_state: None },
        second_state: None,
        replay: ReplaySpec {
            watched_dirs: vec![watched_dir],
            resume,
            check: None,
            host_access: HostAccess::default(),
            timeout: Duration::from_secs(20),
            jobs: JOBS,
            warm: WarmStart::Never,
            work_dir,
            began_unix_s: 1_700_000_000,
            cancelled: || false,
            deadline: None,
        },
        judge: JudgeSpec::default(),
        report: ReportSpec::default(),
    }
}

fn run_explorer(config: &ExploreConfig) -> ExploreResult {
    explore(config, &|_| ()).unwrap_or_else(|error| panic!("{error}"))
}

/// How many recoveries end in a second if no state is materialized.
struct BareRates {
    /// Each is started in the sandbox as the one before it has left it.
    plain: f64,
    /// As in an exploration, what the one before it has changed of the host is undone first.
    undone: f64,
}

/// The rates of the same recovery command in the same number of sandboxes.
fn bare_recoveries_per_second(dir: &Path, resume: &LaunchSpec, calls: usize) -> BareRates {
    let sandboxes = build_sandboxes(dir, JOBS);
    let store = |sandbox: &Sandbox| sandbox.store_command(resume, CommandRunner::NewProcess).unwrap();
    let stored: Vec<StoredCommand> = sandboxes.iter().map(store).collect();
    let limit = Duration::from_secs(20);
    let rates = BareRates {
        plain: commands_per_second(JOBS, calls / JOBS, &|job| {
            sandboxes[job].run_stored(stored[job], limit, 4096).unwrap();
        }),
        undone: commands_per_second(JOBS, calls / JOBS, &|job| {
            sandboxes[job].run_fresh(stored[job], limit, 4096).unwrap();
        }),
    };
    close_sandboxes(sandboxes);
    rates
}

/// Compares the explorer with running its recovery command alone.
pub(crate) fn against_bare_recovery() -> Vec<Row> {
    let sizes = [
        ("states/s against the recovery alone, files of 4 KiB", "4", RatioLimit::AtLeast(0.8)),
        // Of each torn file, only what differs from another one is written.
        ("the same with files of 4 MiB", "4096", RatioLimit::AtLeast(0.6)),
    ];
    sizes.map(|(title, kib, limit)| measure_file_size(title, ["4", "4", kib], limit)).into()
}

fn measure_file_size(title: &'static str, [saves, files, kib]: [&str; 3], limit: RatioLimit) -> Row {
    let dir = tempfile::tempdir().unwrap();
    let watched_dir = dir.path().join("watched");
    std::fs::create_dir(&watched_dir).unwrap();
    let own_binary = std::env::current_exe().unwrap();
    let command =
        launch(&[own_binary.to_str().unwrap(), "__saves", watched_dir.to_str().unwrap(), saves, files, kib]);
    let resume = compile_instant_program(dir.path());
    let (mut ratios, mut rate, mut tried) = (Vec::new(), 0.0, 0);
    let mut bare = BareRates { plain: 0.0, undone: 0.0 };
    for round in 0..5 {
        let explored =
            run_explorer(&explore_config(dir.path(), watched_dir.clone(), command.clone(), resume.clone()));
        assert!(explored.findings.is_empty());
        let round_dir = dir.path().join(round.to_string());
        std::fs::create_dir(&round_dir).unwrap();
        tried = explored.tried.len();
        rate = explored.states_per_second();
        bare = bare_recoveries_per_second(&round_dir, &resume, tried);
        ratios.push(rate / bare.plain);
    }
    let BareRates { plain, undone } = bare;
    let measured = format!(
        "{rate:.0} of {plain:.0} /s ({undone:.0} /s if each recovery undoes what the one before it has changed \
         of the host), {tried} states, {JOBS} jobs"
    );
    Row { title: title.into(), measured, ratio: Some(median(ratios)), limit }
}

/// Prepares a root of the reference trainer with one submitted job. Returns the trainer's program.
pub(crate) fn prepare_trainer_root(root: &Path, settings: &[&str]) -> PathBuf {
    let trainer = engine::target::find_program(Path::new("target-trainer"), Path::new("."), &|_| {}).unwrap();
    let run = |arguments: &[&str]| {
        let done = Command::new(&trainer).args(arguments).stdout(Stdio::null()).status().unwrap();
        assert!(done.success(), "{arguments:?}");
    };
    let root_argument = root.to_str().unwrap();
    let data = root.with_extension("jsonl");
    let sets: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
    run(&[&["init", root_argument, "--preset", "tiny", "--seed", "1"][..], &sets].concat());
    let data = data.to_str().unwrap();
    run(&["make-data", "arithmetic", "--seed", "1", "--samples", "64", "--out", data]);
    run(&["submit", root_argument, data]);
    trainer
}

/// Compares the explorer with the usual way: kill the trainer at one system call under strace, then start it
/// again.
pub(crate) fn against_strace() -> Vec<Row> {
    let title = "states/s against killing and restarting under strace";
    let limit = RatioLimit::AtLeast(100.0);
    if Command::new("strace").arg("-V").output().is_err() {
        return vec![Row { title: title.into(), measured: "skipped: no strace".into(), ratio: None, limit }];
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let trainer = prepare_trainer_root(&root, &[]);
    let resume = compile_instant_program(dir.path());
    let command = launch(&[trainer.to_str().unwrap(), "daemon", root.to_str().unwrap(), "--drain"]);
    let start = Instant::now();
    let explored = run_explorer(&explore_config(dir.path(), root.clone(), command, resume.clone()));
    // Includes the recording, unlike `ExploreResult::seconds`.
    let seconds = start.elapsed().as_secs_f64();
    let explored_rate = explored.tried.len() as f64 / seconds;
    let kills = 8;
    let start = Instant::now();
    for kill in 1..=kills {
        let copy = dir.path().join("again");
        let _ = std::fs::remove_dir_all(&copy);
        engine::explore::copy_tree(&root, &copy).unwrap();
        let inject = format!("inject=write:signal=SIGKILL:when={}", kill * 40);
        let _ = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=write", "-e", &inject])
            .arg(&trainer)
            .args(["daemon", copy.to_str().unwrap(), "--drain"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(Command::new(&resume.argv[0]).status().unwrap().success());
    }
    let strace_rate = f64::from(kills) / start.elapsed().as_secs_f64();
    let measured = format!(
        "{explored_rate:.0} /s ({} states in {seconds:.1} s, with the recording) \
         against {strace_rate:.1} /s; the reference trainer",
        explored.tried.len()
    );
    vec![Row { title: title.into(), measured, ratio: Some(explored_rate / strace_rate), limit }]
}

/// Compares recoveries that are forked from a warm Python with recoveries that each start a new one.
pub(crate) fn warm_start() -> Vec<Row> {
    let title = "states/s of a warm Python that has imported numpy, against a new one";
    let limit = RatioLimit::AtLeast(30.0);
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let has_numpy = Command::new(&python).args(["-c", "import numpy"]).output();
    if !has_numpy.is_ok_and(|output| output.status.success()) {
        let measured = format!("skipped: `{python}` has no numpy; set PYTHON to one that has it");
        return vec![Row { title: title.into(), measured, ratio: None, limit }];
    }
    let dir = tempfile::tempdir().unwrap();
    let watched_dir = dir.path().join("watched");
    std::fs::create_dir(&watched_dir).unwrap();
    let script = dir.path().join("recover.py");
    std::fs::write(
        &script,
        "import numpy, os, sys\nprint(int(numpy.ones(4).sum()), len(os.listdir(sys.argv[1])))\n",
    )
    .unwrap();
    let own_binary = std::env::current_exe().unwrap();
    let saves =
        launch(&[own_binary.to_str().unwrap(), "__saves", watched_dir.to_str().unwrap(), "6", "4", "4"]);
    let resume = launch(&[&python, script.to_str().unwrap(), watched_dir.to_str().unwrap()]);
    let rate = |warm: WarmStart, max_states: usize| {
        let mut config = explore_config(dir.path(), watched_dir.clone(), saves.clone(), resume.clone());
        (config.replay.warm, config.enumerate.scope.max_states) = (warm, max_states);
        run_explorer(&config).states_per_second()
    };
    // Enough states that the one import per job takes little of the time, as in a real exploration.
    let rounds =
        (0..7).map(|_| (rate(WarmStart::Modules(vec!["numpy".into()]), 2000), rate(WarmStart::Never, 40)));
    let rounds: Vec<(f64, f64)> = rounds.collect();
    let (warm, fresh) = rounds[rounds.len() / 2];
    let ratio = median(rounds.iter().map(|(warm, fresh)| warm / fresh).collect());
    let measured = format!("{warm:.0} /s against {fresh:.1} /s, {JOBS} jobs");
    vec![Row { title: title.into(), measured, ratio: Some(ratio), limit }]
}
