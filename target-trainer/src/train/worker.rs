//! A worker's life: takes one job up where it stands, trains it, saves as it goes, and leaves the finished adapter.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::saver::{Saver, Told, write};
use super::{
    Engine, EngineError, EngineSpec, NonFinite, RestoreError, StepOptions, StepReport, TrainState, Word,
};
use crate::device::{DeviceError, Place, Pulse, cuda_devices};
use crate::durable;
use crate::exit::Exit;
use crate::intake::{ContentId, Sample, read_samples};
use crate::settings::{Asked, OnNonFinite, Settings};
use crate::store::{Checkpoints, Layout, LoadError, SaveError, SaveRules, adapter_files, care};

/// First and longest wait between two tries of the last save.
const SAVE_AGAIN: Duration = Duration::from_millis(50);
const SAVE_AGAIN_MOST: Duration = Duration::from_secs(2);
/// A GPU that is caught at a wrong number or a changed weight more often than this is not trusted again.
const DISTRUST: usize = 3;

/// What a worker is told.
pub struct Orders<'a> {
    pub layout: &'a Layout,
    pub settings: &'a Settings,
    pub job: &'a str,
    pub micro_batch: NonZeroUsize,
    pub place: Asked,
    /// Tells whoever asks how long the device has been waited for.
    pub pulse: Arc<Pulse>,
    /// Says a word to the daemon.
    pub say: &'a dyn Fn(Word),
    /// Whether a signal asked for the end.
    pub asked_to_end: &'a dyn Fn() -> bool,
}

/// Trains the job to its end, or as far as it goes.
pub fn work(orders: &Orders<'_>) -> Exit {
    match Work::begin(orders).and_then(|mut work| work.run()) {
        Ok(exit) => exit,
        Err((exit, why)) => {
            (orders.say)(Word::Ending { why });
            exit
        }
    }
}

type Step<T> = Result<T, (Exit, String)>;

struct Work<'a> {
    orders: &'a Orders<'a>,
    engine: Engine,
    on_gpu: bool,
    micro_batch: NonZeroUsize,
    checkpoints: Arc<Checkpoints>,
    saver: Saver,
    /// Where it all begins, if there has never been a checkpoint.
    scratch: Option<TrainState>,
    /// Steps that were not finite, each counted once however often it was done again.
    non_finite: BTreeSet<u64>,
    /// Times that the GPU was caught.
    caught: usize,
    saved: u64,
}

