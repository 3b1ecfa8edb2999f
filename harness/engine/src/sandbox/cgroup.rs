//! Cgroups for one sandbox, if this machine permits them: version 2 or 1, found by trying. One limits memory, one
//! the number of processes. A name says which process created it, so that a later run can remove it.

use std::fs::File;
use std::io::Error;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::unistd::geteuid;

use super::error::SandboxError;

/// Prefix of the names of our cgroups. The removal of leftovers touches no others.
const NAME_PREFIX: &str = "trainwreck-";

/// The file of a cgroup that lists its processes.
const PROCS_FILE: &str = "cgroup.procs";
/// The file of a cgroup of version 2 that lists the controllers that it has.
const CONTROLLERS_FILE: &str = "cgroup.controllers";
/// The same for the controllers that it passes on to the cgroups below.
const SUBTREE_FILE: &str = "cgroup.subtree_control";

/// How often the removal of a cgroup is tried: for one second.
const MAX_REMOVALS: u32 = 200;
/// How often that of an abandoned one is tried: for one second. Its processes end with their harness, but a kernel that
/// is busy needs a moment.
const MAX_LEFTOVER_REMOVALS: u32 = 200;
const REMOVAL_INTERVAL: Duration = Duration::from_millis(5);

/// Makes the names unique within this process.
static NEXT_NUMBER: AtomicU32 = AtomicU32::new(0);

/// Version of the cgroup interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CgroupVersion {
    V1,
    V2,
}

/// What a cgroup limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// The memory of all processes.
    Memory,
    /// How many processes and threads there are.
    Processes,
}

impl Controller {
    /// Its name in /proc/self/cgroup, and the option of its mount.
    fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Processes => "pids",
        }
    }
}

/// A cgroup below which ours could be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CgroupParent {
    pub(super) dir: PathBuf,
    pub(super) version: CgroupVersion,
}

impl CgroupParent {
    /// Whether it has a controller, could pass it on to the cgroups below, and does not. One with processes of its
    /// own can't pass on any (cgroups(7)).
    fn withholds(&self, controller: Controller) -> bool {
        let text = |file: &str| std::fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        let has = |file: &str| text(file).split_whitespace().any(|name| name == controller.name());
        self.version == CgroupVersion::V2
            && has(CONTROLLERS_FILE)
            && !has(SUBTREE_FILE)
            && text(PROCS_FILE).trim().is_empty()
    }
}

/// A cgroup with a memory controller. Removed by [`MemoryCgroup::remove`], or by the drop if its sandbox could
/// not be built.
#[derive(Debug)]
pub(super) struct MemoryCgroup {
    dir: PathBuf,
    version: CgroupVersion,
}

impl MemoryCgroup {
    /// Creates a cgroup. Returns `None` if no memory controller can be used.
    pub(super) fn create() -> Option<MemoryCgroup> {
        let name = new_name();
        let mut parents = candidate_parents(Controller::Memory).into_iter();
        parents.find_map(|parent| MemoryCgroup::create_below(&parent, &name))
    }

    /// Creates a cgroup below `parent`, and keeps it only if it can be read, limited and joined.
    fn create_below(parent: &CgroupParent, name: &str) -> Option<MemoryCgroup> {
        let cgroup = MemoryCgroup { dir: parent.dir.join(name), version: parent.version };
        std::fs::create_dir(&cgroup.dir).ok()?;
        let works = cgroup.usage_bytes().is_some()
            && cgroup.write_limit(u64::MAX).is_ok()
            && std::fs::OpenOptions::new().write(true).open(cgroup.procs_file()).is_ok();
        works.then_some(cgroup)
    }

    /// The file into which a process writes "0" to join.
    pub(super) fn procs_file(&self) -> PathBuf {
        self.dir.join(PROCS_FILE)
    }

    /// The version of its interface.
    pub(super) fn version(&self) -> CgroupVersion {
        self.version
    }

