//! Sets up a sandbox: its view of the host, its mounts, and what it must not reach. Runs in the sandbox's init,
//! once. Knows no request.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::geteuid;

use super::fuse_mounts::FuseMounts;
use super::host_view::HostView;
use super::init_error::{InitResult, with_context};
use super::kernel_objects::KernelObjects;
use super::limits_filter::init_limits_filter;
use super::overlay_mounts::OverlayMounts;
use super::packet::send_message;
use super::protocol::{BindMount, ControlReply, SandboxInitRequest};
use super::sys::{
    attach_mount, clone_mount, deny_to_programs, install_quiet_filter, leave_session_keyring, make_read_only,
    restore_ignored_signals,
};

/// A sandbox that is ready for programs.
pub(super) struct ReadySandbox {
    /// Receives SIGCHLD, which is blocked.
    pub(super) child_signals: SignalFd,
    /// The sandbox's root, with what is mounted in it.
    pub(super) root: File,
    pub(super) view: HostView,
    pub(super) overlays: OverlayMounts,
    pub(super) kernel_objects: KernelObjects,
    pub(super) fuse_mounts: FuseMounts,
}

/// Directories of the host that the sandbox shares with it, taken while they can still be written to.
struct SharedDirs {
    root: OwnedFd,
    /// One for each bind. `None`: its source is in the root.
    binds: Vec<Option<OwnedFd>>,
}

/// Makes all namespaces, mounts and limits, and tells the harness that it may send requests.
pub(super) fn set_up(socket: &OwnedFd, specification: &SandboxInitRequest) -> InitResult<ReadySandbox> {
    with_context("set the parent-death signal", prctl::set_pdeathsig(Signal::SIGKILL))?;
    with_context("disable core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    // Without a session of its own, programs would have the user's terminal and keys.
    with_context("leave the terminal", nix::unistd::setsid())?;
    with_context("leave the user's keys", leave_session_keyring())?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    with_context("make mounts private", mount(None::<&Path>, "/", None::<&Path>, private, None::<&Path>))?;
    let shared = with_context("share a directory with the host", SharedDirs::take(specification))?;
    let mut overlays = OverlayMounts::open(&specification.overlays)?;
    let mut view = HostView::set_up(&specification.view)?;
    let root = mount_specified(specification, &shared, &mut overlays, &mut view)?;
    let fresh_proc = mount_proc();
    let kernel_objects = KernelObjects::set_up(specification.private_network)?;
    if fresh_proc && specification.distinct_pids {
        skip_pids();
        kernel_objects.forget_closed_connections();
    }
    let fuse_mounts = FuseMounts::of_host();
    if fresh_proc && geteuid().is_root() {
        protect_kernel_settings();
        hide_devices(Path::new("/dev"), 1);
    }
    mount_terminals();
    protect_view()?;
    // Where seccomp is not available, a target could harm its own run in this way.
    let _ = install_quiet_filter(&init_limits_filter());
    view.enter_working_directory()?;
    with_context("restore ignored signals", restore_ignored_signals())?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    with_context("block SIGCHLD", mask.thread_block())?;
    let child_signals = with_context(
        "watch its children",
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK),
    )?;
    let ready = ControlReply::Ready { fresh_proc, root_fd: root.as_raw_fd() };
    with_context("report that it is ready", send_message(socket.as_fd(), &ready, &[]))?;
    Ok(ReadySandbox { child_signals, root, view, overlays, kernel_objects, fuse_mounts })
}

impl SharedDirs {
    fn take(specification: &SandboxInitRequest) -> Result<SharedDirs, std::io::Error> {
        let of_host = |bind: &BindMount| {
            if bind.source.starts_with(&specification.root) {
                return Ok(None);
            }
            std::fs::create_dir_all(&bind.source)?;
            Ok(Some(clone_mount(&bind.source)?))
        };
        let binds: Result<Vec<_>, std::io::Error> = specification.binds.iter().map(of_host).collect();
        Ok(SharedDirs { root: clone_mount(&specification.root)?, binds: binds? })
    }
}