impl<'a> Work<'a> {
    fn begin(orders: &'a Orders<'a>) -> Step<Work<'a>> {
        let Settings { train, recipe, guards, device, .. } = orders.settings;
        let base = base_digest(&orders.layout.base()).map_err(|why| (Exit::Base, why))?;
        let place = found(orders.place);
        let spec = EngineSpec { place, precision: device.precision, pulse: Arc::clone(&orders.pulse) };
        let engine = Engine::new(&orders.layout.base(), recipe.clone(), samples(orders)?, &spec)
            .map_err(engine_failed)?;
        (orders.say)(Word::On { device: engine.device_name() });
        let rules = SaveRules { guards: guards.clone(), keep: train.keep };
        let checkpoints = Arc::new(Checkpoints::new(
            orders.layout.job_checkpoints(orders.job),
            base,
            recipe.clone(),
            rules,
        ));
        if let Err(error) = checkpoints.clean() {
            tracing::warn!("unfinished checkpoints stay for now: {error}");
        }
        let on_gpu = place != Place::Cpu;
        let saver = match on_gpu && device.background_save {
            true => Saver::in_background(Arc::clone(&checkpoints))
                .map_err(|error| (Exit::Failed, format!("could not start the saver's thread: {error}")))?,
            false => Saver::OnTheSpot,
        };
        let mut work = Work {
            orders,
            engine,
            on_gpu,
            micro_batch: orders.micro_batch,
            checkpoints,
            saver,
            scratch: None,
            non_finite: BTreeSet::new(),
            caught: 0,
            saved: 0,
        };
        work.compare_with_cpu()?;
        let step = work.resume()?;
        (orders.say)(Word::Resumed { step });
        Ok(work)
    }

    /// A GPU that computes something else than the CPU trains something else.
    fn compare_with_cpu(&mut self) -> Step<()> {
        if !self.on_gpu || !self.orders.settings.guards.parity_check {
            return Ok(());
        }
        match self.engine.compare_with_cpu().map_err(device_failed)? {
            Some(disagreement) => {
                Err((Exit::GpuWrong, format!("the GPU disagrees with the CPU: {disagreement}")))
            }
            None => Ok(()),
        }
    }

    /// Goes back to the newest good checkpoint, or to the beginning if there has never been one.
    fn resume(&mut self) -> Step<u64> {
        self.settle()?;
        let resume = self.checkpoints.resume().map_err(|error| {
            let exit =
                if matches!(error, LoadError::NoneGood(_)) { Exit::NoGoodCheckpoint } else { Exit::Base };
            (exit, error.to_string())
        })?;
        for passed in resume.passed_over {
            (self.orders.say)(Word::PassedOver { name: passed.name, reason: passed.reason });
        }
        let state = match (resume.state, &self.scratch) {
            (Some(state), _) => state,
            (None, Some(scratch)) => scratch.clone(),
            (None, None) => {
                self.scratch = Some(self.engine.state().map_err(device_failed)?);
                return Ok(0);
            }
        };
        let step = state.cursor.step;
        self.saved = step;
        self.engine.restore(state).map_err(|error| match error {
            RestoreError::Unfit(why) => (Exit::NoGoodCheckpoint, why),
            RestoreError::Device(error) => device_failed(error),
        })?;
        Ok(step)
    }

    fn run(&mut self) -> Step<Exit> {
        let train = &self.orders.settings.train;
        while !self.engine.finished() {
            self.step()?;
            self.heed_saver(false)?;
            let step = self.engine.cursor().step;
            let asked = (self.orders.asked_to_end)();
            if asked {
                self.save(step)?;
                return Err((Exit::Interrupted, format!("asked to end; saved step {}", self.saved)));
            }
            if step.is_multiple_of(train.save_every) && step > self.saved && !self.engine.finished() {
                self.begin_save(step)?;
            }
            if self.engine.finished() {
                self.last_save()?;
            }
        }
        self.leave()
    }

    /// One step, or what has to be done before it can be done again.
    fn step(&mut self) -> Step<()> {
        let report = match self.engine.step(self.options()) {
            Ok(report) => report,
            Err(DeviceError::OutOfMemory { .. }) if self.can_shrink() => return self.shrink(),
            Err(error) => return Err(device_failed(error)),
        };
        if report.disagreed {
            return self.disagreed(report.step);
        }
        match report.non_finite {
            Some(what) => self.not_finite(&report, what)?,
            None => (self.orders.say)(Word::Step { step: report.step, loss: format!("{:.6}", report.loss) }),
        }
        Ok(())
    }

    fn options(&self) -> StepOptions {
        let Settings { device, guards, .. } = self.orders.settings;
        let next = self.engine.cursor().step + 1;
        let is_due = device.recheck_every > 0 && next.is_multiple_of(device.recheck_every);
        StepOptions {
            micro_batch: self.micro_batch,
            check_finite: guards.finite_check,
            recheck: self.on_gpu && guards.recheck && is_due,
        }
    }

    fn can_shrink(&self) -> bool {
        self.orders.settings.guards.gpu_shrink && self.micro_batch.get() > 1
    }

    fn shrink(&mut self) -> Step<()> {
        let from = self.micro_batch.get();
        self.micro_batch = NonZeroUsize::new(from.div_ceil(2)).unwrap_or(NonZeroUsize::MIN);
        self.engine.release_caches();
        (self.orders.say)(Word::Shrunk { from, to: self.micro_batch.get() });
        Ok(())
    }

    fn disagreed(&mut self, step: u64) -> Step<()> {
        (self.orders.say)(Word::Disagreed { step });
        self.catch("computed one batch twice and got different results")
    }

    /// Once more that the GPU is not what it should be.
    fn catch(&mut self, what: &str) -> Step<()> {
        self.caught += 1;
        match self.caught > DISTRUST {
            true => Err((Exit::GpuWrong, format!("the GPU has {what} {} times", self.caught))),
            false => Ok(()),
        }
    }

    fn not_finite(&mut self, report: &StepReport, what: NonFinite) -> Step<()> {
        let is_new = self.non_finite.insert(report.step);
        let train = &self.orders.settings.train;
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
            (self.orders.say)(Word::RolledBack { to, what: words });
            return Ok(());
        }
        self.engine.skip();
        (self.orders.say)(Word::Skipped { step: report.step, what: words });
        Ok(())
    }

    /// Frozen weights that have changed make every step since the last save worthless: none of them is ever saved.
    /// False: they had changed, and the run has gone back.
    fn weights_are_intact(&mut self) -> Step<bool> {
        if !self.on_gpu || !self.orders.settings.guards.weight_check {
            return Ok(true);
        }
        if self.engine.weights_intact().map_err(device_failed)? {
            return Ok(true);
        }
        self.catch("changed frozen weights")?;
        self.engine.reload_weights().map_err(device_failed)?;
        let to = self.resume()?;
        (self.orders.say)(Word::WeightsMended { to });
        Ok(false)
    }

    /// Saves, and waits for what comes of it. False: it could not be made, or the run has gone back.
    fn save(&mut self, step: u64) -> Step<bool> {
        self.begin_save(step)?;
        self.settle()?;
        Ok(self.saved == step)
    }

    /// One at a time: an earlier save is waited for.
    fn begin_save(&mut self, step: u64) -> Step<()> {
        self.settle()?;
        if !self.weights_are_intact()? {
            return Ok(());
        }
        (self.orders.say)(Word::Saving { step });
        if matches!(self.saver, Saver::InBackground { .. }) {
            let snapshot = self.engine.snapshot().map_err(device_failed)?;
            self.saver.begin(step, snapshot);
            return Ok(());
        }
        let state = self.engine.state().map_err(device_failed)?;
        let checkpoints = Arc::clone(&self.checkpoints);
        let mut heard = Ok(());
        write(&checkpoints, step, &state, |told| {
            if heard.is_ok() {
                heard = self.heed(told);
            }
        });
        heard
    }

    fn settle(&mut self) -> Step<()> {
        self.heed_saver(true)
    }

    fn heed_saver(&mut self, wait: bool) -> Step<()> {
        while let Some(told) = self.saver.next(wait) {
            self.heed(told)?;
        }
        Ok(())
    }

    /// A save that can't be made is told, and made at the next occasion.
    fn heed(&mut self, told: Told) -> Step<()> {
        match told {
            Told::Saved { step } => {
                self.saved = step;
                (self.orders.say)(Word::Saved { step });
            }
            Told::Failed { error, .. }
                if error.is_read_only() && !self.orders.settings.guards.read_only_wait =>
            {
                return Err((Exit::Disk, error.to_string()));
            }
            Told::Failed { step, error } => {
                let why = error.to_string();
                (self.orders.say)(match error {
                    SaveError::PutOff(_) => Word::PutOff { step, why },
                    _ => Word::SaveFailed { step, why },
                });
            }
            Told::Lost { error } => return Err(device_failed(error)),
            Told::Tidied => {}
        }
        Ok(())
    }

    /// The run never ends well with its last steps unsaved. Where the weights had changed, it goes on instead.
    fn last_save(&mut self) -> Step<()> {
        let step = self.engine.cursor().step;
        let until = Instant::now() + Duration::from_secs(self.orders.settings.train.save_patience_s);
        let mut wait = SAVE_AGAIN;
        self.settle()?;
        while step > self.saved && !self.save(step)? && self.engine.finished() {
            if Instant::now() > until || (self.orders.asked_to_end)() {
                return Err((Exit::Disk, format!("the last save, of step {step}, could not be made")));
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(SAVE_AGAIN_MOST);
        }
        Ok(())
    }

    /// Leaves the finished adapter in `done/`.
    fn leave(&mut self) -> Step<Exit> {
        let failed = |error: &dyn std::fmt::Display| (Exit::Disk, error.to_string());
        let state = self.engine.state().map_err(device_failed)?;
        let mut files = Vec::from(
            adapter_files(&self.orders.settings.recipe, &state.adapter).map_err(|error| failed(&error))?,
        );
        let adapter = format!("blake3:{}", blake3::hash(&files[1].1).to_hex());
        let report = serde_json::json!({ "job": self.orders.job, "step": state.cursor.step, "updates": state.cursor.updates, "adapter": adapter });
        files.push(("report.json", report.to_string().into_bytes()));
        let target = self.orders.layout.done().join(self.orders.job);
        let care = care(&self.orders.settings.guards);
        durable::remove_tree(&target)
            .and_then(|()| durable::write_dir(&target, &files, care, true))
            .map_err(|error| failed(&error))?;
        (self.orders.say)(Word::Finished { step: state.cursor.step, adapter });
        Ok(Exit::Done)
    }
}

