//! Commands beside the target, in its sandbox. Knows no trigger.

use std::time::{Duration, Instant};

use nix::sys::signal::SIGKILL;
use scenarios::{CommandToRun, EffectSpec, RunCommand};

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::file_error::chain;
use crate::sandbox::{LaunchSpec, ProcessExit, ProcessPipes, SandboxError, SpawnedProcess};

/// How long commands may take that run before a start of the target. They are then killed.
const MAX_TIME_BEFORE_START: Duration = Duration::from_secs(60);
/// Longest time between two looks at a command.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// How much of the end of a command's output is kept.
const MAX_OUTPUT_BYTES: usize = 400;

/// A command that has been started.
struct StartedCommand {
    process: SpawnedProcess,
    pipes: Option<ProcessPipes>,
    /// The end of what it printed.
    output: Vec<u8>,
}

impl StartedCommand {
    /// Reads what can be read, so that the command does not wait for a reader.
    fn read(&mut self) -> Result<(), FaultError> {
        let Some(pipes) = &mut self.pipes else { return Ok(()) };
        let read = pipes.read_written([true, true], |_, bytes| {
            self.output.extend_from_slice(bytes);
            let surplus = self.output.len().saturating_sub(MAX_OUTPUT_BYTES);
            self.output.drain(..surplus);
        });
        read.map_err(FaultError::Output)
    }

    fn last_line(&self) -> String {
        String::from_utf8_lossy(&self.output).lines().next_back().unwrap_or_default().to_owned()
    }
}

/// Commands that run at the same time.
pub(super) struct RunningCommands {
    planned: RunCommand,
    is_started: bool,
    running: Vec<StartedCommand>,
    /// Those that are over. Processes that they have left behind may still print.
    over: Vec<StartedCommand>,
    /// How those have ended that are over.
    ended: Vec<ProcessExit>,
    /// How many of them the run has been told of.
    told: usize,
    /// The last line of the one that ended last.
    last_line: String,
    /// Why one of them has done nothing, such as that it could not be started.
    failure: Option<String>,
}

impl RunningCommands {
    pub(super) fn new(planned: &RunCommand) -> RunningCommands {
        RunningCommands {
            planned: planned.clone(),
            is_started: false,
            running: Vec::new(),
            over: Vec::new(),
            ended: Vec::new(),
            told: 0,
            last_line: String::new(),
            failure: None,
        }
    }

    fn launch(&self, context: &FaultContext<'_>, copy: u32) -> LaunchSpec {
        match &self.planned.command {
            CommandToRun::Given { arguments, .. } => context.trainer.command(arguments, copy),
            CommandToRun::SecondTarget => context.trainer.start(),
        }
    }

    /// Starts one of them. One that cannot be started has no effect; the scenario's author has to know.
    fn start(&mut self, context: &FaultContext<'_>, copy: u32) -> Result<(), FaultError> {
        let mut process = match context.sandbox.spawn(&self.launch(context, copy)) {
            Err(error @ SandboxError::NotStarted { .. }) => {
                self.failure.get_or_insert(chain(&error));
                return Ok(());
            }
            spawned => spawned?,
        };
        let pipes = process.take_outputs().map(|outputs| ProcessPipes::new(outputs.stdout, outputs.stderr));
        self.running.push(StartedCommand { process, pipes, output: Vec::new() });
        Ok(())
    }

    /// Notes those that have ended.
    fn look(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        self.over.iter_mut().try_for_each(StartedCommand::read)?;
        for index in (0..self.running.len()).rev() {
            let exit = self.running[index].process.wait_timeout(Duration::ZERO);
            self.running[index].read()?;
            if let Some(exit) = exit {
                let ended = self.running.swap_remove(index);
                self.last_line = ended.last_line();
                self.over.push(ended);
                if !self.may_end_with(exit, context) {
                    let text = format!("a command ended with {exit}; last line: {}", self.last_line);
                    self.failure.get_or_insert(text);
                }
                self.ended.push(exit);
            }
        }
        Ok(())
    }

    /// Whether a command that has ended so may have done what it is for. A second target may be refused.
    fn may_end_with(&self, exit: ProcessExit, context: &FaultContext<'_>) -> bool {
        let is_target = matches!(self.planned.command, CommandToRun::SecondTarget);
        exit == ProcessExit::Exited(0) || is_target || context.expects_command_codes
    }

    fn kill_running(&mut self, context: &FaultContext<'_>) -> Result<usize, FaultError> {
        let count = self.running.len();
        for command in self.running.drain(..) {
            context.sandbox.signal(command.process.pid_inside(), SIGKILL as i32)?;
        }
        if count > 0 {
            self.failure.get_or_insert(format!("not ended by itself: {}", commands(count)));
        }
        Ok(count)
    }
}

impl InjectableFault for RunningCommands {
    fn mechanism(&self) -> String {
        format!("run in the sandbox: {}", self.planned.describe())
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        if std::mem::replace(&mut self.is_started, true) && !self.running.is_empty() {
            return Ok(());
        }
        for copy in 1..=self.planned.copies {
            self.start(context, copy)?;
        }
        // Before a start of the target, commands prepare what it finds.
        let deadline = Instant::now() + MAX_TIME_BEFORE_START;
        while context.main_pid.is_none() && !self.running.is_empty() && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
            self.look(context)?;
        }
        Ok(())
    }

    fn is_awaited(&self) -> bool {
        self.planned.target_waits && !self.running.is_empty()
    }

    fn on_waited_in_vain(&mut self) {
        if self.planned.target_waits {
            let planned = commands(self.planned.copies as usize);
            self.failure.get_or_insert(format!("the target went on before the end of {planned}"));
        }
    }

    fn tick(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        self.look(context)
    }

    fn effective_evidence(&mut self, _: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        if let (CommandToRun::SecondTarget, Some(second)) = (&self.planned.command, self.running.first()) {
            return Some(format!("process {} runs beside the target", second.process.pid_inside()));
        }
        if !self.is_started || !self.running.is_empty() || self.failure.is_some() {
            return None;
        }
        let mut codes: Vec<String> = self.ended.iter().map(ToString::to_string).collect();
        codes.sort();
        codes.dedup();
        let (line, codes) = (&self.last_line, codes.join(", "));
        Some(format!("{} ran and ended: {codes}; last line: {line}", commands(self.ended.len())))
    }

    fn revert(&mut self, context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        let killed = self.kill_running(context)?;
        Ok((killed > 0).then(|| format!("killed: {}", commands(killed))))
    }

    fn take_command_exits(&mut self) -> Vec<ProcessExit> {
        let new = self.ended[self.told..].to_vec();
        self.told = self.ended.len();
        new
    }

    fn missing_evidence(&self) -> String {
        self.failure.clone().unwrap_or_else(|| "no command was started".into())
    }
}

fn commands(count: usize) -> String {
    if count == 1 { "1 command".into() } else { format!("{count} commands") }
}
