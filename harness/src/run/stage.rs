//! A room with the target in it, ready to start: mounts made, root prepared, data handed in.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use scenarios::{Event, Gpu, SubmittedFile, TargetFile};
use simgpu_plan::{Machine, Simulated};

use crate::faults::{FaultError, Scene, poison};
use crate::gpu::{StandIn, version_number};
use crate::observe::Reporter;
use crate::plan::Workload;
use crate::run::RunError;
use crate::run::lines::{Lines, Next};
use crate::sandbox::{Bind, Ended, Launch, Room, RoomSpec, TmpfsSpec};
use crate::target::Trainer;

/// How long one command of the preparation may take.
const PREPARATION: Duration = Duration::from_secs(60);

/// What a stage is built from.
#[derive(Clone, Copy)]
pub(super) struct Script<'a> {
    pub(super) target: &'a TargetFile,
    pub(super) program: &'a Path,
    pub(super) workload: &'a Workload,
    /// Folder of the scenario's file, for data files that lie beside it.
    pub(super) beside: &'a Path,
    /// Whether this machine lets calls be seen.
    pub(super) gate: bool,
    /// Library that stands in for the GPU's driver, where the workload has a GPU and this machine can give it.
    pub(super) stand_in: Option<&'a Path>,
    /// Samples to poison: (sample, weight).
    pub(super) poisoned: &'a [(u32, f64)],
}

/// A room, and the folder behind it that the target is not told of.
pub(super) struct Stage<'a> {
    script: Script<'a>,
    pub(super) room: Room,
    /// The target's root as it sees it.
    shown: PathBuf,
    backstage: PathBuf,
    /// The same folder, through the room's mounts.
    through: PathBuf,
    gpu: Option<Arc<StandIn>>,
    environment: Vec<(OsString, OsString)>,
}

/// What a command said before it ended.
pub(super) struct Answer {
    pub(super) ended: Option<Ended>,
    pub(super) words: String,
}

impl Answer {
    pub(super) fn is_good(&self) -> bool {
        self.ended == Some(Ended::Exited(0))
    }

    pub(super) fn ending(&self) -> String {
        Ended::words(self.ended)
    }
}

impl<'a> Stage<'a> {
    /// Builds it in an empty folder and hands the workload in.
    pub(super) fn build(dir: PathBuf, script: Script<'a>) -> Result<Stage<'a>, RunError> {
        Stage::empty(dir, script, None)?.prepared()
    }

    /// Nothing in it yet. `shown`: an existing folder at which the target is to see its root, as a mount of its own.
    pub(super) fn empty(
        dir: PathBuf,
        script: Script<'a>,
        shown: Option<&Path>,
    ) -> Result<Stage<'a>, RunError> {
        let backstage = dir.join("backstage");
        let made = |path: &Path| {
            std::fs::create_dir_all(path).map_err(|error| RunError::File {
                doing: "create",
                path: path.into(),
                error,
            })
        };
        let room_dir = dir.join("room");
        made(&backstage)?;
        made(&room_dir.join("root"))?;
        let mounts = script.workload.mounts.iter().map(|mount| TmpfsSpec {
            at: script.target.places().get(&mount.place).cloned().unwrap_or_default(),
            size_bytes: mount.size.0,
            inodes: mount.inodes,
        });
        let from = room_dir.join("root");
        let binds = shown.map(|at| Bind { from, at: at.into() }).into_iter().collect();
        let spec = RoomSpec { dir: room_dir, mounts: mounts.collect(), binds, memory_cgroup: true };
        let room = Room::build(spec)?;
        let shown = shown.map_or_else(|| room.root().to_path_buf(), Path::to_path_buf);
        let gpu = gpu(script, &dir)?;
        let environment = gpu.as_ref().map(|gpu| gpu.environment()).unwrap_or_default();
        let through = room.through(&backstage);
        Ok(Stage { script, through, room, shown, backstage, gpu, environment })
    }

