//! The worker's process as the daemon holds it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::jobs::Job;
use super::restart_policy::WorkerExit;
use super::{DaemonConfig, cgroup};
use crate::settings::{DeviceRequest, Settings};
use crate::train::WorkerEvent;

/// The OOM killer takes the worker before the daemon: raising one's badness is always allowed.
const OOM_SCORE_ADJ: &str = "800";

/// A worker under way.
pub(super) struct WorkerProcess {
    child: Child,
    events: Receiver<WorkerEvent>,
    output_closed: bool,
    last_event: Instant,
    oom_kills_before: Option<u64>,
    /// Why the daemon has killed it, if it has.
    kill_reason: Option<&'static str>,
}

impl WorkerProcess {
    pub(super) fn start(
        orders: &DaemonConfig<'_>,
        job: &Job,
        micro_batch: usize,
        place: DeviceRequest,
    ) -> std::io::Result<WorkerProcess> {
        let oom_kills_before = cgroup::oom_kill_count();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").arg(orders.layout.root()).args([
            "--job",
            &job.id,
            "--micro-batch",
            &micro_batch.to_string(),
            "--device",
            &place.to_string(),
        ]);
        command
            .args(["--parent", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        // Only advice to the kernel; without it the larger process is taken, which is the worker too.
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_SCORE_ADJ);
        let stdout = child.stdout.take().ok_or_else(|| std::io::Error::other("no standard output"))?;
        let (sender, words) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(word) => drop(sender.send(word)),
                    Err(error) => tracing::warn!("the worker said something that is no word: {error}"),
                }
            }
        });
        Ok(WorkerProcess {
            child,
            events: words,
            output_closed: false,
            last_event: Instant::now(),
            oom_kills_before,
            kill_reason: None,
        })
    }

    /// Its next word, if it says one within the time. After the last one: none at once.
    pub(super) fn next_event(&mut self, wait: Duration) -> Option<WorkerEvent> {
        match self.events.recv_timeout(wait) {
            Ok(word) => {
                self.last_event = Instant::now();
                Some(word)
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

    /// How it ended, once all its words have been heard.
    pub(super) fn poll_exit(&mut self) -> Option<WorkerExit> {
        if !self.output_closed {
            return None;
        }
        let status = self.child.try_wait().ok()??;
        let oom = match (self.oom_kills_before, cgroup::oom_kill_count()) {
            (Some(before), Some(after)) if after > before => Some((before, after)),
            _ => None,
        };
        Some(WorkerExit { status, oom_kill_counts: oom, kill_reason: self.kill_reason })
    }

    /// A worker that gives no sign of life is killed; the daemon then starts another.
    pub(super) fn kill_if_unresponsive(&mut self, settings: &Settings) {
        let silent = self.last_event.elapsed() > Duration::from_secs(settings.train.heartbeat_s);
        if silent && settings.guards.heartbeat {
            self.kill_with_reason("gave no sign of life");
        }
    }

    /// Kills it, for a reason that its end will be told with.
    pub(super) fn kill_with_reason(&mut self, why: &'static str) {
        if self.kill_reason.is_none() {
            self.kill_reason = Some(why);
            // It may have ended by itself meanwhile.
            let _ = self.child.kill();
        }
    }

    pub(super) fn request_stop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

impl Drop for WorkerProcess {
    /// No worker trains on without its daemon.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
