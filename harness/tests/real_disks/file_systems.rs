//! The file systems under test, on loop devices: made, mounted and unmounted. Must not know what is done in them.

use std::path::{Path, PathBuf};
use std::process::Command;

use engine::explore::FsModel;
use nix::mount::{MntFlags, umount2};

use crate::block_disks::{BlockDisk, BlockDisks, DiskContent};

/// A file system of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RealFs {
    Ext4,
    Xfs,
    Btrfs,
}

impl RealFs {
    /// The model that must allow what this file system leaves.
    pub(crate) fn model(self) -> FsModel {
        match self {
            RealFs::Ext4 => FsModel::Ext4,
            RealFs::Xfs => FsModel::Xfs,
            RealFs::Btrfs => FsModel::Btrfs,
        }
    }

    fn name(self) -> &'static str {
        self.model().name()
    }

    fn size_bytes(self) -> u64 {
        match self {
            RealFs::Ext4 => 32 << 20,
            RealFs::Xfs => 48 << 20,
            RealFs::Btrfs => 128 << 20,
        }
    }

    fn make(self, disk: &Path) -> Result<(), String> {
        let mut command = Command::new(format!("mkfs.{}", self.name()));
        match self {
            RealFs::Ext4 => {
                command.args(["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"])
            }
            // Small disks are made for tests only, and these variables say that this is one.
            RealFs::Xfs => command
                .args(["-q", "-f", "-K"])
                .envs(["TEST_DIR", "TEST_DEV", "QA_CHECK_FS"].map(|variable| (variable, "real_disks"))),
            RealFs::Btrfs => command.args(["-q", "-f", "-K"]),
        };
        run_command(command.arg(disk))
    }

    /// Journals are committed each second, where the file system can do that.
    fn mount_options(self) -> &'static str {
        match self {
            RealFs::Ext4 | RealFs::Btrfs => "loop,commit=1",
            RealFs::Xfs => "loop",
        }
    }

    /// A new file system with the directory `work`. Fails where this machine cannot do it.
    pub(crate) fn new_disk(self, disks: &BlockDisks) -> Result<DiskContent, String> {
        let disk = disks.add(DiskContent::empty(self.size_bytes()));
        self.make(&disk.path)?;
        let mounted = MountedDisk::new(self, disk)?;
        std::fs::create_dir(mounted.work()).unwrap();
        std::fs::write(mounted.outside_file(), "outside").unwrap();
        let disk = mounted.unmount();
        Ok(disk.content())
    }
}

/// A disk whose file system is mounted. Dropping it unmounts it; its loop device is detached with that.
pub(crate) struct MountedDisk {
    disk: Option<BlockDisk>,
    mount_point: tempfile::TempDir,
}

impl MountedDisk {
    /// Mounts the file system. Returns the reason if that fails.
    pub(crate) fn new(kind: RealFs, disk: BlockDisk) -> Result<MountedDisk, String> {
        let mount_point = tempfile::tempdir().unwrap();
        if kind == RealFs::Btrfs {
            // The kernel remembers the newest disk of each file system and refuses older ones.
            run_command(Command::new("btrfs").args(["device", "scan", "--forget"]))?;
        }
        run_command(
            Command::new("mount")
                .args(["-t", kind.name(), "-o", kind.mount_options()])
                .arg(&disk.path)
                .arg(mount_point.path()),
        )?;
        Ok(MountedDisk { disk: Some(disk), mount_point })
    }

    /// Where the file system is mounted.
    pub(crate) fn root(&self) -> &Path {
        self.mount_point.path()
    }

    /// The directory in which programs run.
    pub(crate) fn work(&self) -> PathBuf {
        self.mount_point.path().join("work")
    }

    /// A file that no program knows. A sync of it commits the journal.
    pub(crate) fn outside_file(&self) -> PathBuf {
        self.mount_point.path().join("outside")
    }

    pub(crate) fn disk(&self) -> &BlockDisk {
        self.disk.as_ref().unwrap()
    }

    /// Unmounts the file system. Returns the disk.
    pub(crate) fn unmount(mut self) -> BlockDisk {
        umount2(self.mount_point.path(), MntFlags::empty()).unwrap();
        self.disk.take().unwrap()
    }
}

impl Drop for MountedDisk {
    fn drop(&mut self) {
        if self.disk.is_some() {
            let _ = umount2(self.mount_point.path(), MntFlags::MNT_DETACH);
        }
    }
}

fn run_command(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}
