//! Memory limits of a sandbox: enforced by its cgroup and the kernel's OOM killer. Without a cgroup, a
//! watcher thread works like a userspace OOM killer, and `ActiveMemoryLimit::mechanism` states that.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::cgroup::{CgroupVersion, MemoryCgroup};
use super::error::SandboxError;
use super::init_client::{InitClient, SpawnSpec, full_device};
use super::processes::SandboxProcesses;
use super::protocol::{BALLOON_ARGUMENT, ControlRequest, LaunchSpec, StartConditions};

/// How long to try to set a limit below current usage.
const SHRINK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the watcher and the balloon are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Free memory in the cgroup when the balloon starts.
const SLACK_BYTES: u64 = 1 << 20;

/// The `oom_score_adj` of a process that the OOM killer spares, proc_pid_oom_score_adj(5).
const NEVER_KILL: &str = "-1000";

/// A memory limit in effect. Dropping it removes the limit.
pub struct ActiveMemoryLimit {
    mechanism: String,
    enforcer: LimitEnforcer,
}

enum LimitEnforcer {
    Cgroup { cgroup: Arc<MemoryCgroup>, kills_before: u64 },
    Watcher { kills: Arc<AtomicU64>, stop: Arc<AtomicBool>, thread: Option<JoinHandle<()>> },
}

impl ActiveMemoryLimit {
    /// The mechanism that enforces the limit, in a few words.
    pub fn mechanism(&self) -> &str {
        &self.mechanism
    }

    /// Number of processes killed so far because of the limit.
    pub fn kills(&self) -> u64 {
        match &self.enforcer {
            LimitEnforcer::Cgroup { cgroup, kills_before } => {
                cgroup.oom_kills().saturating_sub(*kills_before)
            }
            LimitEnforcer::Watcher { kills, .. } => kills.load(Ordering::Relaxed),
        }
    }
}

impl Drop for ActiveMemoryLimit {
    fn drop(&mut self) {
        match &mut self.enforcer {
            // A failure is harmless: the limit affects only this sandbox, and its cgroup is removed with it.
            LimitEnforcer::Cgroup { cgroup, .. } => drop(cgroup.write_limit(u64::MAX)),
            LimitEnforcer::Watcher { stop, thread, .. } => {
                stop.store(true, Ordering::Relaxed);
                let _ = thread.take().map(JoinHandle::join);
            }
        }
    }
}

/// The sandbox in which a balloon can be started.
pub(super) struct BalloonHost {
    pub(super) client: Arc<InitClient>,
    pub(super) processes: SandboxProcesses,
}

/// Limits memory by the sandbox's cgroup.
pub(super) fn limit_cgroup(
    host: &BalloonHost,
    cgroup: &Arc<MemoryCgroup>,
    bytes: u64,
) -> Result<ActiveMemoryLimit, SandboxError> {
    let kills_before = cgroup.oom_kills();
    let name = match cgroup.version() {
        CgroupVersion::V2 => "memory cgroup v2, memory.max",
        CgroupVersion::V1 => "memory cgroup v1, memory.limit_in_bytes",
    };
    let mechanism = match cgroup.write_limit(bytes) {
        Ok(()) => format!("{name} and the kernel's OOM killer"),
        Err(_) => {
            shrink_below_usage(host, cgroup, bytes)?;
            format!("{name}, a balloon, and the kernel's OOM killer")
        }
    };
    let cgroup = Arc::clone(cgroup);
    Ok(ActiveMemoryLimit { mechanism, enforcer: LimitEnforcer::Cgroup { cgroup, kills_before } })
}

/// Sets a limit below current usage, which version 1 refuses. Sets a limit just above the usage, runs a
/// balloon until the kernel kills a process, and then tries to set the intended limit again.
fn shrink_below_usage(host: &BalloonHost, cgroup: &MemoryCgroup, bytes: u64) -> Result<(), SandboxError> {
    let deadline = Instant::now() + SHRINK_TIMEOUT;
    let mut last_error = std::io::Error::from(std::io::ErrorKind::TimedOut);
    while Instant::now() < deadline {
        run_balloon(host, cgroup)?;
        match cgroup.write_limit(bytes) {
            Ok(()) => return Ok(()),
            Err(error) => last_error = error,
        }
    }
    let _ = cgroup.write_limit(u64::MAX);
    Err(SandboxError::System { doing: "lower the memory limit of a cgroup", source: last_error })
}

fn run_balloon(host: &BalloonHost, cgroup: &MemoryCgroup) -> Result<(), SandboxError> {
    let kills_before = cgroup.oom_kills();
    let limit_bytes = cgroup.usage_bytes().unwrap_or(0) + SLACK_BYTES;
    if cgroup.write_limit(limit_bytes).is_err() {
        return Ok(());
    }
    let own_binary = Path::new("/proc/self/exe");
    let launch =
        LaunchSpec { argv: vec![own_binary.into(), BALLOON_ARGUMENT.into()], env: Vec::new(), cwd: None };
    let balloon = host.client.spawn(SpawnSpec {
        launch: &launch,
        // It only reads it.
        stdout: cgroup.open_kill_count().map_err(SandboxError::system("open the count of OOM kills"))?.into(),
        stderr: full_device()?,
        filter: None,
        limits: Vec::new(),
        conditions: StartConditions::default(),
        rules: None,
    })?;
    exempt_from_oom_killer(host.processes.pid_outside(balloon.pid_inside()));
    let deadline = Instant::now() + Duration::from_secs(1);
    while cgroup.oom_kills() == kills_before
        && Instant::now() < deadline
        && balloon.wait_timeout(POLL_INTERVAL).is_none()
    {}
    // This fails if the balloon itself was the process that was killed.
    let _ = host.client.send_signal(&kill_request(balloon.pid_inside()));
    let _ = balloon.wait_timeout(Duration::from_secs(1));
    Ok(())
}

fn kill_request(pid_inside: i32) -> ControlRequest {
    ControlRequest::Signal { pid_inside, signal: Signal::SIGKILL as i32 }
}

/// Makes the OOM killer avoid the process. Has no effect unless the harness runs as root.
fn exempt_from_oom_killer(pid: Option<i32>) {
    if let Some(pid) = pid {
        let _ = std::fs::write(Path::new(&format!("/proc/{pid}/oom_score_adj")), NEVER_KILL);
    }
}

/// Starts a thread that kills the sandbox's largest process whenever it uses more memory than the limit.
pub(super) fn start_watcher(
    client: Arc<InitClient>,
    processes: SandboxProcesses,
    bytes: u64,
) -> ActiveMemoryLimit {
    let (kills, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (thread_kills, thread_stop) = (Arc::clone(&kills), Arc::clone(&stop));
    let thread = std::thread::spawn(move || {
        while !thread_stop.load(Ordering::Relaxed) {
            let largest = processes.list().into_iter().max_by_key(|process| process.resident_bytes);
            if let Some(process) = largest.filter(|process| process.resident_bytes > bytes) {
                let request = kill_request(process.pid_inside);
                if client.send_signal(&request).is_ok_and(|received| received) {
                    thread_kills.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(POLL_INTERVAL * 5);
                }
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    });
    let mechanism =
        "no memory cgroup is available: a watcher sends SIGKILL to the largest process above the limit"
            .into();
    ActiveMemoryLimit { mechanism, enforcer: LimitEnforcer::Watcher { kills, stop, thread: Some(thread) } }
}
