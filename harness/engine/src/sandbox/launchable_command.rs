//! A command that init starts again and again, prepared so that a start costs little. Part of the init process.

use std::ffi::OsStr;
use std::io::Error;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{SigSet, SigmaskHow};

use super::protocol::LaunchSpec;
use super::sys;

/// Where execvp looks for a program if there is no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// A command, and the program file that it was last started from.
pub(super) struct LaunchableCommand {
    launch: LaunchSpec,
    prepared: Option<PreparedProgram>,
}

/// A command with the path of its program. With a path, the standard library starts it by posix_spawn, which
/// does not copy the page tables of init.
struct PreparedProgram {
    path: PathBuf,
    command: Command,
}

impl LaunchableCommand {
    pub(super) fn new(launch: LaunchSpec) -> LaunchableCommand {
        LaunchableCommand { launch, prepared: None }
    }

    /// The program, for error messages.
    pub(super) fn program_name(&self) -> String {
        self.launch.program_name()
    }

    /// Starts the command with pipes as its outputs. The program is looked up each time.
    pub(super) fn spawn(&mut self) -> Result<Child, Error> {
        if let Some(path) = self.find_program() {
            if self.prepared.as_ref().is_none_or(|prepared| prepared.path != path) {
                let command = self.command_of(&path).ok_or_else(no_program)?;
                self.prepared = Some(PreparedProgram { path, command });
            }
            // The program inherits which signals are blocked. One that comes meanwhile is lost to init, so that whoever
            // waits for this child asks about it first.
            let blocked = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
            let child = self.prepared.as_mut().and_then(|program| program.command.spawn().ok());
            blocked.thread_set_mask()?;
            if let Some(child) = child {
                return Ok(child);
            }
        }
        self.spawn_by_name()
    }

    /// The command that starts the program from this file, under the name that `argv` gives it.
    fn command_of(&self, path: &Path) -> Option<Command> {
        let (name, arguments) = self.launch.argv.split_first()?;
        let mut command = Command::new(path);
        command.arg0(name).args(arguments).env_clear().envs(self.launch.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(cwd) = &self.launch.cwd {
            command.current_dir(cwd);
        }
        Some(command)
    }

    /// Starts the command as execvp does: it looks further if a program may not be executed, and runs a script
    /// without a `#!` line in a shell.
    fn spawn_by_name(&self) -> Result<Child, Error> {
        let mut command = self.launch.command().ok_or_else(no_program)?;
        // With a function to run before it, the standard library starts a program by fork and execvp.
        sys::before_exec(&mut command, || Ok(()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    }

    /// The path of the program. `None`: it was not found.
    fn find_program(&self) -> Option<PathBuf> {
        let program = self.launch.argv.first()?;
        if program.as_bytes().contains(&b'/') {
            return Some(program.into());
        }
        let variable = self.launch.env.iter().rev().find(|(name, _)| name == "PATH");
        let dirs = variable.map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value);
        let start = self.launch.cwd.clone().unwrap_or_default();
        std::env::split_paths(dirs)
            .map(|dir| start.join(if dir.as_os_str().is_empty() { Path::new(".") } else { &dir }))
            .map(|dir| dir.join(program))
            .find(|file| is_executable(file))
    }
}

fn is_executable(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn no_program() -> Error {
    Error::other("`argv` is empty")
}
