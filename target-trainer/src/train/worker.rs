//! The worker: resumes one job, trains it, saves checkpoints, and writes the finished adapter. It reports
//! events and prints nothing.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::{Engine, EngineConfig, NonFinite, StepError, StepOptions, StepReport};
use super::frozen_base::read_base;
use super::job_data::read_job_samples;
use super::patience::with_patience;
use super::resume_point::{ResumeSources, mark_saved, resume_point};
use super::saver::{Saver, SaverEvent, save_and_prune};
use super::worker_config::WorkerConfig;
use super::worker_error::{GpuFault, WorkerError};
use super::worker_event::{StepMeasures, WorkerEvent};
use crate::device::{DeviceError, DeviceId, cuda_device_count};
use crate::durable;
use crate::exit::Exit;
use crate::file_error::chain;
use crate::progress;
use crate::settings::{DeviceRequest, OnNonFinite, Settings};
use crate::state::TrainState;
use crate::store::{
    CheckpointStore, FinishedResult, ResultFiles, SaveError, SaveOptions, SkippedCheckpoint, read_result,
    required_space, result_files, sync_policy,
};

/// First wait between two attempts at the last save. It doubles each time.
const SAVE_RETRY_DELAY: Duration = Duration::from_millis(50);
/// Longest wait between two attempts at the last save.
const MAX_SAVE_RETRY_DELAY: Duration = Duration::from_secs(2);
/// Wrong results and changed weights of the GPU that are corrected before the worker exits.
const MAX_GPU_FAULTS: usize = 3;
/// Changes of the frozen weights in the memory of the machine after which the worker gives up.
const MAX_MEMORY_FAULTS: usize = 3;

/// Trains the job until it is done, a stop is requested, or it fails. Reports the reason unless the job is
/// done.
pub fn run_worker(config: &WorkerConfig<'_>) -> Exit {
    match TrainingRun::start(config).and_then(|mut run| run.run()) {
        Ok(exit) => exit,
        Err(error) => {
            (config.emit)(WorkerEvent::ExitReason { reason: chain(&error) });
            error.exit()
        }
    }
}

/// The training of one job in this process.
struct TrainingRun<'a> {
    config: &'a WorkerConfig<'a>,
    engine: Engine,
    on_gpu: bool,
    micro_batch: NonZeroUsize,
    checkpoints: Arc<CheckpointStore>,
    /// Digest of the base model.
    base: String,
    /// Copies that the daemon's maintenance makes.
    snapshots: CheckpointStore,
    /// Whether it is recorded that there is a checkpoint.
    is_marked: bool,
    saver: Saver,
    /// The state at step 0, if there was no checkpoint at the start.
    initial_state: Option<TrainState>,
    /// Steps that were not finite. A repeated step counts once.
    non_finite: BTreeSet<u64>,
    /// Number of wrong results and changed weights so far.
    gpu_faults: usize,
    /// How often frozen weights have changed in the memory of the machine.
    memory_faults: usize,
    last_saved_step: u64,
}

