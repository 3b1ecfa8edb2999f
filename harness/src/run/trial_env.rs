//! A room with the target in it, ready to start: mounts made, root prepared, data handed in.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use scenarios::{Event, SubmittedFile, TargetFile, TargetGpu};
use simgpu_plan::{Backend, SimulatedMachine};

use crate::faults::{FaultContext, FaultError, poison};
use crate::gpu::{Shim, cuda_version_number};
use crate::observe::Reporter;
use crate::plan::Workload;
use crate::run::RunError;
use crate::run::output_lines::{NextLine, OutputLines};
use crate::sandbox::{BindMount, LaunchSpec, ProcessExit, Sandbox, SandboxSpec, TmpfsSpec};
use crate::target::Trainer;

/// How long one command of the preparation may take.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a stage is built from.
#[derive(Clone, Copy)]
pub(super) struct TrialConfig<'a> {
    pub(super) target: &'a TargetFile,
    pub(super) program: &'a Path,
    pub(super) workload: &'a Workload,
    /// Folder of the scenario's file, for data files that lie beside it.
    pub(super) scenario_dir: &'a Path,
    /// Whether this machine lets calls be seen.
    pub(super) has_gate: bool,
    /// Library that stands in for the GPU's driver, where the workload has a GPU and this machine can give it.
    pub(super) shim: Option<&'a Path>,
    /// Samples to poison: (sample, weight).
    pub(super) poisoned_samples: &'a [(u32, f64)],
}

/// A room, and the folder behind it that the target is not told of.
pub(super) struct TrialEnv<'a> {
    config: TrialConfig<'a>,
    pub(super) sandbox: Sandbox,
    /// The target's root as it sees it.
    visible_root: PathBuf,
    staging_dir: PathBuf,
    /// The same folder, through the room's mounts.
    mounted_staging_dir: PathBuf,
    gpu: Option<Arc<Shim>>,
    environment: Vec<(OsString, OsString)>,
}

/// What a command said before it ended.
pub(super) struct CommandOutput {
    pub(super) ended: Option<ProcessExit>,
    pub(super) text: String,
}

impl CommandOutput {
    pub(super) fn is_success(&self) -> bool {
        self.ended == Some(ProcessExit::Exited(0))
    }

    pub(super) fn ending(&self) -> String {
        ProcessExit::describe(self.ended)
    }
}

