//! Changes to the sandbox's mounts, made by its init process inside its own mount namespace.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::protocol::MountChange;

/// How long a remount is retried while files are open for writing, before a read-only bind mount is used
/// instead.
const REMOUNT_TIMEOUT: Duration = Duration::from_millis(60);
const RETRY_INTERVAL: Duration = Duration::from_micros(200);

/// How a mount point was made read-only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadOnlyMethod {
    /// The file system was remounted.
    Remount,
    /// A read-only bind mount covers it.
    OverMount,
}

/// The mount points that are read-only now.
#[derive(Default)]
pub(super) struct ReadOnlyMounts {
    methods: HashMap<PathBuf, ReadOnlyMethod>,
}

impl ReadOnlyMounts {
    /// Makes the change. Returns a description of the mechanism.
    pub(super) fn change(&mut self, mount_point: &Path, change: MountChange) -> Result<String, Errno> {
        match change {
            MountChange::Resize { size_bytes } => {
                remount(mount_point, MsFlags::empty(), &format!("size={size_bytes}"))
                    .map(|()| "tmpfs remounted with another size".into())
            }
            MountChange::Inodes { count } => {
                remount(mount_point, MsFlags::empty(), &format!("nr_inodes={count}"))
                    .map(|()| "tmpfs remounted with another number of inodes".into())
            }
            MountChange::ReadOnly => self.make_read_only(mount_point),
            MountChange::Writable => self.make_writable(mount_point),
        }
    }

    fn make_read_only(&mut self, mount_point: &Path) -> Result<String, Errno> {
        let (method, mechanism) = match retry_while_busy(|| remount(mount_point, MsFlags::MS_RDONLY, "")) {
            Ok(()) => (ReadOnlyMethod::Remount, "file system remounted read-only"),
            Err(_) => {
                bind_read_only(mount_point)?;
                (
                    ReadOnlyMethod::OverMount,
                    "covered by a read-only bind mount (open files can still be written)",
                )
            }
        };
        self.methods.insert(mount_point.into(), method);
        Ok(mechanism.into())
    }

    fn make_writable(&mut self, mount_point: &Path) -> Result<String, Errno> {
        match self.methods.remove(mount_point) {
            Some(ReadOnlyMethod::Remount) => {
                remount(mount_point, MsFlags::empty(), "").map(|()| "file system remounted writable".into())
            }
            Some(ReadOnlyMethod::OverMount) => {
                umount2(mount_point, MntFlags::MNT_DETACH).map(|()| "read-only bind mount removed".into())
            }
            None => Ok("was not read-only".into()),
        }
    }
}

/// Retries a remount while it fails with EBUSY, because files are open for writing. Other errors are final,
/// such as EINVAL for a directory that is not a mount point.
fn retry_while_busy(attempt: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    let deadline = Instant::now() + REMOUNT_TIMEOUT;
    loop {
        match attempt() {
            Err(Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(RETRY_INTERVAL),
            result => return result,
        }
    }
}

fn remount(mount_point: &Path, flags: MsFlags, options: &str) -> Result<(), Errno> {
    // MS_NOSUID and MS_NODEV are locked in a user namespace, so a remount must include them.
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(None::<&Path>, mount_point, None::<&Path>, flags, Some(options))
}

/// Covers a directory with a read-only bind mount of itself.
fn bind_read_only(mount_point: &Path) -> Result<(), Errno> {
    mount(Some(mount_point), mount_point, None::<&Path>, MsFlags::MS_BIND, None::<&Path>)?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    // Flags that are locked on the covered mount must be kept. Which these are is unknown, so try both.
    let locked_flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(None::<&Path>, mount_point, None::<&Path>, flags, None::<&Path>)
        .or_else(|_| mount(None::<&Path>, mount_point, None::<&Path>, locked_flags, None::<&Path>))
        .inspect_err(|_| {
            let _ = umount2(mount_point, MntFlags::MNT_DETACH);
        })
}
