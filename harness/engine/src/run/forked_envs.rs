//! Environments in which the target's resumes are forked from a Python interpreter that has imported its libraries. Each
//! is used for one trial after the other. Decides whether forks are worth it; compares nothing.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use scenarios::{Expectation, Fact, Scenario};

use crate::explore::{ColdReason, ExploreError, ForkedPython, ImportNotes, ServerImports, WarmStart};
use crate::locks::LockExt;
use crate::plan::CrashStateId;
use crate::run::crash_state_trials::RecordedRun;
use crate::run::error::RunError;
use crate::run::trial_env::{TrialConfig, TrialEnv};
use crate::sandbox::{CommandRunner, SandboxError, StoredCommand, is_interrupted};

/// All trials together must be expected to take this long, or their first resume is not worth noting.
const MIN_SECONDS: f64 = 5.0;
/// With fewer trials, what is needed to fork them takes about as long as they do.
const MIN_TRIALS: usize = 12;
/// At most this many bytes are kept of each output of a resume that notes its imports, which it does in its output.
const MAX_NOTED_BYTES: usize = 1 << 20;

/// What the trials of a scenario have in common.
#[derive(Clone, Copy)]
pub(super) struct ForkedTrialsSpec<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) config: TrialConfig<'a>,
    pub(super) recorded: &'a RecordedRun,
    pub(super) warm: &'a WarmStart,
    /// How long the baseline took.
    pub(super) baseline_seconds: f64,
    pub(super) trials: usize,
    pub(super) jobs: usize,
}

/// How the target is started in the trials of a scenario.
pub(super) enum ChosenStart<'a> {
    /// Each time as a new process. `why`: if there was a choice.
    NewProcesses {
        why: Option<ColdReason>,
    },
    Forked(ForkedEnvs<'a>),
}

/// An environment whose target can be forked.
pub(super) struct ForkedEnv<'a> {
    pub(super) env: TrialEnv<'a>,
    /// Resumes the target by a fork.
    pub(super) resume: StoredCommand,
}

/// The environments of the trials that are forked.
pub(super) struct ForkedEnvs<'a> {
    spec: ForkedTrialsSpec<'a>,
    imports: ServerImports,
    /// An empty directory.
    dir: PathBuf,
    idle: Mutex<Vec<ForkedEnv<'a>>>,
    built: AtomicUsize,
}

impl<'a> ForkedTrialsSpec<'a> {
    /// Decides how the trials start, and prepares that in the empty directory `dir`.
    ///
    /// # Errors
    /// If the harness is interrupted, or files cannot be written.
    pub(super) fn choose(self, dir: PathBuf) -> Result<ChosenStart<'a>, RunError> {
        let not_worth_it = Ok(ChosenStart::NewProcesses { why: None });
        let seconds = self.baseline_seconds * self.trials as f64 / self.jobs.max(1) as f64;
        let is_worth_it = seconds >= MIN_SECONDS && self.trials >= MIN_TRIALS;
        let is_asked_for = matches!(self.warm, WarmStart::Modules(_) | WarmStart::Noted(_));
        if *self.warm == WarmStart::Never || self.trials == 0 || !(is_worth_it || is_asked_for) {
            return not_worth_it;
        }
        let because = |why: ColdReason| Ok(ChosenStart::NewProcesses { why: Some(why) });
        let mut env = self.recorded.env_after_first_save(dir.join("noting"), self.config)?;
        let has_python =
            ForkedPython::of(&env.trainer().resume(), &ServerImports::Noting, &env.dirs_of_target())
                .is_some();
        if let Some(why) = self.obstacle(has_python, &env) {
            env.sandbox.close()?;
            return if is_asked_for || has_python { because(why) } else { not_worth_it };
        }
        let imports = match self.warm {
            WarmStart::Modules(modules) => ServerImports::Named(modules.clone()),
            WarmStart::Noted(notes) => ServerImports::Noted(notes.clone()),
            WarmStart::Never | WarmStart::Automatic => {
                let noted = note_imports(&mut env);
                env.sandbox.close()?;
                match noted {
                    Ok(Some(notes)) => ServerImports::Noted(notes),
                    Ok(None) => return because(ColdReason::NothingNoted),
                    Err(error) => return because(fork_failure(error)?),
                }
            }
        };
        let envs =
            ForkedEnvs { spec: self, imports, dir, idle: Mutex::default(), built: AtomicUsize::new(0) };
        // Whether the modules can be imported shows before a trial begins.
        match envs.build() {
            Ok(place) => {
                envs.idle.locked().push(place);
                Ok(ChosenStart::Forked(envs))
            }
            Err(error) => because(fork_failure(error)?),
        }
    }

    /// Why the trials cannot be forked, although that would be faster.
    fn obstacle(self, has_python: bool, env: &TrialEnv<'_>) -> Option<ColdReason> {
        let is_measured = |expectation: &&Expectation| {
            matches!(
                expectation.fact,
                Fact::RecoveryTime { .. }
                    | Fact::PeakMemory { .. }
                    | Fact::OpenFiles { .. }
                    | Fact::Threads { .. }
                    | Fact::ZombieTime { .. }
            )
        };
        let measured = self.scenario.expect().iter().find(is_measured);
        let workload = self.config.workload;
        if !has_python {
            Some(ColdReason::NotPython)
        } else if let Some(measured) = measured {
            Some(ColdReason::Measured(measured.text.clone()))
        } else if workload.gpu.is_some() || !workload.mounts.is_empty() {
            Some(ColdReason::OwnDevices)
        } else if !env.sandbox.has_fresh_proc() {
            Some(ColdReason::ServerFailed("the sandbox has no /proc of its own".into()))
        } else {
            None
        }
    }
}

