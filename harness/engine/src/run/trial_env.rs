//! The environment of one trial: a sandbox with the target's root, prepared and with its workload submitted.
//! Knows no expectation and no single fault.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use scenarios::{Event, FailedRun, OutputLine, SubmittedFile, TargetFile, TargetGpu, UndisturbedCommand};
use simgpu_plan::{Backend, SimulatedMachine};

use crate::explore::copy_tree;
use crate::faults::{FaultContext, FaultError, TargetClock, alter_submitted_file};
use crate::file_error::file_error;
use crate::gpu::{Shim, cuda_version_number};
use crate::observe::Reporter;
use crate::plan::{PlannedFault, Workload};
use crate::run::error::RunError;
use crate::run::output_lines::{NextLine, OutputLines};
use crate::sandbox::{
    BindMount, Controller, HostAccess, LaunchSpec, ProcessExit, Sandbox, SandboxSpec, TmpfsSpec, current_dir,
    remove_tree, unused_top_directory,
};
use crate::target::Trainer;

/// How long one `prepare`, `generate` or `submit` command may take.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// The mode of a directory that the harness makes.
const DIRECTORY_MODE: u32 = 0o755;
/// Longest time between two looks at a command.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Lines that are kept of each output of a command.
const MAX_KEPT_LINES: usize = 50;

/// What an environment is built from.
#[derive(Clone, Copy)]
pub(super) struct TrialConfig<'a> {
    pub(super) target: &'a TargetFile,
    pub(super) program: &'a Path,
    pub(super) workload: &'a Workload,
    /// What of the host the target may touch.
    pub(super) host_access: &'a HostAccess,
    /// Directory of the scenario file. Data files are relative to it.
    pub(super) scenario_dir: &'a Path,
    /// Whether this machine supports the gate, which sees the target's system calls.
    pub(super) has_gate: bool,
    /// Path of the shim library, if the workload has a GPU and this machine can provide it.
    pub(super) shim: Option<&'a Path>,
    /// Faults that may change the submitted data.
    pub(super) faults: &'a [PlannedFault],
}

/// The directory in which a target sees its root and what else the harness gives it. It exists in sandboxes only,
/// so that nothing of the target's business lies in it or around it: a trainer may empty `/tmp`.
pub(super) struct VisibleDir {
    root: PathBuf,
    data: PathBuf,
    gpu: PathBuf,
}

impl VisibleDir {
    fn new() -> VisibleDir {
        let dir = unused_top_directory();
        VisibleDir { root: dir.join("root"), data: dir.join("data"), gpu: dir.join("gpu") }
    }
}

/// A sandbox with the target's root.
pub(super) struct TrialEnv<'a> {
    config: TrialConfig<'a>,
    pub(super) sandbox: Sandbox,
    /// The directory of the sandbox in which the target sees its root.
    visible_dir: VisibleDir,
    /// The submitted files, on the host.
    data_dir: PathBuf,
    gpu: Option<Arc<Shim>>,
    environment: Vec<(OsString, OsString)>,
}

/// Exit and output of a command.
pub(super) struct CommandOutput {
    /// `None` if the command was killed after its timeout.
    pub(super) exit: Option<ProcessExit>,
    /// The last lines of both outputs, in the order in which they arrived.
    pub(super) last_lines: Vec<OutputLine>,
}

impl CommandOutput {
    /// Whether it exited with 0.
    pub(super) fn is_success(&self) -> bool {
        self.exit == Some(ProcessExit::Exited(0))
    }

    /// How it ended, for messages.
    pub(super) fn ending(&self) -> String {
        ProcessExit::describe(self.exit)
    }

    /// Lines of both outputs, joined by ` | `.
    pub(super) fn text(&self) -> String {
        let lines: Vec<&str> = self.last_lines.iter().map(|line| line.line.as_str()).collect();
        lines.join(" | ")
    }
}

impl<'a> TrialEnv<'a> {
    /// Builds the environment in the empty directory `dir`, prepares the root and submits the workload.
    ///
    /// # Errors
    /// If the sandbox cannot be built or a command of the target file fails.
    pub(super) fn build(dir: PathBuf, config: TrialConfig<'a>) -> Result<TrialEnv<'a>, RunError> {
        TrialEnv::unprepared(dir, config)?.into_prepared()
    }

    /// Builds an environment whose root holds a copy of these files, with the submitted data of another one.
    ///
    /// # Errors
    /// If the sandbox cannot be built or something cannot be copied.
    pub(super) fn of_files(
        dir: PathBuf,
        config: TrialConfig<'a>,
        files: &Path,
        data_of: &TrialEnv<'_>,
    ) -> Result<TrialEnv<'a>, RunError> {
        let env = TrialEnv::unprepared(dir, config)?;
        copy_tree(files, &env.sandbox.host_path_in_root(Path::new("")))?;
        env.copy_submitted_data(data_of.submitted_data())?;
        Ok(env)
    }

