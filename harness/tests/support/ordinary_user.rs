//! Runs programs as the user `nobody`, for tests that run as root.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::program_files::copy_program;

/// User and group of `nobody`.
pub(crate) const NOBODY: u32 = 65534;

/// A directory in which `nobody` may read, write and execute, with copies of programs.
pub(crate) struct OrdinaryUser {
    dir: tempfile::TempDir,
}

impl OrdinaryUser {
    /// Copies the programs under their own names.
    pub(crate) fn with_programs(programs: &[&Path]) -> OrdinaryUser {
        // Every user may enter `/var/tmp`, unlike some values of TMPDIR.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        for program in programs {
            copy_program(program, &dir.path().join(program.file_name().unwrap()));
        }
        OrdinaryUser { dir }
    }

    /// The path of a file in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs one of the programs as `nobody`, with the directory as its home and its directory for temporary
    /// files. It must not build anything.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.path(program));
        command.current_dir(self.dir.path()).env("TMPDIR", self.dir.path()).env("HOME", self.dir.path());
        command.env_remove("CARGO").uid(NOBODY).gid(NOBODY);
        command
    }
}
