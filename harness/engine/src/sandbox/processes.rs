//! Lists the processes in a sandbox, from /proc.

use std::path::{Path, PathBuf};

/// A process in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its pid within the sandbox.
    pub pid_inside: i32,
    /// Its process group, as a pid within the sandbox.
    pub group_inside: i32,
    /// The name of its program, cut to 15 bytes by the kernel.
    pub name: String,
    /// It was stopped by a signal, and has not been continued.
    pub is_stopped: bool,
    /// Memory that is resident now.
    pub resident_bytes: u64,
    /// Peak resident memory.
    pub peak_bytes: u64,
}

/// What a process in a sandbox uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessUse {
    /// Its pid within the sandbox.
    pub pid_inside: i32,
    /// It has ended, and its parent has not waited for it.
    pub is_zombie: bool,
    /// How many threads it has.
    pub threads: u64,
    /// How many files, sockets and pipes it has open. 0 if that can't be read.
    pub open_files: u64,
}

/// How the harness finds the processes of a sandbox.
#[derive(Debug, Clone, Copy)]
pub(super) struct SandboxProcesses {
    /// Pid of init in the harness's pid namespace.
    pub(super) init_pid: i32,
    /// Whether the sandbox has its own /proc.
    pub(super) fresh_proc: bool,
}

impl SandboxProcesses {
    /// The running processes in the sandbox, without its init. Uses the sandbox's own /proc if it has one,
    /// otherwise finds the processes that share init's pid namespace.
    pub(super) fn list(self) -> Vec<ProcessInfo> {
        let dirs = self.dirs();
        dirs.iter().filter_map(|dir| read_process(dir)).filter(|process| process.pid_inside > 1).collect()
    }

    /// What each process in the sandbox uses, without its init. Zombies are among them.
    pub(super) fn list_use(self) -> Vec<ProcessUse> {
        let dirs = self.dirs();
        dirs.iter().filter_map(|dir| read_use(dir)).filter(|process| process.pid_inside > 1).collect()
    }

    fn dirs(self) -> Vec<PathBuf> {
        if self.fresh_proc {
            pid_dirs(Path::new(&format!("/proc/{}/root/proc", self.init_pid)))
        } else {
            pid_dirs_in_namespace_of(self.init_pid)
        }
    }

    /// The pids, in the harness's pid namespace, of all processes in the sandbox but its init.
    pub(super) fn pids_outside(self) -> Vec<i32> {
        let dirs = pid_dirs_in_namespace_of(self.init_pid);
        let pids = dirs.iter().filter_map(|dir| dir.file_name()?.to_str()?.parse().ok());
        pids.filter(|pid| *pid != self.init_pid).collect()
    }

    /// The directory in /proc of a process in the sandbox.
    pub(super) fn dir_of(self, pid_inside: i32) -> Option<PathBuf> {
        let is_wanted =
            |dir: &PathBuf| read_process(dir).is_some_and(|process| process.pid_inside == pid_inside);
        self.dirs().into_iter().find(is_wanted)
    }

    /// The pid, in the harness's pid namespace, of a process in the sandbox.
    pub(super) fn pid_outside(self, pid_inside: i32) -> Option<i32> {
        let is_wanted =
            |dir: &&PathBuf| read_process(dir).is_some_and(|process| process.pid_inside == pid_inside);
        let dirs = pid_dirs_in_namespace_of(self.init_pid);
        dirs.iter().find(is_wanted)?.file_name()?.to_str()?.parse().ok()
    }
}

/// The directories of all processes in a /proc.
fn pid_dirs(proc: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .map(|entry| entry.path())
        .collect()
}

/// The directories of all processes in the same pid namespace as init.
fn pid_dirs_in_namespace_of(init_pid: i32) -> Vec<PathBuf> {
    let namespace = |dir: &Path| std::fs::read_link(dir.join("ns/pid")).ok();
    let sandbox_namespace = namespace(Path::new(&format!("/proc/{init_pid}")));
    let is_inside = |dir: &PathBuf| sandbox_namespace.is_some() && namespace(dir) == sandbox_namespace;
    pid_dirs(Path::new("/proc")).into_iter().filter(is_inside).collect()
}

/// A field of a process's `status`.
fn status_field<'s>(status: &'s str, name: &str) -> Option<&'s str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The pid of a process in the innermost namespace.
fn pid_inside(status: &str) -> Option<i32> {
    status_field(status, "NSpid")?.split_whitespace().last()?.parse().ok()
}

/// Reads what a process uses. Returns `None` if there is no such process any more.
fn read_use(dir: &Path) -> Option<ProcessUse> {
    let status = std::fs::read_to_string(dir.join("status")).ok()?;
    Some(ProcessUse {
        pid_inside: pid_inside(&status)?,
        is_zombie: status_field(&status, "State")?.starts_with('Z'),
        threads: status_field(&status, "Threads")?.parse().ok()?,
        open_files: std::fs::read_dir(dir.join("fd")).map_or(0, |entries| entries.count() as u64),
    })
}

/// Reads a process's directory. Returns `None` if the process has ended.
fn read_process(dir: &Path) -> Option<ProcessInfo> {
    let status = std::fs::read_to_string(dir.join("status")).ok()?;
    let field = |name: &str| status_field(&status, name);
    let kib =
        |name: &str| field(name).and_then(|value| value.strip_suffix(" kB")?.trim().parse::<u64>().ok());
    if field("State").is_some_and(|state| state.starts_with('Z')) {
        return None;
    }
    let last_of = |name: &str| field(name)?.split_whitespace().last()?.parse().ok();
    Some(ProcessInfo {
        pid_inside: last_of("NSpid")?,
        group_inside: last_of("NSpgid")?,
        name: field("Name")?.to_owned(),
        is_stopped: field("State").is_some_and(|state| state.starts_with('T')),
        resident_bytes: kib("VmRSS").unwrap_or(0) * 1024,
        peak_bytes: kib("VmHWM").unwrap_or(0) * 1024,
    })
}

/// All running processes in the sandbox. Called by init; fails if the sandbox does not have its own /proc.
pub(super) fn live_processes() -> std::io::Result<Vec<nix::unistd::Pid>> {
    if std::fs::read_link("/proc/self")? != Path::new("1") {
        return Err(std::io::Error::other("the sandbox does not have its own /proc"));
    }
    let live_pid = |dir: PathBuf| {
        let stat = std::fs::read_to_string(dir.join("stat")).ok()?;
        let state = stat.rsplit(") ").next()?.chars().next()?;
        let pid = dir.file_name()?.to_str()?.parse().ok()?;
        (state != 'Z' && state != 'X').then_some(nix::unistd::Pid::from_raw(pid))
    };
    Ok(pid_dirs(Path::new("/proc")).into_iter().filter_map(live_pid).collect())
}
