//! Starts a program for a request of the harness: with its outputs, in the sandbox's memory cgroup, behind a
//! seccomp filter. Part of the init process.

use std::fs::File;
use std::io::{Error, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use nix::unistd::Pid;

use super::packet::send_fds;
use super::protocol::LaunchSpec;
use super::sys;
use crate::seccomp::SeccompProgram;

/// A seccomp filter that a program is started behind, and the socket through which its listener is sent.
pub(super) struct FilterToInstall {
    pub(super) program: SeccompProgram,
    pub(super) socket: OwnedFd,
}

/// What a program is started with.
pub(super) struct ProgramStart<'a> {
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) filter: Option<FilterToInstall>,
    /// Joins the memory cgroup when `0` is written to it.
    pub(super) cgroup_procs: Option<&'a File>,
}

impl ProgramStart<'_> {
    /// Starts the program. Init reaps it.
    pub(super) fn spawn(self, launch: &LaunchSpec) -> Result<Pid, Error> {
        let mut command = launch.command().ok_or_else(|| Error::other("`argv` is empty"))?;
        command.stdout(self.stdout).stderr(self.stderr);
        let cgroup_procs = self.cgroup_procs.map(File::try_clone).transpose()?;
        configure_child(&mut command, cgroup_procs, self.filter);
        let child = command.spawn()?;
        Ok(Pid::from_raw(i32::try_from(child.id()).map_err(Error::other)?))
    }
}

/// Makes the command start in its own session, in the given cgroup, and behind the given filter.
fn configure_child(command: &mut Command, cgroup_procs: Option<File>, filter: Option<FilterToInstall>) {
    sys::before_exec(command, move || {
        nix::unistd::setsid()?;
        if let Some(mut procs) = cgroup_procs.as_ref() {
            procs.write_all(b"0")?;
        }
        match &filter {
            Some(filter) => {
                let listener = sys::install_filter(&filter.program)?;
                send_fds(filter.socket.as_fd(), &[listener.as_fd()])
            }
            None => Ok(()),
        }
    });
}
