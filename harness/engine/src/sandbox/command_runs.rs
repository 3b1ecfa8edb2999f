//! The commands that a sandbox keeps, and what runs them. Part of the init process; does not know how the
//! harness asks for a run.

use std::io::Error;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use regex::RegexSet;

use super::fork_server::{ForkGroup, ForkNews, ForkServer, ForkedCommand, server_ended};
use super::launchable_command::LaunchableCommand;
use super::protocol::{
    CommandRunner, CompletedCommand, ControlReply, LaunchSpec, ProcessExit, StoredCommand,
};
use super::run_command::{self, RunLimits};

/// The stored commands of a sandbox, and its fork server.
#[derive(Default)]
pub(super) struct CommandRuns {
    commands: Vec<WatchedCommand>,
    fork_server: Option<ForkServer>,
    /// How to start the fork server again, if its namespaces are replaced.
    fork_server_launch: Option<LaunchSpec>,
    /// The command that the fork server runs and that is followed from outside.
    followed: Option<Pid>,
}

/// How long the fork of a command that is followed may take.
const FORK_TIMEOUT: Duration = Duration::from_secs(20);

/// How a command ended that was followed.
pub(super) struct EndedFork {
    pub(super) pid: Pid,
    pub(super) exit: ProcessExit,
}

/// A kept command, and which of its lines are kept when it runs.
struct WatchedCommand {
    command: KeptCommand,
    patterns: RegexSet,
}

enum KeptCommand {
    NewProcess(Box<LaunchableCommand>),
    Forked { program: String, command: ForkedCommand },
}

/// A program that could not be started.
pub(super) struct StartFailure {
    program: String,
    source: Error,
}

impl StartFailure {
    pub(super) fn new(program: String, source: Error) -> StartFailure {
        StartFailure { program, source }
    }

    /// What the harness is told about it.
    pub(super) fn reply(self) -> ControlReply {
        let StartFailure { program, source } = self;
        match source.raw_os_error() {
            Some(errno) => ControlReply::NotStarted { program, errno },
            None => ControlReply::Failed { doing: format!("start `{program}`"), detail: source.to_string() },
        }
    }
}

impl CommandRuns {
    /// The pid of the fork server. `None`: none was started.
    pub(super) fn fork_server_pid(&self) -> Option<Pid> {
        self.fork_server.as_ref().map(ForkServer::pid)
    }

    /// Starts the fork server.
    pub(super) fn start_fork_server(&mut self, launch: LaunchSpec) -> Result<(), StartFailure> {
        let program = launch.program_name();
        self.fork_server_launch = Some(launch);
        self.restart_fork_server().map_err(|source| StartFailure { program, source })
    }

    /// Starts the fork server in the place of the one that runs, if there is one.
    pub(super) fn restart_fork_server(&mut self) -> Result<(), Error> {
        self.fork_server = None;
        if let Some(launch) = &self.fork_server_launch {
            self.fork_server = Some(ForkServer::start(launch)?);
        }
        Ok(())
    }

    /// Fails if the fork server has ended although one was started.
    pub(super) fn check_fork_server(&mut self) -> Result<(), Error> {
        if let Some(server) = &self.fork_server
            && self.followed.is_none()
            && let ForkNews::ServerEnded = server.news()?
        {
            self.fork_server = None;
        }
        let is_missing = self.fork_server_launch.is_some() && self.fork_server.is_none();
        if is_missing { Err(server_ended()) } else { Ok(()) }
    }

    /// Becomes readable when the followed command has ended. `None`: there is none.
    pub(super) fn followed_command(&self) -> Option<BorrowedFd<'_>> {
        self.followed?;
        self.fork_server.as_ref().map(ForkServer::control)
    }

    /// How the followed command has ended. `None`: it has not, or it has become a child of init, because the fork
    /// server has ended.
    pub(super) fn end_of_followed(&mut self) -> Result<Option<EndedFork>, Error> {
        let (Some(pid), Some(server)) = (self.followed, &self.fork_server) else { return Ok(None) };
        let exit = match server.news()? {
            ForkNews::Nothing => return Ok(None),
            ForkNews::ChildEnded(exit) => Some(exit),
            ForkNews::ServerEnded => {
                self.fork_server = None;
                // The server may have ended after it has waited for the command. How that ended is then not known, but
                // that the server has ended will be.
                let is_gone = kill(pid, None::<Signal>) == Err(Errno::ESRCH);
                is_gone.then_some(ProcessExit::Signalled(Signal::SIGKILL as i32))
            }
        };
        self.followed = None;
        Ok(exit.map(|exit| EndedFork { pid, exit }))
    }

    /// Starts a stored command of the fork server, which the caller follows.
    pub(super) fn spawn_forked(
        &mut self,
        command: StoredCommand,
        outputs: [OwnedFd; 2],
    ) -> Result<Pid, StartFailure> {
        let failure = |program: &str, source: Error| StartFailure::new(program.into(), source);
        let kept = self.commands.get(command.index as usize).map(|watched| &watched.command);
        let Some(KeptCommand::Forked { program, command }) = kept else {
            return Err(failure("", Error::other("there is no such command of the fork server")));
        };
        let server = self.fork_server.as_ref().filter(|_| self.followed.is_none());
        let server = server.ok_or_else(|| failure(program, server_ended()))?;
        let forked = server.fork(command, outputs, ForkGroup::OwnSession, FORK_TIMEOUT);
        let pid = forked.map_err(|source| failure(program, source))?;
        self.followed = Some(pid);
        Ok(pid)
    }

    /// Keeps a command.
    pub(super) fn store(
        &mut self,
        launch: LaunchSpec,
        runner: CommandRunner,
        patterns: &[String],
    ) -> Result<StoredCommand, StartFailure> {
        let program = launch.program_name();
        let patterns = RegexSet::new(patterns)
            .map_err(|error| StartFailure { program, source: Error::other(error.to_string()) })?;
        let kept = match runner {
            CommandRunner::NewProcess => KeptCommand::NewProcess(Box::new(LaunchableCommand::new(launch))),
            CommandRunner::ForkServer => {
                let (program, command) = (launch.program_name(), ForkedCommand::new(&launch.argv));
                match command {
                    Ok(command) => KeptCommand::Forked { program, command },
                    Err(source) => return Err(StartFailure { program, source }),
                }
            }
        };
        let index = u32::try_from(self.commands.len()).unwrap_or(u32::MAX);
        self.commands.push(WatchedCommand { command: kept, patterns });
        Ok(StoredCommand { index })
    }

    /// Runs a stored command. The caller kills the processes that are left.
    pub(super) fn run(
        &mut self,
        command: StoredCommand,
        child_signals: &SignalFd,
        limits: RunLimits,
    ) -> Result<CompletedCommand, StartFailure> {
        let failure = |program: &str, what: &str| StartFailure::new(program.into(), Error::other(what));
        let Some(WatchedCommand { command, patterns }) = self.commands.get_mut(command.index as usize) else {
            return Err(failure("", "there is no such stored command"));
        };
        match (command, &mut self.fork_server) {
            (KeptCommand::NewProcess(command), _) => {
                run_command::run(command, child_signals, limits, patterns)
                    .map_err(|source| StartFailure::new(command.program_name(), source))
            }
            (KeptCommand::Forked { program, command }, Some(server)) => server
                .run(command, limits, patterns)
                .map_err(|source| StartFailure::new(program.clone(), source)),
            (KeptCommand::Forked { program, .. }, None) => {
                Err(failure(program, "no fork server was started"))
            }
        }
    }
}
