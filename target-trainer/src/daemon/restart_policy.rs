//! Decides what the daemon does after a worker has exited. Starts no process and prints nothing.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::exit::Exit;
use crate::settings::{DeviceRequest, OnGpuLost, Settings};

/// The signal that the OOM killer sends.
const SIGKILL: i32 = nix::libc::SIGKILL;
/// The signal of a process that gives up, also if it gets no memory.
const SIGABRT: i32 = nix::libc::SIGABRT;
/// Longest wait before a restart.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// How a worker exited.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerExit {
    pub(super) status: ExitStatus,
    /// The cgroup's OOM kill counts, if they rose.
    pub(super) oom_kill_counts: Option<OomKillCounts>,
    /// Why the daemon killed it, if it did.
    pub(super) kill_reason: Option<KillReason>,
}

/// Why the daemon has killed a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KillReason {
    /// It was stopped as a whole.
    #[error("sent no heartbeat in time")]
    NoHeartbeat,
    /// It waits in a system call that does not return.
    #[error("made no progress in time, it waits in a system call")]
    StuckInCall,
    /// It computes without end.
    #[error("made no progress in time")]
    NoProgress,
    #[error("got no answer from the GPU in time")]
    GpuSilent,
    #[error("may have computed wrong results after a GPU error")]
    GpuUntrusted,
}

/// How many processes of the cgroup the OOM killer had killed.
#[derive(Debug, Clone, Copy)]
pub(super) struct OomKillCounts {
    /// When the worker started.
    pub(super) before: u64,
    /// When it had exited.
    pub(super) after: u64,
}

/// What the daemon does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NextAction {
    /// The job is done.
    FinishJob,
    /// Print `message`, and start another worker after `delay`.
    Restart { message: String, delay: Duration },
    /// Move the job to `failed/`.
    FailJob { reason: String },
    /// Exit: the cause affects all jobs.
    StopDaemon { exit: Exit, reason: String },
}

/// The history of one job's workers, and the policy that follows from the settings.
pub(super) struct RestartPolicy {
    settings: Settings,
    micro_batch: usize,
    /// The device that the next worker will use.
    device: DeviceRequest,
    /// The address space of this process and of workers is limited.
    has_memory_limit: bool,
    /// When the GPU was first found to be missing.
    gpu_missing_since: Option<Instant>,
    /// When the machine first refused what a worker needs.
    refused_since: Option<Instant>,
    /// Crashes in a row without a save in between.
    crash_count: u32,
    /// SIGKILLs in a row that neither the daemon nor the kernel's OOM killer sent.
    unexplained_kills: u32,
}

impl RestartPolicy {
    pub(super) fn new(settings: &Settings) -> RestartPolicy {
        RestartPolicy {
            settings: settings.clone(),
            micro_batch: settings.train.micro_batch,
            device: settings.device.request,
            has_memory_limit: getrlimit(Resource::RLIMIT_AS).is_ok_and(|(limit, _)| limit != RLIM_INFINITY),
            gpu_missing_since: None,
            refused_since: None,
            crash_count: 0,
            unexplained_kills: 0,
        }
    }

    /// The device that the next worker will use.
    pub(super) fn device(&self) -> DeviceRequest {
        self.device
    }

    /// Records a micro-batch that the worker has reduced by itself. The next worker starts with it.
    pub(super) fn set_micro_batch(&mut self, micro_batch: usize) {
        self.micro_batch = micro_batch;
    }

    /// The micro-batch of the next worker.
    pub(super) fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// Records a save: crashes before it no longer count.
    pub(super) fn record_progress(&mut self) {
        (self.crash_count, self.unexplained_kills) = (0, 0);
        (self.gpu_missing_since, self.refused_since) = (None, None);
    }