/// Makes the mounts of the specification: the root, each tmpfs in it, then the binds, whose source may be in
/// one, and the overlays, whose upper layers are in the root. Returns the root.
fn mount_specified(
    specification: &SandboxInitRequest,
    shared: &SharedDirs,
    overlays: &mut OverlayMounts,
    view: &mut HostView,
) -> InitResult<File> {
    let root = match &specification.visible_root {
        Some(root) => {
            with_context("mount the root", view.mount_above(&shared.root, root))?;
            root.clone()
        }
        None => {
            let hidden = view.unreachable_dir()?;
            with_context("mount the root", attach_mount(&shared.root, &hidden))?;
            hidden
        }
    };
    for tmpfs in &specification.mounts {
        // Without a name in it, the path would end with a slash.
        let mount_point: PathBuf = root.join(&tmpfs.mount_point).components().collect();
        with_context("create a mount point", std::fs::create_dir_all(&mount_point))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        with_context(
            "mount a tmpfs",
            mount(Some("tmpfs"), &mount_point, Some("tmpfs"), flags, Some(tmpfs.options.as_str())),
        )?;
    }
    for (bind, clone) in specification.binds.iter().zip(&shared.binds) {
        let bound = match clone {
            Some(clone) => view.mount_above(clone, &bind.mount_point),
            None => {
                let source = root.join(bind.source.strip_prefix(&specification.root).unwrap_or(&bind.source));
                std::fs::create_dir_all(&source)
                    .and_then(|()| Ok(clone_mount(&source)?))
                    .and_then(|clone| view.mount_above(&clone, &bind.mount_point))
            }
        };
        with_context("bind-mount a directory", bound)?;
    }
    overlays.move_upper_layers(&specification.root, &root);
    overlays.mount_all()?;
    overlays.mount_points().for_each(|mount_point| view.mounted_above(mount_point));
    view.is_complete()?;
    let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
    with_context("open the root", OpenOptions::new().read(true).custom_flags(flags).open(&root))
}

/// Mounts a /proc that shows only the processes of the sandbox. Returns whether the kernel permits it.
fn mount_proc() -> bool {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&Path>).is_ok()
}

/// Makes the kernel's settings read-only, which are the whole machine's: root could change them.
fn protect_kernel_settings() {
    for shared in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"].map(Path::new) {
        if let Ok(clone) = clone_mount(shared) {
            let _ = make_read_only(&clone).and_then(|()| attach_mount(&clone, shared));
        }
    }
}

/// How deep devices are looked for below `/dev`.
const MAX_DEVICE_DEPTH: u32 = 3;
/// Directories of devices that the sandbox has of its own, or that a trainer computes with.
const KEPT_DEVICE_DIRS: [&str; 6] = ["pts", "shm", "mqueue", "dri", "infiniband", "nvidia-caps"];
/// The beginnings of the names of devices that a trainer computes with.
const KEPT_DEVICES: [&str; 2] = ["nvidia", "kfd"];

/// Covers the host's devices that only root may write to, such as its disks, its terminals and the log of the
/// kernel. What cannot be covered stays, as without a sandbox.
fn hide_devices(dir: &Path, depth: u32) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (Ok(metadata), name) = (entry.metadata(), entry.file_name().to_string_lossy().into_owned())
        else {
            continue;
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            if depth < MAX_DEVICE_DEPTH && !KEPT_DEVICE_DIRS.contains(&name.as_str()) {
                hide_devices(&entry.path(), depth + 1);
            }
            continue;
        }
        let is_for_all = kind.is_char_device() && metadata.mode() & 0o002 != 0;
        let is_kept = is_for_all || KEPT_DEVICES.iter().any(|kept| name.starts_with(kept));
        if (kind.is_block_device() || kind.is_char_device())
            && !is_kept
            && let Ok(null) = clone_mount(Path::new("/dev/null"))
        {
            let _ = attach_mount(&null, &entry.path());
        }
    }
}

/// Capabilities of linux/capability.h with which a target that runs as root could undo the view of the host:
/// by opening a layer of an overlay by its handle, by looking into init, by mounting, or by ending init with
/// reboot(2).
const CAP_DAC_READ_SEARCH: nix::libc::c_ulong = 2;
const CAP_SYS_PTRACE: nix::libc::c_ulong = 19;
const CAP_SYS_ADMIN: nix::libc::c_ulong = 21;
const CAP_SYS_BOOT: nix::libc::c_ulong = 22;

/// Takes from all programs in the sandbox what they could undo its view of the host with.
fn protect_view() -> InitResult<()> {
    for capability in [CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_BOOT] {
        with_context("protect the view of the host", deny_to_programs(capability))?;
    }
    Ok(())
}

/// Makes the numbers of processes begin in the upper half of their range.
fn skip_pids() {
    let max = std::fs::read_to_string("/proc/sys/kernel/pid_max");
    let max: Option<u32> = max.ok().and_then(|text| text.trim().parse().ok());
    // Where the kernel refuses, they begin at 2, as in a recording.
    let _ = std::fs::write("/proc/sys/kernel/ns_last_pid", (max.unwrap_or(0) / 2).to_string());
}

/// Gives the sandbox its own pseudo-terminals, so that a target cannot write to those of the user. Without
/// them it has those of the host.
fn mount_terminals() {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("newinstance,ptmxmode=0666,mode=0620");
    if mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, options).is_ok()
        && let Ok(clone) = clone_mount(Path::new("/dev/pts/ptmx"))
    {
        let _ = attach_mount(&clone, Path::new("/dev/ptmx"));
    }
}
