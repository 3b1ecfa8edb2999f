//! The files of this process's cgroups: how many processes the kernel's OOM killer has killed, and how many there may
//! be.

use std::path::PathBuf;

/// The kind of cgroup that a controller belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CgroupVersion {
    V1,
    V2,
}

/// The directory of this process's cgroup in one hierarchy.
struct CgroupDir {
    version: CgroupVersion,
    path: PathBuf,
}

/// The OOM kill count of this process's cgroup. Returns `None` if the kernel provides no such count.
pub(super) fn oom_kill_count() -> Option<u64> {
    own_dirs("memory").into_iter().find_map(|dir| {
        let file = match dir.version {
            CgroupVersion::V1 => "memory.oom_control",
            CgroupVersion::V2 => "memory.events",
        };
        let text = std::fs::read_to_string(dir.path.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    })
}

/// The file with the number of processes and threads of this process's cgroup, and the one with the largest number.
pub(super) fn process_files() -> Option<[PathBuf; 2]> {
    let files =
        own_dirs("pids").into_iter().map(|dir| ["pids.current", "pids.max"].map(|name| dir.path.join(name)));
    files.into_iter().find(|files| files.iter().all(|file| file.is_file()))
}

/// The directories of this process's cgroups that may have the controller.
fn own_dirs(controller: &str) -> Vec<CgroupDir> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cgroups, mounts) = (read("/proc/self/cgroup"), read("/proc/self/mountinfo"));
    cgroups.lines().filter_map(|line| cgroup_dir(line, controller, &mounts)).collect()
}

/// The directory, from one line of `/proc/self/cgroup`. Cgroup v2: `0::/path`. Cgroup v1: `4:memory:/path`.
fn cgroup_dir(line: &str, controller: &str, mounts: &str) -> Option<CgroupDir> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (version, file_system) = match controllers {
        "" => (CgroupVersion::V2, "cgroup2"),
        list if list.split(',').any(|known| known == controller) => (CgroupVersion::V1, "cgroup"),
        _ => return None,
    };
    let matches_mount = |mount: &&str| {
        let Some((_, after)) = mount.split_once(" - ") else { return false };
        let mut fields = after.split(' ');
        fields.next() == Some(file_system)
            && (version == CgroupVersion::V2
                || fields.nth(1).is_some_and(|options| options.split(',').any(|known| known == controller)))
    };
    let mount = mounts.lines().find(matches_mount)?.split(' ').nth(4)?;
    Some(CgroupDir { version, path: PathBuf::from(mount).join(path.trim_start_matches('/')) })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_directory_is_below_the_mount_of_its_hierarchy() {
        let mounts = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                      31 20 0:27 / /v1/pids rw - cgroup cgroup rw,pids\n\
                      32 20 0:28 / /v1/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        let dir = |line: &str| cgroup_dir(line, "pids", mounts).map(|dir| dir.path);
        assert_eq!(dir("0::/a/b").as_deref(), Some(Path::new("/sys/fs/cgroup/a/b")));
        assert_eq!(dir("7:pids:/c").as_deref(), Some(Path::new("/v1/pids/c")));
        for other in ["4:cpu,cpuacct:/c", "", "nonsense", "1:pids"] {
            assert_eq!(dir(other), None, "{other}");
        }
    }
}
