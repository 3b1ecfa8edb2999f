//! What a worker's end means, and what is done about it.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::exit::Exit;
use crate::settings::{DeviceRequest, OnGpuLost, Settings};

const SIGKILL: i32 = nix::libc::SIGKILL;
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// How a worker ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerExit {
    pub(super) status: ExitStatus,
    /// The cgroup's count of OOM kills before and after, where it rose.
    pub(super) oom_kill_counts: Option<(u64, u64)>,
    /// Why the daemon killed it, if it did.
    pub(super) kill_reason: Option<&'static str>,
}

/// What is done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NextAction {
    FinishJob,
    Restart {
        message: String,
        delay: Duration,
    },
    FailJob {
        reason: String,
    },
    /// The daemon itself can't go on.
    StopDaemon {
        exit: Exit,
        reason: String,
    },
}

/// What has happened to one job's workers so far.
pub(super) struct RestartPolicy {
    settings: Settings,
    micro_batch: usize,
    /// Where the next worker trains.
    place: DeviceRequest,
    /// Since when no GPU was to be found.
    gpu_missing_since: Option<Instant>,
    /// In a row, without a save in between.
    crash_count: u32,
    /// SIGKILLs that nobody explains, in a row.
    unexplained_kills: u32,
}

impl RestartPolicy {
    pub(super) fn new(settings: &Settings) -> RestartPolicy {
        RestartPolicy {
            settings: settings.clone(),
            micro_batch: settings.train.micro_batch,
            place: settings.device.request,
            gpu_missing_since: None,
            crash_count: 0,
            unexplained_kills: 0,
        }
    }

    pub(super) fn place(&self) -> DeviceRequest {
        self.place
    }

    /// The worker itself has taken a smaller one; the next worker begins with it.
    pub(super) fn set_micro_batch(&mut self, micro_batch: usize) {
        self.micro_batch = micro_batch;
    }

    pub(super) fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// A save was made.
    pub(super) fn record_progress(&mut self) {
        (self.crash_count, self.unexplained_kills, self.gpu_missing_since) = (0, 0, None);
    }

    pub(super) fn decide(&mut self, ended: WorkerExit, why: &str) -> NextAction {
        if let Some(exit) = ended.status.code().and_then(Exit::from_code) {
            return self.decide_by_exit_code(exit, why);
        }
        match (ended.status.signal(), ended.oom_kill_counts) {
            (Some(SIGKILL), Some((before, after))) if ended.kill_reason.is_none() => {
                self.shrink_after_oom(&format!(
                    "worker killed by the OOM killer (the cgroup's count went from {before} to {after})"
                ))
            }
            (Some(SIGKILL), None) if ended.kill_reason.is_none() => self.handle_unexplained_kill(),
            (Some(SIGKILL), _) => {
                self.handle_crash(&format!("worker {} and was killed", ended.kill_reason.unwrap_or("died")))
            }
            (Some(signal), _) => self.handle_crash(&format!("worker died by signal {signal}")),
            (None, _) => self.handle_crash(&format!("worker ended with {} {why}", ended.status)),
        }
    }

    fn decide_by_exit_code(&mut self, exit: Exit, why: &str) -> NextAction {
        match exit {
            Exit::Done => NextAction::FinishJob,
            Exit::Disk => NextAction::StopDaemon { exit, reason: why.to_owned() },
            Exit::GpuFailed if !self.settings.guards.gpu_restart => {
                NextAction::FailJob { reason: why.to_owned() }
            }
            Exit::GpuMissing | Exit::GpuUnsupported | Exit::GpuWrongResult
                if !self.settings.guards.gpu_fallback =>
            {
                NextAction::FailJob { reason: why.to_owned() }
            }
            Exit::GpuMissing => self.retry_missing_gpu(why),
            Exit::GpuUnsupported | Exit::GpuWrongResult => self.give_up_gpu(exit, why),
            Exit::BaseModel | Exit::NoValidCheckpoint | Exit::NonFinite => {
                NextAction::FailJob { reason: why.to_owned() }
            }
            Exit::Interrupted => NextAction::Restart {
                message: "worker was asked to end by somebody else; it goes on".into(),
                delay: Duration::ZERO,
            },
            Exit::Findings | Exit::Usage | Exit::Failed | Exit::Locked | Exit::GpuFailed => {
                self.handle_crash(&format!("worker ended with exit code {}: {why}", exit.code()))
            }
        }
    }

    /// It may come back: a driver is reloaded, a card reset. Not a crash of the job.
    fn retry_missing_gpu(&mut self, why: &str) -> NextAction {
        let lost_for = self.gpu_missing_since.get_or_insert_with(Instant::now).elapsed();
        if lost_for >= Duration::from_secs(self.settings.device.lost_patience_s) {
            return self.give_up_gpu(Exit::GpuMissing, &format!("GPU not detected: {why}"));
        }
        // Doubled as it lasts: the wait is as long as the loss so far.
        let wait = lost_for.max(Duration::from_millis(self.settings.train.backoff_ms)).min(MAX_BACKOFF);
        NextAction::Restart {
            message: format!("GPU not detected: {why}; tried again in {:.1} s", wait.as_secs_f64()),
            delay: wait,
        }
    }

    fn give_up_gpu(&mut self, exit: Exit, why: &str) -> NextAction {
        match self.settings.device.on_lost {
            OnGpuLost::Stop if self.place != DeviceRequest::Auto => {
                NextAction::StopDaemon { exit, reason: why.to_owned() }
            }
            OnGpuLost::Stop | OnGpuLost::Cpu => {
                self.place = DeviceRequest::Cpu;
                NextAction::Restart {
                    message: format!("{why}; going on on the CPU, weights will be close, not equal"),
                    delay: Duration::ZERO,
                }
            }
        }
    }

