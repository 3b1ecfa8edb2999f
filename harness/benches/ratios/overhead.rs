//! What it costs a target to run behind the gate.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use trainwreck::explore::{OpRecorder, RecorderConfig};
use trainwreck::gate::{
    CallDecision, CallHandler, CallKind, CallRule, CallRules, FilterOptions, InterceptedCall, WatchedMounts,
    build_filter, mount_id, serve_notifications,
};
use trainwreck::sandbox::{BindMount, LaunchSpec, ProcessExit, Sandbox, SandboxSpec};

use crate::explorer::prepare_trainer_root;
use crate::place::WatchedSandbox;
use crate::{RatioLimit, Row, median};

/// Counts the calls that a rule speaks of; its turn never comes.
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
}

pub(crate) fn training_overhead() -> Vec<Row> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let settings = ["recipe.steps=600", "train.save_every=100", "train.threads=1"];
    let trainer = prepare_trainer_root(&root, &settings);
    let mut turn = 0;
    let mut once = |behind: bool| {
        turn += 1;
        let room_dir = dir.path().join(format!("room-{turn}"));
        let copy = dir.path().join(format!("copy-{turn}"));
        std::fs::create_dir(&room_dir).unwrap();
        trainwreck::explore::copy_tree(&root, &copy).unwrap();
        let binds = vec![BindMount { source: copy.clone(), mount_point: root.clone() }];
        let spec = SandboxSpec { dir: room_dir, mounts: Vec::new(), binds, memory_cgroup: false };
        let room = Sandbox::build(spec).unwrap();
        let words = [trainer.to_str().unwrap(), "daemon", root.to_str().unwrap(), "--drain"];
        let launch = LaunchSpec { argv: words.iter().map(Into::into).collect(), env: Vec::new(), cwd: None };
        let null = || std::fs::File::create("/dev/null").unwrap().into();
        let began = Instant::now();
        let running = if behind {
            let watched = WatchedMounts::new([mount_id(&room.host_path(&root)).unwrap()]);
            let program = build_filter(&FilterOptions { extra_kinds: Vec::new(), stdio_writes: false });
            let counting = CallCounter::new(&root);
            let attended = |listener| drop(serve_notifications(listener, watched, counting));
            room.spawn_filtered(&launch, program, [null(), null()], attended).unwrap()
        } else {
            room.spawn(&launch).unwrap()
        };
        assert_eq!(running.wait_timeout(Duration::from_secs(120)), Some(ProcessExit::Exited(0)));
        let seconds = began.elapsed().as_secs_f64();
        room.close().unwrap();
        std::fs::remove_dir_all(&copy).unwrap();
        seconds
    };
    once(true);
    let turns: Vec<(f64, f64)> = (0..7).map(|_| (once(false), once(true))).collect();
    let (plain, behind) = (
        median(turns.iter().map(|turn| turn.0).collect()),
        median(turns.iter().map(|turn| turn.1).collect()),
    );
    vec![Row {
        title: "a training run behind the gate",
        measured: format!("{behind:.2} s against {plain:.2} s: 600 steps, 6 saves"),
        ratio: Some(behind / plain),
        limit: RatioLimit::AtMost(1.02),
    }]
}

#[derive(Clone, Copy)]
enum GateMode {
    Off,
    Injecting,
    Recording,
}

pub(crate) fn save_overhead() -> Vec<Row> {
    let mut rows = Vec::new();
    for (synced, injecting, recording, limits) in [
        (
            "synced",
            "a save of 100 MB, synced, while injecting",
            "a save of 100 MB, synced, while recording (which syncs nothing for real)",
            (RatioLimit::AtMost(1.10), RatioLimit::AtMost(1.25)),
        ),
        (
            "unsynced",
            "the same into the page cache only, while injecting",
            "the same into the page cache only, while recording",
            (RatioLimit::Unlimited, RatioLimit::Unlimited),
        ),
    ] {
        measure_save(GateMode::Off, synced);
        let turns: Vec<[f64; 3]> = (0..7)
            .map(|_| {
                [GateMode::Off, GateMode::Injecting, GateMode::Recording]
                    .map(|behind| measure_save(behind, synced))
            })
            .collect();
        let middle = |at: usize| median(turns.iter().map(|turn| turn[at]).collect());
        for (what, at, wanted) in [(injecting, 1, limits.0), (recording, 2, limits.1)] {
            let (plain, behind) = (middle(0), middle(at));
            let measured = format!("{:.0} ms against {:.0} ms", behind * 1e3, plain * 1e3);
            rows.push(Row { title: what, measured, ratio: Some(behind / plain), limit: wanted });
        }
    }
    rows
}

/// Seconds, as the program itself measured them.
fn measure_save(behind: GateMode, synced: &str) -> f64 {
    let place = WatchedSandbox::new();
    let own = std::env::current_exe().unwrap();
    let watched = place.watched.to_str().unwrap().to_owned();
    let words = [own.to_str().unwrap(), "__large", &watched, "100", synced];
    let interest = FilterOptions { extra_kinds: Vec::new(), stdio_writes: false };
    let (ended, said) = match behind {
        GateMode::Off => run_without_gate(&place, &words),
        GateMode::Injecting => place.run(&words, &interest, &CallCounter::new(&place.watched)),
        GateMode::Recording => {
            let tape = place.dir.path().join("tape");
            let start = RecorderConfig {
                roots: &[(place.watched.clone(), place.sandbox.host_path(&place.watched))],
                payload_log: &tape,
                output_pipes: Vec::new(),
                saved_pattern: None,
                internal_pattern: None,
            };
            let recorder = OpRecorder::new(start, std::slice::from_ref(&place.watched)).unwrap();
            let recorder = Arc::new(Mutex::new(recorder));
            let ran = place.run(&words, &interest, &recorder);
            recorder.lock().unwrap().finish().unwrap();
            ran
        }
    };
    assert_eq!(ended, ProcessExit::Exited(0), "{said}");
    said.trim().strip_prefix("took ").unwrap().parse::<f64>().unwrap() / 1e6
}

fn run_without_gate(place: &WatchedSandbox, words: &[&str]) -> (ProcessExit, String) {
    let launch = LaunchSpec { argv: words.iter().map(Into::into).collect(), env: Vec::new(), cwd: None };
    let mut running = place.sandbox.spawn(&launch).unwrap();
    let (stdout, _stderr) = running.take_outputs().unwrap();
    let said = std::io::read_to_string(std::fs::File::from(stdout)).unwrap();
    (running.wait_timeout(Duration::from_secs(60)).unwrap(), said)
}
