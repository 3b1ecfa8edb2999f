//! Which mechanisms this machine grants, each found by trying it, and how to get the others.

use std::path::{Path, PathBuf};

use nix::sys::inotify::{InitFlags, Inotify};
use scenarios::Mechanism;

use super::cgroup::{CgroupVersion, MemoryCgroup};
use super::{LaunchSpec, MountChange, RunDir, Sandbox, SandboxError, SandboxSpec, TmpfsSpec};

const TEST_MOUNT: &str = "place";

/// Tries them all; well under a second.
pub fn doctor() -> Vec<Mechanism> {
    let mut found = match probe_sandbox() {
        Ok(found) => found,
        Err(error) => without_sandbox(&error),
    };
    found.push(probe_memory_cgroup());
    found.push(probe_inotify());
    found
}

fn granted(name: &str, detail: impl Into<String>) -> Mechanism {
    Mechanism { name: name.into(), granted: true, detail: detail.into() }
}

fn refused(name: &str, detail: impl Into<String>) -> Mechanism {
    Mechanism { name: name.into(), granted: false, detail: detail.into() }
}

fn from_result(name: &str, result: Result<String, SandboxError>) -> Mechanism {
    match result {
        Ok(detail) => granted(name, detail),
        Err(error) => refused(name, error.to_string()),
    }
}

fn probe_sandbox() -> Result<Vec<Mechanism>, SandboxError> {
    let run = RunDir::create()?;
    let dir = run.path().join("doctor");
    std::fs::create_dir(&dir).map_err(SandboxError::file("create", &dir))?;
    let mounts = vec![TmpfsSpec { mount_point: TEST_MOUNT.into(), size_bytes: 1 << 20, inodes: Some(64) }];
    let room = Sandbox::build(SandboxSpec { dir, mounts, binds: Vec::new(), memory_cgroup: false })?;
    let at = PathBuf::from(TEST_MOUNT);
    let mut found = vec![granted("user-namespace", "user, mount, pid and IPC namespaces")];
    found.push(match room.has_fresh_proc() {
        true => granted("fresh-proc", "a /proc of the room's own"),
        false => refused(
            "fresh-proc",
            "the container hides parts of /proc; rooms keep the outer one, and are watched more slowly",
        ),
    });
    found.push(from_result("tmpfs", probe_resize(&room, &at)));
    found.push(from_result("read-only-remount", probe_read_only(&room, &at)));
    found.push(from_result("syscall-gate", probe_gate(&room)));
    room.close()?;
    run.close()?;
    Ok(found)
}

fn probe_resize(room: &Sandbox, at: &Path) -> Result<String, SandboxError> {
    room.change_mount(at, MountChange::Resize { size_bytes: 4096 })?;
    room.change_mount(at, MountChange::Inodes { count: 8 })?;
    Ok("size and inodes changed while mounted".into())
}

fn probe_read_only(room: &Sandbox, at: &Path) -> Result<String, SandboxError> {
    let applied = room.change_mount(at, MountChange::ReadOnly)?;
    room.change_mount(at, MountChange::Writable)?;
    Ok(applied.mechanism)
}

/// Whether a program can be started behind a seccomp filter that somebody listens to.
fn probe_gate(room: &Sandbox) -> Result<String, SandboxError> {
    // BPF_RET | BPF_K, SECCOMP_RET_ALLOW: stops nothing.
    let lets_all_through = vec![(6, 0, 0, 0x7fff_0000)];
    let argv = ["/bin/sh", "-c", ":"].map(Into::into).to_vec();
    let nowhere = || {
        let null = std::fs::File::options().write(true).open("/dev/null");
        null.map(Into::into).map_err(SandboxError::file("open", Path::new("/dev/null")))
    };
    let launch = LaunchSpec { argv, env: Vec::new(), cwd: None };
    room.spawn_filtered(&launch, lets_all_through, [nowhere()?, nowhere()?], drop)?;
    Ok("seccomp user notification: file system calls are seen and altered".into())
}

fn without_sandbox(error: &SandboxError) -> Vec<Mechanism> {
    let why = format!("{error}; {}", namespace_advice());
    ["user-namespace", "fresh-proc", "tmpfs", "read-only-remount", "syscall-gate"]
        .map(|name| refused(name, why.clone()))
        .into()
}

/// The usual reasons, looked up rather than guessed.
fn namespace_advice() -> String {
    let reads =
        |path: &str, value: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    let known = [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    let wanted: Vec<&str> =
        known.iter().filter(|(path, value, _)| reads(path, value)).map(|(_, _, advice)| *advice).collect();
    if wanted.is_empty() {
        "in a container, allow user namespaces (docker: --security-opt seccomp=unconfined)".into()
    } else {
        format!("as root: {}", wanted.join("; "))
    }
}

fn probe_memory_cgroup() -> Mechanism {
    let name = "memory-cgroup";
    let Some(cgroup) = MemoryCgroup::create() else {
        let advice = "a watcher that sends SIGKILL stands in; run as root, or with a delegated cgroup (systemd-run --user --scope -p Delegate=yes)";
        return refused(name, advice);
    };
    let version = cgroup.version();
    match (cgroup.remove(), version) {
        (Err(error), _) => refused(name, error.to_string()),
        (Ok(()), CgroupVersion::V2) => granted(name, "version 2"),
        (Ok(()), CgroupVersion::V1) => granted(name, "version 1"),
    }
}

fn probe_inotify() -> Mechanism {
    match Inotify::init(InitFlags::IN_CLOEXEC) {
        Ok(_) => granted("inotify", "a race sees its folder being listed"),
        Err(error) => refused("inotify", format!("{error}; raise sysctl fs.inotify.max_user_instances")),
    }
}
