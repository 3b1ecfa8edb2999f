//! Changes to mounts, made by the warden inside its own mount namespace.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::MountChange;

/// How long a real remount is tried before a bind is laid over the place: writers come and go.
const REMOUNT_TIMEOUT: Duration = Duration::from_millis(60);
const RETRY_INTERVAL: Duration = Duration::from_micros(200);

/// By which means a place was made read-only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadOnlyMethod {
    Remount,
    OverMount,
}

/// What has been made read-only so far.
#[derive(Default)]
pub(super) struct ReadOnlyMounts {
    methods: HashMap<PathBuf, ReadOnlyMethod>,
}

impl ReadOnlyMounts {
    /// Makes the change; says by which mechanism.
    pub(super) fn change(&mut self, at: &Path, change: MountChange) -> Result<String, Errno> {
        match change {
            MountChange::Resize { size_bytes } => {
                remount(at, MsFlags::empty(), &format!("size={size_bytes}"))
                    .map(|()| "tmpfs remounted with another size".into())
            }
            MountChange::Inodes { count } => remount(at, MsFlags::empty(), &format!("nr_inodes={count}"))
                .map(|()| "tmpfs remounted with another number of inodes".into()),
            MountChange::ReadOnly => self.methods(at),
            MountChange::Writable => self.make_writable(at),
        }
    }

    fn methods(&mut self, at: &Path) -> Result<String, Errno> {
        let (means, note) = match retry_while_busy(|| remount(at, MsFlags::MS_RDONLY, "")) {
            Ok(()) => (ReadOnlyMethod::Remount, "file system remounted read-only"),
            Err(_) => {
                bind_read_only(at)?;
                (
                    ReadOnlyMethod::OverMount,
                    "over-mounted by a read-only bind (files that are open can still be written)",
                )
            }
        };
        self.methods.insert(at.into(), means);
        Ok(note.into())
    }

    fn make_writable(&mut self, at: &Path) -> Result<String, Errno> {
        match self.methods.remove(at) {
            Some(ReadOnlyMethod::Remount) => {
                remount(at, MsFlags::empty(), "").map(|()| "file system remounted writable".into())
            }
            Some(ReadOnlyMethod::OverMount) => {
                umount2(at, MntFlags::MNT_DETACH).map(|()| "read-only bind taken away".into())
            }
            None => Ok("was not read-only".into()),
        }
    }
}

/// A writer makes a remount fail (EBUSY), and writers come and go. A plain folder has no mount of its own (EINVAL).
fn retry_while_busy(attempt: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    let until = Instant::now() + REMOUNT_TIMEOUT;
    loop {
        match attempt() {
            Err(Errno::EBUSY) if Instant::now() < until => std::thread::sleep(RETRY_INTERVAL),
            done => return done,
        }
    }
}

fn remount(at: &Path, flags: MsFlags, options: &str) -> Result<(), Errno> {
    // MS_NOSUID and MS_NODEV are locked in a user namespace and must be said again.
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(None::<&Path>, at, None::<&Path>, flags, Some(options))
}

fn bind_read_only(at: &Path) -> Result<(), Errno> {
    mount(Some(at), at, None::<&Path>, MsFlags::MS_BIND, None::<&Path>)?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    // What is locked on the mount below must be kept: try with and without the usual flags.
    let kept = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(None::<&Path>, at, None::<&Path>, flags, None::<&Path>)
        .or_else(|_| mount(None::<&Path>, at, None::<&Path>, kept, None::<&Path>))
        .inspect_err(|_| {
            let _ = umount2(at, MntFlags::MNT_DETACH);
        })
}
