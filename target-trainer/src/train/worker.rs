//! A worker's life: takes one job up where it stands, trains it, saves as it goes, and leaves the finished adapter.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::saver::{Saver, SaverEvent, save_and_prune};
use super::{
    Engine, EngineConfig, EngineError, NonFinite, RestoreError, StepOptions, StepReport, TrainState,
    WorkerEvent,
};
use crate::device::{DeviceError, DeviceId, WaitTracker, cuda_device_count};
use crate::durable;
use crate::exit::Exit;
use crate::intake::{ContentId, Sample, read_samples};
use crate::settings::{DeviceRequest, OnNonFinite, Settings};
use crate::store::{
    CheckpointStore, ResumeError, RootLayout, SaveError, SaveOptions, adapter_files, sync_policy,
};

/// First and longest wait between two tries of the last save.
const SAVE_RETRY_DELAY: Duration = Duration::from_millis(50);
const MAX_SAVE_RETRY_DELAY: Duration = Duration::from_secs(2);
/// A GPU that is caught at a wrong number or a changed weight more often than this is not trusted again.
const MAX_GPU_FAULTS: usize = 3;

/// What a worker is told.
pub struct WorkerConfig<'a> {
    pub layout: &'a RootLayout,
    pub settings: &'a Settings,
    pub job: &'a str,
    pub micro_batch: NonZeroUsize,
    pub device: DeviceRequest,
    /// Tells whoever asks how long the device has been waited for.
    pub wait_tracker: Arc<WaitTracker>,
    /// Says a word to the daemon.
    pub emit: &'a dyn Fn(WorkerEvent),
    /// Whether a signal asked for the end.
    pub stop_requested: &'a dyn Fn() -> bool,
}

/// Trains the job to its end, or as far as it goes.
pub fn run_worker(orders: &WorkerConfig<'_>) -> Exit {
    match TrainingRun::start(orders).and_then(|mut work| work.run()) {
        Ok(exit) => exit,
        Err((exit, why)) => {
            (orders.emit)(WorkerEvent::ExitReason { reason: why });
            exit
        }
    }
}

type WorkerResult<T> = Result<T, (Exit, String)>;

struct TrainingRun<'a> {
    config: &'a WorkerConfig<'a>,
    engine: Engine,
    on_gpu: bool,
    micro_batch: NonZeroUsize,
    checkpoints: Arc<CheckpointStore>,
    saver: Saver,
    /// Where it all begins, if there has never been a checkpoint.
    initial_state: Option<TrainState>,
    /// Steps that were not finite, each counted once however often it was done again.
    non_finite: BTreeSet<u64>,
    /// Times that the GPU was caught.
    gpu_faults: usize,
    last_saved_step: u64,
}

