//! The daemon: accepts files from the inbox, trains one job at a time in a worker process, and restarts
//! workers. It prints only through [`DaemonConfig::print_line`].

mod accept;
mod cgroup;
mod daemon_config;
mod error;
mod inbox;
mod jobs;
mod restart_policy;
mod status;
mod worker_process;

use std::time::{Duration, Instant};

use crate::device::{GpuHealthMonitor, HealthEvent, HealthSample};
use crate::durable::{self, LockError};
use crate::exit::Exit;
use crate::file_error::chain;
use crate::settings::{DeviceRequest, Settings};
use crate::train::WorkerEvent;

pub use daemon_config::DaemonConfig;
pub use error::{AcceptError, DaemonError};
use inbox::Inbox;
use jobs::{FinishedJob, Job};
use restart_policy::{NextAction, RestartPolicy};
use status::StatusWriter;
use worker_process::WorkerProcess;

/// How long the loop waits for a worker event before it checks everything else again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum time between two scans of the inbox, with or without a notification from the kernel.
const RESCAN_INTERVAL: Duration = Duration::from_millis(500);

/// Maximum time that the last GPU health check before the exit may take.
const FINAL_GPU_CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs until a stop is requested or, with `drain`, until the inbox and the queue are empty.
///
/// # Errors
/// If another daemon uses the root, a file can't be read or written, or a worker's failure stops the daemon.
pub fn run(config: &DaemonConfig<'_>) -> Result<Exit, DaemonError> {
    for dir in config.layout.dirs() {
        durable::create_dir(&dir)?;
    }
    let note = format!("pid {}\n", std::process::id());
    let _lock = durable::lock(&config.layout.lock(), &note).map_err(|error| match error {
        LockError::HeldBy(note) => {
            DaemonError::Locked { root: config.layout.root().to_owned(), holder: note.trim().to_owned() }
        }
        LockError::Disk(error) => DaemonError::Disk(error),
    })?;
    jobs::remove_unfinished(&config.layout)?;
    let status = StatusWriter::new(&config.layout, &config.settings.guards);
    let (inbox, health) = (Inbox::new(&config.layout), start_gpu_health(&config.settings));
    Daemon { config, inbox, status, gpu_health: health, active: None, last_scan: None }.run()
}

fn start_gpu_health(settings: &Settings) -> Option<GpuHealthMonitor> {
    let gpu_index = match settings.device.request {
        DeviceRequest::Cpu => return None,
        DeviceRequest::Auto => 0,
        DeviceRequest::Cuda(gpu_index) => gpu_index,
    };
    if !settings.guards.gpu_health {
        return None;
    }
    let interval = Duration::from_millis(settings.device.health_every_ms);
    GpuHealthMonitor::start(u32::try_from(gpu_index).ok()?, interval)
        .inspect_err(|error| tracing::info!("the GPU's health is not monitored: {}", chain(error)))
        .ok()
}

/// The job that is being trained.
struct ActiveJob {
    job: Job,
    /// `None` while no worker runs, before the first start or a restart.
    worker: Option<WorkerProcess>,
    /// Time at which the next worker may start.
    earliest_start: Instant,
    restart_policy: RestartPolicy,
    /// Why the current worker will exit, if it has reported that.
    exit_reason: Option<String>,
}

