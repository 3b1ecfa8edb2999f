//! The daemon: accepts files from the inbox, trains one job at a time in a worker process, and restarts
//! workers. It prints only through [`DaemonConfig::print_line`].

mod active_job;
mod base_digest;
mod cgroup;
mod consolidations;
mod daemon_config;
mod drain;
mod drain_state;
mod error;
mod event_line;
mod hidden_files;
mod host_health;
mod ignored_names;
mod inbox;
mod inbox_file;
mod incoming_copy;
mod job_queue;
mod jobs;
mod maintenance;
mod open_writers;
mod pending_file;
mod put_aside;
mod rejection;
mod restart_policy;
mod root_locks;
mod save_space;
mod standstill;
mod status;
mod trouble;
mod worker_process;

use std::fs::File;
use std::time::{Duration, Instant};

use crate::device::{GpuHealthMonitor, HealthEvent, HealthSample, visible_gpu};
use crate::durable;
use crate::exit::Exit;
use crate::file_error::{FileError, chain};
use crate::monitor::{DaemonReport, Monitor};
use crate::names::IGNORED_RULE;
use crate::plain_text::shown;
use crate::settings::{DeviceRequest, Settings};
use crate::store::FinishedResult;
use crate::train::WorkerEvent;

use active_job::ActiveJob;
use consolidations::Consolidations;
pub use daemon_config::DaemonConfig;
use drain::stuck;
use drain_state::InboxState;
pub use error::{AcceptError, DaemonError};
use event_line::event_line;
use host_health::HostHealth;
use inbox::Inbox;
use job_queue::{Departure, JobQueue, UnreadableEntry};
use jobs::Job;
pub use jobs::{QueuedJob, queued_job};
use maintenance::Maintenance;
pub use open_writers::has_open_writer;
use restart_policy::{KillReason, NextAction};
use root_locks::{lock_checkpoints, lock_root};
use save_space::bytes_of_next_saves;
use status::StatusWriter;
use trouble::Trouble;
use worker_process::{WorkerCondition, WorkerProcess};

/// How long the loop waits for a worker event before it checks everything else again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Worker events that are handled before everything else is checked again.
const MAX_EVENTS_OF_A_POLL: usize = 1000;

/// Time between two reports about a worker that hangs.
const HANG_REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum time that the last GPU health check before the exit may take.
const FINAL_GPU_CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs until a stop is requested or, with `drain`, until the inbox and the queue are empty.
///
/// # Errors
/// If another daemon uses the root, a file can't be read or written, or a worker's failure stops the daemon.
pub fn run(config: &DaemonConfig<'_>) -> Result<Exit, DaemonError> {
    let no_links = config.settings.guards.no_links;
    for dir in config.layout.written_dirs().into_iter().filter(|_| no_links) {
        durable::refuse_link(&dir).map_err(DaemonError::Link)?;
    }
    for dir in config.layout.dirs() {
        match durable::create_dir(&dir) {
            Err(error) if dir == config.layout.snapshots() => {
                tracing::warn!("there are no copies of checkpoints: {}", chain(&error));
            }
            Err(error) if config.settings.guards.log_errors && dir == config.layout.logs() => {
                tracing::warn!("there is no log file: {}", chain(&error));
            }
            created => created?,
        }
    }
    let guards = &config.settings.guards;
    let _lock = lock_root(config)?;
    // From here on, the root and its `status.json` are this daemon's.
    let (_checkpoint_lock, monitor) = start(config).inspect_err(|error| {
        StatusWriter::new(&config.layout, guards, None).set_ended(error.exit(), Some(chain(error)));
    })?;
    let status = StatusWriter::new(&config.layout, guards, monitor);
    let (inbox, health) =
        (Inbox::new(&config.layout, &config.settings.guards), start_gpu_health(&config.settings));
    Daemon {
        config,
        maintenance: Maintenance::new(config),
        consolidations: Consolidations::default(),
        inbox,
        queue: JobQueue::default(),
        queue_trouble: None,
        status,
        gpu_health: health,
        host_health: HostHealth::start(config),
        active: None,
        last_finished: None,
        has_failed_jobs: false,
        intake_pause: None,
        hang_reported: None,
    }
    .run()
}

