//! The worker's process as the daemon holds it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::endings::Ended;
use super::jobs::Job;
use super::{Orders, cgroup};
use crate::settings::{Asked, Settings};
use crate::train::Word;

/// The OOM killer takes the worker before the daemon: raising one's badness is always allowed.
const OOM_SCORE: &str = "800";

/// A worker under way.
pub(super) struct Worker {
    child: Child,
    words: Receiver<Word>,
    closed: bool,
    sign_of_life: Instant,
    oom_kills_before: Option<u64>,
    /// Why the daemon has killed it, if it has.
    silenced: Option<&'static str>,
}

impl Worker {
    pub(super) fn start(
        orders: &Orders<'_>,
        job: &Job,
        micro_batch: usize,
        place: Asked,
    ) -> std::io::Result<Worker> {
        let oom_kills_before = cgroup::oom_kills();
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
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_SCORE);
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
        Ok(Worker {
            child,
            words,
            closed: false,
            sign_of_life: Instant::now(),
            oom_kills_before,
            silenced: None,
        })
    }

    /// Its next word, if it says one within the time. After the last one: none at once.
    pub(super) fn next(&mut self, wait: Duration) -> Option<Word> {
        match self.words.recv_timeout(wait) {
            Ok(word) => {
                self.sign_of_life = Instant::now();
                Some(word)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                if std::mem::replace(&mut self.closed, true) {
                    std::thread::sleep(wait);
                }
                None
            }
        }
    }

    /// How it ended, once all its words have been heard.
    pub(super) fn ended(&mut self) -> Option<Ended> {
        if !self.closed {
            return None;
        }
        let status = self.child.try_wait().ok()??;
        let oom = match (self.oom_kills_before, cgroup::oom_kills()) {
            (Some(before), Some(after)) if after > before => Some((before, after)),
            _ => None,
        };
        Some(Ended { status, oom, silenced: self.silenced })
    }

    /// A worker that gives no sign of life is killed; the daemon then starts another.
    pub(super) fn replace_if_silent(&mut self, settings: &Settings) {
        let silent = self.sign_of_life.elapsed() > Duration::from_secs(settings.train.heartbeat_s);
        if silent && settings.guards.heartbeat {
            self.silence("gave no sign of life");
        }
    }

    /// Kills it, for a reason that its end will be told with.
    pub(super) fn silence(&mut self, why: &'static str) {
        if self.silenced.is_none() {
            self.silenced = Some(why);
            // It may have ended by itself meanwhile.
            let _ = self.child.kill();
        }
    }

    pub(super) fn ask_to_end(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

impl Drop for Worker {
    /// No worker trains on without its daemon.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