    /// Decides by the exit status. `reason` is the reason that the worker has reported, or empty.
    pub(super) fn decide(&mut self, worker_exit: WorkerExit, reason: &str) -> NextAction {
        if let Some(exit) = worker_exit.status.code().and_then(Exit::from_code) {
            return self.decide_by_exit_code(exit, reason);
        }
        match (worker_exit.status.signal(), worker_exit.oom_kill_counts) {
            (Some(SIGKILL), Some(OomKillCounts { before, after })) if worker_exit.kill_reason.is_none() => {
                self.shrink_after_oom(&format!(
                    "worker killed by the OOM killer (OOM kills in its cgroup rose from {before} to {after})"
                ))
            }
            (Some(SIGKILL), None) if worker_exit.kill_reason.is_none() => self.handle_unexplained_kill(),
            (Some(SIGKILL), _) => self.handle_kill(worker_exit.kill_reason),
            (Some(SIGABRT), _) if self.has_memory_limit => {
                self.shrink_after_oom("worker aborted under a limit on its memory (`ulimit -v`)")
            }
            (Some(signal), _) => self.handle_crash(&format!("worker was killed by signal {signal}")),
            (None, _) => self.handle_crash(&format!("worker exited with {} {reason}", worker_exit.status)),
        }
    }

    /// Decides after a worker has exited with 0, and left no result.
    pub(super) fn decide_without_result(&mut self) -> NextAction {
        self.handle_crash("worker ended without a result")
    }

    fn decide_by_exit_code(&mut self, exit: Exit, reason: &str) -> NextAction {
        match exit {
            Exit::Done => NextAction::FinishJob,
            Exit::Disk | Exit::NewerFormat => NextAction::StopDaemon { exit, reason: reason.to_owned() },
            Exit::BaseModel if !self.settings.guards.machine_faults => {
                NextAction::FailJob { reason: reason.to_owned() }
            }
            Exit::Machine if !self.settings.guards.machine_faults => self.handle_crash(reason),
            // All jobs use the same base model: none of them is at fault.
            Exit::BaseModel => {
                NextAction::StopDaemon { exit, reason: format!("{reason}; the jobs stay in the queue") }
            }
            Exit::Machine => self.retry_on_machine(reason),
            Exit::GpuFailed if !self.settings.guards.gpu_restart => {
                NextAction::FailJob { reason: reason.to_owned() }
            }
            Exit::GpuMissing | Exit::GpuUnsupported | Exit::GpuWrongResult
                if !self.settings.guards.gpu_fallback =>
            {
                NextAction::FailJob { reason: reason.to_owned() }
            }
            Exit::GpuMissing => self.retry_missing_gpu(reason),
            Exit::GpuUnsupported | Exit::GpuWrongResult => self.give_up_gpu(exit, reason),
            Exit::NoValidCheckpoint | Exit::NonFinite => NextAction::FailJob { reason: reason.to_owned() },
            Exit::Interrupted => NextAction::Restart {
                message: "worker received a stop signal from another process; a new worker continues".into(),
                delay: Duration::ZERO,
            },
            Exit::Findings
            | Exit::Usage
            | Exit::Failed
            | Exit::Locked
            | Exit::GpuFailed
            | Exit::JobsFailed
            | Exit::PortTaken => {
                self.handle_crash(&format!("worker exited with exit code {}: {reason}", exit.code()))
            }
        }
    }

    /// Waits until the machine has what a worker needs. Not counted as a crash of the job.
    fn retry_on_machine(&mut self, reason: &str) -> NextAction {
        let refused_for = self.refused_since.get_or_insert_with(Instant::now).elapsed();
        if refused_for >= Duration::from_secs(self.settings.train.save_patience_s) {
            let reason = format!("{reason}; the job stays in the queue");
            return NextAction::StopDaemon { exit: Exit::Machine, reason };
        }
        let delay = refused_for.max(Duration::from_millis(self.settings.train.backoff_ms)).min(MAX_BACKOFF);
        NextAction::Restart {
            message: format!("{reason}; will try again in {:.1} s", delay.as_secs_f64()),
            delay,
        }
    }