impl<'a> TrainingRun<'a> {
    fn start(orders: &'a WorkerConfig<'a>) -> WorkerResult<TrainingRun<'a>> {
        let Settings { train, recipe, guards, device, .. } = orders.settings;
        let base = base_digest(&orders.layout.base()).map_err(|why| (Exit::BaseModel, why))?;
        let place = resolve_device(orders.device);
        let spec = EngineConfig {
            device: place,
            precision: device.precision,
            wait_tracker: Arc::clone(&orders.wait_tracker),
        };
        let engine = Engine::new(&orders.layout.base(), recipe.clone(), read_job_samples(orders)?, &spec)
            .map_err(engine_failure)?;
        (orders.emit)(WorkerEvent::Device { device: engine.device_name() });
        let rules = SaveOptions { guards: guards.clone(), keep: train.keep };
        let checkpoints = Arc::new(CheckpointStore::new(
            orders.layout.job_checkpoints(orders.job),
            base,
            recipe.clone(),
            rules,
        ));
        if let Err(error) = checkpoints.remove_unfinished() {
            tracing::warn!("unfinished checkpoints stay for now: {error}");
        }
        let on_gpu = place != DeviceId::Cpu;
        let saver = match on_gpu && device.background_save {
            true => Saver::start_background(Arc::clone(&checkpoints))
                .map_err(|error| (Exit::Failed, format!("could not start the saver's thread: {error}")))?,
            false => Saver::Foreground,
        };
        let mut work = TrainingRun {
            config: orders,
            engine,
            on_gpu,
            micro_batch: orders.micro_batch,
            checkpoints,
            saver,
            initial_state: None,
            non_finite: BTreeSet::new(),
            gpu_faults: 0,
            last_saved_step: 0,
        };
        work.compare_with_cpu()?;
        let step = work.resume()?;
        (orders.emit)(WorkerEvent::Resumed { step });
        Ok(work)
    }

    /// A GPU that computes something else than the CPU trains something else.
    fn compare_with_cpu(&mut self) -> WorkerResult<()> {
        if !self.on_gpu || !self.config.settings.guards.parity_check {
            return Ok(());
        }
        match self.engine.compare_with_cpu().map_err(device_failure)? {
            Some(disagreement) => {
                Err((Exit::GpuWrongResult, format!("the GPU disagrees with the CPU: {disagreement}")))
            }
            None => Ok(()),
        }
    }

    /// Goes back to the newest good checkpoint, or to the beginning if there has never been one.
    fn resume(&mut self) -> WorkerResult<u64> {
        self.wait_for_saver()?;
        let resume = self.checkpoints.resume().map_err(|error| {
            let exit = if matches!(error, ResumeError::NoneValid(_)) {
                Exit::NoValidCheckpoint
            } else {
                Exit::BaseModel
            };
            (exit, error.to_string())
        })?;
        for passed in resume.skipped {
            (self.config.emit)(WorkerEvent::CheckpointSkipped { name: passed.name, reason: passed.reason });
        }
        let state = match (resume.state, &self.initial_state) {
            (Some(state), _) => state,
            (None, Some(scratch)) => scratch.clone(),
            (None, None) => {
                self.initial_state = Some(self.engine.state().map_err(device_failure)?);
                return Ok(0);
            }
        };
        let step = state.cursor.step;
        self.last_saved_step = step;
        self.engine.restore(state).map_err(|error| match error {
            RestoreError::ShapeMismatch(why) => (Exit::NoValidCheckpoint, why),
            RestoreError::Device(error) => device_failure(error),
        })?;
        Ok(step)
    }

    fn run(&mut self) -> WorkerResult<Exit> {
        let train = &self.config.settings.train;
        while !self.engine.finished() {
            self.step()?;
            self.drain_saver_events(false)?;
            let step = self.engine.cursor().step;
            let asked = (self.config.stop_requested)();
            if asked {
                self.save(step)?;
                return Err((
                    Exit::Interrupted,
                    format!("asked to end; saved step {}", self.last_saved_step),
                ));
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

    /// One step, or what has to be done before it can be done again.
    fn step(&mut self) -> WorkerResult<()> {
        let report = match self.engine.step(self.step_options()) {
            Ok(report) => report,
            Err(DeviceError::OutOfMemory { .. }) if self.can_reduce_micro_batch() => {
                return self.reduce_micro_batch();
            }
            Err(error) => return Err(device_failure(error)),
        };
        if report.results_differ {
            return self.handle_differing_results(report.step);
        }
        match report.non_finite {
            Some(what) => self.handle_non_finite(&report, what)?,
            None => (self.config.emit)(WorkerEvent::Step {
                step: report.step,
                loss: format!("{:.6}", report.loss),
            }),
        }
        Ok(())
    }

    fn step_options(&self) -> StepOptions {
        let Settings { device, guards, .. } = self.config.settings;
        let next = self.engine.cursor().step + 1;
        let is_due = device.recheck_every > 0 && next.is_multiple_of(device.recheck_every);
        StepOptions {
            micro_batch: self.micro_batch,
            check_finite: guards.finite_check,
            recheck: self.on_gpu && guards.recheck && is_due,
        }
    }

    fn can_reduce_micro_batch(&self) -> bool {
        self.config.settings.guards.gpu_shrink && self.micro_batch.get() > 1
    }

    fn reduce_micro_batch(&mut self) -> WorkerResult<()> {
        let from = self.micro_batch.get();
        self.micro_batch = NonZeroUsize::new(from.div_ceil(2)).unwrap_or(NonZeroUsize::MIN);
        self.engine.release_caches();
        (self.config.emit)(WorkerEvent::MicroBatchReduced { from, to: self.micro_batch.get() });
        Ok(())
    }

    fn handle_differing_results(&mut self, step: u64) -> WorkerResult<()> {
        (self.config.emit)(WorkerEvent::ResultsDiffer { step });
        self.record_gpu_fault("computed one batch twice and got different results")
    }

    /// Once more that the GPU is not what it should be.
    fn record_gpu_fault(&mut self, what: &str) -> WorkerResult<()> {
        self.gpu_faults += 1;
        match self.gpu_faults > MAX_GPU_FAULTS {
            true => Err((Exit::GpuWrongResult, format!("the GPU has {what} {} times", self.gpu_faults))),
            false => Ok(()),
        }
    }

    fn handle_non_finite(&mut self, report: &StepReport, what: NonFinite) -> WorkerResult<()> {
        let is_new = self.non_finite.insert(report.step);
        let train = &self.config.settings.train;
        let words = format!("non-finite {what} (loss {})", report.loss);
        if train.on_non_finite == OnNonFinite::Stop || self.non_finite.len() > train.non_finite_budget {
            return Err((
                Exit::NonFinite,
                format!(
                    "step {}: {words}; {} such steps, {} are borne",
                    report.step,
                    self.non_finite.len(),
                    train.non_finite_budget
                ),
            ));
        }
        // What comes again after a rollback is in the data: only skipping leads past it.
        if train.on_non_finite == OnNonFinite::Rollback && is_new {
            let to = self.resume()?;
            (self.config.emit)(WorkerEvent::RolledBack { to, reason: words });
            return Ok(());
        }
        self.engine.skip_batch();
        (self.config.emit)(WorkerEvent::StepSkipped { step: report.step, reason: words });
        Ok(())
    }

    /// Frozen weights that have changed make every step since the last save worthless: none of them is ever saved.
    /// False: they had changed, and the run has gone back.
    fn check_weights(&mut self) -> WorkerResult<bool> {
        if !self.on_gpu || !self.config.settings.guards.weight_check {
            return Ok(true);
        }
        if self.engine.weights_intact().map_err(device_failure)? {
            return Ok(true);
        }
        self.record_gpu_fault("changed frozen weights")?;
        self.engine.reload_weights().map_err(device_failure)?;
        let to = self.resume()?;
        (self.config.emit)(WorkerEvent::WeightsReloaded { to });
        Ok(false)
    }

    /// Saves, and waits for what comes of it. False: it could not be made, or the run has gone back.
    fn save(&mut self, step: u64) -> WorkerResult<bool> {
        self.start_save(step)?;
        self.wait_for_saver()?;
        Ok(self.last_saved_step == step)
    }

    /// One at a time: an earlier save is waited for.
    fn start_save(&mut self, step: u64) -> WorkerResult<()> {
        self.wait_for_saver()?;
        if !self.check_weights()? {
            return Ok(());
        }
        (self.config.emit)(WorkerEvent::Saving { step });
        if matches!(self.saver, Saver::Background { .. }) {
            let snapshot = self.engine.snapshot().map_err(device_failure)?;
            self.saver.start(step, snapshot);
            return Ok(());
        }
        let state = self.engine.state().map_err(device_failure)?;
        let checkpoints = Arc::clone(&self.checkpoints);
        let mut heard = Ok(());
        save_and_prune(&checkpoints, step, &state, |told| {
            if heard.is_ok() {
                heard = self.handle_saver_event(told);
            }
        });
        heard
    }

    fn wait_for_saver(&mut self) -> WorkerResult<()> {
        self.drain_saver_events(true)
    }

    fn drain_saver_events(&mut self, wait: bool) -> WorkerResult<()> {
        while let Some(told) = self.saver.next_event(wait) {
            self.handle_saver_event(told)?;
        }
        Ok(())
    }

    /// A save that can't be made is told, and made at the next occasion.
    fn handle_saver_event(&mut self, told: SaverEvent) -> WorkerResult<()> {
        match told {
            SaverEvent::Saved { step } => {
                self.last_saved_step = step;
                (self.config.emit)(WorkerEvent::Saved { step });
            }
            SaverEvent::Failed { error, .. }
                if error.is_read_only() && !self.config.settings.guards.read_only_wait =>
            {
                return Err((Exit::Disk, error.to_string()));
            }
            SaverEvent::Failed { step, error } => {
                let why = error.to_string();
                (self.config.emit)(match error {
                    SaveError::Deferred(_) => WorkerEvent::SaveDeferred { step, reason: why },
                    _ => WorkerEvent::SaveFailed { step, reason: why },
                });
            }
            SaverEvent::CopyFailed { error } => return Err(device_failure(error)),
            SaverEvent::Pruned => {}
        }
        Ok(())
    }

    /// The run never ends well with its last steps unsaved. Where the weights had changed, it goes on instead.
    fn final_save(&mut self) -> WorkerResult<()> {
        let step = self.engine.cursor().step;
        let until = Instant::now() + Duration::from_secs(self.config.settings.train.save_patience_s);
        let mut wait = SAVE_RETRY_DELAY;
        self.wait_for_saver()?;
        while step > self.last_saved_step && !self.save(step)? && self.engine.finished() {
            if Instant::now() > until || (self.config.stop_requested)() {
                return Err((Exit::Disk, format!("the last save, of step {step}, could not be made")));
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(MAX_SAVE_RETRY_DELAY);
        }
        Ok(())
    }

    /// Leaves the finished adapter in `done/`.
    fn write_result(&mut self) -> WorkerResult<Exit> {
        let failed = |error: &dyn std::fmt::Display| (Exit::Disk, error.to_string());
        let state = self.engine.state().map_err(device_failure)?;
        let mut files = Vec::from(
            adapter_files(&self.config.settings.recipe, &state.adapter).map_err(|error| failed(&error))?,
        );
        let adapter = format!("blake3:{}", blake3::hash(&files[1].1).to_hex());
        let report = serde_json::json!({ "job": self.config.job, "step": state.cursor.step, "updates": state.cursor.updates, "adapter": adapter });
        files.push(("report.json", report.to_string().into_bytes()));
        let target = self.config.layout.done().join(self.config.job);
        let care = sync_policy(&self.config.settings.guards);
        durable::remove_tree(&target)
            .and_then(|()| durable::write_dir(&target, &files, care, true))
            .map_err(|error| failed(&error))?;
        (self.config.emit)(WorkerEvent::Finished { step: state.cursor.step, adapter });
        Ok(Exit::Done)
    }
}

/// Where training runs. `auto` does without a GPU that can't be used, and says why.
fn resolve_device(asked: DeviceRequest) -> DeviceId {
    match asked {
        DeviceRequest::Cpu => DeviceId::Cpu,
        DeviceRequest::Cuda(number) => DeviceId::Cuda(number),
        DeviceRequest::Auto => match cuda_device_count() {
            Ok(count) if count > 0 => DeviceId::Cuda(0),
            Ok(_) => DeviceId::Cpu,
            Err(error) => {
                tracing::info!("trains on the CPU: {error}");
                DeviceId::Cpu
            }
        },
    }
}

fn device_failure(error: DeviceError) -> (Exit, String) {
    let exit = match error {
        DeviceError::Unavailable { code: Some(_), .. } => Exit::GpuMissing,
        DeviceError::Unavailable { code: None, .. } | DeviceError::Incompatible { .. } => {
            Exit::GpuUnsupported
        }
        DeviceError::ContextLost { .. }
        | DeviceError::OutOfMemory { .. }
        | DeviceError::CallFailed { .. } => Exit::GpuFailed,
    };
    (exit, error.to_string())
}

fn engine_failure(error: EngineError) -> (Exit, String) {
    match error {
        EngineError::Base(error) => (Exit::BaseModel, error.to_string()),
        EngineError::Device(error) => device_failure(error),
    }
}

fn read_job_samples(orders: &WorkerConfig<'_>) -> WorkerResult<Vec<Sample>> {
    let path = orders.layout.job_data(orders.job);
    let failed = |error: &dyn std::fmt::Display| (Exit::Failed, format!("`{}`: {error}", path.display()));
    let file = std::fs::File::open(&path).map_err(|error| failed(&error))?;
    let mut content = ContentId::default();
    let read: Result<_, std::convert::Infallible> =
        read_samples(file, &orders.settings.limits, &orders.settings.guards, |line| {
            content.update(line);
            Ok(())
        });
    match read {
        // A job is its data: what was taken in under this name is what is trained on, or nothing is.
        Ok(Ok(_)) if content.finish() != orders.job => {
            Err(failed(&"changed since it was taken in; submit the data again"))
        }
        Ok(Ok(samples)) => Ok(samples),
        Ok(Err(error)) => Err(failed(&error)),
    }
}

/// BLAKE3 of the base's configuration and weights.
pub fn base_digest(base: &Path) -> Result<String, String> {
    let mut hasher = blake3::Hasher::new();
    for name in ["config.json", "model.safetensors"] {
        let path = base.join(name);
        let file = std::fs::File::open(&path)
            .map_err(|error| format!("base: could not read `{}`: {error}", path.display()))?;
        hasher
            .update_reader(file)
            .map_err(|error| format!("base: could not read `{}`: {error}", path.display()))?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}
