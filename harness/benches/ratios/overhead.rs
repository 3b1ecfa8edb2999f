//! Measures how much slower a target is under the gate: a whole training run, and single saves.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::explore::{OpRecorder, RecorderConfig, WatchedRoot};
use engine::gate::{
    CallDecision, CallHandler, CallKind, CallRule, CallRules, FilterOptions, GateFailure, InterceptedCall,
    WatchedMounts, build_filter, serve_notifications,
};
use engine::sandbox::{BindMount, HostAccess, LaunchSpec, ProcessExit, Sandbox, SandboxSpec, current_dir};

use crate::explorer::prepare_trainer_root;
use crate::watched_sandbox::WatchedSandbox;
use crate::{RatioLimit, Row, median};

/// Matches calls with a rule that never applies, so that only the cost of the matching is measured.
struct CallCounter(CallRules);

impl CallCounter {
    fn new(base: &Path) -> Arc<Mutex<CallCounter>> {
        let kinds = CallKind::CHANGES.to_vec();
        let decision = CallDecision::Delay(Duration::ZERO);
        let rule = CallRule { kinds, paths: None, nth: u64::MAX, persistent: false, decision };
        Arc::new(Mutex::new(CallCounter(CallRules::new(base.into(), vec![rule]))))
    }
}

impl CallHandler for CallCounter {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision {
        self.0.on_call(call).map_or(CallDecision::Continue, |hit| hit.decision)
    }

    fn on_failure(&mut self, failure: GateFailure) {
        panic!("{failure}");
    }
}

/// Compares a training run under the gate with one without it.
pub(crate) fn training_overhead() -> Vec<Row> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let settings = ["recipe.steps=600", "train.save_every=100", "train.threads=1"];
    let trainer = prepare_trainer_root(&root, &settings);
    let mut run = 0;
    let mut run_once = |gated: bool| {
        run += 1;
        let sandbox_dir = dir.path().join(format!("sandbox-{run}"));
        let copy = dir.path().join(format!("copy-{run}"));
        std::fs::create_dir(&sandbox_dir).unwrap();
        engine::explore::copy_tree(&root, &copy).unwrap();
        let binds = vec![BindMount { source: copy.clone(), mount_point: root.clone() }];
        let spec = SandboxSpec {
            dir: sandbox_dir,
            mounts: Vec::new(),
            binds,
            cgroups: Vec::new(),
            visible_root: None,
            distinct_pids: false,
            host_access: HostAccess::default(),
            cwd: current_dir().unwrap(),
        };
        let sandbox = Sandbox::build(spec).unwrap();
        let argv = [trainer.to_str().unwrap(), "daemon", root.to_str().unwrap(), "--drain"];
        let launch = LaunchSpec { argv: argv.iter().map(Into::into).collect(), env: Vec::new(), cwd: None };
        let null = || std::fs::File::create("/dev/null").unwrap().into();
        let start = Instant::now();
        let running = if gated {
            let watched = WatchedMounts::of([sandbox.host_path(&root)]).unwrap();
            let program = build_filter(&FilterOptions {
                extra_kinds: Vec::new(),
                connections: false,
                ..FilterOptions::default()
            });
            let counter = CallCounter::new(&root);
            let serve = |listener, rules| drop(serve_notifications(listener, watched, counter, rules));
            sandbox.spawn_filtered(&launch, program, [null(), null()], serve).unwrap()
        } else {
            sandbox.spawn(&launch).unwrap()
        };
        assert_eq!(running.wait_timeout(Duration::from_secs(120)), Some(ProcessExit::Exited(0)));
        let seconds = start.elapsed().as_secs_f64();
        sandbox.close().unwrap();
        std::fs::remove_dir_all(&copy).unwrap();
        seconds
    };
    run_once(true);
    let rounds: Vec<(f64, f64)> = (0..7).map(|_| (run_once(false), run_once(true))).collect();
    let (ungated, gated) = (
        median(rounds.iter().map(|round| round.0).collect()),
        median(rounds.iter().map(|round| round.1).collect()),
    );
    vec![Row {
        title: "a training run under the gate".into(),
        measured: format!("{gated:.2} s against {ungated:.2} s: 600 steps, 6 saves"),
        ratio: Some(gated / ungated),
        limit: RatioLimit::AtMost(1.02),
    }]
}

/// What the gate does during a save.
#[derive(Clone, Copy)]
enum GateMode {
    Off,
    Injecting,
    Recording,
}

