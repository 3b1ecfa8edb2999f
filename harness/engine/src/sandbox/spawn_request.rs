//! Starts a program for a request of the harness: with its outputs, in the sandbox's cgroups, with
//! its limits, behind a seccomp filter. Part of the init process.

use std::fs::File;
use std::io::{Error, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;

use super::packet::send_fds;
use super::process_limits;
use super::protocol::{LaunchSpec, ProcessLimit, StartConditions};
use super::sys;
use crate::landlock::confine_thread;
use crate::seccomp::SeccompProgram;

/// A seccomp filter that a program is started behind, and the socket through which its listener is sent.
struct FilterToInstall {
    program: SeccompProgram,
    socket: OwnedFd,
}

/// The descriptors that came with a request to start a program.
pub(super) struct SpawnFiles {
    stdout: OwnedFd,
    stderr: OwnedFd,
    filter: Option<FilterToInstall>,
    /// The ruleset of Landlock that the program is under.
    ruleset: Option<OwnedFd>,
}

impl SpawnFiles {
    /// `None`: some are missing.
    pub(super) fn of(
        files: Vec<OwnedFd>,
        filter: Option<SeccompProgram>,
        is_confined: bool,
    ) -> Option<SpawnFiles> {
        let mut files = files.into_iter();
        let (stdout, stderr) = (files.next()?, files.next()?);
        let filter = match filter {
            Some(program) => Some(FilterToInstall { program, socket: files.next()? }),
            None => None,
        };
        let ruleset = if is_confined { Some(files.next()?) } else { None };
        Some(SpawnFiles { stdout, stderr, filter, ruleset })
    }
}

/// What a program is started with.
pub(super) struct ProgramStart<'a> {
    pub(super) files: SpawnFiles,
    /// Each joins a cgroup when `0` is written to it.
    pub(super) cgroup_procs: &'a [File],
    /// Limits that it has from its start on.
    pub(super) limits: Vec<ProcessLimit>,
    /// What else it is started with.
    pub(super) conditions: StartConditions,
}

impl ProgramStart<'_> {
    /// Starts the program. Init reaps it.
    pub(super) fn spawn(self, launch: &LaunchSpec) -> Result<Pid, Error> {
        let mut command = launch.command().ok_or_else(|| Error::other("`argv` is empty"))?;
        let SpawnFiles { stdout, stderr, filter, ruleset } = self.files;
        command.stdout(stdout).stderr(stderr);
        let cgroup_procs: Result<Vec<File>, Error> = self.cgroup_procs.iter().map(File::try_clone).collect();
        let confined = ConfinedStart { filter, ruleset, limits: self.limits };
        configure_child(&mut command, cgroup_procs?, self.conditions, confined);
        let child = command.spawn()?;
        Ok(Pid::from_raw(i32::try_from(child.id()).map_err(Error::other)?))
    }
}

/// What restricts a program from its start on.
struct ConfinedStart {
    filter: Option<FilterToInstall>,
    ruleset: Option<OwnedFd>,
    limits: Vec<ProcessLimit>,
}

/// Makes the command start in its own session, in the given cgroups, and restricted.
fn configure_child(
    command: &mut Command,
    cgroup_procs: Vec<File>,
    conditions: StartConditions,
    confined: ConfinedStart,
) {
    sys::before_exec(command, move || {
        nix::unistd::setsid()?;
        meet(&conditions)?;
        for mut procs in &cgroup_procs {
            procs.write_all(b"0")?;
        }
        if let Some(filter) = &confined.filter {
            let listener = sys::install_filter(&filter.program)?;
            send_fds(filter.socket.as_fd(), &[listener.as_fd()])?;
        }
        if let Some(ruleset) = &confined.ruleset {
            confine_thread(ruleset.as_fd())?;
        }
        // Until the program is started, this process has all descriptors of init: it can open no more then.
        confined.limits.iter().try_for_each(process_limits::set_for_this_process)
    });
}

/// Gives this process what it is to be started with.
fn meet(conditions: &StartConditions) -> Result<(), Error> {
    if let Some(mask) = conditions.umask {
        umask(Mode::from_bits_truncate(mask));
    }
    conditions.closed_streams.iter().try_for_each(|stream| nix::unistd::close(*stream))?;
    Ok(())
}