/// Resumes the target once. `None`: it has not noted what it imports.
fn note_imports(env: &mut TrialEnv<'_>) -> Result<Option<ImportNotes>, RunError> {
    let noting = ForkedPython::of(&env.trainer().resume(), &ServerImports::Noting, &env.dirs_of_target());
    let Some(noting) = noting else { return Ok(None) };
    env.sandbox.start_fork_server(&noting.server)?;
    let resume = env.sandbox.store_command(&noting.request, CommandRunner::ForkServer)?;
    let mut completed = env.sandbox.run_fresh(resume, env.target().finish(), MAX_NOTED_BYTES)?;
    Ok(ImportNotes::take_from(&mut completed))
}

/// Why trials are new processes after this error of a forked one.
///
/// # Errors
/// The error, if the harness is interrupted.
pub(super) fn fork_failure(error: RunError) -> Result<ColdReason, RunError> {
    match error {
        error if is_interrupted() => Err(error),
        RunError::Sandbox(SandboxError::Init { detail, .. }) => Ok(ColdReason::ServerFailed(detail)),
        error => Ok(ColdReason::ServerFailed(crate::file_error::chain(&error))),
    }
}

impl<'a> ForkedEnvs<'a> {
    /// An environment with the files of a crash state.
    ///
    /// # Errors
    /// If the sandbox or the fork server fails, or files cannot be written.
    pub(super) fn take(&self, id: CrashStateId) -> Result<ForkedEnv<'a>, RunError> {
        let idle = self.idle.locked().pop();
        let place = idle.map_or_else(|| self.build(), Ok)?;
        self.spec.recorded.refill(id, &place.env)?;
        Ok(place)
    }

    fn build(&self) -> Result<ForkedEnv<'a>, RunError> {
        let ForkedTrialsSpec { recorded, config, .. } = self.spec;
        let number = self.built.fetch_add(1, Ordering::Relaxed);
        let env = recorded.env_after_first_save(self.dir.join(number.to_string()), config)?;
        let forked = ForkedPython::of(&env.trainer().resume(), &self.imports, &env.dirs_of_target());
        let ForkedPython { server, request } = forked.ok_or(ExploreError::NotPython)?;
        env.sandbox.start_fork_server(&server)?;
        let resume = env.sandbox.store_command(&request, CommandRunner::ForkServer)?;
        Ok(ForkedEnv { env, resume })
    }

    /// Keeps an environment for another trial, with nothing left of this one but its files.
    ///
    /// # Errors
    /// If the fork server has ended, or the sandbox fails.
    pub(super) fn give_back(&self, place: ForkedEnv<'a>) -> Result<(), RunError> {
        place.env.sandbox.reset()?;
        self.idle.locked().push(place);
        Ok(())
    }

    /// Removes all environments.
    ///
    /// # Errors
    /// If a sandbox cannot be removed.
    pub(super) fn close(self) -> Result<(), RunError> {
        for place in self.idle.into_unlocked() {
            place.env.sandbox.close()?;
        }
        Ok(())
    }
}
