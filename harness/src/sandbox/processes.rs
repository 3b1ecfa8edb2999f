//! Who lives in a room, read from /proc.

use std::path::{Path, PathBuf};

/// A process of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    pub pid_inside: i32,
    pub name: String,
    /// Resident now, bytes.
    pub resident_bytes: u64,
    /// Most ever resident, bytes.
    pub peak_bytes: u64,
}

/// All but the warden. By the room's own /proc where it has one, else by looking who shares the warden's pid namespace.
pub(super) fn in_sandbox(warden: i32, fresh_proc: bool) -> Vec<ProcessInfo> {
    let folders = if fresh_proc {
        pid_dirs(Path::new(&format!("/proc/{warden}/root/proc")))
    } else {
        pid_dirs_in_namespace_of(warden)
    };
    folders
        .iter()
        .filter_map(|folder| read_process(folder))
        .filter(|process| process.pid_inside > 1)
        .collect()
}

/// Pid as the harness sees it.
pub(super) fn pid_outside(warden: i32, pid_inside: i32) -> Option<i32> {
    let folders = pid_dirs_in_namespace_of(warden);
    let folder = folders
        .iter()
        .find(|folder| read_process(folder).is_some_and(|facts| facts.pid_inside == pid_inside))?;
    folder.file_name()?.to_str()?.parse().ok()
}

fn pid_dirs(proc: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .map(|entry| entry.path())
        .collect()
}

fn pid_dirs_in_namespace_of(warden: i32) -> Vec<PathBuf> {
    let namespace = |folder: &Path| std::fs::read_link(folder.join("ns/pid")).ok();
    let wardens = namespace(Path::new(&format!("/proc/{warden}")));
    let is_inside = |folder: &PathBuf| wardens.is_some() && namespace(folder) == wardens;
    pid_dirs(Path::new("/proc")).into_iter().filter(is_inside).collect()
}

/// A process may be gone before it is read: then it does not count.
fn read_process(folder: &Path) -> Option<ProcessInfo> {
    let status = std::fs::read_to_string(folder.join("status")).ok()?;
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let kib =
        |name: &str| field(name).and_then(|value| value.strip_suffix(" kB")?.trim().parse::<u64>().ok());
    if field("State").is_some_and(|state| state.starts_with('Z')) {
        return None;
    }
    // The last one is the pid in the innermost namespace.
    let pid_inside = field("NSpid")?.split_whitespace().last()?.parse().ok()?;
    Some(ProcessInfo {
        pid_inside,
        name: field("Name")?.to_owned(),
        resident_bytes: kib("VmRSS").unwrap_or(0) * 1024,
        peak_bytes: kib("VmHWM").unwrap_or(0) * 1024,
    })
}

/// For the warden itself: everybody in its own /proc who is not dead already.
pub(super) fn live_processes() -> std::io::Result<Vec<nix::unistd::Pid>> {
    if std::fs::read_link("/proc/self")? != Path::new("1") {
        return Err(std::io::Error::other("the room has no /proc of its own"));
    }
    let pid = |folder: PathBuf| {
        let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
        let state = stat.rsplit(") ").next()?.chars().next()?;
        let pid = folder.file_name()?.to_str()?.parse().ok()?;
        (state != 'Z' && state != 'X').then_some(nix::unistd::Pid::from_raw(pid))
    };
    Ok(pid_dirs(Path::new("/proc")).into_iter().filter_map(pid).collect())
}
