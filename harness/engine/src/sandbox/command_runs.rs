//! The commands that a sandbox keeps, and what runs them. Part of the init process; does not know how the
//! harness asks for a run.

use std::io::Error;

use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use regex::RegexSet;

use super::fork_server::{ForkServer, ForkedCommand};
use super::launchable_command::LaunchableCommand;
use super::protocol::{CommandRunner, CompletedCommand, ControlReply, LaunchSpec, StoredCommand};
use super::run_command::{self, RunLimits};

/// The stored commands of a sandbox, and its fork server.
#[derive(Default)]
pub(super) struct CommandRuns {
    commands: Vec<WatchedCommand>,
    fork_server: Option<ForkServer>,
    /// How to start the fork server again, if its namespaces are replaced.
    fork_server_launch: Option<LaunchSpec>,
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