    /// Waits for the GPU: it may come back after a reset or a driver reload. Not counted as a crash of the
    /// job.
    fn retry_missing_gpu(&mut self, reason: &str) -> NextAction {
        let missing_for = self.gpu_missing_since.get_or_insert_with(Instant::now).elapsed();
        if missing_for >= Duration::from_secs(self.settings.device.lost_patience_s) {
            return self.give_up_gpu(Exit::GpuMissing, &format!("GPU not detected: {reason}"));
        }
        // Waiting as long as the GPU has been missing doubles that time with each attempt.
        let delay = missing_for.max(Duration::from_millis(self.settings.train.backoff_ms)).min(MAX_BACKOFF);
        NextAction::Restart {
            message: format!("GPU not detected: {reason}; will retry in {:.1} s", delay.as_secs_f64()),
            delay,
        }
    }

    /// Continues on the CPU or stops, depending on `device.on_lost`.
    fn give_up_gpu(&mut self, exit: Exit, reason: &str) -> NextAction {
        match self.settings.device.on_lost {
            OnGpuLost::Stop if self.device != DeviceRequest::Auto => {
                NextAction::StopDaemon { exit, reason: reason.to_owned() }
            }
            OnGpuLost::Stop | OnGpuLost::Cpu => {
                self.device = DeviceRequest::Cpu;
                NextAction::Restart {
                    message: format!(
                        "{reason}; continuing on the CPU, weights will be close to the GPU's, not equal"
                    ),
                    delay: Duration::ZERO,
                }
            }
        }
    }

    /// Userspace OOM killers leave no count. The first such kill is treated as a crash, a second one in a row
    /// as out of memory.
    fn handle_unexplained_kill(&mut self) -> NextAction {
        self.unexplained_kills += 1;
        if self.unexplained_kills >= 2 {
            return self.shrink_after_oom("worker killed by SIGKILL again, treated as out of memory");
        }
        self.handle_crash("worker killed by SIGKILL, not by the kernel's OOM killer")
    }

    fn shrink_after_oom(&mut self, cause: &str) -> NextAction {
        if !self.settings.guards.shrink_on_oom {
            return self.handle_crash(cause);
        }
        if self.micro_batch == 1 {
            return self.handle_crash_of_machine(&format!("{cause} with one sample at once"));
        }
        let before = self.micro_batch;
        self.micro_batch = before.div_ceil(2);
        NextAction::Restart {
            message: format!("{cause}; micro-batch {before} -> {}, same effective batch", self.micro_batch),
            delay: self.backoff(),
        }
    }

    fn handle_kill(&mut self, reason: Option<KillReason>) -> NextAction {
        let cause = match reason {
            Some(reason) => format!("worker {reason} and was killed"),
            None => "worker died and was killed".into(),
        };
        match reason {
            Some(KillReason::StuckInCall | KillReason::NoHeartbeat) => self.handle_crash_of_machine(&cause),
            _ => self.handle_crash(&cause),
        }
    }

    /// Like [`RestartPolicy::handle_crash`], but the job is not at fault and stays in the queue.
    fn handle_crash_of_machine(&mut self, cause: &str) -> NextAction {
        match self.handle_crash(cause) {
            NextAction::FailJob { reason } if self.settings.guards.machine_faults => NextAction::StopDaemon {
                exit: Exit::Machine,
                reason: format!("{reason}; the job stays in the queue"),
            },
            action => action,
        }
    }

    fn handle_crash(&mut self, cause: &str) -> NextAction {
        self.crash_count += 1;
        if self.settings.guards.quarantine && self.crash_count >= self.settings.train.max_crashes {
            return NextAction::FailJob {
                reason: format!("{cause}; {} crashes in a row without progress", self.crash_count),
            };
        }
        NextAction::Restart { message: format!("{cause}; restarted"), delay: self.backoff() }
    }

