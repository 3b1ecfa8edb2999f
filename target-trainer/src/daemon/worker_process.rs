//! Starts, watches and kills the worker process. Does not decide what happens after it exits.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup;
use super::daemon_config::DaemonConfig;
use super::jobs::Job;
use super::restart_policy::{OomKillCounts, WorkerExit};
use crate::settings::{DeviceRequest, Settings};
use crate::train::WorkerEvent;

/// Makes the OOM killer choose the worker before the daemon. Raising the score needs no privilege.
const OOM_SCORE_ADJ: &str = "800";

/// The running program. It can be started also if its file has been replaced or removed.
const RUNNING_PROGRAM: &str = "/proc/self/exe";
/// A daemon that has not looked at its worker for so long was stopped itself, or the machine was.
const OWN_PAUSE: Duration = Duration::from_secs(1);

/// A running worker. Dropping it kills the process.
pub(super) struct WorkerProcess {
    child: Child,
    events: Receiver<WorkerEvent>,
    output_closed: bool,
    last_event: Instant,
    /// When the daemon last looked at the worker.
    last_look: Instant,
    oom_kills_before: Option<u64>,
    /// Why the daemon has killed the worker, if it has.
    kill_reason: Option<&'static str>,
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
        let mut command = Command::new(RUNNING_PROGRAM);
        command.arg0("target-trainer").arg("worker").arg(config.layout.root()).args([
            "--job",
            &job.id,
            "--micro-batch",
            &micro_batch.to_string(),
            "--device",
            &device.to_string(),
        ]);
        command
            .args(["--parent", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        // May fail without harm: by default the kernel kills the larger process, which is the worker as well.
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_SCORE_ADJ);
        let stdout =
            child.stdout.take().ok_or_else(|| std::io::Error::other("the worker has no standard output"))?;
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(event) => drop(sender.send(event)),
                    Err(error) => tracing::warn!("the worker printed a line that is not an event: {error}"),
                }
            }
        });
        Ok(WorkerProcess {
            child,
            events,
            output_closed: false,
            last_event: Instant::now(),
            last_look: Instant::now(),
            oom_kills_before,
            kill_reason: None,
        })
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
        let status = self.child.try_wait().ok()??;
        let oom = match (self.oom_kills_before, cgroup::oom_kill_count()) {
            (Some(before), Some(after)) if after > before => Some(OomKillCounts { before, after }),
            _ => None,
        };
        Some(WorkerExit { status, oom_kill_counts: oom, kill_reason: self.kill_reason })
    }

    /// Kills a worker that has sent no event for `train.heartbeat_s`. The daemon then starts another one.
    pub(super) fn kill_if_unresponsive(&mut self, settings: &Settings) {
        // After a suspend, or a stop of all processes, the worker gets its time anew.
        if std::mem::replace(&mut self.last_look, Instant::now()).elapsed() > OWN_PAUSE {
            self.last_event = Instant::now();
        }
        let is_unresponsive = self.last_event.elapsed() > Duration::from_secs(settings.train.heartbeat_s);
        if is_unresponsive && settings.guards.heartbeat {
            self.kill_with_reason("sent no heartbeat in time");
        }
    }

    /// Kills the worker. [`WorkerExit`] will carry the reason.
    pub(super) fn kill_with_reason(&mut self, reason: &'static str) {
        if self.kill_reason.is_none() {
            self.kill_reason = Some(reason);
            // The worker may have exited already.
            let _ = self.child.kill();
        }
    }

    /// Sends SIGTERM.
    pub(super) fn request_stop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // The worker may have exited already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

impl Drop for WorkerProcess {
    /// A worker must not outlive its daemon.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