    /// Sets the limit; `u64::MAX` removes it. Version 1 fails with EBUSY if more memory is in use.
    pub(super) fn write_limit(&self, bytes: u64) -> std::io::Result<()> {
        let unlimited = bytes == u64::MAX;
        match self.version {
            CgroupVersion::V2 => {
                let value = if unlimited { "max".into() } else { bytes.to_string() };
                // Without this, memory above the limit would be swapped. The file does not exist if there is
                // no swap.
                let _ = std::fs::write(self.dir.join("memory.swap.max"), if unlimited { "max" } else { "0" });
                std::fs::write(self.dir.join("memory.max"), value)
            }
            CgroupVersion::V1 => {
                let value = if unlimited { "-1".into() } else { bytes.to_string() };
                std::fs::write(self.dir.join("memory.limit_in_bytes"), value)
            }
        }
    }

    /// Memory in use.
    pub(super) fn usage_bytes(&self) -> Option<u64> {
        let file = match self.version {
            CgroupVersion::V2 => "memory.current",
            CgroupVersion::V1 => "memory.usage_in_bytes",
        };
        std::fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
    }

    /// Number of processes in it that the kernel's OOM killer has killed.
    pub(super) fn oom_kills(&self) -> u64 {
        self.open_kill_count().map_or(0, |file| oom_kills_in(&file))
    }

    /// Opens the file that has this number.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn open_kill_count(&self) -> Result<File, Error> {
        let file = match self.version {
            CgroupVersion::V2 => "memory.events",
            CgroupVersion::V1 => "memory.oom_control",
        };
        File::open(self.dir.join(file))
    }

    /// Removes the cgroup, as soon as no process is left in it.
    pub(super) fn remove(&self) -> Result<(), SandboxError> {
        remove_empty(&self.dir, MAX_REMOVALS)
    }
}

/// The number of processes that the OOM killer has killed by now, in the file of [`MemoryCgroup::open_kill_count`].
pub(super) fn oom_kills_in(file: &File) -> u64 {
    let mut bytes = [0; 1024];
    let len_bytes = file.read_at(&mut bytes, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..len_bytes]);
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // `remove_leftovers` of a later run removes what could not be removed here.
        let _ = remove_empty(&self.dir, MAX_LEFTOVER_REMOVALS);
    }
}

/// A cgroup that limits the number of processes. With version 2, where a process is in one cgroup only, it is the
/// memory cgroup of the same sandbox if there is one.
#[derive(Debug)]
pub(super) struct ProcessCgroup {
    dir: PathBuf,
    version: CgroupVersion,
    is_own: bool,
}

impl ProcessCgroup {
    /// Creates a cgroup. Returns `None` if no controller for processes can be used.
    pub(super) fn create(memory: Option<&MemoryCgroup>) -> Option<ProcessCgroup> {
        if let Some(memory) = memory.filter(|memory| memory.version == CgroupVersion::V2) {
            let shared = ProcessCgroup { dir: memory.dir.clone(), version: memory.version, is_own: false };
            return shared.write_limit(None).is_ok().then_some(shared);
        }
        let name = new_name();
        candidate_parents(Controller::Processes).into_iter().find_map(|parent| {
            let cgroup = ProcessCgroup { dir: parent.dir.join(&name), version: parent.version, is_own: true };
            std::fs::create_dir(&cgroup.dir).ok()?;
            let works = cgroup.write_limit(None).is_ok()
                && std::fs::OpenOptions::new().write(true).open(cgroup.dir.join(PROCS_FILE)).is_ok();
            works.then_some(cgroup)
        })
    }

    /// The file into which a process writes "0" to join. `None`: it joins another file's cgroup anyway.
    pub(super) fn procs_file(&self) -> Option<PathBuf> {
        self.is_own.then(|| self.dir.join(PROCS_FILE))
    }

    /// The version of its interface.
    pub(super) fn version(&self) -> CgroupVersion {
        self.version
    }

    /// Sets how many processes and threads there may be. `None` removes the limit.
    pub(super) fn write_limit(&self, max: Option<u32>) -> std::io::Result<()> {
        let text = max.map_or_else(|| "max".to_owned(), |max| max.to_string());
        std::fs::write(self.dir.join("pids.max"), text)
    }

    /// How many processes and threads there are.
    pub(super) fn count(&self) -> std::io::Result<u32> {
        let text = std::fs::read_to_string(self.dir.join("pids.current"))?;
        text.trim().parse().map_err(std::io::Error::other)
    }

