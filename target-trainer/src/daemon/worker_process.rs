//! Starts, watches and kills the worker process. Does not decide what happens after it exits.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::cgroup;
use super::daemon_config::DaemonConfig;
use super::jobs::Job;
use super::restart_policy::{KillReason, OomKillCounts, WorkerExit};
use super::standstill::{Standstill, standstill};
use crate::settings::{DeviceRequest, Settings};
use crate::train::WorkerEvent;

/// Makes the OOM killer choose the worker before the daemon. Raising the score needs no privilege.
const OOM_SCORE_ADJ: &str = "800";

/// The running program. It can be started also if its file has been replaced or removed.
const RUNNING_PROGRAM: &str = "/proc/self/exe";
/// Events that wait for the daemon. If there are more, the worker waits too.
const MAX_QUEUED_EVENTS: usize = 4096;
/// A worker that has not exited for so long after a kill hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How long the daemon waits for a killed worker when it exits itself.
const DROP_PATIENCE: Duration = Duration::from_secs(2);
/// A daemon that has not looked at its worker for so long was stopped itself, or the machine was.
const OWN_PAUSE: Duration = Duration::from_secs(1);

/// A running worker. Dropping it kills the process.
pub(super) struct WorkerProcess {
    child: KilledOnDrop,
    events: Receiver<WorkerEvent>,
    output_closed: bool,
    last_event: Instant,
    /// When the daemon last looked at the worker.
    last_look: Instant,
    oom_kills_before: Option<u64>,
    /// Why and when the daemon has killed the worker, if it has.
    kill: Option<(KillReason, Instant)>,
    /// It has been found to hang in the kernel, and has not answered since.
    hangs_in_kernel: bool,
}

/// Whether a worker makes progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WorkerCondition {
    /// It does, or has time left, or was killed because it does not.
    Fine,
    /// It hangs in the kernel for this long, where it can't be killed.
    HangsInKernel { lasted: Duration, place: String },
    /// It did hang in the kernel, and goes on.
    AnswersAgain,
}

