//! Less memory for a room: by its cgroup and the kernel's OOM killer, or, where there is no cgroup to be had, by a
//! watcher that does what userspace OOM killers do, and says so.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::cgroup::{CgroupVersion, MemoryCgroup};
use super::handle::{ControlSocket, Sandbox};
use super::protocol::ControlRequest;
use super::{BALLOON_ARGUMENT, LaunchSpec, SandboxError, processes};

/// How long a limit below what is in use is pressed.
const SHRINK_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// What the balloon finds free when it begins.
const SLACK_BYTES: u64 = 1 << 20;

/// A limit in force. Dropping it takes it back.
pub struct ActiveMemoryLimit {
    mechanism: String,
    enforcer: LimitEnforcer,
}

enum LimitEnforcer {
    Cgroup { cgroup: Arc<MemoryCgroup>, kills_before: u64 },
    Watcher { kills: Arc<AtomicU64>, stop: Arc<AtomicBool>, thread: Option<JoinHandle<()>> },
}

impl ActiveMemoryLimit {
    /// What enforces it, in a few words.
    pub fn mechanism(&self) -> &str {
        &self.mechanism
    }

    /// Processes killed so far because of it.
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
            // The cgroup goes with the room; a limit that stays until then harms nobody else.
            LimitEnforcer::Cgroup { cgroup, .. } => drop(cgroup.write_limit(u64::MAX)),
            LimitEnforcer::Watcher { stop, thread, .. } => {
                stop.store(true, Ordering::Relaxed);
                let _ = thread.take().map(JoinHandle::join);
            }
        }
    }
}

pub(super) fn limit_cgroup(
    room: &Sandbox,
    cgroup: Arc<MemoryCgroup>,
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
            shrink_below_usage(room, &cgroup, bytes)?;
            format!("{name}, a balloon, and the kernel's OOM killer")
        }
    };
    Ok(ActiveMemoryLimit { mechanism, enforcer: LimitEnforcer::Cgroup { cgroup, kills_before } })
}

/// Version 1 refuses a limit below what is in use. So: a limit just above it, a balloon that grows until the kernel
/// kills somebody, and then the limit that was wanted.
fn shrink_below_usage(room: &Sandbox, cgroup: &MemoryCgroup, bytes: u64) -> Result<(), SandboxError> {
    let until = Instant::now() + SHRINK_TIMEOUT;
    let mut last = std::io::Error::from(std::io::ErrorKind::TimedOut);
    while Instant::now() < until {
        run_balloon(room, cgroup)?;
        match cgroup.write_limit(bytes) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    let _ = cgroup.write_limit(u64::MAX);
    Err(SandboxError::System { doing: "lower the memory limit of a cgroup", error: last })
}

fn run_balloon(room: &Sandbox, cgroup: &MemoryCgroup) -> Result<(), SandboxError> {
    let before = cgroup.oom_kills();
    let above = cgroup.usage_bytes().unwrap_or(0) + SLACK_BYTES;
    if cgroup.write_limit(above).is_err() {
        return Ok(());
    }
    let own = std::path::Path::new("/proc/self/exe");
    let launch = LaunchSpec { argv: vec![own.into(), BALLOON_ARGUMENT.into()], env: Vec::new(), cwd: None };
    let balloon = room.spawn(&launch)?;
    exempt_from_oom_killer(room.pid_outside(balloon.pid_inside()));
    let until = Instant::now() + Duration::from_secs(1);
    while cgroup.oom_kills() == before
        && Instant::now() < until
        && balloon.wait_timeout(POLL_INTERVAL).is_none()
    {}
    // It may have been the one that was killed.
    let _ = room.signal(balloon.pid_inside(), Signal::SIGKILL as i32);
    let _ = balloon.wait_timeout(Duration::from_secs(1));
    Ok(())
}

/// The balloon is not whom the OOM killer shall take; only root may say so.
fn exempt_from_oom_killer(pid: Option<i32>) {
    if let Some(pid) = pid {
        let _ = std::fs::write(Path::new(&format!("/proc/{pid}/oom_score_adj")), "-1000");
    }
}

/// Kills the largest process of the room whenever it is larger than the limit.
pub(super) fn start_watcher(
    line: Arc<ControlSocket>,
    warden: i32,
    fresh_proc: bool,
    bytes: u64,
) -> ActiveMemoryLimit {
    let (kills, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (its_kills, its_stop) = (Arc::clone(&kills), Arc::clone(&stop));
    let thread = std::thread::spawn(move || {
        while !its_stop.load(Ordering::Relaxed) {
            let largest = processes::in_sandbox(warden, fresh_proc)
                .into_iter()
                .max_by_key(|process| process.resident_bytes);
            if let Some(process) = largest.filter(|process| process.resident_bytes > bytes) {
                let request =
                    ControlRequest::Signal { pid_inside: process.pid_inside, signal: Signal::SIGKILL as i32 };
                if line.execute(&request).is_ok() {
                    its_kills.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(POLL_INTERVAL * 5);
                }
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    });
    let mechanism =
        "no memory cgroup may be used here: a watcher sends SIGKILL to the largest process above the limit"
            .into();
    ActiveMemoryLimit { mechanism, enforcer: LimitEnforcer::Watcher { kills, stop, thread: Some(thread) } }
}