    /// The directory of the submitted files, on the host.
    pub(super) fn submitted_data(&self) -> &Path {
        &self.data_dir
    }

    /// Copies the submitted files of another environment: a target may read them where they are.
    ///
    /// # Errors
    /// If something cannot be copied.
    pub(super) fn copy_submitted_data(&self, from: &Path) -> Result<(), RunError> {
        copy_tree(from, &self.data_dir)?;
        Ok(())
    }

    /// Builds the environment with an empty root.
    ///
    /// # Errors
    /// If the sandbox cannot be built.
    pub(super) fn unprepared(dir: PathBuf, config: TrialConfig<'a>) -> Result<TrialEnv<'a>, RunError> {
        TrialEnv::empty(dir, config, false)
    }

    /// The same for files of another run: a number of a process in them is that of no process here.
    ///
    /// # Errors
    /// If the sandbox cannot be built.
    pub(super) fn for_crash_state(dir: PathBuf, config: TrialConfig<'a>) -> Result<TrialEnv<'a>, RunError> {
        TrialEnv::empty(dir, config, true)
    }

    fn empty(dir: PathBuf, config: TrialConfig<'a>, distinct_pids: bool) -> Result<TrialEnv<'a>, RunError> {
        let (data_dir, gpu_dir) = (dir.join("data"), dir.join("gpu"));
        let create_dir = |path: &Path| -> Result<(), RunError> {
            std::fs::create_dir_all(path).map_err(file_error("create", path))
        };
        let sandbox_dir = dir.join("sandbox");
        create_dir(&data_dir)?;
        let mounts = config.workload.mounts.iter().map(|mount| TmpfsSpec {
            mount_point: config.target.places().get(&mount.place).cloned().unwrap_or_default(),
            size_bytes: mount.size.0,
            inodes: mount.inodes,
        });
        let visible_dir = VisibleDir::new();
        let gpu = create_shim(config, &gpu_dir)?;
        let data_bind = BindMount { source: data_dir.clone(), mount_point: visible_dir.data.clone() };
        let gpu_bind = BindMount { source: gpu_dir, mount_point: visible_dir.gpu.clone() };
        let spec = SandboxSpec {
            dir: sandbox_dir,
            mounts: mounts.collect(),
            binds: std::iter::once(data_bind).chain(gpu.is_some().then_some(gpu_bind)).collect(),
            cgroups: cgroups_of(config.faults),
            visible_root: Some(visible_dir.root.clone()),
            distinct_pids,
            host_access: config.host_access.clone(),
            cwd: current_dir()?,
        };
        let sandbox = Sandbox::build(spec)?;
        let environment = gpu.as_ref().map(|gpu| gpu.environment(&visible_dir.gpu)).unwrap_or_default();
        Ok(TrialEnv { config, sandbox, visible_dir, data_dir, gpu, environment })
    }

    /// The directories of this environment that differ from trial to trial, as the target sees them.
    pub(super) fn dirs_of_target(&self) -> Vec<PathBuf> {
        vec![self.visible_dir.root.clone(), self.visible_dir.data.clone()]
    }

    /// Removes all files of the target, and those that were submitted.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub(super) fn remove_files(&self) -> Result<(), RunError> {
        for dir in [self.sandbox.root_on_host(), &self.data_dir] {
            empty_directory(dir)?;
        }
        Ok(())
    }

    /// Path at which the target sees its root.
    pub(super) fn visible_root(&self) -> &Path {
        &self.visible_dir.root
    }

    /// Runs the target's `prepare` commands and submits the workload.
    ///
    /// # Errors
    /// If one of the commands fails.
    pub(super) fn into_prepared(self) -> Result<TrialEnv<'a>, RunError> {
        self.run_prepare_commands()?;
        self.submit_workload()?;
        Ok(self)
    }

    /// The checked target file.
    pub(super) fn target(&self) -> &'a TargetFile {
        self.config.target
    }