impl<'a> TrainingRun<'a> {
    fn start(config: &'a WorkerConfig<'a>) -> Result<TrainingRun<'a>, WorkerError> {
        let Settings { train, recipe, guards, device, .. } = config.settings;
        let (base, base_model) = read_base(config, config.base.filter(|_| guards.base_identity))?;
        let device_id = resolve_device(config.device);
        let engine_config = EngineConfig {
            device: device_id,
            precision: device.precision,
            wait_tracker: Arc::clone(&config.wait_tracker),
        };
        let samples = with_patience(config, WorkerError::may_pass, || read_job_samples(config))?;
        let engine = Engine::with_samples(base_model, recipe.clone(), samples).on_device(&engine_config)?;
        (config.emit)(WorkerEvent::Device { device: engine.device_name() });
        let options = SaveOptions { guards: guards.clone(), keep: train.keep };
        let store = |dir| CheckpointStore::new(dir, base.clone(), recipe.clone(), options.clone());
        let snapshots = store(config.layout.job_snapshots(config.job));
        let checkpoints = Arc::new(store(config.layout.job_checkpoints(config.job)));
        if guards.clean_start
            && let Err(error) = checkpoints.remove_unfinished()
        {
            tracing::warn!("unfinished checkpoints could not be removed yet: {}", chain(&error));
        }
        let on_gpu = device_id != DeviceId::Cpu;
        let saver = if on_gpu && device.background_save {
            Saver::start_background(Arc::clone(&checkpoints)).map_err(WorkerError::SaverThread)?
        } else {
            Saver::Foreground
        };
        let mut run = TrainingRun {
            config,
            engine,
            on_gpu,
            micro_batch: config.micro_batch,
            checkpoints,
            base,
            snapshots,
            is_marked: false,
            saver,
            initial_state: None,
            non_finite: BTreeSet::new(),
            gpu_faults: 0,
            memory_faults: 0,
            last_saved_step: 0,
        };
        run.compare_with_cpu()?;
        let step = run.resume()?;
        (config.emit)(WorkerEvent::Resumed { step });
        Ok(run)
    }

    /// Fails if the GPU computes other results than the CPU.
    fn compare_with_cpu(&mut self) -> Result<(), WorkerError> {
        if !self.on_gpu || !self.config.settings.guards.parity_check {
            return Ok(());
        }
        self.engine.compare_with_cpu()?.map_or(Ok(()), |mismatch| Err(WorkerError::Parity(mismatch)))
    }

    /// Returns to the newest valid checkpoint, or to step 0 if there is no checkpoint. Returns the step.
    fn resume(&mut self) -> Result<u64, WorkerError> {
        self.wait_for_saver()?;
        let sources = ResumeSources { checkpoints: &self.checkpoints, snapshots: &self.snapshots };
        let resume = resume_point(self.config, &sources)?;
        for SkippedCheckpoint { name, damage } in resume.skipped {
            (self.config.emit)(WorkerEvent::CheckpointSkipped { name, reason: chain(&damage) });
        }
        let state = match (resume.state, &self.initial_state) {
            (Some(state), _) => state,
            (None, Some(initial_state)) => initial_state.clone(),
            (None, None) => {
                self.initial_state = Some(self.engine.state()?);
                return Ok(0);
            }
        };
        let step = state.cursor.step;
        self.last_saved_step = step;
        let state = match self.config.settings.guards.complete_checkpoint {
            // The moments of an engine that has made no step.
            false if state.optimizer.is_empty() => {
                TrainState { optimizer: self.engine.state()?.optimizer, ..state }
            }
            _ => state,
        };
        self.engine.restore(state)?;
        let guards = &self.config.settings.guards;
        if !guards.resume_order {
            self.engine.restart_order();
        }
        if !guards.resume_schedule {
            self.engine.restart_schedule();
        }
        Ok(step)
    }

    fn run(&mut self) -> Result<Exit, WorkerError> {
        let result = self.train();
        if result.is_err() {
            // A save in the background has its copy of the state already. Its result does not change the end.
            while let Some(event) = self.saver.next_event(true) {
                if let SaverEvent::Saved { step } = event {
                    (self.config.emit)(WorkerEvent::Saved { step });
                }
            }
        }
        result
    }

    fn train(&mut self) -> Result<Exit, WorkerError> {
        let train = &self.config.settings.train;
        while !self.engine.finished() {
            self.step()?;
            self.drain_saver_events(false)?;
            let step = self.engine.cursor().step;
            if (self.config.stop_requested)() {
                // After a rollback, this step may be the one of the last save.
                if step > self.last_saved_step {
                    self.save(step)?;
                }
                return Err(WorkerError::Interrupted(self.last_saved_step));
            }
            if step.is_multiple_of(train.save_every) && step > self.last_saved_step && !self.engine.finished()
            {
                self.start_save(step)?;
            }
            if self.engine.finished() {
                self.final_save()?;
            }
        }
        self.write_result()
    }

    /// Computes one step, or handles what prevented it, after which the step is repeated or skipped.
    fn step(&mut self) -> Result<(), WorkerError> {
        let started = Instant::now();
        let report = match self.engine.step(self.step_options()) {
            Ok(report) => report,
            Err(StepError::Device(DeviceError::OutOfMemory { .. })) if self.can_reduce_micro_batch() => {
                return self.reduce_micro_batch();
            }
            Err(error) => return Err(error.into()),
        };
        if report.results_differ {
            return self.handle_differing_results(report.step);
        }
        match report.non_finite {
            Some(part) => self.handle_non_finite(&report, part)?,
            None => (self.config.emit)(WorkerEvent::Step {
                step: report.step,
                loss: format!("{:.6}", report.loss),
                measured: self.measures(&report, started.elapsed()),
            }),
        }
        Ok(())
    }

    /// What the monitor shows of a step. Without one, nothing: the lines for a daemon that does not read stay short.
    fn measures(&self, report: &StepReport, elapsed: Duration) -> StepMeasures {
        if !self.config.settings.monitor.enabled {
            return StepMeasures::default();
        }
        StepMeasures {
            gradient_norm: report.gradient_norm.to_string(),
            learning_rate: report.learning_rate.to_string(),
            tokens: report.tokens,
            microseconds: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        }
    }

    fn step_options(&self) -> StepOptions {
        let Settings { device, guards, .. } = self.config.settings;
        let next = self.engine.cursor().step + 1;
        let is_due = device.recheck_every > 0 && next.is_multiple_of(device.recheck_every);
        StepOptions {
            micro_batch: self.micro_batch,
            check_finite: guards.finite_check,
            recheck: self.on_gpu && guards.recheck && is_due,
            in_order: guards.sample_order,
            empty_batches: guards.empty_batches,
        }
    }

    fn can_reduce_micro_batch(&self) -> bool {
        self.config.settings.guards.gpu_shrink && self.micro_batch.get() > 1
    }

    fn reduce_micro_batch(&mut self) -> Result<(), WorkerError> {
        let from = self.micro_batch.get();
        self.micro_batch = NonZeroUsize::new(from.div_ceil(2)).unwrap_or(NonZeroUsize::MIN);
        self.engine.release_caches();
        (self.config.emit)(WorkerEvent::MicroBatchReduced { from, to: self.micro_batch.get() });
        Ok(())
    }

    fn handle_differing_results(&mut self, step: u64) -> Result<(), WorkerError> {
        (self.config.emit)(WorkerEvent::ResultsDiffer { step });
        self.record_gpu_fault(GpuFault::ResultsDiffer)
    }

    /// Counts a wrong result of the GPU. Fails after [`MAX_GPU_FAULTS`].
    fn record_gpu_fault(&mut self, fault: GpuFault) -> Result<(), WorkerError> {
        self.gpu_faults += 1;
        if self.gpu_faults > MAX_GPU_FAULTS {
            return Err(WorkerError::GpuFaults { fault, count: self.gpu_faults });
        }
        Ok(())
    }

    fn handle_non_finite(&mut self, report: &StepReport, part: NonFinite) -> Result<(), WorkerError> {
        let is_new = self.non_finite.insert(report.step);
        let train = &self.config.settings.train;
        if train.on_non_finite == OnNonFinite::Stop || self.non_finite.len() > train.non_finite_budget {
            return Err(WorkerError::NonFinite {
                step: report.step,
                part,
                loss: report.loss,
                count: self.non_finite.len(),
                budget: train.non_finite_budget,
            });
        }
        let reason = format!("non-finite {part} (loss {})", report.loss);
        // If the step is not finite again after a rollback, the cause is the data, and only skipping helps.
        if train.on_non_finite == OnNonFinite::Rollback && is_new {
            let to = self.resume()?;
            (self.config.emit)(WorkerEvent::RolledBack { to, reason });
            return Ok(());
        }
        self.engine.skip_batch();
        (self.config.emit)(WorkerEvent::StepSkipped { step: report.step, reason });
        Ok(())
    }

    /// Checks the frozen weights before a save. If they have changed, every step since the last save is
    /// wrong: reads or uploads the weights again, returns to the last checkpoint, and returns `false`.
    fn check_weights(&mut self) -> Result<bool, WorkerError> {
        if !self.config.settings.guards.weight_check {
            return Ok(true);
        }
        if !self.engine.base_intact() {
            return self.read_weights_again().map(|()| false);
        }
        if !self.on_gpu {
            return Ok(true);
        }
        if self.engine.weights_intact()? {
            return Ok(true);
        }
        self.record_gpu_fault(GpuFault::WeightsChanged)?;
        self.engine.reload_weights()?;
        let to = self.resume()?;
        (self.config.emit)(WorkerEvent::WeightsReloaded { to });
        Ok(false)
    }

    /// Frozen weights have changed in the memory of the machine: reads them again, and returns to the last
    /// checkpoint.
    fn read_weights_again(&mut self) -> Result<(), WorkerError> {
        self.memory_faults += 1;
        if self.memory_faults > MAX_MEMORY_FAULTS {
            return Err(WorkerError::MemoryFaults { count: self.memory_faults });
        }
        let (_, model) = read_base(self.config, Some(&self.base))?;
        self.engine.replace_base(model);
        self.engine.reload_weights()?;
        let to = self.resume()?;
        (self.config.emit)(WorkerEvent::WeightsReadAgain { to });
        Ok(())
    }

    /// Saves and waits. Returns `false` if the save failed or the run returned to an earlier step.
    fn save(&mut self, step: u64) -> Result<bool, WorkerError> {
        self.start_save(step)?;
        self.wait_for_saver()?;
        Ok(self.last_saved_step == step)
    }

    /// Starts a save, after waiting for the one before.
    fn start_save(&mut self, step: u64) -> Result<(), WorkerError> {
        self.wait_for_saver()?;
        if !self.check_weights()? {
            return Ok(());
        }
        (self.config.emit)(WorkerEvent::Saving { step });
        if matches!(self.saver, Saver::Background { .. }) {
            let snapshot = self.engine.snapshot()?;
            self.saver.start(step, snapshot);
            return Ok(());
        }
        let state = self.engine.state()?;
        let checkpoints = Arc::clone(&self.checkpoints);
        let mut result = Ok(());
        save_and_prune(&checkpoints, step, &state, |event| {
            if result.is_ok() {
                result = self.handle_saver_event(event);
            }
        });
        result
    }

    fn wait_for_saver(&mut self) -> Result<(), WorkerError> {
        self.drain_saver_events(true)
    }

    fn drain_saver_events(&mut self, wait: bool) -> Result<(), WorkerError> {
        while let Some(event) = self.saver.next_event(wait) {
            self.handle_saver_event(event)?;
        }
        Ok(())
    }

    /// Reports the result of a save. A failed save is retried at the next save interval.
    fn handle_saver_event(&mut self, event: SaverEvent) -> Result<(), WorkerError> {
        match event {
            SaverEvent::Saved { step } => {
                self.last_saved_step = step;
                self.is_marked = self.is_marked || mark_saved(self.config, step);
                (self.config.emit)(WorkerEvent::Saved { step });
            }
            SaverEvent::Failed { error, .. }
                if error.is_read_only() && !self.config.settings.guards.read_only_wait =>
            {
                return Err(WorkerError::ReadOnly(error));
            }
            SaverEvent::Failed { step, error } => {
                let reason = chain(&error);
                (self.config.emit)(match error {
                    SaveError::Deferred { .. } => WorkerEvent::SaveDeferred { step, reason },
                    _ => WorkerEvent::SaveFailed { step, reason },
                });
            }
            SaverEvent::CopyFailed { error } => return Err(error.into()),
            SaverEvent::ThreadEnded => return Err(WorkerError::SaverEnded),
            SaverEvent::Pruned => {}
        }
        Ok(())
    }

    /// Saves the last step, and retries for `train.save_patience_s`. Returns early if the run went back to an
    /// earlier step.
    fn final_save(&mut self) -> Result<(), WorkerError> {
        let step = self.engine.cursor().step;
        let deadline = Instant::now() + Duration::from_secs(self.config.settings.train.save_patience_s);
        let mut delay = SAVE_RETRY_DELAY;
        self.wait_for_saver()?;
        while step > self.last_saved_step && !self.save(step)? && self.engine.finished() {
            if Instant::now() > deadline || (self.config.stop_requested)() {
                return Err(WorkerError::LastSave(step));
            }
            progress::advance();
            std::thread::sleep(delay);
            delay = (delay * 2).min(MAX_SAVE_RETRY_DELAY);
        }
        Ok(())
    }

    /// Writes the finished adapter to `done/`.
    fn write_result(&mut self) -> Result<Exit, WorkerError> {
        let state = self.engine.state()?;
        if self.config.settings.guards.learned_check {
            check_learned(&state)?;
        }
        let ResultFiles { files, result: FinishedResult { step, adapter, .. } } =
            result_files(self.config.job, &self.base, &self.config.settings.recipe, &state)?;
        let target = self.config.layout.done().join(self.config.job);
        let sync = sync_policy(&self.config.settings.guards);
        with_patience(
            self.config,
            |_: &SaveError| true,
            || {
                if self.config.settings.guards.no_links {
                    durable::refuse_link(&self.config.layout.done())?;
                }
                if self.config.settings.guards.space_check {
                    durable::check_space(&self.config.layout.done(), required_space(&files))?;
                }
                let incomplete = read_result(&target, self.config.job).err();
                if let Some(aside) = durable::move_aside(&target)? {
                    let to = aside.display().to_string();
                    let reason = incomplete.map_or_else(|| "it is in the way".into(), |error| chain(&error));
                    (self.config.emit)(WorkerEvent::MovedAside { to, reason });
                }
                Ok(durable::write_dir(&target, &files, sync, true)?)
            },
        )?;
        (self.config.emit)(WorkerEvent::Finished { step, adapter });
        Ok(Exit::Done)
    }
}

