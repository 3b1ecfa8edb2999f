//! The daemon: takes files in, has one worker at a time train them, and decides what each end of a worker means.

mod accept;
mod cgroup;
mod inbox;
mod jobs;
mod restart_policy;
mod status;
mod worker_process;

use std::time::{Duration, Instant};

use crate::device::{GpuHealthMonitor, HealthEvent, HealthSample};
use crate::durable::{self, DurableError};
use crate::exit::Exit;
use crate::settings::{DeviceRequest, Settings};
use crate::store::RootLayout;
use crate::train::WorkerEvent;

use inbox::Inbox;
use jobs::Job;
use restart_policy::{NextAction, RestartPolicy};
use status::StatusWriter;
use worker_process::WorkerProcess;

/// How long the loop waits for a word before it looks around again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The inbox is looked through at least so often, also without word from the kernel.
const RESCAN_INTERVAL: Duration = Duration::from_millis(500);

/// How long the last look at the GPU may take.
const FINAL_GPU_CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// What a daemon is told.
pub struct DaemonConfig<'a> {
    pub layout: RootLayout,
    pub settings: Settings,
    /// End once everything is done.
    pub drain: bool,
    /// Says a line to whoever listens on standard output.
    pub print_line: &'a dyn Fn(&str),
    /// Whether a signal asked for the end.
    pub stop_requested: &'a dyn Fn() -> bool,
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
    WorkerStart(std::io::Error),
    #[error("{reason}")]
    Stopped { exit: Exit, reason: String },
}

impl DaemonError {
    pub fn exit(&self) -> Exit {
        match self {
            DaemonError::Locked { .. } => Exit::Locked,
            DaemonError::Disk(_) => Exit::Disk,
            DaemonError::Stopped { exit, .. } => *exit,
            DaemonError::Read { .. } | DaemonError::WorkerStart(_) => Exit::Failed,
        }
    }
}

/// Runs until it is asked to end, or, with `drain`, until everything is done.
pub fn run(orders: &DaemonConfig<'_>) -> Result<Exit, DaemonError> {
    let RootLayout { .. } = &orders.layout;
    for folder in orders.layout.dirs() {
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
    jobs::remove_unfinished(&orders.layout)?;
    let status = StatusWriter::new(&orders.layout, &orders.settings.guards);
    let (inbox, health) = (Inbox::new(&orders.layout), start_gpu_health(&orders.settings));
    Daemon { config: orders, inbox, status, gpu_health: health, active: None, last_scan: None }.run()
}

fn start_gpu_health(settings: &Settings) -> Option<GpuHealthMonitor> {
    let number = match settings.device.request {
        DeviceRequest::Cpu => return None,
        DeviceRequest::Auto => 0,
        DeviceRequest::Cuda(number) => number,
    };
    if !settings.guards.gpu_health {
        return None;
    }
    let every = Duration::from_millis(settings.device.health_every_ms);
    GpuHealthMonitor::start(u32::try_from(number).ok()?, every)
        .inspect_err(|why| tracing::info!("the GPU's health is not watched: {why}"))
        .ok()
}

/// A job and its worker.
struct ActiveJob {
    job: Job,
    worker: Option<WorkerProcess>,
    /// When the next worker may be started.
    earliest_start: Instant,
    restart_policy: RestartPolicy,
    exit_reason: Option<String>,
}

struct Daemon<'a> {
    config: &'a DaemonConfig<'a>,
    inbox: Inbox,
    status: StatusWriter,
    /// None: there is no GPU, or nobody wants to know.
    gpu_health: Option<GpuHealthMonitor>,
    active: Option<ActiveJob>,
    last_scan: Option<Instant>,
}

