//! What a worker's end means, and what is done about it.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::exit::Exit;
use crate::settings::{Asked, OnLost, Settings};

const SIGKILL: i32 = nix::libc::SIGKILL;
const BACKOFF_MOST: Duration = Duration::from_secs(30);

/// How a worker ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// The cgroup's count of OOM kills before and after, where it rose.
    pub(super) oom: Option<(u64, u64)>,
    /// Why the daemon killed it, if it did.
    pub(super) silenced: Option<&'static str>,
}

/// What is done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Done,
    Again {
        word: String,
        wait: Duration,
    },
    Fail {
        reason: String,
    },
    /// The daemon itself can't go on.
    Stop {
        exit: Exit,
        reason: String,
    },
}

/// What has happened to one job's workers so far.
pub(super) struct Crashes {
    settings: Settings,
    micro_batch: usize,
    /// Where the next worker trains.
    place: Asked,
    /// Since when no GPU was to be found.
    lost_since: Option<Instant>,
    /// In a row, without a save in between.
    crashes: u32,
    /// SIGKILLs that nobody explains, in a row.
    unexplained: u32,
}

impl Crashes {
    pub(super) fn new(settings: &Settings) -> Crashes {
        Crashes {
            settings: settings.clone(),
            micro_batch: settings.train.micro_batch,
            place: settings.device.place,
            lost_since: None,
            crashes: 0,
            unexplained: 0,
        }
    }

    pub(super) fn place(&self) -> Asked {
        self.place
    }

    /// The worker itself has taken a smaller one; the next worker begins with it.
    pub(super) fn shrunk(&mut self, micro_batch: usize) {
        self.micro_batch = micro_batch;
    }

    pub(super) fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// A save was made.
    pub(super) fn progressed(&mut self) {
        (self.crashes, self.unexplained, self.lost_since) = (0, 0, None);
    }

    pub(super) fn judge(&mut self, ended: Ended, why: &str) -> Next {
        if let Some(exit) = ended.status.code().and_then(Exit::from_code) {
            return self.judge_exit(exit, why);
        }
        match (ended.status.signal(), ended.oom) {
            (Some(SIGKILL), Some((before, after))) if ended.silenced.is_none() => {
                self.out_of_memory(&format!(
                    "worker killed by the OOM killer (the cgroup's count went from {before} to {after})"
                ))
            }
            (Some(SIGKILL), None) if ended.silenced.is_none() => self.killed_by_somebody(),
            (Some(SIGKILL), _) => {
                self.crashed(&format!("worker {} and was killed", ended.silenced.unwrap_or("died")))
            }
            (Some(signal), _) => self.crashed(&format!("worker died by signal {signal}")),
            (None, _) => self.crashed(&format!("worker ended with {} {why}", ended.status)),
        }
    }

    fn judge_exit(&mut self, exit: Exit, why: &str) -> Next {
        match exit {
            Exit::Done => Next::Done,
            Exit::Disk => Next::Stop { exit, reason: why.to_owned() },
            Exit::Gpu if !self.settings.guards.gpu_restart => Next::Fail { reason: why.to_owned() },
            Exit::GpuMissing | Exit::GpuUnfit | Exit::GpuWrong if !self.settings.guards.gpu_fallback => {
                Next::Fail { reason: why.to_owned() }
            }
            Exit::GpuMissing => self.gpu_missing(why),
            Exit::GpuUnfit | Exit::GpuWrong => self.without_gpu(exit, why),
            Exit::Base | Exit::NoGoodCheckpoint | Exit::NonFinite => Next::Fail { reason: why.to_owned() },
            Exit::Interrupted => Next::Again {
                word: "worker was asked to end by somebody else; it goes on".into(),
                wait: Duration::ZERO,
            },
            Exit::Findings | Exit::Usage | Exit::Failed | Exit::Locked | Exit::Gpu => {
                self.crashed(&format!("worker ended with exit code {}: {why}", exit.code()))
            }
        }
    }

    /// It may come back: a driver is reloaded, a card reset. Not a crash of the job.
    fn gpu_missing(&mut self, why: &str) -> Next {
        let lost_for = self.lost_since.get_or_insert_with(Instant::now).elapsed();
        if lost_for >= Duration::from_secs(self.settings.device.lost_patience_s) {
            return self.without_gpu(Exit::GpuMissing, &format!("GPU not detected: {why}"));
        }
        // Doubled as it lasts: the wait is as long as the loss so far.
        let wait = lost_for.max(Duration::from_millis(self.settings.train.backoff_ms)).min(BACKOFF_MOST);
        Next::Again {
            word: format!("GPU not detected: {why}; tried again in {:.1} s", wait.as_secs_f64()),
            wait,
        }
    }

    fn without_gpu(&mut self, exit: Exit, why: &str) -> Next {
        match self.settings.device.on_lost {
            OnLost::Stop if self.place != Asked::Auto => Next::Stop { exit, reason: why.to_owned() },
            OnLost::Stop | OnLost::Cpu => {
                self.place = Asked::Cpu;
                Next::Again {
                    word: format!("{why}; going on on the CPU, weights will be close, not equal"),
                    wait: Duration::ZERO,
                }
            }
        }
    }