    /// Prepared, with the workload handed in.
    pub(super) fn prepared(self) -> Result<Stage<'a>, RunError> {
        self.prepare()?;
        self.hand_in()?;
        Ok(self)
    }

    pub(super) fn trainer(&self) -> Trainer<'_> {
        let Script { target: file, program, workload, .. } = self.script;
        let (root, environment) = (&self.shown, self.environment.as_slice());
        Trainer { file, program, root, seed: workload.seed, settings: &workload.settings, environment }
    }

    pub(super) fn scene<'s>(&'s self, trainer: &'s Trainer<'s>, steady_peak_bytes: Option<u64>) -> Scene<'s> {
        let gpu = self.gpu.as_ref();
        Scene { room: &self.room, trainer, backstage: &self.through, steady_peak_bytes, gpu }
    }

    /// Tells what the simulated GPU has found since it was last told.
    pub(super) fn tell_findings(&self, reporter: &Reporter) -> Result<(), RunError> {
        tell_findings(self.gpu.as_ref(), reporter)
    }

    fn prepare(&self) -> Result<(), RunError> {
        self.trainer().prepare().iter().try_for_each(|launch| self.must("prepare", launch))
    }

    fn hand_in(&self) -> Result<(), RunError> {
        for (number, submitted) in self.script.workload.submit.iter().enumerate() {
            let file = self.data_file(number, submitted)?;
            for (sample, weight) in self.script.poisoned {
                poison(&file, *sample, *weight)?;
            }
            if let Some(launch) = self.trainer().submit(&file) {
                self.must("submit", &launch)?;
            }
        }
        Ok(())
    }

    fn data_file(&self, number: usize, submitted: &SubmittedFile) -> Result<PathBuf, RunError> {
        let file = self.backstage.join(format!("data-{number}.jsonl"));
        match submitted {
            SubmittedFile::File(name) => {
                let from = self.script.beside.join(name);
                std::fs::copy(&from, &file).map_err(|error| RunError::File {
                    doing: "copy",
                    path: from,
                    error,
                })?;
            }
            SubmittedFile::Generated { kind, samples, length } => {
                if let Some(launch) = self.trainer().generate(kind, *samples, *length, &file) {
                    self.must("generate", &launch)?;
                }
            }
        }
        Ok(file)
    }

    fn must(&self, step: &'static str, launch: &Launch) -> Result<(), RunError> {
        let answer = self.ask(launch, PREPARATION)?;
        if answer.is_good() {
            return Ok(());
        }
        Err(RunError::Preparation { step, ending: answer.ending(), words: answer.words })
    }

    /// Runs a command to its end; after `limit` everything in the room is killed.
    pub(super) fn ask(&self, launch: &Launch, limit: Duration) -> Result<Answer, RunError> {
        let mut running = self.room.spawn(launch)?;
        let until = Instant::now() + limit;
        let mut lines = Lines::of(&mut running);
        let ended = running.wait_timeout(limit);
        if ended.is_none() {
            self.room.strike()?;
        }
        let mut words = Vec::new();
        let grace = until.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
        while let Next::Line(_, line) = lines.next(grace) {
            words.push(line);
        }
        Ok(Answer { ended, words: words.join(" | ").chars().take(2000).collect() })
    }
}

/// As [`Stage::tell_findings`], of a running target.
pub(super) fn tell_findings(gpu: Option<&Arc<StandIn>>, reporter: &Reporter) -> Result<(), RunError> {
    let found = gpu.map(|gpu| gpu.fresh_findings()).transpose().map_err(FaultError::from)?;
    found.into_iter().flatten().for_each(|what| reporter.emit(Event::Found { what }));
    Ok(())
}

/// The GPU that the workload asks for, in a folder that the target sees under the same path and does not look into.
fn gpu(script: Script<'_>, dir: &Path) -> Result<Option<Arc<StandIn>>, RunError> {
    let (Some(gpu), Some(library)) = (&script.workload.gpu, script.stand_in) else { return Ok(None) };
    let machine = match gpu {
        Gpu::Real => Machine::Forwarded { libcuda: None, libnvidia_ml: None },
        Gpu::Simulated(wanted) => Machine::Simulated(Simulated {
            devices: wanted.devices,
            memory_bytes: wanted.memory.0,
            driver_version: version_number(wanted.driver),
            compute_capability: (
                figure(wanted.compute_capability.major),
                figure(wanted.compute_capability.minor),
            ),
        }),
    };
    let made = StandIn::create(&dir.join("gpu"), library, machine).map_err(FaultError::from)?;
    Ok(Some(Arc::new(made)))
}

fn figure(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// A root as an untouched target has it, copied to `root`, an existing, empty folder by which its files already call it. The room
/// that it is prepared in is made in `dir`.
pub fn prepared_root(
    dir: &Path,
    root: &Path,
    (target, program): (&TargetFile, &Path),
    workload: &Workload,
) -> Result<(), RunError> {
    let beside = Path::new(".");
    let script = Script { target, program, workload, beside, gate: false, stand_in: None, poisoned: &[] };
    let stage = Stage::empty(dir.into(), script, Some(root))?.prepared()?;
    let failed = |error| RunError::File { doing: "copy to", path: root.into(), error };
    crate::explore::copy_tree(stage.room.root(), root).map_err(failed)?;
    Ok(stage.room.close()?)
}

/// Settings that take a guard away.
pub(super) fn without(target: &TargetFile, guard: Option<&str>) -> BTreeMap<String, String> {
    guard.and_then(|guard| target.guards().get(guard)).cloned().unwrap_or_default()
}