    fn backoff(&self) -> Duration {
        let factor = 1u32 << self.crash_count.saturating_sub(1).min(16);
        (Duration::from_millis(self.settings.train.backoff_ms) * factor).min(MAX_BACKOFF)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn killed(oom_kill_counts: Option<OomKillCounts>) -> WorkerExit {
        WorkerExit { status: ExitStatus::from_raw(SIGKILL), oom_kill_counts, kill_reason: None }
    }

    #[test]
    fn an_oom_kill_halves_the_micro_batch_and_another_sigkill_does_so_when_repeated() {
        let mut policy =
            RestartPolicy::new(&Settings::default().with(&["train.micro_batch=8".into()]).unwrap());
        policy.decide(killed(Some(OomKillCounts { before: 0, after: 1 })), "");
        assert_eq!(policy.micro_batch(), 4);
        policy.decide(killed(None), "");
        assert_eq!(policy.micro_batch(), 4);
        policy.decide(killed(None), "");
        assert_eq!(policy.micro_batch(), 2);
        // After a save, earlier kills no longer count towards out of memory.
        policy.record_progress();
        policy.decide(killed(None), "");
        assert_eq!(policy.micro_batch(), 2);
    }

    fn exited(exit: Exit) -> WorkerExit {
        WorkerExit {
            status: ExitStatus::from_raw(i32::from(exit.code()) << 8),
            oom_kill_counts: None,
            kill_reason: None,
        }
    }

    fn policy(changes: &[&str]) -> RestartPolicy {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        RestartPolicy::new(&Settings::default().with(&changes).unwrap())
    }

    #[test]
    fn a_missing_gpu_is_retried_until_the_timeout_and_then_replaced_by_the_cpu_or_a_stop() {
        let mut before_timeout = policy(&["device.use=cuda:0"]);
        let action = before_timeout.decide(exited(Exit::GpuMissing), "no device");
        assert!(matches!(action, NextAction::Restart { delay, .. } if delay > Duration::ZERO));
        assert_eq!(before_timeout.device(), DeviceRequest::Cuda(0));
        let mut after_timeout =
            policy(&["device.use=cuda:0", "device.lost_patience_s=0", "device.on_lost=cpu"]);
        let message = "GPU not detected: no device; continuing on the CPU, \
                       weights will be close to the GPU's, not equal"
            .to_owned();
        assert_eq!(
            after_timeout.decide(exited(Exit::GpuMissing), "no device"),
            NextAction::Restart { message, delay: Duration::ZERO }
        );
        assert_eq!(after_timeout.device(), DeviceRequest::Cpu);
        let mut with_stop = policy(&["device.use=cuda:0", "device.lost_patience_s=0"]);
        let reason = "GPU not detected: no device".to_owned();
        assert_eq!(
            with_stop.decide(exited(Exit::GpuMissing), "no device"),
            NextAction::StopDaemon { exit: Exit::GpuMissing, reason }
        );
    }

    #[test]
    fn a_cuda_error_restarts_the_worker_and_without_the_guard_fails_the_job() {
        assert!(matches!(
            policy(&[]).decide(exited(Exit::GpuFailed), "launch failed"),
            NextAction::Restart { .. }
        ));
        let mut unguarded = policy(&["guards.gpu_restart=false"]);
        assert_eq!(
            unguarded.decide(exited(Exit::GpuFailed), "launch failed"),
            NextAction::FailJob { reason: "launch failed".into() }
        );
    }

    #[test]
    fn a_job_that_crashes_without_progress_fails_with_the_reason() {
        let mut policy = RestartPolicy::new(&Settings::default());
        let segfault =
            WorkerExit { status: ExitStatus::from_raw(11), oom_kill_counts: None, kill_reason: None };
        assert!(matches!(policy.decide(segfault, ""), NextAction::Restart { .. }));
        assert!(matches!(policy.decide(segfault, ""), NextAction::Restart { .. }));
        policy.record_progress();
        assert!(matches!(policy.decide(segfault, ""), NextAction::Restart { .. }));
        assert!(matches!(policy.decide(segfault, ""), NextAction::Restart { .. }));
        let reason = "worker was killed by signal 11; 3 crashes in a row without progress".to_owned();
        assert_eq!(policy.decide(segfault, ""), NextAction::FailJob { reason });
    }
}
