//! Less memory for a room: by its cgroup and the kernel's OOM killer, or, where there is no cgroup to be had, by a
//! watcher that does what userspace OOM killers do, and says so.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::cgroup::{MemoryCgroup, Version};
use super::message::Request;
use super::room::{Line, Room};
use super::{BALLOON, Launch, SandboxError, processes};

/// How long a limit below what is in use is pressed.
const PRESS: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(2);
/// What the balloon finds free when it begins.
const SLACK: u64 = 1 << 20;

/// A limit in force. Dropping it takes it back.
pub struct MemoryLimited {
    mechanism: String,
    by: By,
}

enum By {
    Cgroup { cgroup: Arc<MemoryCgroup>, kills_before: u64 },
    Watcher { kills: Arc<AtomicU64>, stop: Arc<AtomicBool>, thread: Option<JoinHandle<()>> },
}

impl MemoryLimited {
    /// What enforces it, in a few words.
    pub fn mechanism(&self) -> &str {
        &self.mechanism
    }

    /// Processes killed so far because of it.
    pub fn kills(&self) -> u64 {
        match &self.by {
            By::Cgroup { cgroup, kills_before } => cgroup.oom_kills().saturating_sub(*kills_before),
            By::Watcher { kills, .. } => kills.load(Ordering::Relaxed),
        }
    }
}

impl Drop for MemoryLimited {
    fn drop(&mut self) {
        match &mut self.by {
            // The cgroup goes with the room; a limit that stays until then harms nobody else.
            By::Cgroup { cgroup, .. } => drop(cgroup.write_limit(u64::MAX)),
            By::Watcher { stop, thread, .. } => {
                stop.store(true, Ordering::Relaxed);
                let _ = thread.take().map(JoinHandle::join);
            }
        }
    }
}

pub(super) fn limit_cgroup(
    room: &Room,
    cgroup: Arc<MemoryCgroup>,
    bytes: u64,
) -> Result<MemoryLimited, SandboxError> {
    let kills_before = cgroup.oom_kills();
    let name = match cgroup.version() {
        Version::V2 => "memory cgroup v2, memory.max",
        Version::V1 => "memory cgroup v1, memory.limit_in_bytes",
    };
    let mechanism = match cgroup.write_limit(bytes) {
        Ok(()) => format!("{name} and the kernel's OOM killer"),
        Err(_) => {
            press(room, &cgroup, bytes)?;
            format!("{name}, a balloon, and the kernel's OOM killer")
        }
    };
    Ok(MemoryLimited { mechanism, by: By::Cgroup { cgroup, kills_before } })
}

/// Version 1 refuses a limit below what is in use. So: a limit just above it, a balloon that grows until the kernel
/// kills somebody, and then the limit that was wanted.
fn press(room: &Room, cgroup: &MemoryCgroup, bytes: u64) -> Result<(), SandboxError> {
    let until = Instant::now() + PRESS;
    let mut last = std::io::Error::from(std::io::ErrorKind::TimedOut);
    while Instant::now() < until {
        inflate(room, cgroup)?;
        match cgroup.write_limit(bytes) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    let _ = cgroup.write_limit(u64::MAX);
    Err(SandboxError::System { doing: "lower the memory limit of a cgroup", error: last })
}

fn inflate(room: &Room, cgroup: &MemoryCgroup) -> Result<(), SandboxError> {
    let before = cgroup.oom_kills();
    let above = cgroup.usage().unwrap_or(0) + SLACK;
    if cgroup.write_limit(above).is_err() {
        return Ok(());
    }
    let own = std::path::Path::new("/proc/self/exe");
    let launch = Launch { argv: vec![own.into(), BALLOON.into()], env: Vec::new(), cwd: None };
    let balloon = room.spawn(&launch)?;
    spare(room.pid_outside(balloon.pid_inside()));
    let until = Instant::now() + Duration::from_secs(1);
    while cgroup.oom_kills() == before && Instant::now() < until && balloon.wait_timeout(LOOK).is_none() {}
    // It may have been the one that was killed.
    let _ = room.signal(balloon.pid_inside(), Signal::SIGKILL as i32);
    let _ = balloon.wait_timeout(Duration::from_secs(1));
    Ok(())
}

/// The balloon is not whom the OOM killer shall take; only root may say so.
fn spare(pid: Option<i32>) {
    if let Some(pid) = pid {
        let _ = std::fs::write(Path::new(&format!("/proc/{pid}/oom_score_adj")), "-1000");
    }
}

/// Kills the largest process of the room whenever it is larger than the limit.
pub(super) fn watch(line: Arc<Line>, warden: i32, fresh_proc: bool, bytes: u64) -> MemoryLimited {
    let (kills, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (its_kills, its_stop) = (Arc::clone(&kills), Arc::clone(&stop));
    let thread = std::thread::spawn(move || {
        while !its_stop.load(Ordering::Relaxed) {
            let largest = processes::in_room(warden, fresh_proc)
                .into_iter()
                .max_by_key(|process| process.resident_bytes);
            if let Some(process) = largest.filter(|process| process.resident_bytes > bytes) {
                let request =
                    Request::Signal { pid_inside: process.pid_inside, signal: Signal::SIGKILL as i32 };
                if line.done(&request).is_ok() {
                    its_kills.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(LOOK * 5);
                }
            }
            std::thread::sleep(LOOK);
        }
    });
    let mechanism =
        "no memory cgroup may be used here: a watcher sends SIGKILL to the largest process above the limit"
            .into();
    MemoryLimited { mechanism, by: By::Watcher { kills, stop, thread: Some(thread) } }
}