    /// Userspace OOM killers leave no count: the first such kill may be anybody's, a second one in a row is taken for theirs.
    fn handle_unexplained_kill(&mut self) -> NextAction {
        self.unexplained_kills += 1;
        if self.unexplained_kills >= 2 {
            return self.shrink_after_oom("worker killed by SIGKILL again, taken for want of memory");
        }
        self.handle_crash("worker killed by SIGKILL, not by the kernel's OOM killer")
    }

    fn shrink_after_oom(&mut self, what: &str) -> NextAction {
        if !self.settings.guards.shrink_on_oom || self.micro_batch == 1 {
            return self.handle_crash(what);
        }
        let before = self.micro_batch;
        self.micro_batch = before.div_ceil(2);
        NextAction::Restart {
            message: format!("{what}; micro-batch {before} -> {}, same effective batch", self.micro_batch),
            delay: self.backoff(),
        }
    }

    fn handle_crash(&mut self, what: &str) -> NextAction {
        self.crash_count += 1;
        if self.settings.guards.quarantine && self.crash_count >= self.settings.train.max_crashes {
            return NextAction::FailJob {
                reason: format!("{what}; {} crashes in a row without progress", self.crash_count),
            };
        }
        NextAction::Restart { message: format!("{what}; started again"), delay: self.backoff() }
    }

    fn backoff(&self) -> Duration {
        let doubled = 1u32 << self.crash_count.saturating_sub(1).min(16);
        (Duration::from_millis(self.settings.train.backoff_ms) * doubled).min(MAX_BACKOFF)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn killed(oom: Option<(u64, u64)>) -> WorkerExit {
        WorkerExit { status: ExitStatus::from_raw(SIGKILL), oom_kill_counts: oom, kill_reason: None }
    }

    #[test]
    fn an_oom_kill_halves_the_micro_batch_and_another_sigkill_only_when_it_comes_again() {
        let mut crashes =
            RestartPolicy::new(&Settings::default().with(&["train.micro_batch=8".into()]).unwrap());
        crashes.decide(killed(Some((0, 1))), "");
        assert_eq!(crashes.micro_batch(), 4);
        crashes.decide(killed(None), "");
        assert_eq!(crashes.micro_batch(), 4);
        crashes.decide(killed(None), "");
        assert_eq!(crashes.micro_batch(), 2);
        // A save in between: what came before it is no sign of want of memory.
        crashes.record_progress();
        crashes.decide(killed(None), "");
        assert_eq!(crashes.micro_batch(), 2);
    }

    fn exited(exit: Exit) -> WorkerExit {
        WorkerExit {
            status: ExitStatus::from_raw(i32::from(exit.code()) << 8),
            oom_kill_counts: None,
            kill_reason: None,
        }
    }

    fn crashes(changes: &[&str]) -> RestartPolicy {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        RestartPolicy::new(&Settings::default().with(&changes).unwrap())
    }

    #[test]
    fn a_gpu_that_is_gone_is_looked_for_until_patience_ends_and_then_done_without() {
        let mut patient = crashes(&["device.use=cuda:0"]);
        assert!(
            matches!(patient.decide(exited(Exit::GpuMissing), "no device"), NextAction::Restart { delay, .. } if delay > Duration::ZERO)
        );
        assert_eq!(patient.place(), DeviceRequest::Cuda(0));
        let mut hasty = crashes(&["device.use=cuda:0", "device.lost_patience_s=0", "device.on_lost=cpu"]);
        let word =
            "GPU not detected: no device; going on on the CPU, weights will be close, not equal".to_owned();
        assert_eq!(
            hasty.decide(exited(Exit::GpuMissing), "no device"),
            NextAction::Restart { message: word, delay: Duration::ZERO }
        );
        assert_eq!(hasty.place(), DeviceRequest::Cpu);
        let mut stopping = crashes(&["device.use=cuda:0", "device.lost_patience_s=0"]);
        let reason = "GPU not detected: no device".to_owned();
        assert_eq!(
            stopping.decide(exited(Exit::GpuMissing), "no device"),
            NextAction::StopDaemon { exit: Exit::GpuMissing, reason }
        );
    }

    #[test]
    fn a_cuda_error_costs_a_process_and_without_the_guard_the_job() {
        assert!(matches!(
            crashes(&[]).decide(exited(Exit::GpuFailed), "launch failed"),
            NextAction::Restart { .. }
        ));
        let mut unguarded = crashes(&["guards.gpu_restart=false"]);
        assert_eq!(
            unguarded.decide(exited(Exit::GpuFailed), "launch failed"),
            NextAction::FailJob { reason: "launch failed".into() }
        );
    }

    #[test]
    fn a_job_that_crashes_without_progress_is_put_aside_with_its_reason() {
        let mut crashes = RestartPolicy::new(&Settings::default());
        let segfault =
            WorkerExit { status: ExitStatus::from_raw(11), oom_kill_counts: None, kill_reason: None };
        assert!(matches!(crashes.decide(segfault, ""), NextAction::Restart { .. }));
        assert!(matches!(crashes.decide(segfault, ""), NextAction::Restart { .. }));
        crashes.record_progress();
        assert!(matches!(crashes.decide(segfault, ""), NextAction::Restart { .. }));
        assert!(matches!(crashes.decide(segfault, ""), NextAction::Restart { .. }));
        let reason = "worker died by signal 11; 3 crashes in a row without progress".to_owned();
        assert_eq!(crashes.decide(segfault, ""), NextAction::FailJob { reason });
    }
}
