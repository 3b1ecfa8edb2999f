//! States per second: against the same recovery with no state laid out, against killing and running again, and with a warm
//! Python against a fresh one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use trainwreck::explore::{ExploreConfig, ExploreResult, ExploreScope, FsModel, OutputOracle, explore};
use trainwreck::sandbox::{LaunchSpec, Sandbox, SandboxSpec};

use crate::{RatioLimit, Row, median};

const JOBS: usize = 2;

/// Ends at once.
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

fn launch(words: &[&str]) -> LaunchSpec {
    let path = ("PATH".into(), std::env::var_os("PATH").unwrap());
    LaunchSpec { argv: words.iter().map(Into::into).collect(), env: vec![path], cwd: None }
}

fn explore_config(dir: &Path, watch: PathBuf, command: LaunchSpec, resume: LaunchSpec) -> ExploreConfig {
    let rooms = dir.join("rooms");
    let _ = std::fs::remove_dir_all(&rooms);
    std::fs::create_dir_all(&rooms).unwrap();
    ExploreConfig {
        watched_dirs: vec![watch],
        after_crash: None,
        command,
        resume,
        check: None,
        oracle: OutputOracle::default(),
        scope: ExploreScope {
            process_crashes: true,
            models: FsModel::ALL.to_vec(),
            max_states: 2000,
            crash_points: None,
        },
        timeout: Duration::from_secs(20),
        jobs: JOBS,
        work_dir: rooms,
        warm_modules: Vec::new(),
        only_state: None,
        began_unix_s: 1_700_000_000,
        cancelled: || false,
    }
}

fn run_explorer(orders: &ExploreConfig) -> ExploreResult {
    explore(orders, &|_| ()).unwrap_or_else(|error| panic!("{error}"))
}

