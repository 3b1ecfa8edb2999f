//! How often the kernel's OOM killer came to our memory cgroup. None where there is no such count.

use std::path::PathBuf;

pub(super) fn oom_kill_count() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    own.lines().filter_map(|line| counter_file(line, &mounts)).find_map(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    })
}

/// Version 2: `0::/path`, memory.events. Version 1: `4:memory:/path`, memory.oom_control.
fn counter_file(line: &str, mounts: &str) -> Option<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (kind, option, file) = match controllers {
        "" => ("cgroup2", None, "memory.events"),
        list if list.split(',').any(|controller| controller == "memory") => {
            ("cgroup", Some("memory"), "memory.oom_control")
        }
        _ => return None,
    };
    let is_it = |mount: &&str| {
        let Some((_, after)) = mount.split_once(" - ") else { return false };
        let mut words = after.split(' ');
        words.next() == Some(kind)
            && option.is_none_or(|option| {
                words.nth(1).is_some_and(|options| options.split(',').any(|one| one == option))
            })
    };
    let mount = mounts.lines().find(is_it)?.split(' ').nth(4)?;
    Some(PathBuf::from(mount).join(path.trim_start_matches('/')).join(file))
}