    /// Userspace OOM killers leave no count: the first such kill may be anybody's, a second one in a row is taken for theirs.
    fn killed_by_somebody(&mut self) -> Next {
        self.unexplained += 1;
        if self.unexplained >= 2 {
            return self.out_of_memory("worker killed by SIGKILL again, taken for want of memory");
        }
        self.crashed("worker killed by SIGKILL, not by the kernel's OOM killer")
    }

    fn out_of_memory(&mut self, what: &str) -> Next {
        if !self.settings.guards.shrink_on_oom || self.micro_batch == 1 {
            return self.crashed(what);
        }
        let before = self.micro_batch;
        self.micro_batch = before.div_ceil(2);
        Next::Again {
            word: format!("{what}; micro-batch {before} -> {}, same effective batch", self.micro_batch),
            wait: self.wait(),
        }
    }

    fn crashed(&mut self, what: &str) -> Next {
        self.crashes += 1;
        if self.settings.guards.quarantine && self.crashes >= self.settings.train.max_crashes {
            return Next::Fail {
                reason: format!("{what}; {} crashes in a row without progress", self.crashes),
            };
        }
        Next::Again { word: format!("{what}; started again"), wait: self.wait() }
    }

    fn wait(&self) -> Duration {
        let doubled = 1u32 << self.crashes.saturating_sub(1).min(16);
        (Duration::from_millis(self.settings.train.backoff_ms) * doubled).min(BACKOFF_MOST)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn killed(oom: Option<(u64, u64)>) -> Ended {
        Ended { status: ExitStatus::from_raw(SIGKILL), oom, silenced: None }
    }

    #[test]
    fn an_oom_kill_halves_the_micro_batch_and_another_sigkill_only_when_it_comes_again() {
        let mut crashes = Crashes::new(&Settings::default().with(&["train.micro_batch=8".into()]).unwrap());
        crashes.judge(killed(Some((0, 1))), "");
        assert_eq!(crashes.micro_batch(), 4);
        crashes.judge(killed(None), "");
        assert_eq!(crashes.micro_batch(), 4);
        crashes.judge(killed(None), "");
        assert_eq!(crashes.micro_batch(), 2);
        // A save in between: what came before it is no sign of want of memory.
        crashes.progressed();
        crashes.judge(killed(None), "");
        assert_eq!(crashes.micro_batch(), 2);
    }

    fn exited(exit: Exit) -> Ended {
        Ended { status: ExitStatus::from_raw(i32::from(exit.code()) << 8), oom: None, silenced: None }
    }

    fn crashes(changes: &[&str]) -> Crashes {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        Crashes::new(&Settings::default().with(&changes).unwrap())
    }

    #[test]
    fn a_gpu_that_is_gone_is_looked_for_until_patience_ends_and_then_done_without() {
        let mut patient = crashes(&["device.use=cuda:0"]);
        assert!(
            matches!(patient.judge(exited(Exit::GpuMissing), "no device"), Next::Again { wait, .. } if wait > Duration::ZERO)
        );
        assert_eq!(patient.place(), Asked::Cuda(0));
        let mut hasty = crashes(&["device.use=cuda:0", "device.lost_patience_s=0", "device.on_lost=cpu"]);
        let word =
            "GPU not detected: no device; going on on the CPU, weights will be close, not equal".to_owned();
        assert_eq!(
            hasty.judge(exited(Exit::GpuMissing), "no device"),
            Next::Again { word, wait: Duration::ZERO }
        );
        assert_eq!(hasty.place(), Asked::Cpu);
        let mut stopping = crashes(&["device.use=cuda:0", "device.lost_patience_s=0"]);
        let reason = "GPU not detected: no device".to_owned();
        assert_eq!(
            stopping.judge(exited(Exit::GpuMissing), "no device"),
            Next::Stop { exit: Exit::GpuMissing, reason }
        );
    }

    #[test]
    fn a_cuda_error_costs_a_process_and_without_the_guard_the_job() {
        assert!(matches!(crashes(&[]).judge(exited(Exit::Gpu), "launch failed"), Next::Again { .. }));
        let mut unguarded = crashes(&["guards.gpu_restart=false"]);
        assert_eq!(
            unguarded.judge(exited(Exit::Gpu), "launch failed"),
            Next::Fail { reason: "launch failed".into() }
        );
    }

    #[test]
    fn a_job_that_crashes_without_progress_is_put_aside_with_its_reason() {
        let mut crashes = Crashes::new(&Settings::default());
        let segfault = Ended { status: ExitStatus::from_raw(11), oom: None, silenced: None };
        assert!(matches!(crashes.judge(segfault, ""), Next::Again { .. }));
        assert!(matches!(crashes.judge(segfault, ""), Next::Again { .. }));
        crashes.progressed();
        assert!(matches!(crashes.judge(segfault, ""), Next::Again { .. }));
        assert!(matches!(crashes.judge(segfault, ""), Next::Again { .. }));
        let reason = "worker died by signal 11; 3 crashes in a row without progress".to_owned();
        assert_eq!(crashes.judge(segfault, ""), Next::Fail { reason });
    }
}
