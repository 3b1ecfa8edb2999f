//! Looks at the machine now and then, on a thread of its own: a file system that hangs must not hold up training.
//! What can't be read, or is not of the expected form, tells nothing.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use super::condition::{BadStates, Finding, HostEvent};
use super::limited_use::{LimitedUse, Remainder};
use super::memory_figures::{MemoryPressure, SwapSpace, SwappedPages};
use super::user_processes::user_processes;
use crate::bounded_read::read_regular;
use crate::plain_text::shown;
use crate::settings::HealthSettings;

/// Largest file of the kernel that is read. Those of usual kernels have a tenth of it.
const MAX_FILE_BYTES: u64 = 1 << 16;
/// Open files that are counted at most.
const MAX_COUNTED_FILES: usize = 1 << 20;

/// What is looked at.
#[derive(Debug, Clone)]
pub struct WatchedHost {
    /// How often, and the marks.
    pub settings: HealthSettings,
    /// Whether anything is told: the guard `host_warnings`.
    pub tells: bool,
    /// Directories whose file systems should have room.
    pub dirs: Vec<PathBuf>,
    /// The file with the number of processes of this process's cgroup, and the one with the largest number.
    pub process_files: Option<[PathBuf; 2]>,
}

/// A thread that looks at the machine. It ends when this is dropped.
pub struct HostWatch {
    events: Receiver<HostEvent>,
    worker_pid: Arc<AtomicU32>,
    /// Dropped to end the thread.
    _ended: Sender<()>,
}

