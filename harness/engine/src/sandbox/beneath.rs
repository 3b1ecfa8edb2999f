//! Opens a directory below another one without following a link: in a target's root a link may lead anywhere,
//! also out of the sandbox. Knows no target.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

/// A directory that stays the same, whatever happens to its path.
#[derive(Debug)]
pub struct OpenDirectory {
    directory: File,
}

impl OpenDirectory {
    /// Opens the directory at `relative` below `base`.
    ///
    /// # Errors
    /// If there is none, or a part of `relative` is a link.
    pub fn beneath(base: &Path, relative: &Path) -> Result<OpenDirectory, Error> {
        let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
        let mut directory = OpenOptions::new().read(true).custom_flags(flags).open(base)?;
        for part in relative.components() {
            let Component::Normal(name) = part else {
                if part == Component::CurDir {
                    continue;
                }
                return Err(ErrorKind::InvalidInput.into());
            };
            let path = fd_path(&directory).join(name);
            let flags = flags | nix::libc::O_NOFOLLOW;
            directory = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        }
        Ok(OpenDirectory { directory })
    }

    /// A path that leads to the directory as long as this value exists. Valid in this process only.
    pub fn path(&self) -> PathBuf {
        fd_path(&self.directory)
    }
}

fn fd_path(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_is_followed() -> Result<(), Error> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir_all(dir.path().join("root/a/b"))?;
        std::fs::create_dir(dir.path().join("outside"))?;
        let root = dir.path().join("root");
        std::os::unix::fs::symlink(dir.path().join("outside"), root.join("link"))?;
        std::os::unix::fs::symlink("..", root.join("a/up"))?;
        std::fs::write(root.join("file"), "")?;
        let opened = OpenDirectory::beneath(&root, Path::new("a/b"))?;
        std::fs::rename(root.join("a"), root.join("c"))?;
        std::fs::write(opened.path().join("new"), "")?;
        assert!(root.join("c/b/new").exists());
        for refused in ["link", "c/up", "c/../c", "file", "missing", "/"] {
            assert!(OpenDirectory::beneath(&root, Path::new(refused)).is_err(), "{refused}");
        }
        Ok(())
    }
}
