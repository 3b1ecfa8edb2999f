//! Directories that the target sees through an overlay, because they are too large to be copied: it reads what
//! lies below, and what it changes goes above. Runs in the sandbox's init. Knows no view of the host, and
//! nothing of what the directories hold.

use std::fs::{DirBuilder, File};
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::init_error::{InitResult, with_context};
use super::overlay_layers::open_lower;
use super::protocol::OverlayMount;

/// The overlays of a sandbox.
pub(super) struct OverlayMounts {
    mounts: Vec<OpenOverlay>,
}

/// An overlay, with its lower layers open.
struct OpenOverlay {
    lowers: Vec<File>,
    upper: PathBuf,
    mount_point: PathBuf,
}

impl OverlayMounts {
    /// Opens the lower layers. Call it while their paths still lead to the host's own directories.
    pub(super) fn open(specs: &[OverlayMount]) -> InitResult<OverlayMounts> {
        let open = |spec: &OverlayMount| {
            let lowers: Result<Vec<File>, Error> = spec.lowers.iter().map(|dir| open_lower(dir)).collect();
            let lowers = with_context("open a watched directory", lowers)?;
            Ok(OpenOverlay { lowers, upper: spec.upper.clone(), mount_point: spec.mount_point.clone() })
        };
        Ok(OverlayMounts { mounts: specs.iter().map(open).collect::<InitResult<_>>()? })
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }

    /// Where the overlays are mounted.
    pub(super) fn mount_points(&self) -> impl Iterator<Item = &Path> {
        self.mounts.iter().map(|overlay| overlay.mount_point.as_path())
    }

    /// The upper layers, which were specified below `specified_root`, are below `root` in the sandbox.
    pub(super) fn move_upper_layers(&mut self, specified_root: &Path, root: &Path) {
        for overlay in &mut self.mounts {
            if let Ok(relative) = overlay.upper.strip_prefix(specified_root) {
                overlay.upper = root.join(relative);
            }
        }
    }

    /// Mounts all overlays.
    pub(super) fn mount_all(&self) -> InitResult<()> {
        let mounted = self.mounts.iter().try_for_each(OpenOverlay::mount);
        with_context("mount an overlay over a watched directory", mounted)
    }

    /// Mounts all overlays again, so that they show what their upper layers contain now. No process may be in
    /// them.
    pub(super) fn renew(&self) -> InitResult<()> {
        for overlay in &self.mounts {
            let unmounted = umount2(&overlay.mount_point, MntFlags::MNT_DETACH);
            with_context("unmount an overlay over a watched directory", unmounted)?;
        }
        self.mount_all()
    }
}

impl OpenOverlay {
    fn mount(&self) -> Result<(), Error> {
        let work = work_dir(&self.upper);
        for dir in [&self.upper, &work] {
            DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        }
        std::fs::create_dir_all(&self.mount_point)?;
        let (upper, work) = (open_lower(&self.upper)?, open_lower(&work)?);
        // Descriptors stand for the paths, which may have characters that separate options.
        let lowers: Vec<String> = self.lowers.iter().map(fd_path).collect();
        // With `xino`, a file keeps its number whatever file systems the layers lie on.
        let options = format!(
            "userxattr,xino=on,lowerdir={},upperdir={},workdir={}",
            lowers.join(":"),
            fd_path(&upper),
            fd_path(&work)
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        Ok(mount(Some("overlay"), &self.mount_point, Some("overlay"), flags, Some(options.as_str()))?)
    }
}

/// The directory that the kernel needs next to an upper layer.
fn work_dir(upper: &Path) -> PathBuf {
    let mut name = upper.file_name().unwrap_or_default().to_owned();
    name.push(".work");
    upper.with_file_name(name)
}

fn fd_path(fd: &File) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
