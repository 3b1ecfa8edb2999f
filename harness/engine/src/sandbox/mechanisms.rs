//! Finds out which mechanisms this machine supports, by trying each, and how to enable the others.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{InitFlags, Inotify};
use scenarios::Mechanism;

use super::cgroup::{CgroupVersion, Controller, MemoryCgroup, ProcessCgroup, command_to_enable};
use super::error::SandboxError;
use super::handle::{Sandbox, SandboxSpec, TmpfsSpec};
use super::host_access::{HostAccess, current_dir};
use super::pass_through::FileSystemTraits;
use super::protocol::{LaunchSpec, MountChange};
use super::rundir::RunDir;
use crate::file_error::chain;
use crate::landlock::{FileRights, LandlockRules, NEEDED_VERSION, landlock_version};
use crate::seccomp::SeccompInstruction;

/// Directory of the tmpfs that the probes change.
const TEST_MOUNT: &str = "mount";

/// Tries all mechanisms of the sandbox and the gate. Takes well under a second.
pub fn doctor() -> Vec<Mechanism> {
    let mut mechanisms = match probe_sandbox() {
        Ok(mechanisms) => mechanisms,
        Err(error) => without_sandbox(&error),
    };
    mechanisms.push(probe_memory_cgroup());
    mechanisms.push(probe_process_cgroup());
    mechanisms.push(probe_inotify());
    mechanisms.push(probe_landlock());
    mechanisms
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
        Err(error) => refused(name, chain(&error)),
    }
}

fn probe_sandbox() -> Result<Vec<Mechanism>, SandboxError> {
    let run = RunDir::create()?;
    let probed = probe_sandbox_in(&run);
    let closed = run.close();
    let mechanisms = probed?;
    closed.map_err(|kept| kept.source)?;
    Ok(mechanisms)
}

fn probe_sandbox_in(run: &RunDir) -> Result<Vec<Mechanism>, SandboxError> {
    let dir = run.path().join("doctor");
    std::fs::create_dir(&dir).map_err(SandboxError::file("create", &dir))?;
    let mounts = vec![TmpfsSpec { mount_point: TEST_MOUNT.into(), size_bytes: 1 << 20, inodes: Some(64) }];
    let sandbox = Sandbox::build(SandboxSpec {
        dir,
        mounts,
        binds: Vec::new(),
        cgroups: Vec::new(),
        visible_root: None,
        distinct_pids: false,
        host_access: HostAccess::default(),
        cwd: current_dir()?,
    })?;
    let mount_point = PathBuf::from(TEST_MOUNT);
    let mut mechanisms = vec![granted("user-namespace", "user, mount, pid and IPC namespaces")];
    mechanisms.push(match sandbox.has_fresh_proc() {
        true => granted("fresh-proc", "sandboxes have their own /proc"),
        false => refused(
            "fresh-proc",
            "the container hides parts of /proc; sandboxes use its /proc, so listing processes is slower",
        ),
    });
    mechanisms.push(from_result("tmpfs", probe_resize(&sandbox, &mount_point)));
    mechanisms.push(from_result("read-only-remount", probe_read_only(&sandbox, &mount_point)));
    mechanisms.push(from_result("fuse", probe_fuse(&sandbox, &mount_point)));
    mechanisms.push(from_result("syscall-gate", probe_gate(&sandbox)));
    sandbox.close()?;
    Ok(mechanisms)
}

fn probe_resize(sandbox: &Sandbox, mount_point: &Path) -> Result<String, SandboxError> {
    sandbox.change_mount(mount_point, MountChange::Resize { size_bytes: 4096 })?;
    sandbox.change_mount(mount_point, MountChange::Inodes { count: 8 })?;
    Ok("size and inodes changed while mounted".into())
}

fn probe_read_only(sandbox: &Sandbox, mount_point: &Path) -> Result<String, SandboxError> {
    let applied = sandbox.change_mount(mount_point, MountChange::ReadOnly)?;
    sandbox.change_mount(mount_point, MountChange::Writable)?;
    Ok(applied.mechanism)
}

/// Mounts a file system of the harness's own, and writes and reads a file there.
fn probe_fuse(sandbox: &Sandbox, mount_point: &Path) -> Result<String, SandboxError> {
    let traits = FileSystemTraits { folds_case: true, ..FileSystemTraits::default() };
    let _server = sandbox.mount_file_system(mount_point, traits)?;
    let dir = sandbox.host_path_in_root(mount_point);
    let (file, other_case) = (dir.join("a"), dir.join("A"));
    std::fs::write(&file, "a").map_err(SandboxError::file("write", &file))?;
    std::fs::read(&other_case).map_err(SandboxError::file("read", &other_case))?;
    sandbox.unmount_file_system(mount_point)?;
    Ok("file systems that ignore case or have coarse times".into())
}

/// Tries to start a program behind a seccomp filter with a listener.
fn probe_gate(sandbox: &Sandbox) -> Result<String, SandboxError> {
    let allow_all = vec![SeccompInstruction::ALLOW];
    let argv = ["/bin/sh", "-c", ":"].map(Into::into).to_vec();
    let null_output = || {
        let null = std::fs::File::options().write(true).open("/dev/null");
        null.map(Into::into).map_err(SandboxError::file("open", Path::new("/dev/null")))
    };
    let launch = LaunchSpec { argv, env: Vec::new(), cwd: None };
    sandbox
        .spawn_filtered(&launch, allow_all, [null_output()?, null_output()?], |listener, _| drop(listener))?;
    Ok("seccomp user notification: file system calls can be observed and altered".into())
}

