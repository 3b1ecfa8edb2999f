//! What a worker's end means, and what is done about it.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use crate::exit::Exit;
use crate::settings::Settings;

const SIGKILL: i32 = nix::libc::SIGKILL;
const BACKOFF_MOST: Duration = Duration::from_secs(30);

/// How a worker ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// The cgroup's count of OOM kills before and after, where it rose.
    pub(super) oom: Option<(u64, u64)>,
    /// The daemon killed it because it was silent.
    pub(super) silenced: bool,
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
        reason: String,
    },
}

/// What has happened to one job's workers so far.
pub(super) struct Crashes {
    settings: Settings,
    micro_batch: usize,
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
            crashes: 0,
            unexplained: 0,
        }
    }

    pub(super) fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// A save was made.
    pub(super) fn progressed(&mut self) {
        (self.crashes, self.unexplained) = (0, 0);
    }

    pub(super) fn judge(&mut self, ended: Ended, why: &str) -> Next {
        if let Some(exit) = ended.status.code().and_then(Exit::from_code) {
            return self.judge_exit(exit, why);
        }
        match (ended.status.signal(), ended.oom) {
            (Some(SIGKILL), Some((before, after))) if !ended.silenced => self.out_of_memory(&format!(
                "worker killed by the OOM killer (the cgroup's count went from {before} to {after})"
            )),
            (Some(SIGKILL), None) if !ended.silenced => self.killed_by_somebody(),
            (Some(SIGKILL), _) => self.crashed("worker gave no sign of life and was killed"),
            (Some(signal), _) => self.crashed(&format!("worker died by signal {signal}")),
            (None, _) => self.crashed(&format!("worker ended with {} {why}", ended.status)),
        }
    }

    fn judge_exit(&mut self, exit: Exit, why: &str) -> Next {
        match exit {
            Exit::Done => Next::Done,
            Exit::Disk => Next::Stop { reason: why.to_owned() },
            Exit::Base | Exit::NoGoodCheckpoint | Exit::NonFinite => Next::Fail { reason: why.to_owned() },
            Exit::Interrupted => Next::Again {
                word: "worker was asked to end by somebody else; it goes on".into(),
                wait: Duration::ZERO,
            },
            Exit::Findings | Exit::Usage | Exit::Failed | Exit::Locked => {
                self.crashed(&format!("worker ended with exit code {}: {why}", exit.code()))
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
        Ended { status: ExitStatus::from_raw(SIGKILL), oom, silenced: false }
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

    #[test]
    fn a_job_that_crashes_without_progress_is_put_aside_with_its_reason() {
        let mut crashes = Crashes::new(&Settings::default());
        let segfault = Ended { status: ExitStatus::from_raw(11), oom: None, silenced: false };
        assert!(matches!(crashes.judge(segfault, ""), Next::Again { .. }));
        assert!(matches!(crashes.judge(segfault, ""), Next::Again { .. }));
        crashes.progressed();
        assert!(matches!(crashes.judge(segfault, ""), Next::Again { .. }));
        assert!(matches!(crashes.judge(segfault, ""), Next::Again { .. }));
        let reason = "worker died by signal 11; 3 crashes in a row without progress".to_owned();
        assert_eq!(crashes.judge(segfault, ""), Next::Fail { reason });
    }
}
