//! A memory cgroup for one room, where the machine grants one: version 2, or version 1, found by trying.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::geteuid;

use super::SandboxError;

/// Names of our cgroups begin so; a sweep removes none other.
pub(super) const NAME_PREFIX: &str = "trainwreck-";

static NEXT_NUMBER: AtomicU32 = AtomicU32::new(0);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CgroupVersion {
    V1,
    V2,
}

/// A cgroup with a memory controller. Removed by [`MemoryCgroup::remove`], or by the sweep.
#[derive(Debug)]
pub(super) struct MemoryCgroup {
    dir: PathBuf,
    version: CgroupVersion,
}

impl MemoryCgroup {
    /// A new one; none where no memory controller may be used.
    pub(super) fn create() -> Option<MemoryCgroup> {
        let name = format!(
            "{NAME_PREFIX}{}-{}-{}",
            geteuid(),
            std::process::id(),
            NEXT_NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        candidate_parents()
            .into_iter()
            .find_map(|(parent, version)| MemoryCgroup::create_below(&parent, &name, version))
    }

    /// Only one that really works: made, limited and opened for new members.
    fn create_below(parent: &Path, name: &str, version: CgroupVersion) -> Option<MemoryCgroup> {
        let cgroup = MemoryCgroup { dir: parent.join(name), version };
        std::fs::create_dir(&cgroup.dir).ok()?;
        let works = cgroup.usage_bytes().is_some()
            && cgroup.write_limit(u64::MAX).is_ok()
            && std::fs::OpenOptions::new().write(true).open(cgroup.procs_file()).is_ok();
        if works {
            return Some(cgroup);
        }
        // Just made by us and empty.
        let _ = std::fs::remove_dir(&cgroup.dir);
        None
    }

    pub(super) fn procs_file(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    pub(super) fn version(&self) -> CgroupVersion {
        self.version
    }

    /// Sets the limit; `u64::MAX` is none. Version 1 answers EBUSY where more is in use.
    pub(super) fn write_limit(&self, bytes: u64) -> std::io::Result<()> {
        let none = bytes == u64::MAX;
        match self.version {
            CgroupVersion::V2 => {
                let value = if none { "max".into() } else { bytes.to_string() };
                // Without swap a limit is a limit; where there is no swap there is no such file.
                let _ = std::fs::write(self.dir.join("memory.swap.max"), if none { "max" } else { "0" });
                std::fs::write(self.dir.join("memory.max"), value)
            }
            CgroupVersion::V1 => {
                let value = if none { "-1".into() } else { bytes.to_string() };
                std::fs::write(self.dir.join("memory.limit_in_bytes"), value)
            }
        }
    }

    pub(super) fn usage_bytes(&self) -> Option<u64> {
        let file = match self.version {
            CgroupVersion::V2 => "memory.current",
            CgroupVersion::V1 => "memory.usage_in_bytes",
        };
        std::fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
    }

    /// Processes that the kernel's OOM killer has killed in it.
    pub(super) fn oom_kills(&self) -> u64 {
        let file = match self.version {
            CgroupVersion::V2 => "memory.events",
            CgroupVersion::V1 => "memory.oom_control",
        };
        let text = std::fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// Removes it once nobody is in it any more.
    pub(super) fn remove(&self) -> Result<(), SandboxError> {
        remove_empty(&self.dir)
    }
}

/// The kernel lets go of the dead a moment after they were reaped.
pub(super) fn remove_empty(dir: &Path) -> Result<(), SandboxError> {
    let mut last = None;
    for _ in 0..200 {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let error = last.unwrap_or_else(|| std::io::Error::other("it stays"));
    Err(SandboxError::file("remove cgroup", dir)(error))
}

/// Cgroups below which ours might be made, the likeliest first.
pub(super) fn candidate_parents() -> Vec<(PathBuf, CgroupVersion)> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut parents = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let version = if controllers.is_empty() { CgroupVersion::V2 } else { CgroupVersion::V1 };
        if version == CgroupVersion::V1 && !controllers.split(',').any(|controller| controller == "memory") {
            continue;
        }
        for mount in mount_points(&mounts, version) {
            let here = mount.join(path.trim_start_matches('/'));
            parents.push((here.clone(), version));
            parents.extend(
                here.parent()
                    .filter(|parent| parent.starts_with(&mount))
                    .map(|parent| (parent.to_path_buf(), version)),
            );
        }
    }
    parents
}

fn mount_points(mountinfo: &str, version: CgroupVersion) -> Vec<PathBuf> {
    let wanted = |line: &&str| {
        let Some((_, after)) = line.split_once(" - ") else { return false };
        let mut fields = after.split(' ');
        let (kind, options) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        match version {
            CgroupVersion::V2 => kind == "cgroup2",
            CgroupVersion::V1 => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
        }
    };
    mountinfo.lines().filter(wanted).filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}
