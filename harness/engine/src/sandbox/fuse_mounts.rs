//! FUSE file systems over directories of the root, mounted by the sandbox's init. Serves none.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{getegid, geteuid};

use super::beneath::OpenDirectory;
use super::packet::send_fds;

/// The device with which file systems are served.
const DEVICE: &str = "/dev/fuse";

/// What is mounted, with the root of each file system.
pub(super) struct FuseMounts {
    /// The host's device, from before the view of the host may have covered it: on some hosts it is for root only.
    /// `None`: there is none.
    device: Option<File>,
    mounted: HashMap<PathBuf, OpenDirectory>,
}

impl FuseMounts {
    /// Finds the host's device. Call it before devices are covered.
    pub(super) fn of_host() -> FuseMounts {
        let device = OpenOptions::new().read(true).custom_flags(nix::libc::O_PATH).open(DEVICE).ok();
        FuseMounts { device, mounted: HashMap::new() }
    }

    /// Opens the device: once for each file system.
    fn open_device(&self) -> Result<File, Error> {
        let device = self.device.as_ref();
        let path = device.map_or(DEVICE.into(), |device| format!("/proc/self/fd/{}", device.as_raw_fd()));
        OpenOptions::new().read(true).write(true).open(path)
    }

    /// Mounts a file system over a directory below `root`. Sends through the first of the descriptors the device with
    /// which it is served, then the directory below.
    pub(super) fn mount(&mut self, root: &Path, mount_point: &Path, to: &[OwnedFd]) -> Result<(), Error> {
        let receiver = to.first().ok_or_else(|| Error::other("the request has no descriptor"))?;
        if self.mounted.contains_key(mount_point) {
            return Err(Error::other("one is mounted there already"));
        }
        let below = OpenDirectory::beneath(root, mount_point)?;
        let device = self.open_device()?;
        // Only processes with these ids may use it: the target, and the harness from outside of its namespace.
        let options = format!(
            "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
            device.as_raw_fd(),
            geteuid(),
            getegid()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("trainwreck"), &below.path(), Some("fuse"), flags, Some(options.as_str()))?;
        self.mounted.insert(mount_point.to_owned(), OpenDirectory::beneath(root, mount_point)?);
        let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
        let directory = OpenOptions::new().read(true).custom_flags(flags).open(below.path())?;
        send_fds(receiver.as_fd(), &[device.as_fd()])?;
        send_fds(receiver.as_fd(), &[directory.as_fd()])
    }

    /// Unmounts it, wherever the target has moved the directories around it.
    pub(super) fn unmount(&mut self, mount_point: &Path) -> Result<(), Error> {
        match self.mounted.remove(mount_point) {
            Some(root) => Ok(umount2(&root.path(), MntFlags::MNT_DETACH)?),
            None => Ok(()),
        }
    }
}