    /// How often a process or thread could not be started because of the limit. `None`: it can't be read.
    pub(super) fn refusals(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.dir.join("pids.events")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse().ok())
    }

    /// Removes the cgroup, as soon as no process is left in it.
    pub(super) fn remove(&self) -> Result<(), SandboxError> {
        if self.is_own { remove_empty(&self.dir, MAX_REMOVALS) } else { Ok(()) }
    }
}

impl Drop for ProcessCgroup {
    fn drop(&mut self) {
        // `remove_leftovers` of a later run removes what could not be removed here.
        if self.is_own {
            let _ = remove_empty(&self.dir, MAX_LEFTOVER_REMOVALS);
        }
    }
}

fn new_name() -> String {
    CgroupCreator::this_process().cgroup_name(NEXT_NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// The process that created a cgroup. Its start time tells it from a later process with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CgroupCreator {
    pid: u32,
    /// In clock ticks since boot; field 22 of /proc/PID/stat. 0 if it could not be read.
    started_ticks: u64,
}

impl CgroupCreator {
    fn this_process() -> CgroupCreator {
        let pid = std::process::id();
        CgroupCreator { pid, started_ticks: started_ticks(pid).unwrap_or(0) }
    }

    fn cgroup_name(self, number: u32) -> String {
        format!("{NAME_PREFIX}{}-{}-{}-{number}", geteuid(), self.pid, self.started_ticks)
    }

    /// The creator of the cgroup of this name. `None`: it is not a cgroup of this user's harnesses.
    fn of_cgroup(name: &str) -> Option<CgroupCreator> {
        let rest = name.strip_prefix(&format!("{NAME_PREFIX}{}-", geteuid()))?;
        let mut fields = rest.split('-');
        let (pid, started, number) = (fields.next()?, fields.next()?, fields.next()?);
        let is_whole = fields.next().is_none() && number.parse::<u32>().is_ok();
        let creator = CgroupCreator { pid: pid.parse().ok()?, started_ticks: started.parse().ok()? };
        is_whole.then_some(creator)
    }

    fn has_ended(self) -> bool {
        started_ticks(self.pid).is_none_or(|started| self.started_ticks != 0 && started != self.started_ticks)
    }
}

/// When a process started. `None`: there is no such process, or it has ended and nobody has waited for it.
fn started_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name of the program, in parentheses, and may contain anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let has_ended = matches!(fields.next()?, "Z" | "X");
    if has_ended { None } else { fields.nth(18)?.parse().ok() }
}

/// All cgroups of this user's harnesses that a run of this process could see.
pub(super) fn sibling_cgroups() -> Vec<PathBuf> {
    let parents = [Controller::Memory, Controller::Processes].into_iter().flat_map(candidate_parents);
    let dirs = parents.map(|parent| parent.dir);
    let entries = dirs.flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    let is_ours = |path: &PathBuf| creator_of(path).is_some();
    let mut cgroups: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_ours).collect();
    cgroups.sort();
    cgroups.dedup();
    cgroups
}

fn creator_of(cgroup: &Path) -> Option<CgroupCreator> {
    CgroupCreator::of_cgroup(cgroup.file_name()?.to_str()?)
}

/// Whether the harness that created a cgroup has ended.
pub(super) fn creator_has_ended(cgroup: &Path) -> bool {
    creator_of(cgroup).is_some_and(CgroupCreator::has_ended)
}

/// Removes a cgroup whose creator has ended. Tries for a moment only, so that a busy one delays no start.
pub(super) fn remove_abandoned(cgroup: &Path) -> Result<(), SandboxError> {
    remove_empty(cgroup, MAX_LEFTOVER_REMOVALS)
}

/// Removes a cgroup. Retries, because the kernel keeps it busy for a moment after its processes were reaped.
fn remove_empty(dir: &Path, max_removals: u32) -> Result<(), SandboxError> {
    let mut last_error = None;
    for _ in 0..max_removals {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => last_error = Some(error),
        }
        std::thread::sleep(REMOVAL_INTERVAL);
    }
    let error = last_error.unwrap_or_else(|| std::io::Error::other("it is still in use"));
    Err(SandboxError::file("remove cgroup", dir)(error))
}

