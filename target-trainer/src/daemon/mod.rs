//! The daemon: takes files in, has one worker at a time train them, and decides what each end of a worker means.

mod accept;
mod cgroup;
mod endings;
mod inbox;
mod jobs;
mod status;
mod worker_process;

use std::time::{Duration, Instant};

use crate::device::{GpuHealth, Look, Remark};
use crate::durable::{self, DurableError};
use crate::exit::Exit;
use crate::settings::{Asked, Settings};
use crate::store::Layout;
use crate::train::Word;

use endings::{Crashes, Next};
use inbox::Inbox;
use jobs::Job;
use status::Status;
use worker_process::Worker;

/// How long the loop waits for a word before it looks around again.
const TICK: Duration = Duration::from_millis(10);
/// The inbox is looked through at least so often, also without word from the kernel.
const RESCAN: Duration = Duration::from_millis(500);

/// How long the last look at the GPU may take.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// What a daemon is told.
pub struct Orders<'a> {
    pub layout: Layout,
    pub settings: Settings,
    /// End once everything is done.
    pub drain: bool,
    /// Says a line to whoever listens on standard output.
    pub say: &'a dyn Fn(&str),
    /// Whether a signal asked for the end.
    pub asked_to_end: &'a dyn Fn() -> bool,
}

/// Why a daemon ends before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("root `{root}` is in use by another daemon ({holder}); stop that one first")]
    Locked { root: String, holder: String },
    #[error(transparent)]
    Disk(#[from] DurableError),
    #[error("could not read `{path}`: {error}")]
    Read { path: String, error: std::io::Error },
    #[error("could not start a worker: {0}; the job stays where it is")]
    Worker(std::io::Error),
    #[error("{reason}")]
    Stopped { exit: Exit, reason: String },
}

impl DaemonError {
    pub fn exit(&self) -> Exit {
        match self {
            DaemonError::Locked { .. } => Exit::Locked,
            DaemonError::Disk(_) => Exit::Disk,
            DaemonError::Stopped { exit, .. } => *exit,
            DaemonError::Read { .. } | DaemonError::Worker(_) => Exit::Failed,
        }
    }
}

/// Runs until it is asked to end, or, with `drain`, until everything is done.
pub fn run(orders: &Orders<'_>) -> Result<Exit, DaemonError> {
    let Layout { .. } = &orders.layout;
    for folder in orders.layout.folders() {
        durable::create_dir(&folder)?;
    }
    let note = format!("pid {}\n", std::process::id());
    let _lock = durable::lock(&orders.layout.lock(), &note).map_err(|held| match held {
        Ok(holder) => DaemonError::Locked {
            root: orders.layout.root().display().to_string(),
            holder: holder.trim().to_owned(),
        },
        Err(error) => DaemonError::Disk(error),
    })?;
    jobs::clean(&orders.layout)?;
    let status = Status::new(&orders.layout, &orders.settings.guards);
    let (inbox, health) = (Inbox::new(&orders.layout), watch_gpu(&orders.settings));
    Daemon { orders, inbox, status, health, under: None, scanned: None }.run()
}

fn watch_gpu(settings: &Settings) -> Option<GpuHealth> {
    let number = match settings.device.place {
        Asked::Cpu => return None,
        Asked::Auto => 0,
        Asked::Cuda(number) => number,
    };
    if !settings.guards.gpu_health {
        return None;
    }
    let every = Duration::from_millis(settings.device.health_every_ms);
    GpuHealth::watch(u32::try_from(number).ok()?, every)
        .inspect_err(|why| tracing::info!("the GPU's health is not watched: {why}"))
        .ok()
}

/// A job and its worker.
struct Under {
    job: Job,
    worker: Option<Worker>,
    /// When the next worker may be started.
    not_before: Instant,
    crashes: Crashes,
    why: Option<String>,
}

struct Daemon<'a> {
    orders: &'a Orders<'a>,
    inbox: Inbox,
    status: Status,
    /// None: there is no GPU, or nobody wants to know.
    health: Option<GpuHealth>,
    under: Option<Under>,
    scanned: Option<Instant>,
}

