//! What a target file says, as an expedition's orders: its root is prepared in a room, and then watched.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use scenarios::TargetFile;

use crate::cli::args::ExploreArgs;
use crate::cli::explore::{Prepared, scope, state};
use crate::cli::library;
use crate::explore::Ear;
use crate::sandbox::{Bind, Ended, Launch, Room, RoomSpec};
use crate::target::{Trainer, find_program};

/// How long one command of the preparation may take.
const PREPARATION: Duration = Duration::from_secs(60);
/// Bytes of its output that are kept.
const KEEP: usize = 4096;
/// Samples of the data that is handed in.
const SAMPLES: u32 = 64;
const SEED: u64 = 1;

/// Prepares a root in `dir`, an existing, empty folder. `Err`: what is wrong, and what to do.
pub(super) fn prepared(args: &ExploreArgs, name: &str, dir: &Path) -> Result<Prepared, String> {
    let (file, beside) = library::target(name).map_err(|error| error.to_string())?;
    let program = find_program(file.program(), &beside).map_err(|error| error.to_string())?;
    let settings = without(&file, args.without.as_deref())?;
    let root = dir.join("root");
    std::fs::create_dir_all(&root).map_err(|error| format!("creating `{}`: {error}", root.display()))?;
    let trainer = Trainer { file: &file, program: &program, root: &root, seed: SEED, settings: &settings };
    prepare(&trainer, dir)?;
    let announces = file.announces();
    let ear = Ear {
        saved: announces.saved().cloned(),
        resumed: announces.resumed().cloned(),
        step: Some(announces.step().clone()),
        consumed: None,
        same: file.same().cloned(),
        refused_exits: file.refused_exits().to_vec(),
    };
    Ok(Prepared {
        watch: vec![root.clone()],
        made: Vec::new(),
        ear,
        scope: scope(args),
        only: state(args)?,
        command: trainer.start(),
        resume: trainer.resume(),
        check: trainer.verify(),
        timeout: file.finish(),
    })
}

fn without(file: &TargetFile, guard: Option<&str>) -> Result<BTreeMap<String, String>, String> {
    let Some(guard) = guard else { return Ok(BTreeMap::new()) };
    file.guards().get(guard).cloned().ok_or_else(|| {
        let known: Vec<&str> = file.guards().keys().map(String::as_str).collect();
        format!("--without `{guard}`: target `{}` has no such guard; it has: {}", file.id(), known.join(", "))
    })
}

/// In a room of its own, since the commands are the target's.
fn prepare(trainer: &Trainer<'_>, dir: &Path) -> Result<(), String> {
    let room_dir = dir.join("preparation");
    std::fs::create_dir_all(&room_dir)
        .map_err(|error| format!("creating `{}`: {error}", room_dir.display()))?;
    let binds = vec![Bind { from: trainer.root.into(), at: trainer.root.into() }];
    let spec = RoomSpec { dir: room_dir, mounts: Vec::new(), binds, memory_cgroup: false };
    let room = Room::build(spec).map_err(|error| error.to_string())?;
    let data = dir.join("data");
    let kind = trainer.file.generate().keys().next();
    let made = kind.and_then(|kind| trainer.generate(kind, SAMPLES, None, &data));
    // Data that nobody makes can't be handed in.
    let submit = made.as_ref().and_then(|_| trainer.submit(&data));
    let launches: Vec<Launch> = trainer.prepare().into_iter().chain(made).chain(submit).collect();
    for launch in launches {
        let called = room.call(&launch, PREPARATION, KEEP, false).map_err(|error| error.to_string())?;
        if called.ended != Some(Ended::Exited(0)) {
            let words: Vec<String> =
                launch.argv.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            let said = called.stderr.lines().chain(called.stdout.lines()).next().unwrap_or("nothing");
            return Err(format!("preparing: `{}` failed: {said}", words.join(" ")));
        }
    }
    room.close().map_err(|error| error.to_string())
}