struct Daemon<'a> {
    config: &'a DaemonConfig<'a>,
    inbox: Inbox,
    status: StatusWriter,
    /// `None` without a GPU, or with the guard `gpu_health` off.
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
        let due = self.last_scan.is_none_or(|scanned| scanned.elapsed() > RESCAN_INTERVAL);
        if !due && !self.inbox.needs_scan() {
            return Ok(());
        }
        self.last_scan = Some(Instant::now());
        self.inbox.scan(self.config)
    }

    fn check_gpu(&mut self) {
        while let Some(sample) = self.gpu_health.as_ref().and_then(GpuHealthMonitor::next_sample) {
            self.report_gpu_health(sample);
        }
    }

    /// Reports what has happened since the last check, before the daemon exits.
    fn check_gpu_before_exit(&mut self) {
        let samples = self
            .gpu_health
            .as_ref()
            .map(|health| health.sample_now(FINAL_GPU_CHECK_TIMEOUT))
            .unwrap_or_default();
        samples.into_iter().for_each(|sample| self.report_gpu_health(sample));
    }

    fn report_gpu_health(&mut self, sample: HealthSample) {
        for event in sample.events {
            let (HealthEvent::Warning(message) | HealthEvent::Untrusted(message)) = &event;
            (self.config.print_line)(&format!("gpu warning: {message}"));
            self.status.record_trouble(message);
            let worker = self.active.as_mut().and_then(|active| active.worker.as_mut());
            if let (HealthEvent::Untrusted(_), Some(worker)) = (&event, worker) {
                worker.kill_with_reason("may have computed wrong results after a GPU error");
            }
        }
        self.status.set_gpu(sample.reading);
    }

    fn remove_from_queue(&self, job: &Job) -> Result<(), DaemonError> {
        let whole = self.config.settings.guards.prune_whole;
        Ok(jobs::remove_from_queue(&self.config.layout, job, whole)?)
    }

    fn start_next_job(&mut self) -> Result<(), DaemonError> {
        let Some(job) = jobs::next_queued(&self.config.layout)? else { return Ok(()) };
        // An earlier daemon was killed after the job finished but before it left the queue.
        if let Some(FinishedJob { step, adapter }) = jobs::finished_result(&self.config.layout, &job) {
            (self.config.print_line)(&format!("finished job {} at step {step} adapter {adapter}", job.id));
            return self.remove_from_queue(&job);
        }
        let restart_policy = RestartPolicy::new(&self.config.settings);
        self.active = Some(ActiveJob {
            job,
            worker: None,
            earliest_start: Instant::now(),
            restart_policy,
            exit_reason: None,
        });
        Ok(())
    }

    fn poll_worker(&mut self) -> Result<(), DaemonError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let Some(worker) = &mut active.worker else {
            if Instant::now() < active.earliest_start {
                std::thread::sleep(POLL_INTERVAL);
                return Ok(());
            }
            active.worker = Some(
                WorkerProcess::start(
                    self.config,
                    &active.job,
                    active.restart_policy.micro_batch(),
                    active.restart_policy.device(),
                )
                .map_err(DaemonError::WorkerStart)?,
            );
            return Ok(());
        };
        match worker.next_event(POLL_INTERVAL) {
            Some(event) => self.handle_worker_event(event),
            None => match worker.poll_exit() {
                Some(exit) => return self.handle_worker_exit(exit),
                None => worker.kill_if_unresponsive(&self.config.settings),
            },
        }
        Ok(())
    }

    /// Prints a worker event as a line and acts on it.
    fn handle_worker_event(&mut self, event: WorkerEvent) {
        let Some(active) = &mut self.active else { return };
        let line = match &event {
            WorkerEvent::Heartbeat => return,
            WorkerEvent::Resumed { step } => format!("resumed from step {step}"),
            WorkerEvent::CheckpointSkipped { name, reason } => {
                format!("skipped checkpoint {name}: {reason}")
            }
            WorkerEvent::Step { step, loss } => format!("step {step} loss {loss}"),
            WorkerEvent::Saving { step } => format!("saving step {step}"),
            WorkerEvent::Saved { step } => format!("saved step {step}"),
            WorkerEvent::SaveDeferred { step, reason } => format!("save of step {step} deferred: {reason}"),
            WorkerEvent::SaveFailed { step, reason } => format!("save of step {step} failed: {reason}"),
            WorkerEvent::StepSkipped { step, reason } => format!("skipped step {step}: {reason}"),
            WorkerEvent::RolledBack { to, reason } => format!("rolled back to step {to}: {reason}"),
            WorkerEvent::Finished { step, adapter } => {
                format!("finished job {} at step {step} adapter {adapter}", active.job.id)
            }
            WorkerEvent::Device { device } => format!("training on {device}"),
            WorkerEvent::MicroBatchReduced { from, to } => {
                format!("out of device memory; micro-batch {from} -> {to}, same effective batch")
            }
            WorkerEvent::WeightsReloaded { to } => {
                format!("frozen weights have changed in device memory; reloaded; rolled back to step {to}")
            }
            WorkerEvent::ResultsDiffer { step } => {
                format!("computed step {step} twice: the results differ; will retry the step")
            }
            WorkerEvent::GpuStuck { seconds } => {
                active
                    .worker
                    .iter_mut()
                    .for_each(|worker| worker.kill_with_reason("got no answer from the GPU in time"));
                format!("the GPU has not answered for {seconds} s")
            }
            WorkerEvent::ExitReason { reason } => {
                active.exit_reason = Some(reason.clone());
                return;
            }
        };
        match event {
            WorkerEvent::Saved { .. } => active.restart_policy.record_progress(),
            WorkerEvent::MicroBatchReduced { to, .. } => active.restart_policy.set_micro_batch(to),
            _ => {}
        }
        self.status.record_event(&active.job.id, &event, active.restart_policy.micro_batch());
        (self.config.print_line)(&line);
    }

    fn handle_worker_exit(&mut self, exit: restart_policy::WorkerExit) -> Result<(), DaemonError> {
        let Some(mut active) = self.active.take() else { return Ok(()) };
        let reason = active.exit_reason.take().unwrap_or_default();
        match active.restart_policy.decide(exit, &reason) {
            NextAction::FinishJob => self.remove_from_queue(&active.job),
            NextAction::FailJob { reason } => {
                (self.config.print_line)(&format!("failed job {}: {reason}", active.job.id));
                Ok(jobs::move_to_failed(&self.config.layout, &active.job, &reason)?)
            }
            NextAction::StopDaemon { exit, reason } => Err(DaemonError::Stopped { exit, reason }),
            NextAction::Restart { message, delay } => {
                (self.config.print_line)(&message);
                active.worker = None;
                active.earliest_start = Instant::now() + delay;
                self.active = Some(active);
                Ok(())
            }
        }
    }

    /// Passes the signal on to the worker, which finishes its step and saves, and waits for it to exit.
    fn stop(&mut self) -> Result<Exit, DaemonError> {
        if let Some(worker) = self.active.as_mut().and_then(|active| active.worker.as_mut()) {
            worker.request_stop();
        }
        while let Some(worker) = self.active.as_mut().and_then(|active| active.worker.as_mut()) {
            match worker.next_event(POLL_INTERVAL) {
                Some(event) => self.handle_worker_event(event),
                None if worker.poll_exit().is_some() => break,
                None => worker.kill_if_unresponsive(&self.config.settings),
            }
        }
        (self.config.print_line)("shut down by a signal; jobs continue at the next start");
        Ok(Exit::Done)
    }
}
