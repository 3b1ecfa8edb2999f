//! Measures a watched directory, and finds what stands against showing it as an overlay. Reads no file.

use std::collections::HashSet;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};

use crate::sandbox::{HostMounts, is_interrupted};

/// The size of a directory tree, and whether it can be the lower layer of an overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TreeSize {
    /// The length of all files together. A file with several names counts once.
    pub(super) len_bytes: u64,
    /// The first thing that an overlay would show in another way than a copy.
    pub(super) obstacle: Option<OverlayObstacle>,
}

/// Why a watched directory is copied, however large it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OverlayObstacle {
    /// A file has several names. In an overlay, a change through one of them would not show in the others.
    HardLinks(PathBuf),
    /// A file belongs to another user or group, which an ordinary user's sandbox does not know.
    OtherOwner(PathBuf),
    /// Another file system is mounted inside. An overlay would not show it.
    MountInside(PathBuf),
    /// The kernel refuses the overlay: the file system of the directory, or that of the sandboxes, cannot be a
    /// layer. The text is the kernel's reason.
    Refused(String),
}

impl fmt::Display for OverlayObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OverlayObstacle::HardLinks(path) => write!(f, "`{}` has several names", path.display()),
            OverlayObstacle::OtherOwner(path) => {
                write!(f, "`{}` belongs to another user or group", path.display())
            }
            OverlayObstacle::MountInside(path) => {
                write!(f, "another file system is mounted at `{}`", path.display())
            }
            OverlayObstacle::Refused(reason) => {
                write!(
                    f,
                    "{reason}; is `TMPDIR` on an overlay or a network file system? Set it to another one"
                )
            }
        }
    }
}

impl TreeSize {
    /// Measures a tree. What cannot be read counts as nothing: who copies it reports that.
    pub(super) fn of(top: &Path) -> TreeSize {
        let mut size = TreeSize { len_bytes: 0, obstacle: mount_inside(top) };
        let own_ids = (!geteuid().is_root()).then(|| (geteuid().as_raw(), getegid().as_raw()));
        let mut linked = HashSet::new();
        let mut pending = vec![top.to_path_buf()];
        while let Some(path) = pending.pop() {
            if is_interrupted() {
                break;
            }
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if own_ids.is_some_and(|ids| ids != (metadata.uid(), metadata.gid())) {
                size.obstacle.get_or_insert_with(|| OverlayObstacle::OtherOwner(path.clone()));
            }
            if metadata.is_dir() {
                let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
                pending.extend(entries.map(|entry| entry.path()));
            } else if metadata.nlink() > 1 {
                if linked.insert((metadata.dev(), metadata.ino())) && metadata.is_file() {
                    size.len_bytes += metadata.len();
                }
                size.obstacle.get_or_insert(OverlayObstacle::HardLinks(path));
            } else if metadata.is_file() {
                size.len_bytes += metadata.len();
            }
        }
        size
    }
}

/// The first mount point below a directory.
fn mount_inside(top: &Path) -> Option<OverlayObstacle> {
    let inside = HostMounts::read().ok()?.inside(top)?.to_path_buf();
    Some(OverlayObstacle::MountInside(inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_counts_once_and_a_second_name_is_an_obstacle() -> Result<(), std::io::Error> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("inner"))?;
        std::fs::write(dir.path().join("a"), [0; 1000])?;
        std::fs::write(dir.path().join("inner/b"), [0; 20])?;
        std::os::unix::fs::symlink("a", dir.path().join("link"))?;
        assert_eq!(TreeSize::of(dir.path()), TreeSize { len_bytes: 1020, obstacle: None });
        std::fs::hard_link(dir.path().join("a"), dir.path().join("inner/c"))?;
        let size = TreeSize::of(dir.path());
        assert_eq!(size.len_bytes, 1020);
        assert!(matches!(size.obstacle, Some(OverlayObstacle::HardLinks(_))), "{size:?}");
        Ok(())
    }

    #[test]
    fn a_mount_below_is_an_obstacle_and_the_directory_itself_is_none() {
        assert!(matches!(mount_inside(Path::new("/")), Some(OverlayObstacle::MountInside(_))));
        assert_eq!(mount_inside(Path::new("/proc/sys/kernel")), None);
    }
}
