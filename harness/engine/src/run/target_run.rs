//! One run of a target, from its first start to its last exit: starts it, passes its output and the time on
//! to the faults, and starts it again after a failure. Knows no mechanism of a fault and no expectation, and
//! gives no verdict.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scenarios::{Ending, Event, OutputStream, Scenario, TargetStarted};

use crate::faults::FaultContext;
use crate::gate::ConnectionLog;
use crate::observe::Reporter;
use crate::plan::CountedCall;
use crate::run::answer_probe::AnswerProbe;
use crate::run::call_injector::InjectorHandle;
use crate::run::error::RunError;
use crate::run::fault_schedule::FaultSchedule;
use crate::run::gated_process::spawn_behind_gate;
use crate::run::moment::Moment;
use crate::run::output_lines::{NextLine, OutputLines};
use crate::run::peak_memory::PeakMemory;
use crate::run::probe::ExitCodeProbe;
use crate::run::resource_watch::ResourceWatch;
use crate::run::target_output::TargetOutput;
use crate::run::termination::AttemptTermination;
use crate::run::trial_env::emit_gpu_defects;
use crate::sandbox::{LaunchSpec, OutputPause, ProcessExit, SpawnedProcess, StoredCommand};

/// Longest time between two checks of clocks, faults and processes.
const POLL_INTERVAL: Duration = Duration::from_millis(4);
/// How long to read what other processes print after the main process has exited.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);
/// Time between a failure and the restart.
const RESTART_DELAY: Duration = Duration::from_millis(200);
/// Restarts by the harness after failures, in addition to those that the method causes.
const MAX_RESTARTS: u32 = 2;

/// A target that is run in an environment, with its faults.
pub(super) struct TargetRun<'a> {
    context: FaultContext<'a>,
    reporter: &'a Reporter,
    faults: FaultSchedule<'a>,
    /// Counts file system calls and injects faults at them.
    injector: Option<InjectorHandle>,
    output: TargetOutput<'a>,
    exit_code_probes: Vec<ExitCodeProbe>,
    /// Resumes the target by a fork. `None`: it is a new process.
    forked_resume: Option<StoredCommand>,
    command_probes: Vec<ExitCodeProbe>,
    answer_probes: Vec<AnswerProbe>,
    memory: PeakMemory,
    resources: ResourceWatch,
}

/// What was counted in a run.
pub(super) struct RunCounts {
    /// As in [`BaselineCounts`](crate::plan::BaselineCounts).
    pub(super) calls: BTreeMap<u32, Vec<Vec<CountedCall>>>,
    /// As in [`BaselineCounts`](crate::plan::BaselineCounts).
    pub(super) gpu_calls: Vec<u64>,
    /// Peak memory of the target's largest process, or `None` if it could not be read.
    pub(super) peak_memory_bytes: Option<u64>,
    /// The connections that the target tried to make, if they were noted.
    pub(super) connections: ConnectionLog,
}

/// One start of the target, from spawn to exit.
struct Attempt {
    process: SpawnedProcess,
    lines: OutputLines,
    started_at: Instant,
    last_output_at: Instant,
    termination: AttemptTermination,
    timed_out: bool,
    /// When the time limits were last checked, and how long faults have stopped the target until then.
    checked_at: Instant,
    paused: Duration,
}

/// How one start of the target ended.
struct AttemptResult {
    ending: Ending,
    /// The exit code, if a signal of the method had asked it to exit.
    exit_code: Option<i32>,
}

impl Attempt {
    fn of(mut process: SpawnedProcess, pause: &Arc<OutputPause>) -> Attempt {
        let lines = OutputLines::pausable(&mut process, pause);
        let termination = AttemptTermination::none_yet(process.pid_inside());
        let now = Instant::now();
        Attempt {
            process,
            lines,
            started_at: now,
            last_output_at: now,
            termination,
            timed_out: false,
            checked_at: now,
            paused: Duration::ZERO,
        }
    }

