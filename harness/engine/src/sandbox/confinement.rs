//! What programs of a sandbox may not do below a directory, although the modes of the files allow it: rules of Landlock
//! that grant the rights everywhere else. Starts nothing.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;

use super::error::SandboxError;
use crate::landlock::{FileRights, GrantedPath, LandlockRules};

/// Rights that programs of a sandbox do not have below a directory.
#[derive(Debug, Clone)]
pub struct Confinement {
    /// The rights.
    pub denied: FileRights,
    /// The directory, as the programs see it.
    pub below: PathBuf,
}

impl Confinement {
    /// The rules for programs that are started now. Landlock can only grant, so what is beside the directory and beside
    /// each directory above it is granted, one by one. Names that are made later in a directory above it are not.
    /// `host_path`: the path by which this process reaches a path of the sandbox.
    pub(super) fn rules(&self, host_path: impl Fn(&Path) -> PathBuf) -> Result<LandlockRules, SandboxError> {
        let make = SandboxError::system("make rules of Landlock");
        let rules = LandlockRules::denying(self.denied).map_err(make)?;
        if !self.denied.intersects(FileRights::REFER) {
            let top = host_path(Path::new("/"));
            let opened = open_path(&top).map_err(SandboxError::file("open", &top))?;
            let granted = rules.grant_some(opened.as_fd(), FileRights::REFER);
            granted.map_err(SandboxError::system("add a rule of Landlock"))?;
        }
        let mut inner = self.below.as_path();
        while let (Some(dir), Some(name)) = (inner.parent(), inner.file_name()) {
            let dir_on_host = host_path(dir);
            let listed = std::fs::read_dir(&dir_on_host).map_err(SandboxError::file("list", &dir_on_host))?;
            for entry in listed {
                let entry = entry.map_err(SandboxError::file("list", &dir_on_host))?;
                if entry.file_name() != name {
                    grant(&rules, &entry.path())?;
                }
            }
            inner = dir;
        }
        Ok(rules)
    }
}

fn grant(rules: &LandlockRules, path: &Path) -> Result<(), SandboxError> {
    let opened = match open_path(path) {
        // It has been removed meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(SandboxError::file("open", path))?,
    };
    let kind = opened.metadata().map_err(SandboxError::file("look at", path))?.file_type();
    let kind = match kind {
        // Where it leads has a rule of its own.
        kind if kind.is_symlink() => return Ok(()),
        kind if kind.is_dir() => GrantedPath::Directory,
        _ => GrantedPath::File,
    };
    match rules.grant(opened.as_fd(), kind) {
        // A file of the kernel's own, which no rule concerns.
        Ok(()) | Err(Errno::EBADFD) => Ok(()),
        Err(error) => Err(SandboxError::system("add a rule of Landlock")(error)),
    }
}

/// Opens what a path names, links included, in order to refer to it.
fn open_path(path: &Path) -> Result<File, std::io::Error> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)
}