impl<'a> TrialEnv<'a> {
    /// Builds it in an empty folder and hands the workload in.
    pub(super) fn build(dir: PathBuf, script: TrialConfig<'a>) -> Result<TrialEnv<'a>, RunError> {
        TrialEnv::unprepared(dir, script, None)?.into_prepared()
    }

    /// Nothing in it yet. `shown`: an existing folder at which the target is to see its root, as a mount of its own.
    pub(super) fn unprepared(
        dir: PathBuf,
        script: TrialConfig<'a>,
        shown: Option<&Path>,
    ) -> Result<TrialEnv<'a>, RunError> {
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
            mount_point: script.target.places().get(&mount.place).cloned().unwrap_or_default(),
            size_bytes: mount.size.0,
            inodes: mount.inodes,
        });
        let from = room_dir.join("root");
        let binds = shown.map(|at| BindMount { source: from, mount_point: at.into() }).into_iter().collect();
        let spec = SandboxSpec { dir: room_dir, mounts: mounts.collect(), binds, memory_cgroup: true };
        let room = Sandbox::build(spec)?;
        let shown = shown.map_or_else(|| room.root().to_path_buf(), Path::to_path_buf);
        let gpu = create_shim(script, &dir)?;
        let environment = gpu.as_ref().map(|gpu| gpu.environment()).unwrap_or_default();
        let through = room.host_path(&backstage);
        Ok(TrialEnv {
            config: script,
            mounted_staging_dir: through,
            sandbox: room,
            visible_root: shown,
            staging_dir: backstage,
            gpu,
            environment,
        })
    }

    /// Prepared, with the workload handed in.
    pub(super) fn into_prepared(self) -> Result<TrialEnv<'a>, RunError> {
        self.run_prepare_commands()?;
        self.submit_workload()?;
        Ok(self)
    }

    pub(super) fn trainer(&self) -> Trainer<'_> {
        let TrialConfig { target: file, program, workload, .. } = self.config;
        let (root, environment) = (&self.visible_root, self.environment.as_slice());
        Trainer { file, program, root, seed: workload.seed, settings: &workload.settings, environment }
    }

    pub(super) fn fault_context<'s>(
        &'s self,
        trainer: &'s Trainer<'s>,
        steady_peak_bytes: Option<u64>,
    ) -> FaultContext<'s> {
        let gpu = self.gpu.as_ref();
        FaultContext {
            sandbox: &self.sandbox,
            trainer,
            staging_dir: &self.mounted_staging_dir,
            baseline_peak_bytes: steady_peak_bytes,
            gpu,
        }
    }

    /// Tells what the simulated GPU has found since it was last told.
    pub(super) fn emit_gpu_defects(&self, reporter: &Reporter) -> Result<(), RunError> {
        emit_gpu_defects(self.gpu.as_ref(), reporter)
    }

    fn run_prepare_commands(&self) -> Result<(), RunError> {
        self.trainer().prepare().iter().try_for_each(|launch| self.run_required("prepare", launch))
    }

    fn submit_workload(&self) -> Result<(), RunError> {
        for (number, submitted) in self.config.workload.submit.iter().enumerate() {
            let file = self.data_file(number, submitted)?;
            for (sample, weight) in self.config.poisoned_samples {
                poison(&file, *sample, *weight)?;
            }
            if let Some(launch) = self.trainer().submit(&file) {
                self.run_required("submit", &launch)?;
            }
        }
        Ok(())
    }

    fn data_file(&self, number: usize, submitted: &SubmittedFile) -> Result<PathBuf, RunError> {
        let file = self.staging_dir.join(format!("data-{number}.jsonl"));
        match submitted {
            SubmittedFile::File(name) => {
                let from = self.config.scenario_dir.join(name);
                std::fs::copy(&from, &file).map_err(|error| RunError::File {
                    doing: "copy",
                    path: from,
                    error,
                })?;
            }
            SubmittedFile::Generated { kind, samples, length } => {
                if let Some(launch) = self.trainer().generate(kind, *samples, *length, &file) {
                    self.run_required("generate", &launch)?;
                }
            }
        }
        Ok(file)
    }

    fn run_required(&self, step: &'static str, launch: &LaunchSpec) -> Result<(), RunError> {
        let answer = self.run_command(launch, PREPARE_TIMEOUT)?;
        if answer.is_success() {
            return Ok(());
        }
        Err(RunError::Preparation { step, ending: answer.ending(), words: answer.text })
    }

    /// Runs a command to its end; after `limit` everything in the room is killed.
    pub(super) fn run_command(
        &self,
        launch: &LaunchSpec,
        limit: Duration,
    ) -> Result<CommandOutput, RunError> {
        let mut running = self.sandbox.spawn(launch)?;
        let until = Instant::now() + limit;
        let mut lines = OutputLines::read_from(&mut running);
        let ended = running.wait_timeout(limit);
        if ended.is_none() {
            self.sandbox.kill_all()?;
        }
        let mut words = Vec::new();
        let grace = until.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
        while let NextLine::Line(_, line) = lines.next_line(grace) {
            words.push(line);
        }
        Ok(CommandOutput { ended, text: words.join(" | ").chars().take(2000).collect() })
    }
}

/// As [`Stage::tell_findings`], of a running target.
pub(super) fn emit_gpu_defects(gpu: Option<&Arc<Shim>>, reporter: &Reporter) -> Result<(), RunError> {
    let found = gpu.map(|gpu| gpu.take_new_gpu_defects()).transpose().map_err(FaultError::from)?;
    found.into_iter().flatten().for_each(|what| reporter.emit(Event::GpuDefect { what }));
    Ok(())
}

/// The GPU that the workload asks for, in a folder that the target sees under the same path and does not look into.
fn create_shim(script: TrialConfig<'_>, dir: &Path) -> Result<Option<Arc<Shim>>, RunError> {
    let (Some(gpu), Some(library)) = (&script.workload.gpu, script.shim) else { return Ok(None) };
    let machine = match gpu {
        TargetGpu::Real => Backend::Forwarded { libcuda: None, libnvidia_ml: None },
        TargetGpu::Simulated(wanted) => Backend::Simulated(SimulatedMachine {
            devices: wanted.devices,
            memory_bytes: wanted.memory.0,
            driver_version: cuda_version_number(wanted.driver),
            compute_capability: (
                to_i32(wanted.compute_capability.major),
                to_i32(wanted.compute_capability.minor),
            ),
        }),
    };
    let made = Shim::create(&dir.join("gpu"), library, machine).map_err(FaultError::from)?;
    Ok(Some(Arc::new(made)))
}

fn to_i32(number: u32) -> i32 {
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
    let script = TrialConfig {
        target,
        program,
        workload,
        scenario_dir: beside,
        has_gate: false,
        shim: None,
        poisoned_samples: &[],
    };
    let stage = TrialEnv::unprepared(dir.into(), script, Some(root))?.into_prepared()?;
    let failed = |error| RunError::File { doing: "copy to", path: root.into(), error };
    crate::explore::copy_tree(stage.sandbox.root(), root).map_err(failed)?;
    Ok(stage.sandbox.close()?)
}

/// Settings that take a guard away.
pub(super) fn settings_without_guard(target: &TargetFile, guard: Option<&str>) -> BTreeMap<String, String> {
    guard.and_then(|guard| target.guards().get(guard)).cloned().unwrap_or_default()
}