/// Fails if nothing was learned: no update was made, the adapter is still the one of the start, or it has
/// values that are not finite.
fn check_learned(state: &TrainState) -> Result<(), WorkerError> {
    if let Some(tensor) =
        state.adapter.iter().find(|tensor| !tensor.data.iter().all(|value| value.is_finite()))
    {
        return Err(WorkerError::AdapterNotFinite { name: tensor.name.clone() });
    }
    // The B matrices begin as zeros, and any update changes them.
    let mut b_matrices = state.adapter.iter().filter(|tensor| tensor.name.contains("lora_B"));
    let is_untouched = b_matrices.all(|tensor| tensor.data.iter().all(|value| *value == 0.0));
    if state.cursor.updates == 0 || is_untouched {
        return Err(WorkerError::NothingLearned { steps: state.cursor.step, updates: state.cursor.updates });
    }
    Ok(())
}

/// Chooses the device. If `auto` finds no usable GPU, it logs the reason and chooses the CPU.
fn resolve_device(request: DeviceRequest) -> DeviceId {
    match request {
        DeviceRequest::Cpu => DeviceId::Cpu,
        DeviceRequest::Cuda(index) => DeviceId::Cuda(index),
        DeviceRequest::Auto => match cuda_device_count() {
            Ok(count) if count > 0 => DeviceId::Cuda(0),
            Ok(_) => DeviceId::Cpu,
            Err(error) => {
                tracing::info!("no usable GPU, training on the CPU: {error}");
                DeviceId::Cpu
            }
        },
    }
}