impl Daemon<'_> {
    fn run(mut self) -> Result<Exit, DaemonError> {
        loop {
            if (self.orders.asked_to_end)() {
                return self.end_early();
            }
            self.look_into_inbox()?;
            self.look_at_gpu();
            if self.under.is_none() {
                self.take_up_job()?;
            }
            match &self.under {
                Some(_) => self.watch_worker()?,
                None if self.orders.drain
                    && self.inbox.is_quiet()
                    && jobs::next(&self.orders.layout)?.is_none() =>
                {
                    self.look_at_gpu_once_more();
                    self.status.idle();
                    return Ok(Exit::Done);
                }
                None => std::thread::sleep(TICK),
            }
        }
    }

    fn look_into_inbox(&mut self) -> Result<(), DaemonError> {
        let due = self.scanned.is_none_or(|at| at.elapsed() > RESCAN);
        if !due && !self.inbox.wants_a_look() {
            return Ok(());
        }
        self.scanned = Some(Instant::now());
        self.inbox.look(self.orders)
    }

    fn look_at_gpu(&mut self) {
        while let Some(look) = self.health.as_ref().and_then(GpuHealth::look) {
            self.heed(look);
        }
    }

    /// What happened since the last look is told before the end.
    fn look_at_gpu_once_more(&mut self) {
        let looks = self.health.as_ref().map(|health| health.look_now(LAST_LOOK)).unwrap_or_default();
        looks.into_iter().for_each(|look| self.heed(look));
    }

    fn heed(&mut self, look: Look) {
        for remark in look.remarks {
            let (Remark::Warning(word) | Remark::Distrust(word)) = &remark;
            (self.orders.say)(&format!("gpu warning: {word}"));
            self.status.trouble(word);
            let worker = self.under.as_mut().and_then(|under| under.worker.as_mut());
            if let (Remark::Distrust(_), Some(worker)) = (&remark, worker) {
                worker.silence("may have computed on what a GPU error has changed");
            }
        }
        self.status.gpu(look.facts);
    }

    fn tidy_away(&self, job: &jobs::Job) -> Result<(), DaemonError> {
        let whole = self.orders.settings.guards.prune_whole;
        Ok(jobs::tidy_away(&self.orders.layout, job, whole)?)
    }

    fn take_up_job(&mut self) -> Result<(), DaemonError> {
        let Some(job) = jobs::next(&self.orders.layout)? else { return Ok(()) };
        // Finished before an earlier daemon was killed, but not yet tidied away.
        if let Some((step, adapter)) = jobs::finished(&self.orders.layout, &job) {
            (self.orders.say)(&format!("finished job {} at step {step} adapter {adapter}", job.id));
            return self.tidy_away(&job);
        }
        let crashes = Crashes::new(&self.orders.settings);
        self.under = Some(Under { job, worker: None, not_before: Instant::now(), crashes, why: None });
        Ok(())
    }

    fn watch_worker(&mut self) -> Result<(), DaemonError> {
        let Some(under) = &mut self.under else { return Ok(()) };
        let Some(worker) = &mut under.worker else {
            if Instant::now() < under.not_before {
                std::thread::sleep(TICK);
                return Ok(());
            }
            under.worker = Some(
                Worker::start(self.orders, &under.job, under.crashes.micro_batch(), under.crashes.place())
                    .map_err(DaemonError::Worker)?,
            );
            return Ok(());
        };
        match worker.next(TICK) {
            Some(word) => self.relay(word),
            None => match worker.ended() {
                Some(ended) => return self.worker_ended(ended),
                None => worker.replace_if_silent(&self.orders.settings),
            },
        }
        Ok(())
    }

    /// What the worker says, in the words of the daemon.
    fn relay(&mut self, word: Word) {
        let Some(under) = &mut self.under else { return };
        let line = match &word {
            Word::Alive => return,
            Word::Resumed { step } => format!("resumed from step {step}"),
            Word::PassedOver { name, reason } => format!("passed over checkpoint {name}: {reason}"),
            Word::Step { step, loss } => format!("step {step} loss {loss}"),
            Word::Saving { step } => format!("saving step {step}"),
            Word::Saved { step } => format!("saved step {step}"),
            Word::PutOff { step, why } => format!("save of step {step} put off: {why}"),
            Word::SaveFailed { step, why } => format!("save of step {step} failed: {why}"),
            Word::Skipped { step, what } => format!("skipped step {step}: {what}"),
            Word::RolledBack { to, what } => format!("rolled back to step {to}: {what}"),
            Word::Finished { step, adapter } => {
                format!("finished job {} at step {step} adapter {adapter}", under.job.id)
            }
            Word::On { device } => format!("trains on {device}"),
            Word::Shrunk { from, to } => {
                format!("out of device memory; micro-batch {from} -> {to}, same effective batch")
            }
            Word::WeightsMended { to } => {
                format!(
                    "frozen weights have changed in device memory; loaded again; rolled back to step {to}"
                )
            }
            Word::Disagreed { step } => format!("recomputed step {step}: the results differ; done again"),
            Word::Stuck { seconds } => {
                under.worker.iter_mut().for_each(|worker| worker.silence("waited for its GPU too long"));
                format!("the GPU has not answered for {seconds} s")
            }
            Word::Ending { why } => {
                under.why = Some(why.clone());
                return;
            }
        };
        match word {
            Word::Saved { .. } => under.crashes.progressed(),
            Word::Shrunk { to, .. } => under.crashes.shrunk(to),
            _ => {}
        }
        self.status.note(&under.job.id, &word, under.crashes.micro_batch());
        (self.orders.say)(&line);
    }

    fn worker_ended(&mut self, ended: endings::Ended) -> Result<(), DaemonError> {
        let Some(mut under) = self.under.take() else { return Ok(()) };
        let why = under.why.take().unwrap_or_default();
        match under.crashes.judge(ended, &why) {
            Next::Done => self.tidy_away(&under.job),
            Next::Fail { reason } => {
                (self.orders.say)(&format!("failed job {}: {reason}", under.job.id));
                Ok(jobs::fail(&self.orders.layout, &under.job, &reason)?)
            }
            Next::Stop { exit, reason } => Err(DaemonError::Stopped { exit, reason }),
            Next::Again { word, wait } => {
                (self.orders.say)(&word);
                under.worker = None;
                under.not_before = Instant::now() + wait;
                self.under = Some(under);
                Ok(())
            }
        }
    }

    /// Passes the signal on and waits: the worker finishes its step and saves.
    fn end_early(&mut self) -> Result<Exit, DaemonError> {
        if let Some(worker) = self.under.as_mut().and_then(|under| under.worker.as_mut()) {
            worker.ask_to_end();
        }
        while let Some(worker) = self.under.as_mut().and_then(|under| under.worker.as_mut()) {
            match worker.next(TICK) {
                Some(word) => self.relay(word),
                None if worker.ended().is_some() => break,
                None => worker.replace_if_silent(&self.orders.settings),
            }
        }
        (self.orders.say)("ended as asked; jobs go on at the next start");
        Ok(Exit::Done)
    }
}