/// Compares saves under the gate with saves without it.
pub(crate) fn save_overhead() -> Vec<Row> {
    let mut rows = Vec::new();
    for (synced, injecting, recording, limits) in [
        (
            "synced",
            "a save of 100 MB, synced, while injecting",
            "a save of 100 MB, synced, while recording (which performs no sync)",
            (RatioLimit::AtMost(1.10), RatioLimit::AtMost(1.10)),
        ),
        (
            "unsynced",
            "the same into the page cache only, while injecting",
            "the same into the page cache only, while recording",
            (RatioLimit::AtMost(1.2), RatioLimit::AtMost(2.5)),
        ),
    ] {
        let medians = medians_by_mode(&["__large", "DIR", "100", synced]);
        for (title, column, limit) in [(injecting, 1, limits.0), (recording, 2, limits.1)] {
            let (ungated, gated) = (medians[0], medians[column]);
            let measured = format!("{:.0} ms against {:.0} ms", gated * 1e3, ungated * 1e3);
            rows.push(Row { title: title.into(), measured, ratio: Some(gated / ungated), limit });
        }
    }
    rows
}

/// Compares a program that computes, prints and saves a little in each step under the gate with one without it.
pub(crate) fn step_overhead() -> Vec<Row> {
    let medians = medians_by_mode(&["__steps", "DIR", "60"]);
    let row = |title: &str, gated: f64| Row {
        title: title.into(),
        measured: format!("{gated:.2} s against {:.2} s: 60 steps, each with a save of 64 KiB", medians[0]),
        ratio: Some(gated / medians[0]),
        limit: RatioLimit::AtMost(1.02),
    };
    vec![
        row("a save after each step, while injecting", medians[1]),
        row("the same, while recording", medians[2]),
    ]
}

/// Seconds of a program of this binary in each mode, in turn: the middle of seven rounds.
fn medians_by_mode(program: &[&str]) -> [f64; 3] {
    let modes = [GateMode::Off, GateMode::Injecting, GateMode::Recording];
    measure_program(GateMode::Off, program);
    let rounds: Vec<[f64; 3]> = (0..7).map(|_| modes.map(|gate| measure_program(gate, program))).collect();
    [0, 1, 2].map(|column: usize| median(rounds.iter().map(|round| round[column]).collect()))
}

/// Seconds of one run of a program of this binary, as it measures them itself. `DIR` stands for the watched
/// directory.
fn measure_program(gate: GateMode, program: &[&str]) -> f64 {
    let sandbox = WatchedSandbox::new();
    let own_binary = std::env::current_exe().unwrap();
    let watched = sandbox.watched.to_str().unwrap().to_owned();
    let arguments =
        program.iter().map(|argument| if *argument == "DIR" { watched.as_str() } else { *argument });
    let argv: Vec<&str> = std::iter::once(own_binary.to_str().unwrap()).chain(arguments).collect();
    let filter = FilterOptions { extra_kinds: Vec::new(), connections: false, ..FilterOptions::default() };
    let (exit, output) = match gate {
        GateMode::Off => run_without_gate(&sandbox, &argv),
        GateMode::Injecting => sandbox.run(&argv, &filter, &CallCounter::new(&sandbox.watched)),
        GateMode::Recording => {
            let payload_log = sandbox.dir.path().join("payloads");
            let root = WatchedRoot {
                seen_by_target: sandbox.watched.clone(),
                seen_by_harness: sandbox.sandbox.host_path(&sandbox.watched),
            };
            let config = RecorderConfig {
                roots: &[root],
                originals: &[vec![sandbox.watched.clone()]],
                payload_log: &payload_log,
                output_pipes: Vec::new(),
                saved_pattern: None,
                announced: Vec::new(),
                phase: None,
            };
            let recorder = OpRecorder::new(config).unwrap();
            let recorder = Arc::new(Mutex::new(recorder));
            let result = sandbox.run(&argv, &filter, &recorder);
            recorder.lock().unwrap().finish().unwrap();
            result
        }
    };
    assert_eq!(exit, ProcessExit::Exited(0), "{output}");
    output.trim().rsplit("took ").next().unwrap().parse::<f64>().unwrap() / 1e6
}

fn run_without_gate(sandbox: &WatchedSandbox, argv: &[&str]) -> (ProcessExit, String) {
    let launch = LaunchSpec { argv: argv.iter().map(Into::into).collect(), env: Vec::new(), cwd: None };
    let mut running = sandbox.sandbox.spawn(&launch).unwrap();
    let outputs = running.take_outputs().unwrap();
    let output = std::io::read_to_string(std::fs::File::from(outputs.stdout)).unwrap();
    (running.wait_timeout(Duration::from_secs(60)).unwrap(), output)
}
