//! Changes to mounts, made by the warden inside its own mount namespace.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::MountChange;

/// How long a real remount is tried before a bind is laid over the place: writers come and go.
const PATIENCE: Duration = Duration::from_millis(60);
const AGAIN: Duration = Duration::from_micros(200);

/// By which means a place was made read-only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Means {
    Remount,
    OverMount,
}

/// What has been made read-only so far.
#[derive(Default)]
pub(super) struct Mounts {
    read_only: HashMap<PathBuf, Means>,
}

impl Mounts {
    /// Makes the change; says by which mechanism.
    pub(super) fn change(&mut self, at: &Path, change: MountChange) -> Result<String, Errno> {
        match change {
            MountChange::Resize { size_bytes } => {
                remount(at, MsFlags::empty(), &format!("size={size_bytes}"))
                    .map(|()| "tmpfs remounted with another size".into())
            }
            MountChange::Inodes { count } => remount(at, MsFlags::empty(), &format!("nr_inodes={count}"))
                .map(|()| "tmpfs remounted with another number of inodes".into()),
            MountChange::ReadOnly => self.read_only(at),
            MountChange::Writable => self.writable(at),
        }
    }

    fn read_only(&mut self, at: &Path) -> Result<String, Errno> {
        let (means, note) = match patiently(|| remount(at, MsFlags::MS_RDONLY, "")) {
            Ok(()) => (Means::Remount, "file system remounted read-only"),
            Err(_) => {
                over_mount(at)?;
                (
                    Means::OverMount,
                    "over-mounted by a read-only bind (files that are open can still be written)",
                )
            }
        };
        self.read_only.insert(at.into(), means);
        Ok(note.into())
    }

    fn writable(&mut self, at: &Path) -> Result<String, Errno> {
        match self.read_only.remove(at) {
            Some(Means::Remount) => {
                remount(at, MsFlags::empty(), "").map(|()| "file system remounted writable".into())
            }
            Some(Means::OverMount) => {
                umount2(at, MntFlags::MNT_DETACH).map(|()| "read-only bind taken away".into())
            }
            None => Ok("was not read-only".into()),
        }
    }
}

/// A writer makes a remount fail (EBUSY), and writers come and go. A plain folder has no mount of its own (EINVAL).
fn patiently(attempt: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(Errno::EBUSY) if Instant::now() < until => std::thread::sleep(AGAIN),
            done => return done,
        }
    }
}

fn remount(at: &Path, flags: MsFlags, options: &str) -> Result<(), Errno> {
    // MS_NOSUID and MS_NODEV are locked in a user namespace and must be said again.
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(None::<&Path>, at, None::<&Path>, flags, Some(options))
}

fn over_mount(at: &Path) -> Result<(), Errno> {
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
