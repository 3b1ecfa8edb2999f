//! What a run of the command must not leave behind: processes, mounts, cgroups and directories. Must not know
//! what was run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the processes of a run may take to end after the command itself.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// An environment variable that all processes of one run inherit.
pub(crate) const MARK: &str = "TRAINWRECK_TEST_MARK";

/// The processes that have this text in their environment or in their command line. Zombies have neither.
pub(crate) fn processes_with(text: &str) -> Vec<i32> {
    let has_text = |pid: &i32| {
        ["environ", "cmdline"].iter().any(|file| {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(text)
        })
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(has_text).collect()
}

/// The processes with this text that are still there after a while, with their command lines.
pub(crate) fn processes_that_stay(text: &str) -> Vec<String> {
    let deadline = Instant::now() + TIME_LIMIT;
    while !processes_with(text).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let command_line = |pid: i32| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("process {pid}: {}", String::from_utf8_lossy(&bytes).replace('\0', " "))
    };
    processes_with(text).into_iter().map(command_line).collect()
}

/// The cgroups of a run of the command with this process ID, in all hierarchies of both versions.
pub(crate) fn cgroups_of(pid: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = dirs.pop() {
        // A cgroup may end meanwhile.
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let children = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.extend(children.map(|entry| entry.path()));
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("trainwreck-") && name.contains(&format!("-{pid}-")) {
            found.push(dir);
        }
    }
    found
}

/// The directories of runs in a directory for temporary files. Only those of one process, if `pid` is given.
pub(crate) fn run_dirs(temporary: &Path, pid: Option<u32>) -> Vec<PathBuf> {
    let prefix = pid.map_or("run-".into(), |pid| format!("run-{pid}-"));
    let children = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let of_users = children(temporary.to_path_buf())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("trainwreck-"));
    let runs = of_users.flat_map(|entry| children(entry.path()));
    let runs = runs.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    runs.map(|entry| entry.path()).collect()
}

/// The mounts of each process whose line contains the text. A sandbox's mounts are visible to its processes
/// only.
pub(crate) fn mounts_of_all_processes(text: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    // A process may end meanwhile.
    let mounts = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("mountinfo")).ok());
    let of_process = |mounts: String| {
        mounts.lines().filter(|line| line.contains(text)).map(str::to_owned).collect::<Vec<_>>()
    };
    mounts.flat_map(of_process).collect()
}

/// The mounts of this process whose line contains the text.
pub(crate) fn mounts_with(text: &str) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}