impl Daemon<'_> {
    fn run(mut self) -> Result<Exit, DaemonError> {
        loop {
            if (self.config.stop_requested)() {
                return self.stop();
            }
            self.scan_inbox()?;
            self.check_gpu();
            if self.active.is_none() {
                self.start_next_job()?;
            }
            match &self.active {
                Some(_) => self.poll_worker()?,
                None if self.config.drain
                    && self.inbox.is_empty()
                    && jobs::next_queued(&self.config.layout)?.is_none() =>
                {
                    self.check_gpu_before_exit();
                    self.status.set_idle();
                    return Ok(Exit::Done);
                }
                None => std::thread::sleep(POLL_INTERVAL),
            }
        }
    }

    fn scan_inbox(&mut self) -> Result<(), DaemonError> {
        let due = self.last_scan.is_none_or(|at| at.elapsed() > RESCAN_INTERVAL);
        if !due && !self.inbox.needs_scan() {
            return Ok(());
        }
        self.last_scan = Some(Instant::now());
        self.inbox.scan(self.config)
    }

    fn check_gpu(&mut self) {
        while let Some(look) = self.gpu_health.as_ref().and_then(GpuHealthMonitor::next_sample) {
            self.report_gpu_health(look);
        }
    }

    /// What happened since the last look is told before the end.
    fn check_gpu_before_exit(&mut self) {
        let looks = self
            .gpu_health
            .as_ref()
            .map(|health| health.sample_now(FINAL_GPU_CHECK_TIMEOUT))
            .unwrap_or_default();
        looks.into_iter().for_each(|look| self.report_gpu_health(look));
    }

    fn report_gpu_health(&mut self, look: HealthSample) {
        for remark in look.events {
            let (HealthEvent::Warning(word) | HealthEvent::Untrusted(word)) = &remark;
            (self.config.print_line)(&format!("gpu warning: {word}"));
            self.status.record_trouble(word);
            let worker = self.active.as_mut().and_then(|under| under.worker.as_mut());
            if let (HealthEvent::Untrusted(_), Some(worker)) = (&remark, worker) {
                worker.kill_with_reason("may have computed on what a GPU error has changed");
            }
        }
        self.status.set_gpu(look.reading);
    }

    fn remove_from_queue(&self, job: &jobs::Job) -> Result<(), DaemonError> {
        let whole = self.config.settings.guards.prune_whole;
        Ok(jobs::remove_from_queue(&self.config.layout, job, whole)?)
    }

    fn start_next_job(&mut self) -> Result<(), DaemonError> {
        let Some(job) = jobs::next_queued(&self.config.layout)? else { return Ok(()) };
        // Finished before an earlier daemon was killed, but not yet tidied away.
        if let Some((step, adapter)) = jobs::finished_result(&self.config.layout, &job) {
            (self.config.print_line)(&format!("finished job {} at step {step} adapter {adapter}", job.id));
            return self.remove_from_queue(&job);
        }
        let crashes = RestartPolicy::new(&self.config.settings);
        self.active = Some(ActiveJob {
            job,
            worker: None,
            earliest_start: Instant::now(),
            restart_policy: crashes,
            exit_reason: None,
        });
        Ok(())
    }

    fn poll_worker(&mut self) -> Result<(), DaemonError> {
        let Some(under) = &mut self.active else { return Ok(()) };
        let Some(worker) = &mut under.worker else {
            if Instant::now() < under.earliest_start {
                std::thread::sleep(POLL_INTERVAL);
                return Ok(());
            }
            under.worker = Some(
                WorkerProcess::start(
                    self.config,
                    &under.job,
                    under.restart_policy.micro_batch(),
                    under.restart_policy.place(),
                )
                .map_err(DaemonError::WorkerStart)?,
            );
            return Ok(());
        };
        match worker.next_event(POLL_INTERVAL) {
            Some(word) => self.handle_worker_event(word),
            None => match worker.poll_exit() {
                Some(ended) => return self.handle_worker_exit(ended),
                None => worker.kill_if_unresponsive(&self.config.settings),
            },
        }
        Ok(())
    }

    /// What the worker says, in the words of the daemon.
    fn handle_worker_event(&mut self, word: WorkerEvent) {
        let Some(under) = &mut self.active else { return };
        let line = match &word {
            WorkerEvent::Heartbeat => return,
            WorkerEvent::Resumed { step } => format!("resumed from step {step}"),
            WorkerEvent::CheckpointSkipped { name, reason } => {
                format!("passed over checkpoint {name}: {reason}")
            }
            WorkerEvent::Step { step, loss } => format!("step {step} loss {loss}"),
            WorkerEvent::Saving { step } => format!("saving step {step}"),
            WorkerEvent::Saved { step } => format!("saved step {step}"),
            WorkerEvent::SaveDeferred { step, reason: why } => format!("save of step {step} put off: {why}"),
            WorkerEvent::SaveFailed { step, reason: why } => format!("save of step {step} failed: {why}"),
            WorkerEvent::StepSkipped { step, reason: what } => format!("skipped step {step}: {what}"),
            WorkerEvent::RolledBack { to, reason: what } => format!("rolled back to step {to}: {what}"),
            WorkerEvent::Finished { step, adapter } => {
                format!("finished job {} at step {step} adapter {adapter}", under.job.id)
            }
            WorkerEvent::Device { device } => format!("trains on {device}"),
            WorkerEvent::MicroBatchReduced { from, to } => {
                format!("out of device memory; micro-batch {from} -> {to}, same effective batch")
            }
            WorkerEvent::WeightsReloaded { to } => {
                format!(
                    "frozen weights have changed in device memory; loaded again; rolled back to step {to}"
                )
            }
            WorkerEvent::ResultsDiffer { step } => {
                format!("recomputed step {step}: the results differ; done again")
            }
            WorkerEvent::GpuStuck { seconds } => {
                under
                    .worker
                    .iter_mut()
                    .for_each(|worker| worker.kill_with_reason("waited for its GPU too long"));
                format!("the GPU has not answered for {seconds} s")
            }
            WorkerEvent::ExitReason { reason: why } => {
                under.exit_reason = Some(why.clone());
                return;
            }
        };
        match word {
            WorkerEvent::Saved { .. } => under.restart_policy.record_progress(),
            WorkerEvent::MicroBatchReduced { to, .. } => under.restart_policy.set_micro_batch(to),
            _ => {}
        }
        self.status.record_event(&under.job.id, &word, under.restart_policy.micro_batch());
        (self.config.print_line)(&line);
    }

    fn handle_worker_exit(&mut self, ended: restart_policy::WorkerExit) -> Result<(), DaemonError> {
        let Some(mut under) = self.active.take() else { return Ok(()) };
        let why = under.exit_reason.take().unwrap_or_default();
        match under.restart_policy.decide(ended, &why) {
            NextAction::FinishJob => self.remove_from_queue(&under.job),
            NextAction::FailJob { reason } => {
                (self.config.print_line)(&format!("failed job {}: {reason}", under.job.id));
                Ok(jobs::move_to_failed(&self.config.layout, &under.job, &reason)?)
            }
            NextAction::StopDaemon { exit, reason } => Err(DaemonError::Stopped { exit, reason }),
            NextAction::Restart { message: word, delay: wait } => {
                (self.config.print_line)(&word);
                under.worker = None;
                under.earliest_start = Instant::now() + wait;
                self.active = Some(under);
                Ok(())
            }
        }
    }

    /// Passes the signal on and waits: the worker finishes its step and saves.
    fn stop(&mut self) -> Result<Exit, DaemonError> {
        if let Some(worker) = self.active.as_mut().and_then(|under| under.worker.as_mut()) {
            worker.request_stop();
        }
        while let Some(worker) = self.active.as_mut().and_then(|under| under.worker.as_mut()) {
            match worker.next_event(POLL_INTERVAL) {
                Some(word) => self.handle_worker_event(word),
                None if worker.poll_exit().is_some() => break,
                None => worker.kill_if_unresponsive(&self.config.settings),
            }
        }
        (self.config.print_line)("ended as asked; jobs go on at the next start");
        Ok(Exit::Done)
    }
}
