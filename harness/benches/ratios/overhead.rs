//! What it costs a target to run behind the gate.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use trainwreck::explore::{Recorder, Start};
use trainwreck::gate::{
    Call, Decision, Interest, Kind, Overseer, Rule, Rules, Watched, attend, filter, mount_id,
};
use trainwreck::sandbox::{Bind, Ended, Launch, Room, RoomSpec};

use crate::explorer::trainer_root;
use crate::place::Place;
use crate::{Row, Wanted, median};

/// Counts the calls that a rule speaks of; its turn never comes.
struct Counting(Rules);

impl Counting {
    fn new(base: &Path) -> Arc<Mutex<Counting>> {
        let kinds = Kind::CHANGES.to_vec();
        let decision = Decision::Delay(Duration::ZERO);
        let rule = Rule { kinds, paths: None, nth: u64::MAX, from_then_on: false, decision };
        Arc::new(Mutex::new(Counting(Rules::new(base.into(), vec![rule]))))
    }
}

impl Overseer for Counting {
    fn decide(&mut self, call: &Call) -> Decision {
        self.0.meet(call).map_or(Decision::Let, |hit| hit.decision)
    }
}

pub(crate) fn training() -> Vec<Row> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let settings = ["recipe.steps=600", "train.save_every=100", "train.threads=1"];
    let trainer = trainer_root(&root, &settings);
    let mut turn = 0;
    let mut once = |behind: bool| {
        turn += 1;
        let room_dir = dir.path().join(format!("room-{turn}"));
        let copy = dir.path().join(format!("copy-{turn}"));
        std::fs::create_dir(&room_dir).unwrap();
        trainwreck::explore::copy_tree(&root, &copy).unwrap();
        let binds = vec![Bind { from: copy.clone(), at: root.clone() }];
        let spec = RoomSpec { dir: room_dir, mounts: Vec::new(), binds, memory_cgroup: false };
        let room = Room::build(spec).unwrap();
        let words = [trainer.to_str().unwrap(), "daemon", root.to_str().unwrap(), "--drain"];
        let launch = Launch { argv: words.iter().map(Into::into).collect(), env: Vec::new(), cwd: None };
        let null = || std::fs::File::create("/dev/null").unwrap().into();
        let began = Instant::now();
        let running = if behind {
            let watched = Watched::new([mount_id(&room.through(&root)).unwrap()]);
            let program = filter(&Interest { also: Vec::new(), words: false });
            let counting = Counting::new(&root);
            let attended = |listener| drop(attend(listener, watched, counting));
            room.spawn_filtered(&launch, program, [null(), null()], attended).unwrap()
        } else {
            room.spawn(&launch).unwrap()
        };
        assert_eq!(running.wait_timeout(Duration::from_secs(120)), Some(Ended::Exited(0)));
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
        what: "a training run behind the gate",
        measured: format!("{behind:.2} s against {plain:.2} s: 600 steps, 6 saves"),
        ratio: Some(behind / plain),
        wanted: Wanted::AtMost(1.02),
    }]
}

#[derive(Clone, Copy)]
enum Behind {
    Nothing,
    Injecting,
    Recording,
}

pub(crate) fn saves() -> Vec<Row> {
    let mut rows = Vec::new();
    for (synced, injecting, recording, limits) in [
        (
            "synced",
            "a save of 100 MB, synced, while injecting",
            "a save of 100 MB, synced, while recording (which syncs nothing for real)",
            (Wanted::AtMost(1.10), Wanted::AtMost(1.25)),
        ),
        (
            "unsynced",
            "the same into the page cache only, while injecting",
            "the same into the page cache only, while recording",
            (Wanted::Nothing, Wanted::Nothing),
        ),
    ] {
        one_save(Behind::Nothing, synced);
        let turns: Vec<[f64; 3]> = (0..7)
            .map(|_| {
                [Behind::Nothing, Behind::Injecting, Behind::Recording].map(|behind| one_save(behind, synced))
            })
            .collect();
        let middle = |at: usize| median(turns.iter().map(|turn| turn[at]).collect());
        for (what, at, wanted) in [(injecting, 1, limits.0), (recording, 2, limits.1)] {
            let (plain, behind) = (middle(0), middle(at));
            let measured = format!("{:.0} ms against {:.0} ms", behind * 1e3, plain * 1e3);
            rows.push(Row { what, measured, ratio: Some(behind / plain), wanted });
        }
    }
    rows
}

/// Seconds, as the program itself measured them.
fn one_save(behind: Behind, synced: &str) -> f64 {
    let place = Place::new();
    let own = std::env::current_exe().unwrap();
    let watched = place.watched.to_str().unwrap().to_owned();
    let words = [own.to_str().unwrap(), "__large", &watched, "100", synced];
    let interest = Interest { also: Vec::new(), words: false };
    let (ended, said) = match behind {
        Behind::Nothing => plain(&place, &words),
        Behind::Injecting => place.run(&words, &interest, &Counting::new(&place.watched)),
        Behind::Recording => {
            let tape = place.dir.path().join("tape");
            let start = Start {
                roots: &[(place.watched.clone(), place.room.through(&place.watched))],
                tape: &tape,
                pipes: Vec::new(),
                saved: None,
                inner: None,
            };
            let recorder = Recorder::new(start, std::slice::from_ref(&place.watched)).unwrap();
            let recorder = Arc::new(Mutex::new(recorder));
            let ran = place.run(&words, &interest, &recorder);
            recorder.lock().unwrap().finish().unwrap();
            ran
        }
    };
    assert_eq!(ended, Ended::Exited(0), "{said}");
    said.trim().strip_prefix("took ").unwrap().parse::<f64>().unwrap() / 1e6
}

fn plain(place: &Place, words: &[&str]) -> (Ended, String) {
    let launch = Launch { argv: words.iter().map(Into::into).collect(), env: Vec::new(), cwd: None };
    let mut running = place.room.spawn(&launch).unwrap();
    let (stdout, _stderr) = running.take_outputs().unwrap();
    let said = std::io::read_to_string(std::fs::File::from(stdout)).unwrap();
    (running.wait_timeout(Duration::from_secs(60)).unwrap(), said)
}