/// Cgroups below which ours could be created, in order of preference.
pub(super) fn candidate_parents(controller: Controller) -> Vec<CgroupParent> {
    let own_cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut parents = Vec::new();
    for line in own_cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let version = if controllers.is_empty() { CgroupVersion::V2 } else { CgroupVersion::V1 };
        if version == CgroupVersion::V1 && !controllers.split(',').any(|found| found == controller.name()) {
            continue;
        }
        for mount in mount_points(&mounts, version, controller) {
            let current = mount.join(path.trim_start_matches('/'));
            let above = current.parent().filter(|above| above.starts_with(&mount)).map(Path::to_path_buf);
            let dirs = std::iter::once(current).chain(above);
            parents.extend(dirs.map(|dir| CgroupParent { dir, version }));
        }
    }
    parents
}

/// The command with which root gives our cgroups a controller that a cgroup of version 2 above them has, but does
/// not pass on. `None`: there is no such cgroup, or the user is not root.
pub(super) fn command_to_enable(controller: Controller) -> Option<String> {
    let mut parents = candidate_parents(controller).into_iter().filter(|_| geteuid().is_root());
    let parent = parents.find(|parent| parent.withholds(controller))?;
    let file = parent.dir.join(SUBTREE_FILE);
    Some(format!("echo +{} > {}", controller.name(), file.display()))
}

/// Mount points of the cgroup file system of a version, from mountinfo. With version 1, of this controller.
fn mount_points(mountinfo: &str, version: CgroupVersion, controller: Controller) -> Vec<PathBuf> {
    let is_wanted_mount = |line: &&str| {
        let Some((_, after)) = line.split_once(" - ") else { return false };
        let mut fields = after.split(' ');
        let (kind, options) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        match version {
            CgroupVersion::V2 => kind == "cgroup2",
            CgroupVersion::V1 => {
                kind == "cgroup" && options.split(',').any(|option| option == controller.name())
            }
        }
    };
    mountinfo
        .lines()
        .filter(is_wanted_mount)
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{
        CONTROLLERS_FILE, CgroupCreator, CgroupParent, CgroupVersion, Controller, PROCS_FILE, SUBTREE_FILE,
        started_ticks,
    };

    #[test]
    fn only_an_empty_cgroup_with_the_controller_withholds_it() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let parent = CgroupParent { dir: dir.path().into(), version: CgroupVersion::V2 };
        // Controllers, those that are passed on, processes.
        let cases = [
            (("cpu memory pids", "memory", ""), true),
            (("cpu memory pids", "memory pids", ""), false),
            (("cpu memory", "memory", ""), false),
            (("cpu memory pids", "memory", "17"), false),
        ];
        for ((controllers, passed_on, processes), expected) in cases {
            let files = [CONTROLLERS_FILE, SUBTREE_FILE, PROCS_FILE];
            for (file, text) in files.iter().zip([controllers, passed_on, processes]) {
                std::fs::write(dir.path().join(file), format!("{text}\n"))?;
            }
            assert_eq!(parent.withholds(Controller::Processes), expected, "{controllers} | {passed_on}");
        }
        let first = CgroupParent { version: CgroupVersion::V1, ..parent };
        assert!(!first.withholds(Controller::Processes));
        Ok(())
    }

    #[test]
    fn a_process_that_nobody_has_waited_for_has_ended() -> std::io::Result<()> {
        let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
        let creator =
            CgroupCreator { pid: child.id(), started_ticks: started_ticks(child.id()).unwrap_or(0) };
        assert!(creator.started_ticks > 0 && !creator.has_ended());
        child.kill()?;
        // It is a zombie until the test waits for it.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !creator.has_ended() {
            assert!(std::time::Instant::now() < deadline, "a zombie counts as running");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.wait().map(drop)
    }

    #[test]
    fn a_cgroup_is_abandoned_only_if_the_very_process_that_created_it_has_ended() {
        let this = CgroupCreator::this_process();
        assert!(this.started_ticks > 0 && !this.has_ended());
        assert_eq!(CgroupCreator::of_cgroup(&this.cgroup_name(7)), Some(this));
        let earlier = CgroupCreator { started_ticks: this.started_ticks + 1, ..this };
        assert!(earlier.has_ended(), "the id of a dead harness is in use again");
        assert!(CgroupCreator { pid: u32::MAX, ..this }.has_ended());
        for foreign in ["trainwreck-0", "trainwreck-tests", "system.slice", &this.cgroup_name(7)[1..]] {
            assert_eq!(CgroupCreator::of_cgroup(foreign), None, "{foreign}");
        }
    }
}