/// The same command in the same number of rooms, with nothing laid out.
fn bare_recoveries_per_second(dir: &Path, resume: &LaunchSpec, calls: usize) -> f64 {
    let began = Instant::now();
    let began_calls = std::sync::Barrier::new(JOBS);
    let seconds = std::thread::scope(|scope| {
        let work = |job: usize| {
            let dir = dir.join(format!("ceiling-{job}"));
            std::fs::create_dir(&dir).unwrap();
            let spec = SandboxSpec { dir, mounts: Vec::new(), binds: Vec::new(), memory_cgroup: false };
            let room = Sandbox::build(spec).unwrap();
            began_calls.wait();
            let first = began.elapsed();
            for _ in 0..calls / JOBS {
                room.run_command(resume, Duration::from_secs(20), 4096, false).unwrap();
            }
            let seconds = (began.elapsed() - first).as_secs_f64();
            room.close().unwrap();
            seconds
        };
        let threads: Vec<_> = (0..JOBS).map(|job| scope.spawn(move || work(job))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(0.0, f64::max)
    });
    calls as f64 / seconds
}

pub(crate) fn against_bare_recovery() -> Vec<Row> {
    let sizes = [
        ("states/s against the recovery alone, files of 4 KiB", "4", RatioLimit::AtLeast(0.8)),
        // Each torn file is written anew: what limits it is no longer fork and exec, but memory.
        ("the same with files of 4 MiB", "4096", RatioLimit::Unlimited),
    ];
    sizes.map(|(what, kib, wanted)| measure_file_size(what, ["4", "4", kib], wanted)).into()
}

fn measure_file_size(what: &'static str, [saves, files, kib]: [&str; 3], wanted: RatioLimit) -> Row {
    let dir = tempfile::tempdir().unwrap();
    let watch = dir.path().join("watched");
    std::fs::create_dir(&watch).unwrap();
    let own = std::env::current_exe().unwrap();
    let command = launch(&[own.to_str().unwrap(), "__saves", watch.to_str().unwrap(), saves, files, kib]);
    let resume = compile_instant_program(dir.path());
    let (mut ratios, mut states, mut fastest, mut tried) = (Vec::new(), 0.0, 0.0, 0);
    for turn in 0..5 {
        let explored =
            run_explorer(&explore_config(dir.path(), watch.clone(), command.clone(), resume.clone()));
        assert!(explored.findings.is_empty());
        let sub = dir.path().join(turn.to_string());
        std::fs::create_dir(&sub).unwrap();
        let most = bare_recoveries_per_second(&sub, &resume, explored.tried.len());
        (states, fastest, tried) = (explored.states_per_second(), most, explored.tried.len());
        ratios.push(states / most);
    }
    let measured = format!("{states:.0} of {fastest:.0} /s, {tried} states, {JOBS} jobs");
    Row { title: what, measured, ratio: Some(median(ratios)), limit: wanted }
}

/// A prepared root of the reference trainer.
pub(crate) fn prepare_trainer_root(root: &Path, settings: &[&str]) -> PathBuf {
    let trainer = trainwreck::target::find_program(Path::new("target-trainer"), Path::new(".")).unwrap();
    let run = |arguments: &[&str]| {
        let done = Command::new(&trainer).args(arguments).stdout(Stdio::null()).status().unwrap();
        assert!(done.success(), "{arguments:?}");
    };
    let shown = root.to_str().unwrap();
    let data = root.with_extension("jsonl");
    let sets: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
    run(&[&["init", shown, "--preset", "tiny", "--seed", "1"][..], &sets].concat());
    let data = data.to_str().unwrap();
    run(&["make-data", "arithmetic", "--seed", "1", "--samples", "64", "--out", data]);
    run(&["submit", shown, data]);
    trainer
}

pub(crate) fn against_strace() -> Vec<Row> {
    let what = "states/s against killing and running again under strace";
    let wanted = RatioLimit::AtLeast(100.0);
    if Command::new("strace").arg("-V").output().is_err() {
        return vec![Row { title: what, measured: "skipped: no strace".into(), ratio: None, limit: wanted }];
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let trainer = prepare_trainer_root(&root, &[]);
    let resume = compile_instant_program(dir.path());
    let command = launch(&[trainer.to_str().unwrap(), "daemon", root.to_str().unwrap(), "--drain"]);
    let began = Instant::now();
    let explored = run_explorer(&explore_config(dir.path(), root.clone(), command, resume.clone()));
    // With the recording and everything else.
    let seconds = began.elapsed().as_secs_f64();
    let ours = explored.tried.len() as f64 / seconds;
    let points = 8;
    let began = Instant::now();
    for point in 1..=points {
        let copy = dir.path().join("again");
        let _ = std::fs::remove_dir_all(&copy);
        trainwreck::explore::copy_tree(&root, &copy).unwrap();
        let inject = format!("inject=write:signal=SIGKILL:when={}", point * 40);
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
    let theirs = f64::from(points) / began.elapsed().as_secs_f64();
    let measured = format!(
        "{ours:.0} /s ({} states in {seconds:.1} s, recording and all) against {theirs:.1} /s; the reference trainer",
        explored.tried.len()
    );
    vec![Row { title: what, measured, ratio: Some(ours / theirs), limit: wanted }]
}

pub(crate) fn warm_start() -> Vec<Row> {
    let what = "states/s of a warm Python that has imported numpy, against a fresh one";
    let wanted = RatioLimit::AtLeast(30.0);
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let has_numpy = Command::new(&python).args(["-c", "import numpy"]).output();
    if !has_numpy.is_ok_and(|output| output.status.success()) {
        let measured = format!("skipped: `{python}` has no numpy; name another by PYTHON");
        return vec![Row { title: what, measured, ratio: None, limit: wanted }];
    }
    let dir = tempfile::tempdir().unwrap();
    let watch = dir.path().join("watched");
    std::fs::create_dir(&watch).unwrap();
    let script = dir.path().join("recover.py");
    std::fs::write(
        &script,
        "import numpy, os, sys\nprint(int(numpy.ones(4).sum()), len(os.listdir(sys.argv[1])))\n",
    )
    .unwrap();
    let own = std::env::current_exe().unwrap();
    let saves = launch(&[own.to_str().unwrap(), "__saves", watch.to_str().unwrap(), "6", "4", "4"]);
    let resume = launch(&[&python, script.to_str().unwrap(), watch.to_str().unwrap()]);
    let rate = |warm: Vec<String>, max_states: usize| {
        let mut orders = explore_config(dir.path(), watch.clone(), saves.clone(), resume.clone());
        (orders.warm_modules, orders.scope.max_states) = (warm, max_states);
        run_explorer(&orders).states_per_second()
    };
    // Enough states that importing once for each job weighs little, as in a real exploration.
    let turns = (0..7).map(|_| (rate(vec!["numpy".into()], 2000), rate(Vec::new(), 40)));
    let turns: Vec<(f64, f64)> = turns.collect();
    let (warm, fresh) = turns[turns.len() / 2];
    let ratio = median(turns.iter().map(|(warm, fresh)| warm / fresh).collect());
    let measured = format!("{warm:.0} /s against {fresh:.1} /s, {JOBS} jobs");
    vec![Row { title: what, measured, ratio: Some(ratio), limit: wanted }]
}