    /// The target, with everything filled in that its commands need.
    pub(super) fn trainer(&self) -> Trainer<'_> {
        let TrialConfig { target: file, program, workload, .. } = self.config;
        let (root, environment) = (self.visible_root(), self.environment.as_slice());
        Trainer { file, program, root, seed: workload.seed, settings: &workload.settings, environment }
    }

    /// What faults need to know of this environment.
    pub(super) fn fault_context<'s>(
        &'s self,
        trainer: &'s Trainer<'s>,
        baseline_peak_bytes: Option<u64>,
        clock: &'s Arc<TargetClock>,
    ) -> FaultContext<'s> {
        let gpu = self.gpu.as_ref();
        FaultContext {
            main_pid: None,
            sandbox: &self.sandbox,
            trainer,
            baseline_peak_bytes,
            gpu,
            clock,
            expects_command_codes: false,
        }
    }

    /// Emits the defects that the simulated GPU found since the last call.
    ///
    /// # Errors
    /// If the shim's evidence cannot be read.
    pub(super) fn emit_gpu_defects(&self, reporter: &Reporter) -> Result<(), RunError> {
        emit_gpu_defects(self.gpu.as_ref(), reporter)
    }

    fn run_prepare_commands(&self) -> Result<(), RunError> {
        self.trainer()
            .prepare()
            .iter()
            .try_for_each(|launch| self.run_required(UndisturbedCommand::Prepare, launch))
    }

    fn submit_workload(&self) -> Result<(), RunError> {
        for (number, submitted) in self.config.workload.submit.iter().enumerate() {
            let name = format!("data-{number}.jsonl");
            let (file, visible) = (self.data_dir.join(&name), self.visible_dir.data.join(&name));
            self.write_data(submitted, &file, &visible)?;
            alter_submitted_file(self.config.faults, &file)?;
            if let Some(launch) = self.trainer().submit(&visible) {
                self.run_required(UndisturbedCommand::Submit, &launch)?;
            }
        }
        Ok(())
    }

    /// Writes one submitted file. `visible`: its path for the target.
    fn write_data(&self, submitted: &SubmittedFile, file: &Path, visible: &Path) -> Result<(), RunError> {
        match submitted {
            SubmittedFile::File(name) => {
                let from = self.config.scenario_dir.join(name);
                std::fs::copy(&from, file).map_err(file_error::<RunError>("copy", &from))?;
            }
            SubmittedFile::Generated { kind, samples, length } => {
                if let Some(launch) = self.trainer().generate(kind, *samples, *length, visible) {
                    self.run_required(UndisturbedCommand::Generate, &launch)?;
                }
            }
        }
        Ok(())
    }

    fn run_required(&self, command: UndisturbedCommand, launch: &LaunchSpec) -> Result<(), RunError> {
        let output = self.run_command(launch, PREPARE_TIMEOUT)?;
        if output.is_success() {
            return Ok(());
        }
        let limit_seconds = output.exit.is_none().then_some(PREPARE_TIMEOUT.as_secs());
        let ending = ProcessExit::ending(output.exit);
        let sandbox_hints = self.sandbox.hints(&[])?;
        let failed =
            FailedRun { limit_seconds, sandbox_hints, ..FailedRun::new(command, ending, output.last_lines) };
        Err(RunError::TargetFailed(Box::new(failed)))
    }

    /// Runs a command to its exit. After `timeout`, everything in the sandbox is killed.
    ///
    /// # Errors
    /// If the command cannot be started or killed.
    pub(super) fn run_command(
        &self,
        launch: &LaunchSpec,
        timeout: Duration,
    ) -> Result<CommandOutput, RunError> {
        let mut process = self.sandbox.spawn(launch)?;
        let deadline = Instant::now() + timeout;
        let mut lines = OutputLines::of(&mut process);
        let mut output_lines: VecDeque<OutputLine> = VecDeque::new();
        let mut keep = |stream, line| {
            output_lines.push_back(OutputLine { stream, line });
            let of_stream = || output_lines.iter().enumerate().filter(|(_, line)| line.stream == stream);
            if let (Some((first, _)), true) = (of_stream().next(), of_stream().count() > MAX_KEPT_LINES) {
                output_lines.remove(first);
            }
        };
        let exit = loop {
            match lines.next_line(POLL_INTERVAL).map_err(RunError::Output)? {
                NextLine::Line(stream, line) => keep(stream, line),
                NextLine::Timeout => {}
                NextLine::Closed => std::thread::sleep(POLL_INTERVAL),
            }
            let exit = process.wait_timeout(Duration::ZERO);
            if exit.is_some() || Instant::now() > deadline {
                break exit;
            }
        };
        if exit.is_none() {
            self.sandbox.kill_all()?;
        }
        let grace = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
        lines.begin_rest(grace).map_err(RunError::Output)?;
        while let Some((stream, line)) = lines.next_of_rest().map_err(RunError::Output)? {
            keep(stream, line);
        }
        Ok(CommandOutput { exit, last_lines: FailedRun::last_of(output_lines.into()) })
    }
}