    fn ending(&self, exit: ProcessExit) -> Ending {
        match exit {
            _ if self.timed_out => Ending::TimedOut,
            _ if self.termination.has_begun() => Ending::KilledByFault,
            ProcessExit::Exited(code) => Ending::Exited(code),
            ProcessExit::Signalled(signal) => Ending::Signalled(signal),
        }
    }
}

impl<'a> TargetRun<'a> {
    /// A run with these faults. Nothing is started yet.
    pub(super) fn new(
        context: FaultContext<'a>,
        reporter: &'a Reporter,
        scenario: &Scenario,
        faults: FaultSchedule<'a>,
        injector: Option<InjectorHandle>,
    ) -> TargetRun<'a> {
        TargetRun {
            context,
            reporter,
            faults,
            injector,
            output: TargetOutput::new(context.trainer.file, scenario, reporter),
            exit_code_probes: ExitCodeProbe::of_target(scenario),
            command_probes: ExitCodeProbe::of_commands(scenario),
            answer_probes: AnswerProbe::all_of(scenario),
            forked_resume: None,
            memory: PeakMemory::new(),
            resources: ResourceWatch::for_scenario(scenario),
        }
    }

    /// The same, whose resumes are forks if there is a command for that.
    #[must_use]
    pub(super) fn with_forked_resume(self, command: Option<StoredCommand>) -> TargetRun<'a> {
        TargetRun { forked_resume: command, ..self }
    }

    /// Calls `hook` at each end of this phase.
    pub(super) fn on_phase_end(&mut self, phase: &str, hook: Box<dyn FnMut() + Send>) {
        self.output.on_phase_end(phase, hook);
    }

    /// Starts the target and restarts it until it exits with 0, hangs, or has failed too often.
    /// `earlier_starts` are those of a recorded run that this one continues.
    ///
    /// # Errors
    /// If the sandbox or a fault fails. A target that fails is an [`Ending`].
    pub(super) fn run(&mut self, earlier_starts: u32) -> Result<Ending, RunError> {
        let (mut attempt, mut restarts) = (earlier_starts + 1, 0);
        let ending = loop {
            let AttemptResult { ending, exit_code } = self.run_attempt(attempt)?;
            self.reporter.emit(Event::TargetEnded { attempt, ending, exit_code });
            match ending {
                Ending::Exited(0) | Ending::TimedOut => break ending,
                Ending::KilledByFault => {}
                Ending::Exited(_) | Ending::Signalled(_) if restarts == MAX_RESTARTS => break ending,
                Ending::Exited(_) | Ending::Signalled(_) => {
                    restarts += 1;
                    self.output.emit_last_lines();
                    self.wait_before_restart()?;
                }
            }
            attempt += 1;
        };
        if ending != Ending::Exited(0) {
            self.output.emit_last_lines();
        }
        Ok(ending)
    }

    /// Reverts every fault, so that the probes at the end see an undisturbed machine, and emits which ones had
    /// no effect.
    ///
    /// # Errors
    /// If a fault could not be reverted.
    pub(super) fn finish(mut self) -> Result<(), RunError> {
        self.faults.revert_all(&self.context)?;
        self.probe_commands();
        self.faults.emit_not_effective(|fault| self.injector.as_ref()?.progress(fault));
        Ok(())
    }

    /// Ends a run that had no faults. Returns what it counted.
    pub(super) fn into_counts(self) -> RunCounts {
        RunCounts {
            calls: self.injector.as_ref().map(InjectorHandle::counted_calls).unwrap_or_default(),
            gpu_calls: self.faults.gpu_calls(),
            connections: self.injector.as_ref().map(InjectorHandle::connections).unwrap_or_default(),
            peak_memory_bytes: self.memory.bytes(),
        }
    }

    /// Records the last lines that the target printed, for a run whose lines are needed although it ended well.
    pub(super) fn emit_last_lines(&mut self) {
        self.output.emit_last_lines();
    }

    /// Waits before a restart, as a supervisor would. Faults that end after some time may end meanwhile.
    fn wait_before_restart(&mut self) -> Result<(), RunError> {
        let deadline = Instant::now() + RESTART_DELAY;
        while Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
            self.tick_faults()?;
        }
        Ok(())
    }

    fn run_attempt(&mut self, number: u32) -> Result<AttemptResult, RunError> {
        let (launch, forked) = if number == 1 {
            self.faults.before_first_start(&self.context)?;
            (self.context.trainer.start(), None)
        } else {
            self.faults.before_restart(&self.context)?;
            (self.context.trainer.resume(), self.forked_resume)
        };
        let process = match forked {
            Some(command) => self.context.sandbox.spawn_forked(command)?,
            None => self.spawn(&launch)?,
        };
        let command = launch.argv.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
        self.reporter.emit(Event::TargetStarted(TargetStarted { attempt: number, command }));
        let mut attempt = Attempt::of(process, self.context.sandbox.output_pause());
        self.context.main_pid = Some(attempt.process.pid_inside());
        let exit = self.follow_to_exit(&mut attempt)?;
        self.context.main_pid = None;
        self.drain_output(&mut attempt)?;
        self.handle_injector_events(&mut attempt)?;
        attempt.termination.note_exit(exit);
        let was_asked_to_exit = attempt.termination.exit_deadline.is_some();
        if was_asked_to_exit {
            let probes = self.exit_code_probes.iter();
            probes.for_each(|probe| self.reporter.emit(Event::Probed(probe.evaluate(exit))));
        }
        let ending = attempt.ending(exit);
        self.faults.on_target_ended(ending, &attempt.termination);
        self.end_finished_call_faults();
        let exit_code = match exit {
            ProcessExit::Exited(code) if was_asked_to_exit => Some(code),
            _ => None,
        };
        Ok(AttemptResult { ending, exit_code })
    }

    /// Starts the target's process, behind the gate if calls have to be counted or altered.
    fn spawn(&self, launch: &LaunchSpec) -> Result<SpawnedProcess, RunError> {
        match self.injector.as_ref().filter(|injector| injector.is_needed()) {
            Some(injector) => Ok(spawn_behind_gate(&self.context, injector, launch)?),
            None => Ok(self.context.sandbox.spawn(launch)?),
        }
    }

    fn follow_to_exit(&mut self, attempt: &mut Attempt) -> Result<ProcessExit, RunError> {
        self.set_done_until(Some(Instant::now()));
        let exit = self.follow(attempt);
        self.set_done_until(None);
        exit
    }

    fn follow(&mut self, attempt: &mut Attempt) -> Result<ProcessExit, RunError> {
        let mut ticked_at = Instant::now();
        loop {
            match attempt.lines.next_line(POLL_INTERVAL).map_err(RunError::Output)? {
                NextLine::Line(stream, line) => {
                    attempt.last_output_at = Instant::now();
                    self.on_line(stream, &line, attempt)?;
                    // A target that prints a lot is not slowed down by looking at the clocks for each line.
                    if ticked_at.elapsed() < POLL_INTERVAL {
                        continue;
                    }
                }
                NextLine::Timeout => {}
                NextLine::Closed => std::thread::sleep(POLL_INTERVAL),
            }
            self.tick(attempt)?;
            ticked_at = Instant::now();
            if let Some(exit) = attempt.process.wait_timeout(Duration::ZERO) {
                return Ok(exit);
            }
        }
    }

    fn drain_output(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        attempt.lines.begin_rest(DRAIN_TIMEOUT).map_err(RunError::Output)?;
        while let Some((stream, line)) = attempt.lines.next_of_rest().map_err(RunError::Output)? {
            self.on_line(stream, &line, attempt)?;
        }
        Ok(())
    }

    fn on_line(&mut self, stream: OutputStream, line: &str, attempt: &mut Attempt) -> Result<(), RunError> {
        // What the injector did came before what the target printed after it.
        self.handle_injector_events(attempt)?;
        let step = self.output.on_line(stream, line);
        self.faults.on_line(line, step, &self.context, &mut attempt.termination)?;
        self.let_go_on(attempt);
        Ok(())
    }

    /// Threads that have printed a line go on, unless a fault waits for it or is still being done.
    fn let_go_on(&self, attempt: &Attempt) {
        if let Some(injector) = &self.injector {
            let waits = &mut injector.exchange().line_waits;
            if waits.is_waiting() {
                waits.set_waiting(self.faults.waiting_for_lines(&attempt.termination));
            }
        }
    }

    /// Everything that was due at this time is done. `None`: nothing is done by the time from now on.
    fn set_done_until(&self, time: Option<Instant>) {
        if let Some(injector) = &self.injector {
            injector.exchange().set_done_until(time);
        }
    }

    /// Does everything that depends on time. Called at least every [`POLL_INTERVAL`].
    fn tick(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        let now = Instant::now();
        self.tick_faults()?;
        let elapsed = attempt.started_at.elapsed();
        self.faults.on_elapsed(Moment::Elapsed(elapsed), &self.context, &mut attempt.termination)?;
        self.handle_injector_events(attempt)?;
        self.let_go_on(attempt);
        let in_vain = self.injector.iter().flat_map(|injector| injector.exchange().line_waits.take_in_vain());
        in_vain.for_each(|fault| self.faults.on_waited_in_vain(fault));
        self.check_timeouts(attempt)?;
        self.set_done_until(Some(now));
        Ok(())
    }

    /// What depends on time also between two attempts.
    fn tick_faults(&mut self) -> Result<(), RunError> {
        self.memory.tick(self.context.sandbox, self.reporter);
        self.resources.tick(self.context.sandbox, self.reporter);
        emit_gpu_defects(self.context.gpu, self.reporter)?;
        self.faults.tick(&self.context)?;
        self.probe_commands();
        self.end_finished_call_faults();
        Ok(())
    }

    /// Compares how commands of faults have ended, and what clients have been answered, with what is expected.
    fn probe_commands(&mut self) {
        for answer in self.faults.take_answers() {
            let probes = self.answer_probes.iter();
            probes.for_each(|probe| self.reporter.emit(Event::Probed(probe.evaluate(&answer))));
        }
        for exit in self.faults.take_command_exits() {
            let probes = self.command_probes.iter();
            probes.for_each(|probe| self.reporter.emit(Event::Probed(probe.evaluate(exit))));
        }
    }

    /// Ends the call injector's faults that are over, so that later calls are not altered.
    fn end_finished_call_faults(&self) {
        if let Some(injector) = &self.injector {
            injector.exchange().ended_faults.extend(self.faults.finished_call_faults());
        }
    }

    fn handle_injector_events(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        while let Some(event) = self.injector.as_ref().and_then(InjectorHandle::next_event) {
            self.faults.on_injector_event(event, &self.context, &mut attempt.termination)?;
        }
        match self.injector.as_ref().and_then(|injector| injector.exchange().failure.clone()) {
            Some(failure) => Err(RunError::NotFollowed(failure)),
            None => Ok(()),
        }
    }

    /// Kills a target that makes no progress or ignored a request to exit. While a fault stops the target,
    /// its time does not run.
    fn check_timeouts(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        let target = self.context.trainer.file;
        let now = Instant::now();
        if self.faults.pauses_target() {
            attempt.paused += now - attempt.checked_at;
            attempt.last_output_at = now;
        }
        attempt.checked_at = now;
        let is_late = attempt.last_output_at.elapsed() > target.stall()
            || attempt.started_at.elapsed() > target.finish() + attempt.paused;
        let is_stuck = is_late && !attempt.termination.has_begun();
        let ignored_request = attempt.termination.exit_deadline.is_some_and(|deadline| now > deadline);
        if ignored_request && attempt.termination.kills_now() {
            return Ok(self.context.sandbox.kill_all()?);
        }
        if (is_stuck || ignored_request) && !attempt.timed_out {
            attempt.timed_out = true;
            self.context.sandbox.kill_all()?;
        }
        Ok(())
    }
}