/// Locks the checkpoints, removes what an earlier daemon left unfinished, and starts the monitor.
fn start(config: &DaemonConfig<'_>) -> Result<(Option<File>, Option<Monitor>), DaemonError> {
    let guards = &config.settings.guards;
    let path = guards.root_lock.then(|| config.layout.checkpoint_lock()).flatten();
    let lock = path.map(|path| lock_checkpoints(&path, config.layout.root())).transpose()?;
    if guards.clean_start
        && let Err(error) = jobs::remove_unfinished(&config.layout)
    {
        tracing::warn!("what an earlier daemon left unfinished could not be removed yet: {}", chain(&error));
    }
    Ok((lock, Monitor::start(&config.layout, &config.settings)?))
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
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let gpu = visible_gpu(gpu_index, visible.as_deref())?;
    GpuHealthMonitor::start(gpu, interval)
        .inspect_err(|error| tracing::info!("the GPU's health is not monitored: {}", chain(error)))
        .ok()
}

struct Daemon<'a> {
    config: &'a DaemonConfig<'a>,
    maintenance: Maintenance,
    consolidations: Consolidations,
    inbox: Inbox,
    queue: JobQueue,
    /// Why the queue can't be read at the moment.
    queue_trouble: Option<Trouble>,
    status: StatusWriter,
    /// `None` without a GPU, or with the guard `gpu_health` off.
    gpu_health: Option<GpuHealthMonitor>,
    host_health: HostHealth,
    active: Option<ActiveJob>,
    /// The job whose worker has reported its end last. It is not reported again.
    last_finished: Option<String>,
    /// Whether a job has failed since the start.
    has_failed_jobs: bool,
    /// Why intake is paused, as the status shows it.
    intake_pause: Option<String>,
    /// When a worker that hangs in the kernel was last reported.
    hang_reported: Option<Instant>,
}