/// The mechanisms that need a sandbox, all refused.
fn without_sandbox(error: &SandboxError) -> Vec<Mechanism> {
    let reason = format!("{}; {}", chain(error), namespace_advice());
    ["user-namespace", "fresh-proc", "tmpfs", "read-only-remount", "fuse", "syscall-gate"]
        .map(|name| refused(name, reason.clone()))
        .into()
}

/// A setting of the kernel that forbids user namespaces to ordinary users.
struct NamespaceRestriction {
    file: &'static str,
    /// The value with which it forbids them.
    value: &'static str,
    /// The command that changes it.
    remedy: &'static str,
}

const NAMESPACE_RESTRICTIONS: [NamespaceRestriction; 3] = [
    NamespaceRestriction {
        file: "/proc/sys/kernel/unprivileged_userns_clone",
        value: "0",
        remedy: "sysctl kernel.unprivileged_userns_clone=1",
    },
    NamespaceRestriction {
        file: "/proc/sys/user/max_user_namespaces",
        value: "0",
        remedy: "sysctl user.max_user_namespaces=10000",
    },
    NamespaceRestriction {
        file: "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        value: "1",
        remedy: "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    },
];

/// How to enable namespaces, according to the settings of this machine.
fn namespace_advice() -> String {
    let has_value =
        |path: &str, value: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    let commands: Vec<&str> = NAMESPACE_RESTRICTIONS
        .iter()
        .filter(|restriction| has_value(restriction.file, restriction.value))
        .map(|restriction| restriction.remedy)
        .collect();
    if commands.is_empty() {
        "in a container, allow user namespaces (docker: --security-opt seccomp=unconfined)".into()
    } else {
        format!("as root: {}", commands.join("; "))
    }
}

fn probe_memory_cgroup() -> Mechanism {
    let name = "memory-cgroup";
    let Some(cgroup) = MemoryCgroup::create() else {
        let lack = "memory limits are enforced by a watcher that sends SIGKILL instead";
        return refused(name, format!("{lack}; to get cgroups, {}", cgroup_advice(Controller::Memory)));
    };
    removed_cgroup(name, cgroup.version(), cgroup.remove())
}

fn probe_process_cgroup() -> Mechanism {
    let name = "process-cgroup";
    // With version 2 they are one cgroup, which is there as long as this value.
    let memory = MemoryCgroup::create();
    let Some(cgroup) = ProcessCgroup::create(memory.as_ref()) else {
        let lack = "the number of processes can't be limited";
        return refused(name, format!("{lack}; {}", cgroup_advice(Controller::Processes)));
    };
    match cgroup.refusals() {
        Some(_) => removed_cgroup(name, cgroup.version(), cgroup.remove()),
        None => refused(name, "this kernel does not count refused processes (pids.events)"),
    }
}

/// How to get cgroups with this controller, according to the cgroups of this machine.
fn cgroup_advice(controller: Controller) -> String {
    match command_to_enable(controller) {
        Some(command) => format!("enable the controller: {command}"),
        None => "run as root or with a delegated cgroup (systemd-run --user --scope -p Delegate=yes)".into(),
    }
}

fn removed_cgroup(name: &str, version: CgroupVersion, removed: Result<(), SandboxError>) -> Mechanism {
    match (removed, version) {
        (Err(error), _) => refused(name, chain(&error)),
        (Ok(()), CgroupVersion::V2) => granted(name, "version 2"),
        (Ok(()), CgroupVersion::V1) => granted(name, "version 1"),
    }
}

fn probe_inotify() -> Mechanism {
    match Inotify::init(InitFlags::IN_CLOEXEC) {
        Ok(_) => granted("inotify", "races can wait until the target lists a directory"),
        Err(error) => refused("inotify", format!("{error}; raise sysctl fs.inotify.max_user_instances")),
    }
}

/// Tries to open a file for reading under rules that deny it.
fn probe_landlock() -> Mechanism {
    let name = "landlock";
    let version = match landlock_version() {
        Ok(version) if version >= NEEDED_VERSION => version,
        Ok(version) => {
            return refused(
                name,
                format!("version {version}; version {NEEDED_VERSION} is needed, Linux 6.2"),
            );
        }
        Err(error) => return refused(name, landlock_advice(error)),
    };
    let open = || std::fs::File::open("/proc/self/stat").map(drop).map_err(|error| error.kind());
    let denied = LandlockRules::denying(FileRights::READ_FILE).and_then(|rules| rules.call_under(open));
    match denied {
        Ok(Err(std::io::ErrorKind::PermissionDenied)) => {
            granted(name, format!("version {version}: calls can be denied although file modes allow them"))
        }
        Ok(_) => refused(name, "the kernel accepts rules, and does not enforce them"),
        Err(error) => refused(name, landlock_advice(error)),
    }
}

/// Why there is no Landlock, and what to do.
fn landlock_advice(error: Errno) -> String {
    match error {
        Errno::ENOSYS => "this kernel is built without it (CONFIG_SECURITY_LANDLOCK)".into(),
        Errno::EOPNOTSUPP => "it is switched off; add `landlock` to the boot parameter `lsm=`".into(),
        error => format!("{error}; in a container, allow it (docker: --security-opt seccomp=unconfined)"),
    }
}