/// Removes what is in a directory, and gives it the mode of a new one.
fn empty_directory(dir: &Path) -> Result<(), RunError> {
    let mode = Permissions::from_mode(DIRECTORY_MODE);
    std::fs::set_permissions(dir, mode).map_err(file_error::<RunError>("empty", dir))?;
    for entry in std::fs::read_dir(dir).map_err(file_error::<RunError>("read", dir))? {
        let entry = entry.map_err(file_error::<RunError>("read", dir))?;
        let path = entry.path();
        match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => remove_tree(&path)?,
            false => std::fs::remove_file(&path).map_err(file_error::<RunError>("remove", &path))?,
        }
    }
    Ok(())
}

/// What a target that has these faults must be limited by.
fn cgroups_of(faults: &[PlannedFault]) -> Vec<Controller> {
    let limits_processes = |planned: &PlannedFault| planned.fault.effect.spec().limits_processes();
    let processes = faults.iter().any(limits_processes).then_some(Controller::Processes);
    [Controller::Memory].into_iter().chain(processes).collect()
}

/// Emits the defects that the simulated GPU found since the last call, for a target that is running.
pub(super) fn emit_gpu_defects(gpu: Option<&Arc<Shim>>, reporter: &Reporter) -> Result<(), RunError> {
    let defects = gpu.map(|gpu| gpu.take_new_gpu_defects()).transpose().map_err(FaultError::from)?;
    defects.into_iter().flatten().for_each(|what| reporter.emit(Event::GpuDefect { what }));
    Ok(())
}

/// Creates the GPU that the workload needs, in a directory that the target's processes reach too. Returns `None` if the workload has no GPU or there is no shim library.
fn create_shim(config: TrialConfig<'_>, dir: &Path) -> Result<Option<Arc<Shim>>, RunError> {
    let (Some(gpu), Some(library)) = (&config.workload.gpu, config.shim) else { return Ok(None) };
    let backend = match gpu {
        TargetGpu::Real => Backend::Forwarded { libcuda: None, libnvidia_ml: None },
        TargetGpu::Simulated(simulated) => Backend::Simulated(SimulatedMachine {
            devices: simulated.devices,
            memory_bytes: simulated.memory.0,
            driver_version: cuda_version_number(simulated.driver),
            compute_capability: (
                to_i32(simulated.compute_capability.major),
                to_i32(simulated.compute_capability.minor),
            ),
        }),
    };
    let shim = Shim::create(dir, library, backend).map_err(FaultError::from)?;
    Ok(Some(Arc::new(shim)))
}

fn to_i32(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Prepares a root of the target and copies it to `root`, an existing, empty directory. The sandbox for this is
/// built in `dir`. Returns the path at which the target saw the root: paths in its files are valid only there.
///
/// # Errors
/// If the sandbox cannot be built, a command of the target file fails, or the root cannot be copied.
pub fn prepared_root(
    dir: &Path,
    root: &Path,
    target: &TargetFile,
    program: &Path,
    host_access: &HostAccess,
    workload: &Workload,
) -> Result<PathBuf, RunError> {
    let scenario_dir = Path::new(".");
    let config = TrialConfig {
        target,
        program,
        workload,
        host_access,
        scenario_dir,
        has_gate: false,
        shim: None,
        faults: &[],
    };
    let env = TrialEnv::build(dir.into(), config)?;
    copy_tree(env.sandbox.root_on_host(), root)?;
    let visible_root = env.visible_root().to_path_buf();
    env.sandbox.close()?;
    Ok(visible_root)
}

/// Settings that switch the guard off. Empty without a guard.
pub(super) fn settings_without_guard(target: &TargetFile, guard: Option<&str>) -> BTreeMap<String, String> {
    guard.and_then(|guard| target.guards().get(guard)).cloned().unwrap_or_default()
}
