//! A worker's life: takes one job up where it stands, trains it, saves as it goes, and leaves the finished adapter.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Engine, NonFinite, StepReport, Word};
use crate::durable;
use crate::exit::Exit;
use crate::intake::{ContentId, Sample, read_samples};
use crate::settings::{OnNonFinite, Settings};
use crate::store::{Checkpoints, Layout, LoadError, SaveError, SaveRules, adapter_files, care};

/// First and longest wait between two tries of the last save.
const SAVE_AGAIN: Duration = Duration::from_millis(50);
const SAVE_AGAIN_MOST: Duration = Duration::from_secs(2);

/// What a worker is told.
pub struct Orders<'a> {
    pub layout: &'a Layout,
    pub settings: &'a Settings,
    pub job: &'a str,
    pub micro_batch: NonZeroUsize,
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
    checkpoints: Checkpoints,
    /// Steps that were not finite, each counted once however often it was done again.
    non_finite: BTreeSet<u64>,
    saved: u64,
}

impl<'a> Work<'a> {
    fn begin(orders: &'a Orders<'a>) -> Step<Work<'a>> {
        let Settings { train, recipe, guards, .. } = orders.settings;
        let base = base_digest(&orders.layout.base()).map_err(|why| (Exit::Base, why))?;
        let engine = Engine::new(&orders.layout.base(), recipe.clone(), samples(orders)?)
            .map_err(|error| (Exit::Base, error.to_string()))?;
        let rules = SaveRules { guards: guards.clone(), keep: train.keep };
        let checkpoints =
            Checkpoints::new(orders.layout.job_checkpoints(orders.job), base, recipe.clone(), rules);
        if let Err(error) = checkpoints.clean() {
            tracing::warn!("unfinished checkpoints stay for now: {error}");
        }
        let mut work = Work { orders, engine, checkpoints, non_finite: BTreeSet::new(), saved: 0 };
        let step = work.resume()?;
        (orders.say)(Word::Resumed { step });
        Ok(work)
    }

    /// Goes back to the newest good checkpoint, or to the beginning if there has never been one.
    fn resume(&mut self) -> Step<u64> {
        let resume = self.checkpoints.resume().map_err(|error| {
            let exit =
                if matches!(error, LoadError::NoneGood(_)) { Exit::NoGoodCheckpoint } else { Exit::Base };
            (exit, error.to_string())
        })?;
        for passed in resume.passed_over {
            (self.orders.say)(Word::PassedOver { name: passed.name, reason: passed.reason });
        }
        let Some(state) = resume.state else { return Ok(0) };
        let step = state.cursor.step;
        self.saved = step;
        self.engine.restore(state).map_err(|why| (Exit::NoGoodCheckpoint, why))?;
        Ok(step)
    }

    fn run(&mut self) -> Step<Exit> {
        let train = &self.orders.settings.train;
        while !self.engine.finished() {
            let report = self.engine.step(self.orders.micro_batch, self.orders.settings.guards.finite_check);
            match report.non_finite {
                Some(what) => self.not_finite(&report, what)?,
                None => {
                    (self.orders.say)(Word::Step { step: report.step, loss: format!("{:.6}", report.loss) })
                }
            }
            let step = self.engine.cursor().step;
            let asked = (self.orders.asked_to_end)();
            if asked
                || (step.is_multiple_of(train.save_every) && step > self.saved && !self.engine.finished())
            {
                self.save(step)?;
            }
            if asked {
                return Err((Exit::Interrupted, format!("asked to end; saved step {}", self.saved)));
            }
        }
        self.last_save()?;
        self.leave()
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

    /// A save that can't be made is told, and made at the next occasion.
    fn save(&mut self, step: u64) -> Step<bool> {
        (self.orders.say)(Word::Saving { step });
        match self.checkpoints.save(&self.engine.state()) {
            Ok(()) => {
                self.saved = step;
                (self.orders.say)(Word::Saved { step });
                if let Err(error) = self.checkpoints.prune(step) {
                    tracing::warn!("old checkpoints stay for now: {error}");
                }
                Ok(true)
            }
            Err(error) if error.is_read_only() && !self.orders.settings.guards.read_only_wait => {
                Err((Exit::Disk, error.to_string()))
            }
            Err(error) => {
                let why = error.to_string();
                let word = if matches!(error, SaveError::PutOff(_)) {
                    Word::PutOff { step, why }
                } else {
                    Word::SaveFailed { step, why }
                };
                (self.orders.say)(word);
                Ok(false)
            }
        }
    }

    /// The run never ends well with its last steps unsaved.
    fn last_save(&mut self) -> Step<()> {
        let step = self.engine.cursor().step;
        let until = Instant::now() + Duration::from_secs(self.orders.settings.train.save_patience_s);
        let mut wait = SAVE_AGAIN;
        while step > self.saved && !self.save(step)? {
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
        let state = self.engine.state();
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