/// Where training runs. `auto` does without a GPU that can't be used, and says why.
fn found(asked: Asked) -> Place {
    match asked {
        Asked::Cpu => Place::Cpu,
        Asked::Cuda(number) => Place::Cuda(number),
        Asked::Auto => match cuda_devices() {
            Ok(count) if count > 0 => Place::Cuda(0),
            Ok(_) => Place::Cpu,
            Err(error) => {
                tracing::info!("trains on the CPU: {error}");
                Place::Cpu
            }
        },
    }
}

fn device_failed(error: DeviceError) -> (Exit, String) {
    let exit = match error {
        DeviceError::Missing { code: Some(_), .. } => Exit::GpuMissing,
        DeviceError::Missing { code: None, .. } | DeviceError::Unfit { .. } => Exit::GpuUnfit,
        DeviceError::Broken { .. } | DeviceError::OutOfMemory { .. } | DeviceError::Refused { .. } => {
            Exit::Gpu
        }
    };
    (exit, error.to_string())
}

fn engine_failed(error: EngineError) -> (Exit, String) {
    match error {
        EngineError::Base(error) => (Exit::Base, error.to_string()),
        EngineError::Device(error) => device_failed(error),
    }
}

fn samples(orders: &Orders<'_>) -> Step<Vec<Sample>> {
    let path = orders.layout.job_data(orders.job);
    let failed = |error: &dyn std::fmt::Display| (Exit::Failed, format!("`{}`: {error}", path.display()));
    let file = std::fs::File::open(&path).map_err(|error| failed(&error))?;
    let mut content = ContentId::default();
    let read: Result<_, std::convert::Infallible> =
        read_samples(file, &orders.settings.limits, &orders.settings.guards, |line| {
            content.add(line);
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
