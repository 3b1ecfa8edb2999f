//! Reads how many processes of this process's memory cgroup the kernel's OOM killer has killed.

use std::path::PathBuf;

/// The OOM kill count of this process's cgroup. Returns `None` if the kernel provides no such count.
pub(super) fn oom_kill_count() -> Option<u64> {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    cgroups.lines().filter_map(|line| counter_file(line, &mounts)).find_map(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    })
}

/// The file that holds the count, from one line of `/proc/self/cgroup`.
/// Cgroup v2: `0::/path`, file `memory.events`. Cgroup v1: `4:memory:/path`, file `memory.oom_control`.
fn counter_file(line: &str, mounts: &str) -> Option<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (file_system, option, file) = match controllers {
        "" => ("cgroup2", None, "memory.events"),
        list if list.split(',').any(|controller| controller == "memory") => {
            ("cgroup", Some("memory"), "memory.oom_control")
        }
        _ => return None,
    };
    let matches_mount = |mount: &&str| {
        let Some((_, after)) = mount.split_once(" - ") else { return false };
        let mut fields = after.split(' ');
        fields.next() == Some(file_system)
            && option.is_none_or(|option| {
                fields.nth(1).is_some_and(|options| options.split(',').any(|known| known == option))
            })
    };
    let mount = mounts.lines().find(matches_mount)?.split(' ').nth(4)?;
    Some(PathBuf::from(mount).join(path.trim_start_matches('/')).join(file))
}