impl WorkerProcess {
    /// Starts a worker for the job.
    ///
    /// # Errors
    /// If the process can't be started.
    pub(super) fn start(
        config: &DaemonConfig<'_>,
        job: &Job,
        micro_batch: usize,
        device: DeviceRequest,
    ) -> std::io::Result<WorkerProcess> {
        let oom_kills_before = cgroup::oom_kill_count();
        let guards = &config.settings.guards;
        let program = if guards.running_program { RUNNING_PROGRAM.into() } else { std::env::current_exe()? };
        let mut command = Command::new(program);
        command.arg0("target-trainer").arg("worker").arg(config.layout.root()).args([
            "--job",
            &job.id,
            "--data",
            job.data.as_ref().unwrap_or(&job.id),
            "--micro-batch",
            &micro_batch.to_string(),
            "--device",
            &device.to_string(),
        ]);
        // So that CUDA numbers GPUs as NVML does.
        command.env("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
        command
            .args(job.base.iter().flat_map(|base| ["--base", base]))
            .args(["--parent", &std::process::id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let settings = settings_of_worker(config, job)?;
        let mut child = KilledOnDrop { process: command.spawn()?, is_reaped: guards.worker_cleanup };
        // May fail without harm: by default the kernel kills the larger process, which is the worker as well.
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.process.id()), OOM_SCORE_ADJ);
        // They fit into a pipe. If the worker has exited, its exit code says why.
        let _ = child.process.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(settings.as_bytes()));
        let stdout = child
            .process
            .stdout
            .take()
            .ok_or_else(|| std::io::Error::other("the worker has no standard output"))?;
        if !guards.worker_cleanup {
            std::mem::forget(stdout.as_fd().try_clone_to_owned()?);
        }
        let (sender, events) = sync_channel(MAX_QUEUED_EVENTS);
        std::thread::Builder::new().name("events".into()).spawn(move || {
            let (mut lines, mut line) = (BufReader::new(stdout), Vec::new());
            // A library may print something else, in any encoding.
            while lines.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
                match serde_json::from_slice(&line) {
                    Ok(event) => drop(sender.send(event)),
                    Err(error) => tracing::warn!("the worker printed a line that is not an event: {error}"),
                }
                line.clear();
            }
        })?;
        Ok(WorkerProcess {
            child,
            events,
            output_closed: false,
            last_event: Instant::now(),
            last_look: Instant::now(),
            oom_kills_before,
            kill: None,
            hangs_in_kernel: false,
        })
    }

    /// The number of the process.
    pub(super) fn pid(&self) -> u32 {
        self.child.process.id()
    }

    /// The worker's next event. Returns `None` if there is none within `wait`, or if its output has ended.
    pub(super) fn next_event(&mut self, wait: Duration) -> Option<WorkerEvent> {
        match self.events.recv_timeout(wait) {
            Ok(event) => {
                self.last_event = Instant::now();
                Some(event)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                if std::mem::replace(&mut self.output_closed, true) {
                    std::thread::sleep(wait);
                }
                None
            }
        }
    }

    /// How the worker exited. Returns `None` until it has exited and all its events have been read.
    pub(super) fn poll_exit(&mut self) -> Option<WorkerExit> {
        if !self.output_closed {
            return None;
        }
        let status = self.child.exit_status()?;
        let oom = match (self.oom_kills_before, cgroup::oom_kill_count()) {
            (Some(before), Some(after)) if after > before => Some(OomKillCounts { before, after }),
            _ => None,
        };
        Some(WorkerExit { status, oom_kill_counts: oom, kill_reason: self.kill.map(|(reason, _)| reason) })
    }

    /// Looks whether the worker makes progress. One that has sent no event for `train.heartbeat_s` is killed;
    /// the daemon then starts another one. One that hangs in the kernel is not: it may be in the middle of a
    /// save to a slow disk, and a kill would have no effect before it goes on.
    pub(super) fn check_progress(&mut self, settings: &Settings) -> WorkerCondition {
        // After a suspend, or a stop of all processes, the worker gets its time anew.
        let own_pause = std::mem::replace(&mut self.last_look, Instant::now()).elapsed();
        if settings.guards.pause_allowance && own_pause > OWN_PAUSE {
            self.last_event = Instant::now();
        }
        let (silent_for, patience) = match self.kill {
            Some((_, killed)) => (killed.elapsed(), KILL_PATIENCE),
            None => (self.last_event.elapsed(), Duration::from_secs(settings.train.heartbeat_s)),
        };
        if !settings.guards.heartbeat || silent_for <= patience {
            let answers_again = self.kill.is_none() && std::mem::take(&mut self.hangs_in_kernel);
            return if answers_again { WorkerCondition::AnswersAgain } else { WorkerCondition::Fine };
        }
        let standstill = standstill(self.child.process.id());
        if let Standstill::InKernel { place } = &standstill
            && settings.guards.kernel_hangs
        {
            self.hangs_in_kernel = true;
            return WorkerCondition::HangsInKernel { lasted: silent_for, place: place.clone() };
        }
        if self.kill.is_some() {
            // It has ended, and somebody, such as a debugger, has not let go of it.
            self.hangs_in_kernel = true;
            return WorkerCondition::HangsInKernel { lasted: silent_for, place: "exit".into() };
        }
        // It has left the kernel just now, and its next heartbeat is on the way.
        if std::mem::take(&mut self.hangs_in_kernel) {
            self.last_event = Instant::now();
            return WorkerCondition::AnswersAgain;
        }
        match standstill {
            // Only with a guard off.
            Standstill::InKernel { .. } => self.kill_with_reason(KillReason::NoProgress),
            Standstill::Stopped => self.kill_with_reason(KillReason::NoHeartbeat),
            Standstill::Waiting => self.kill_with_reason(KillReason::StuckInCall),
            Standstill::Running => self.kill_with_reason(KillReason::NoProgress),
        }
        WorkerCondition::Fine
    }

    /// Kills the worker. [`WorkerExit`] will carry the reason.
    pub(super) fn kill_with_reason(&mut self, reason: KillReason) {
        if self.kill.is_none() {
            self.kill = Some((reason, Instant::now()));
            // The worker may have exited already.
            let _ = self.child.process.kill();
        }
    }

    /// Sends SIGTERM.
    pub(super) fn request_stop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.process.id()) {
            // The worker may have exited already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

/// The settings of a worker: those that the daemon has read at its start, with the recipe of the job.
fn settings_of_worker(config: &DaemonConfig<'_>, job: &Job) -> std::io::Result<String> {
    let guards = &config.settings.guards;
    let mut settings = match guards.settings_at_start {
        true => config.settings.clone(),
        false => Settings::read(&config.layout.settings()).map_err(std::io::Error::other)?,
    };
    if guards.accepted_recipe {
        settings.recipe = job.recipe.clone().unwrap_or(settings.recipe);
    }
    toml::to_string(&settings).map_err(std::io::Error::other)
}

/// A child process that is killed when this value is dropped: a worker must not outlive its daemon.
struct KilledOnDrop {
    process: Child,
    /// Whether it is waited for when it has ended. If not, it stays as a zombie.
    is_reaped: bool,
}

impl KilledOnDrop {
    /// How it ended. Returns `None` until then.
    fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.is_reaped {
            return self.process.try_wait().ok()?;
        }
        let pid = Pid::from_raw(i32::try_from(self.process.id()).ok()?);
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(pid), flags).ok()? {
            WaitStatus::Exited(_, code) => Some(ExitStatus::from_raw(code << 8)),
            WaitStatus::Signaled(_, signal, _) => Some(ExitStatus::from_raw(signal as i32)),
            _ => None,
        }
    }
}

impl Drop for KilledOnDrop {
    /// Does not wait longer than [`DROP_PATIENCE`] for a process that hangs in the kernel. It ends as soon as
    /// its call returns.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let deadline = Instant::now() + DROP_PATIENCE;
        while self.is_reaped && matches!(self.process.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                tracing::warn!("worker {} hangs in the kernel and is left behind", self.process.id());
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