impl HostWatch {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the machine has no room for one.
    pub fn start(host: WatchedHost) -> std::io::Result<HostWatch> {
        let (sender, events) = channel();
        let (_ended, ended) = channel::<()>();
        let worker_pid = Arc::new(AtomicU32::new(0));
        let pid = Arc::clone(&worker_pid);
        let watch = move || {
            let interval = Duration::from_secs(host.settings.interval_s);
            let mut look = HostLook { host, bad_states: BadStates::default(), swapped: None };
            loop {
                let events = look.look(pid.load(Ordering::Relaxed));
                if events.into_iter().any(|event| sender.send(event).is_err()) {
                    return;
                }
                if ended.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("host-health".into()).spawn(watch)?;
        Ok(HostWatch { events, worker_pid, _ended })
    }

    /// Which process is the worker. 0: none.
    pub fn set_worker(&self, pid: u32) {
        self.worker_pid.store(pid, Ordering::Relaxed);
    }

    /// What is new, if anything.
    pub fn next_event(&self) -> Option<HostEvent> {
        self.events.try_recv().ok()
    }
}

/// What is kept from one look to the next.
struct HostLook {
    host: WatchedHost,
    bad_states: BadStates,
    /// The swapped pages at the last look, and when it was.
    swapped: Option<(SwappedPages, Instant)>,
}

impl HostLook {
    fn look(&mut self, worker_pid: u32) -> Vec<HostEvent> {
        let mut findings = self.memory();
        findings.extend(open_files("self", "open files of the daemon"));
        if worker_pid != 0 {
            findings.extend(open_files(&worker_pid.to_string(), "open files of the worker"));
        }
        findings.extend(self.host.process_files.as_ref().and_then(processes));
        findings.extend(user_processes());
        findings.extend(self.rooms());
        if !self.host.tells {
            findings.clear();
        }
        self.bad_states.update(findings)
    }

    fn memory(&mut self) -> Vec<Finding> {
        let read = |path: &str| read_regular(Path::new(path), MAX_FILE_BYTES).ok();
        let space = read("/proc/meminfo").and_then(|text| SwapSpace::parse(&text));
        let swapped = read("/proc/vmstat").and_then(|text| SwappedPages::parse(&text));
        let now = Instant::now();
        let earlier = std::mem::replace(&mut self.swapped, swapped.map(|swapped| (swapped, now)));
        let rate = swapped.zip(earlier).and_then(|(swapped, (earlier, when))| {
            let elapsed_ms = u64::try_from(now.duration_since(when).as_millis()).unwrap_or(u64::MAX);
            swapped.rate_since(earlier, elapsed_ms)
        });
        let pressure = read("/proc/pressure/memory").and_then(|text| MemoryPressure::parse(&text));
        let findings = [
            rate.map(|rate| rate.finding(space)),
            space.map(SwapSpace::finding),
            pressure.map(MemoryPressure::finding),
        ];
        findings.into_iter().flatten().collect()
    }

    /// One finding on bytes and one on inodes for each file system.
    fn rooms(&self) -> Vec<Finding> {
        let HealthSettings { free_bytes, free_inodes, .. } = self.host.settings;
        let mut devices = BTreeSet::new();
        let mut findings = Vec::new();
        for dir in &self.host.dirs {
            let Ok(metadata) = std::fs::metadata(dir) else { continue };
            if !devices.insert(metadata.dev()) {
                continue;
            }
            let Ok(stat) = statvfs(dir) else { continue };
            let place = shown(&dir.to_string_lossy());
            let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
            // Some file systems do not count, and report none at all.
            if stat.blocks() > 0 {
                let (free, total) = (bytes(stat.blocks_available()), bytes(stat.blocks()));
                findings.push(Remainder { free, total, mark: free_bytes }.finding("bytes", &place));
            }
            if stat.files() > 0 {
                let (free, total) = (stat.files_available(), stat.files());
                findings.push(Remainder { free, total, mark: free_inodes }.finding("inodes", &place));
            }
        }
        findings
    }
}

/// How many files a process has open. Its limit is that of this process, which has started it.
fn open_files(process: &str, what: &str) -> Option<Finding> {
    let (max, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let used = files.take(MAX_COUNTED_FILES).count() as u64;
    Some(LimitedUse { used, max }.finding(what))
}

/// How many processes and threads the cgroup has. `None` also without a limit, which is then `max`.
fn processes(files: &[PathBuf; 2]) -> Option<Finding> {
    let number = |path: &Path| {
        let text = read_regular(path, MAX_FILE_BYTES).ok()?;
        std::str::from_utf8(&text).ok()?.trim().parse().ok()
    };
    let [used, max] = files.each_ref().map(|path| number(path));
    Some(LimitedUse { used: used?, max: max? }.finding("processes and threads of the cgroup"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(dirs: Vec<PathBuf>, settings: HealthSettings) -> HostLook {
        let host = WatchedHost { settings, tells: true, dirs, process_files: None };
        HostLook { host, bad_states: BadStates::default(), swapped: None }
    }

    #[test]
    fn what_is_not_there_tells_nothing() {
        assert!(open_files("0", "open files").is_none());
        let missing = PathBuf::from("/nonexistent");
        assert!(processes(&[missing.clone(), missing.clone()]).is_none());
        assert!(host(vec![missing], HealthSettings::default()).rooms().is_empty());
    }

    #[test]
    fn processes_without_a_limit_tell_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["pids.current", "pids.max"].map(|name| dir.path().join(name));
        std::fs::write(&files[0], "95\n").unwrap();
        for (max, figures) in
            [("max\n", None), ("100\n", Some("95 of 100 processes and threads of the cgroup"))]
        {
            std::fs::write(&files[1], max).unwrap();
            assert_eq!(processes(&files).map(|finding| finding.figures).as_deref(), figures);
        }
    }

    #[test]
    fn a_file_system_is_looked_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = vec![dir.path().to_path_buf(), dir.path().to_path_buf()];
        let names: BTreeSet<_> = host(dirs, HealthSettings::default())
            .rooms()
            .into_iter()
            .map(|finding| finding.name.split(' ').next().unwrap_or_default().to_owned())
            .collect();
        assert!(names.contains("bytes") && names.len() <= 2, "{names:?}");
    }
}