impl Daemon<'_> {
    fn run(mut self) -> Result<Exit, DaemonError> {
        let result = self.run_until_end();
        match &result {
            Ok(exit) => self.status.set_ended(*exit, None),
            Err(error) => self.status.set_ended(error.exit(), Some(chain(error))),
        }
        result
    }

    fn run_until_end(&mut self) -> Result<Exit, DaemonError> {
        loop {
            if (self.config.stop_requested)() {
                return Ok(self.stop());
            }
            let reserved_bytes = self.active.as_ref().map_or(0, |active| active.save_bytes);
            self.inbox.look(self.config, &mut self.queue, reserved_bytes)?;
            self.report_intake_pause();
            self.status.check()?;
            self.queue.retry_departures(self.config);
            self.check_gpu();
            let worker = self.active.as_ref().and_then(|active| active.worker.as_ref());
            self.host_health.report(self.config, &mut self.status, worker.map(WorkerProcess::pid));
            self.maintenance.look(self.config, &mut self.status);
            let is_training = self.active.is_some();
            self.has_failed_jobs |= self.consolidations.look(self.config, &mut self.status, is_training);
            if self.active.is_none() && !self.consolidations.is_running() {
                self.start_next_job();
            }
            if self.active.is_some() {
                self.poll_worker()?;
            } else if let Some(exit) = self.end_of_drain()? {
                self.check_gpu_before_exit();
                return Ok(exit);
            } else if !self.inbox.has_work() {
                std::thread::sleep(POLL_INTERVAL);
            }
        }
    }

    /// Shows in the status why intake is paused.
    fn report_intake_pause(&mut self) {
        let message = self.inbox.pause_message();
        if message != self.intake_pause.as_deref() {
            self.intake_pause = message.map(str::to_owned);
            if let Some(message) = &self.intake_pause {
                self.status.record_trouble(message);
            }
        }
    }

    /// With `drain`, the exit code if there is nothing left to do.
    fn end_of_drain(&mut self) -> Result<Option<Exit>, DaemonError> {
        if !self.config.drain || self.active.is_some() {
            return Ok(None);
        }
        let inbox = self.inbox.state(self.config);
        let patience = Duration::from_secs(self.config.settings.train.save_patience_s);
        let is_busy = inbox == InboxState::Busy || self.maintenance.is_running(patience);
        if is_busy || !self.queue.has_no_job() || self.consolidations.has_work(self.config) {
            return Ok(None);
        }
        if let Some(stuck) = stuck(self.queue_trouble.as_ref(), &self.queue, inbox) {
            // Somebody may remove the cause.
            return if stuck.lasted >= patience { Err(stuck.error) } else { Ok(None) };
        }
        let ignored = self.inbox.ignored_files();
        if !ignored.is_empty() {
            (self.config.print_line)(&format!(
                "not taken from the inbox because of their names{ignored}: {IGNORED_RULE}"
            ));
        }
        Ok(Some(if self.has_failed_jobs { Exit::JobsFailed } else { Exit::Done }))
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
                worker.kill_with_reason(KillReason::GpuUntrusted);
            }
        }
        self.status.set_gpu(sample.reading);
    }

    fn start_next_job(&mut self) {
        if self.queue_trouble.as_ref().is_some_and(|trouble| !trouble.is_due()) {
            return;
        }
        match self.next_job() {
            Ok(None) => self.queue_trouble = None,
            Ok(Some(job)) => {
                self.queue_trouble = None;
                self.begin_job(job);
            }
            Err(error) => {
                let message = chain(&error);
                if Trouble::record(&mut self.queue_trouble, &message) {
                    (self.config.print_line)(&format!("the queue can't be read, will try again: {message}"));
                }
            }
        }
    }

    /// The next job to train. Jobs that are finished already leave the queue.
    fn next_job(&mut self) -> Result<Option<Job>, FileError> {
        while let Some(job) = self.queue.first(self.config)? {
            // An earlier daemon was killed after the job finished but before it left the queue.
            let Some(FinishedResult { step, adapter, .. }) =
                jobs::finished_result(&self.config.layout, &job)?
            else {
                return Ok(Some(job));
            };
            if self.last_finished.as_ref() != Some(&job.id) {
                (self.config.print_line)(&format!(
                    "finished job {} at step {step} adapter {adapter}",
                    job.id
                ));
            }
            self.queue.depart(self.config, job, Departure::Done);
        }
        Ok(None)
    }

    fn begin_job(&mut self, job: Job) {
        let steps = job.recipe.as_ref().unwrap_or(&self.config.settings.recipe).steps;
        self.status.report(|| DaemonReport::JobBegun { job: job.id.clone(), steps });
        self.active = Some(ActiveJob::new(job, &self.config.settings));
    }

    fn poll_worker(&mut self) -> Result<(), DaemonError> {
        let mut wait = if self.inbox.has_work() { Duration::ZERO } else { POLL_INTERVAL };
        let Some(active) = &mut self.active else { return Ok(()) };
        if active.worker.is_none() {
            if Instant::now() >= active.earliest_start {
                return self.start_worker();
            }
            std::thread::sleep(wait);
            return Ok(());
        }
        for _ in 0..MAX_EVENTS_OF_A_POLL {
            let worker = self.active.as_mut().and_then(|active| active.worker.as_mut());
            let Some(worker) = worker else { return Ok(()) };
            match worker.next_event(wait) {
                Some(event) => self.handle_worker_event(event),
                None => match worker.poll_exit() {
                    Some(exit) => return self.handle_worker_exit(exit),
                    None => return self.check_worker(),
                },
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    /// Looks whether the worker makes progress. If it hangs in the kernel for too long, the daemon stops.
    fn check_worker(&mut self) -> Result<(), DaemonError> {
        let Some(worker) = self.active.as_mut().and_then(|active| active.worker.as_mut()) else {
            return Ok(());
        };
        match worker.check_progress(&self.config.settings) {
            WorkerCondition::Fine => {}
            WorkerCondition::AnswersAgain => (self.config.print_line)("the worker goes on"),
            WorkerCondition::HangsInKernel { lasted, place } => {
                let reason = format!(
                    "the worker hangs in the kernel (in `{}`) and can't be killed there; check disks and GPU",
                    shown(&place)
                );
                if lasted >= Duration::from_secs(self.config.settings.train.save_patience_s) {
                    let reason = format!("{reason}; the job stays in the queue");
                    return Err(DaemonError::Stopped { exit: Exit::Machine, reason });
                }
                self.report_hang(lasted, &reason);
            }
        }
        Ok(())
    }

    /// Reports a worker that hangs, now and then.
    fn report_hang(&mut self, lasted: Duration, reason: &str) {
        if self.hang_reported.is_none_or(|reported| reported.elapsed() > HANG_REPORT_INTERVAL) {
            self.hang_reported = Some(Instant::now());
            (self.config.print_line)(&format!("{reason}; waiting for {} s", lasted.as_secs()));
            self.status.record_trouble(reason);
        }
    }

    /// Starts a worker. Tries again for a while if the machine has no process or memory for it.
    fn start_worker(&mut self) -> Result<(), DaemonError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let policy = &active.restart_policy;
        let started = WorkerProcess::start(self.config, &active.job, policy.micro_batch(), policy.device());
        match started {
            Ok(worker) => (active.worker, active.start_trouble) = (Some(worker), None),
            Err(error) => {
                let message = error.to_string();
                let is_new = Trouble::record(&mut active.start_trouble, &message);
                let Some(trouble) = &active.start_trouble else { return Ok(()) };
                let patience = Duration::from_secs(self.config.settings.train.save_patience_s);
                if trouble.lasted() > patience || !self.config.settings.guards.running_program {
                    return Err(DaemonError::WorkerStart(error));
                }
                active.earliest_start = trouble.next_try();
                if is_new {
                    (self.config.print_line)(&format!("could not start a worker, will try again: {message}"));
                }
            }
        }
        Ok(())
    }

    /// Prints a worker event as a line and acts on it.
    fn handle_worker_event(&mut self, event: WorkerEvent) {
        let Some(active) = &mut self.active else { return };
        match &event {
            WorkerEvent::ExitReason { reason } => active.exit_reason = Some(reason.clone()),
            WorkerEvent::Finished { .. } => self.last_finished = Some(active.job.id.clone()),
            WorkerEvent::GpuStuck { .. } => {
                active.worker.iter_mut().for_each(|worker| worker.kill_with_reason(KillReason::GpuSilent));
            }
            WorkerEvent::Saved { .. } => {
                active.restart_policy.record_progress();
                self.maintenance.count_save();
                active.save_bytes = bytes_of_next_saves(&self.config.layout.job_checkpoints(&active.job.id));
            }
            WorkerEvent::MicroBatchReduced { to, .. } => active.restart_policy.set_micro_batch(*to),
            _ => {}
        }
        if let Some(line) = event_line(&active.job.id, &event) {
            self.status.record_event(&active.job.id, &event, active.restart_policy.micro_batch());
            (self.config.print_line)(&line);
        }
    }

    fn handle_worker_exit(&mut self, exit: restart_policy::WorkerExit) -> Result<(), DaemonError> {
        let Some(mut active) = self.active.take() else { return Ok(()) };
        // It may have been killed after its result was complete. The job then leaves the queue as one that an
        // earlier daemon has finished.
        let result = jobs::finished_result(&self.config.layout, &active.job);
        let reason = active.exit_reason.take().unwrap_or_default();
        let action = match (exit.status.success(), result) {
            // The queue is asked again later whether it is finished.
            (false, Ok(Some(_))) | (true, Err(_)) => {
                self.report_idle();
                return Ok(());
            }
            // Its data stays in the queue until there is a result.
            (true, Ok(None)) => active.restart_policy.decide_without_result(),
            _ => active.restart_policy.decide(exit, &reason),
        };
        match action {
            NextAction::FinishJob => {
                self.queue.depart(self.config, active.job, Departure::Done);
                self.report_idle();
                Ok(())
            }
            NextAction::FailJob { reason } => {
                (self.config.print_line)(&format!("failed job {}: {reason}", active.job.id));
                self.has_failed_jobs = true;
                let job = active.job.id.clone();
                self.status.report(|| DaemonReport::JobFailed { job, reason: reason.clone() });
                self.status.record_trouble(&format!("job {}: {reason}", active.job.id));
                self.queue.depart(self.config, active.job, Departure::Failed(reason));
                self.report_idle();
                Ok(())
            }
            NextAction::StopDaemon { exit, reason } => Err(DaemonError::Stopped { exit, reason }),
            NextAction::Restart { message, delay } => {
                (self.config.print_line)(&message);
                let job = active.job.id.clone();
                self.status.report(|| DaemonReport::Restart { job, reason: message });
                active.worker = None;
                active.earliest_start = Instant::now() + delay;
                self.active = Some(active);
                Ok(())
            }
        }
    }

    fn report_idle(&mut self) {
        if self.queue.has_no_job() {
            self.status.set_idle();
        }
    }

    /// Passes the signal on to the worker, which finishes its step and saves, and waits for it to exit.
    fn stop(&mut self) -> Exit {
        if let Some(worker) = self.active.as_mut().and_then(|active| active.worker.as_mut()) {
            worker.request_stop();
        }
        while let Some(worker) = self.active.as_mut().and_then(|active| active.worker.as_mut()) {
            match worker.next_event(POLL_INTERVAL) {
                Some(event) => self.handle_worker_event(event),
                None => match worker.poll_exit() {
                    Some(exit) => self.handle_last_exit(exit),
                    None => match worker.check_progress(&self.config.settings) {
                        WorkerCondition::Fine | WorkerCondition::AnswersAgain => {}
                        WorkerCondition::HangsInKernel { .. } => {
                            (self.config.print_line)("the worker hangs in the kernel and is left behind");
                            break;
                        }
                    },
                },
            }
        }
        let has_no_job = matches!(self.queue.first(self.config), Ok(None))
            && self.queue.stuck_departure().is_none()
            && self.queue.unreadable_entry().is_none_or(|entry| entry.lasted == Duration::MAX);
        let has_no_job = has_no_job && !self.consolidations.has_work(self.config);
        if self.active.is_none() && has_no_job && self.inbox.state(self.config) == InboxState::Empty {
            if let Some(UnreadableEntry { name, reason, .. }) = self.queue.unreadable_entry() {
                let name = shown(name);
                (self.config.print_line)(&format!(
                    "shut down by a signal; only queue entry `{name}` is left, which can't be read: {reason}"
                ));
                return Exit::JobsFailed;
            }
            (self.config.print_line)("shut down by a signal; nothing is left to do");
            return if self.has_failed_jobs { Exit::JobsFailed } else { Exit::Done };
        }
        (self.config.print_line)("shut down by a signal; jobs continue at the next start");
        Exit::Interrupted
    }

    /// Handles the exit of the last worker. A job that has just been finished leaves the queue.
    fn handle_last_exit(&mut self, exit: restart_policy::WorkerExit) {
        let Some(active) = &mut self.active else { return };
        active.worker = None;
        let result = jobs::finished_result(&self.config.layout, &active.job);
        if exit.status.success()
            && result.is_ok_and(|result| result.is_some())
            && let Some(active) = self.active.take()
        {
            self.queue.depart(self.config, active.job, Departure::Done);
        }
    }
}
