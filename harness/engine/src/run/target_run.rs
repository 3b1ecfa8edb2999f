//! One run of a target, from its first start to its last exit. Injects faults when their triggers are due,
//! follows the output, and restarts the target after a failure. Knows no expectation and gives no verdict.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use regex::Regex;
use scenarios::{Effect, Ending, Event, OutputStream, Scenario, TargetStarted, Trigger};

use crate::faults::{FaultContext, send_signal};
use crate::gate::{WatchedMounts, build_filter, file_id_of, mount_id, serve_notifications};
use crate::observe::Reporter;
use crate::plan::{InjectionPoint, PlannedFault};
use crate::run::RunError;
use crate::run::active_fault::{ActiveFault, GpuCallCounters};
use crate::run::call_injector::{InjectorEvent, InjectorHandle};
use crate::run::output_lines::{NextLine, OutputLines};
use crate::run::probe::{ExitCodeProbe, requested_lines};
use crate::run::trial_env::emit_gpu_defects;
use crate::sandbox::{LaunchSpec, ProcessExit, SandboxError, SpawnedProcess};
use crate::target::{OutputPatterns, ParsedLine};

/// Longest time between two checks of clocks, faults and processes.
const POLL_INTERVAL: Duration = Duration::from_millis(4);
/// Time between two measurements of the memory of the target's processes.
const MEMORY_INTERVAL: Duration = Duration::from_millis(40);
/// How long to read output after the main process has exited. Other processes may hold the pipes open.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);
/// Restarts by the harness after failures, in addition to those that the method causes.
const MAX_RESTARTS: u32 = 2;
/// Lines that are recorded of the end of a failed run.
const MAX_LAST_LINES: usize = 20;
/// Unrecognised lines of standard output that are recorded of one trial.
const MAX_KEPT_LINES: usize = 400;

/// A fault that ends the target. [`TargetRun`] itself injects it.
pub(super) struct ArmedTermination {
    pub(super) planned: PlannedFault,
    /// It was injected and is not injected again.
    pub(super) done: bool,
}

/// A target that is run in an environment, with its faults.
pub(super) struct TargetRun<'a> {
    context: FaultContext<'a>,
    patterns: OutputPatterns<'a>,
    reporter: &'a Reporter,
    /// Patterns of lines that the scenario needs in the record.
    requested_lines: Vec<Regex>,
    exit_code_probes: Vec<ExitCodeProbe>,
    faults: Vec<ActiveFault>,
    /// Counters of GPU driver calls. Only a baseline run has any.
    pub(super) gpu_counters: GpuCallCounters,
    terminations: Vec<ArmedTermination>,
    /// Counts file system calls and injects faults at them.
    pub(super) injector: Option<InjectorHandle>,
    /// Starts of an earlier, recorded run. The first attempt here follows them.
    pub(super) earlier_starts: u32,
    measured_phase: Option<String>,
    /// Last announced step.
    step: u64,
    kept_lines: usize,
    last_lines: VecDeque<(OutputStream, String)>,
    peak_bytes: u64,
    memory_measured_at: Instant,
    phase_end_hook: Option<Box<dyn FnMut() + Send>>,
}

/// One start of the target, from spawn to exit.
struct Attempt {
    process: SpawnedProcess,
    lines: OutputLines,
    started_at: Instant,
    last_output_at: Instant,
    /// What the harness did to end the target, if it did.
    termination_evidence: Option<String>,
    /// Set after a signal that asks the target to exit: the time by which it must have exited.
    exit_deadline: Option<Instant>,
    timed_out: bool,
    /// When the time limits were last checked, and how long faults have stopped the target until then.
    checked_at: Instant,
    paused: Duration,
}

impl<'a> TargetRun<'a> {
    /// A run with these faults armed. Nothing is started yet.
    pub(super) fn new(
        context: FaultContext<'a>,
        reporter: &'a Reporter,
        scenario: Option<&Scenario>,
        faults: &[PlannedFault],
    ) -> TargetRun<'a> {
        let mut run = TargetRun {
            context,
            patterns: OutputPatterns::new(context.trainer.file),
            reporter,
            requested_lines: scenario.map(requested_lines).unwrap_or_default(),
            exit_code_probes: scenario.map(ExitCodeProbe::all_of).unwrap_or_default(),
            faults: Vec::new(),
            gpu_counters: GpuCallCounters::default(),
            terminations: Vec::new(),
            injector: None,
            earlier_starts: 0,
            measured_phase: None,
            step: 0,
            kept_lines: 0,
            last_lines: VecDeque::new(),
            peak_bytes: 0,
            memory_measured_at: Instant::now(),
            phase_end_hook: None,
        };
        faults.iter().for_each(|planned| run.arm(planned));
        run
    }

    fn arm(&mut self, planned: &PlannedFault) {
        if let Some(active) = ActiveFault::arm(planned) {
            self.emit_armed(&active.name, &active.mechanism());
            self.faults.push(active);
        } else if let Some(mechanism) = planned.termination_mechanism() {
            self.emit_armed(&planned.name(), &mechanism);
            self.terminations.push(ArmedTermination { planned: planned.clone(), done: false });
        }
    }

    fn emit_armed(&self, fault: &str, mechanism: &str) {
        self.reporter.emit(Event::FaultArmed { fault: fault.into(), mechanism: mechanism.into() });
    }

    /// Calls `hook` at each end of this phase.
    pub(super) fn on_phase_end(&mut self, phase: &str, hook: Box<dyn FnMut() + Send>) {
        (self.measured_phase, self.phase_end_hook) = (Some(phase.to_owned()), Some(hook));
    }

    /// Starts the target and restarts it until it exits with 0, hangs, or has failed too often.
    ///
    /// # Errors
    /// If the sandbox or a fault fails. A target that fails is an [`Ending`].
    pub(super) fn run(&mut self) -> Result<Ending, RunError> {
        let (mut attempt, mut restarts) = (self.earlier_starts + 1, 0);
        loop {
            let launch =
                if attempt == 1 { self.context.trainer.start() } else { self.context.trainer.resume() };
            let ending = self.run_attempt(attempt, &launch)?;
            self.reporter.emit(Event::TargetEnded { attempt, ending });
            match ending {
                Ending::Exited(0) | Ending::TimedOut => break Ok(ending),
                Ending::KilledByFault => {}
                Ending::Exited(_) | Ending::Signalled(_) if restarts == MAX_RESTARTS => break Ok(ending),
                Ending::Exited(_) | Ending::Signalled(_) => {
                    restarts += 1;
                    self.emit_last_lines();
                    self.wait_before_restart()?;
                }
            }
            attempt += 1;
        }
        .inspect(|ending| {
            if *ending != Ending::Exited(0) {
                self.emit_last_lines()
            }
        })
    }

    /// Waits before a restart, as a supervisor would. Faults that end after some time may end meanwhile.
    fn wait_before_restart(&mut self) -> Result<(), RunError> {
        let deadline = Instant::now() + Duration::from_millis(200);
        while Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
            self.tick(None)?;
        }
        Ok(())
    }

    fn run_attempt(&mut self, number: u32, launch: &LaunchSpec) -> Result<Ending, RunError> {
        self.inject_at_start(number)?;
        let mut process = self.spawn(launch)?;
        let command = launch.argv.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
        self.reporter.emit(Event::TargetStarted(TargetStarted { attempt: number, command }));
        let lines = OutputLines::read_from(&mut process);
        let now = Instant::now();
        let mut attempt = Attempt {
            process,
            lines,
            started_at: now,
            last_output_at: now,
            termination_evidence: None,
            exit_deadline: None,
            timed_out: false,
            checked_at: now,
            paused: Duration::ZERO,
        };
        self.context.main_pid = Some(attempt.process.pid_inside());
        let exit = loop {
            match attempt.lines.next_line(POLL_INTERVAL) {
                NextLine::Line(stream, line) => {
                    attempt.last_output_at = Instant::now();
                    self.on_line(stream, &line, &mut attempt)?;
                }
                NextLine::Timeout => {}
                NextLine::Closed => std::thread::sleep(POLL_INTERVAL),
            }
            self.tick(Some(&mut attempt))?;
            if let Some(exit) = attempt.process.wait_timeout(Duration::ZERO) {
                break exit;
            }
        };
        self.context.main_pid = None;
        self.drain_output(&mut attempt)?;
        self.handle_injector_events(&mut attempt)?;
        if attempt.exit_deadline.is_some() {
            self.probe_exit_code(exit);
        }
        let ending = ending(exit, &attempt);
        self.on_target_ended(&attempt, ending);
        Ok(ending)
    }

    /// Starts the target's process, behind the gate if calls have to be counted or altered.
    fn spawn(&self, launch: &LaunchSpec) -> Result<SpawnedProcess, RunError> {
        let sandbox = self.context.sandbox;
        let Some(injector) = self.injector.as_ref().filter(|injector| injector.is_needed()) else {
            return Ok(sandbox.spawn(launch)?);
        };
        let places =
            self.context.trainer.file.places().values().map(|place| sandbox.host_path_in_root(place));
        let roots = std::iter::once(sandbox.host_path(sandbox.root())).chain(places);
        // A place that does not exist yet will be created on the root's own mount.
        let watched = WatchedMounts::new(roots.filter_map(|root| mount_id(&root).ok()));
        let pipe = || {
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
                .map_err(|error| SandboxError::System { doing: "make a pipe", source: error.into() })
        };
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        injector.set_main_outputs(
            [&stdout, &stderr].into_iter().filter_map(|pipe| file_id_of(pipe.as_fd()).ok()).collect(),
        );
        let process = sandbox.spawn_filtered(
            launch,
            build_filter(injector.filter_options()),
            [their_stdout, their_stderr],
            |listener| {
                // The supervisor thread ends with the last process behind the filter.
                serve_notifications(listener, watched, std::sync::Arc::clone(&injector.injector));
            },
        )?;
        Ok(process.with_outputs(stdout, stderr))
    }

    fn inject_at_start(&mut self, attempt_number: u32) -> Result<(), RunError> {
        self.inject_where(|when| attempt_number == 1 && matches!(when, Trigger::Start))
    }

    fn drain_output(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        while let NextLine::Line(stream, line) =
            attempt.lines.next_line(deadline.saturating_duration_since(Instant::now()))
        {
            self.on_line(stream, &line, attempt)?;
        }
        Ok(())
    }

    fn probe_exit_code(&self, exit: ProcessExit) {
        for probe in &self.exit_code_probes {
            self.reporter.emit(Event::Probed(probe.evaluate(exit)));
        }
    }

    fn on_target_ended(&mut self, attempt: &Attempt, ending: Ending) {
        if let Some(evidence) = &attempt.termination_evidence {
            let fault =
                self.terminations.first().map(|termination| termination.planned.name()).unwrap_or_default();
            self.reporter.emit(Event::FaultEffective { fault, evidence: evidence.clone() });
        }
        for fault in &mut self.faults {
            if fault.on_target_ended(ending) {
                self.reporter.emit(Event::FaultReverted {
                    fault: fault.name.clone(),
                    how: "calls are no longer altered".into(),
                });
            }
        }
        self.end_finished_call_faults();
    }

    fn on_line(&mut self, stream: OutputStream, line: &str, attempt: &mut Attempt) -> Result<(), RunError> {
        let parsed =
            if stream == OutputStream::Stdout { self.patterns.parse(line) } else { ParsedLine::Other };
        match parsed {
            ParsedLine::Step { step, loss } => {
                self.step = step;
                self.reporter.emit(Event::Step { step, loss: loss.filter(|loss| loss.is_finite()) });
            }
            ParsedLine::Saved { step } => self.reporter.emit(Event::Saved { step }),
            ParsedLine::Resumed { step } => self.reporter.emit(Event::Resumed { step }),
            ParsedLine::Other => {}
        }
        self.keep_line(stream, line, parsed == ParsedLine::Other);
        self.run_phase_end_hook(line);
        self.pass_line_to_faults(line);
        if let ParsedLine::Step { .. } = parsed {
            self.terminate_where(attempt, |when, step| matches!(when, Trigger::Step(from) if step >= *from))?;
            let step = self.step;
            self.inject_where(|when| matches!(when, Trigger::Step(from) if step >= *from))?;
        }
        self.terminate_where(
            attempt,
            |when, _| matches!(when, Trigger::Output(pattern) if pattern.is_match(line)),
        )?;
        self.inject_where(|when| matches!(when, Trigger::Output(pattern) if pattern.is_match(line)))
    }

    /// Records a line that is needed later. Other unrecognised lines are held back for
    /// [`TargetRun::emit_last_lines`].
    fn keep_line(&mut self, stream: OutputStream, line: &str, is_other: bool) {
        let is_requested = self.patterns.has_compared_value(line)
            || self.requested_lines.iter().any(|pattern| pattern.is_match(line));
        let is_unrecognised = is_other && stream == OutputStream::Stdout && self.kept_lines < MAX_KEPT_LINES;
        if is_requested || is_unrecognised {
            self.kept_lines += 1;
            self.reporter.emit(Event::Output { stream, line: line.to_owned() });
        } else if is_other {
            self.last_lines.push_back((stream, line.to_owned()));
            if self.last_lines.len() > MAX_LAST_LINES {
                self.last_lines.pop_front();
            }
        }
    }

    /// Records the last lines before a failure.
    fn emit_last_lines(&mut self) {
        for (stream, line) in std::mem::take(&mut self.last_lines) {
            self.reporter.emit(Event::Output { stream, line });
        }
    }

    fn run_phase_end_hook(&mut self, line: &str) {
        let Some(phase) = &self.measured_phase else { return };
        if self.patterns.ends_phase(phase, line)
            && let Some(hook) = &mut self.phase_end_hook
        {
            hook();
        }
    }

    fn pass_line_to_faults(&mut self, line: &str) {
        for fault in self.faults.iter_mut() {
            fault.on_line(line, &self.patterns, self.reporter);
        }
    }

    /// Does everything that depends on time. Called at least every [`POLL_INTERVAL`].
    fn tick(&mut self, attempt: Option<&mut Attempt>) -> Result<(), RunError> {
        self.measure_memory()?;
        emit_gpu_defects(self.context.gpu, self.reporter)?;
        for fault in &mut self.faults {
            fault.tick(&self.context, self.reporter)?;
        }
        self.end_finished_call_faults();
        let Some(attempt) = attempt else { return Ok(()) };
        let elapsed = attempt.started_at.elapsed();
        let due = |when: &Trigger| matches!(when, Trigger::After(time) if elapsed >= *time);
        self.inject_where(due)?;
        self.terminate_where(attempt, |when, _| due(when))?;
        self.handle_injector_events(attempt)?;
        self.check_timeouts(attempt)
    }

    /// Ends the call injector's faults that are over, so that later calls are not altered.
    fn end_finished_call_faults(&self) {
        if let Some(injector) = &self.injector {
            let over =
                self.faults.iter().filter(|fault| fault.is_over() && fault.planned.call_trigger().is_some());
            over.for_each(|fault| injector.end_fault(&fault.name));
        }
    }

    /// Handles what the call injector did, or asks for while a call waits.
    fn handle_injector_events(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        while let Some(event) = self.injector.as_ref().and_then(|injector| injector.events.try_recv().ok()) {
            match event {
                InjectorEvent::Killed { fault, evidence } => {
                    attempt.termination_evidence.get_or_insert(evidence);
                    self.terminations
                        .iter_mut()
                        .filter(|termination| termination.planned.name() == fault)
                        .for_each(|termination| termination.done = true);
                }
                InjectorEvent::Effective { fault, evidence } => {
                    if let Some(active) = self.faults.iter_mut().find(|active| active.name == fault) {
                        active.take_effect(evidence, self.reporter);
                    }
                }
                InjectorEvent::InjectNow { fault, evidence, done } => {
                    let at_call = |termination: &ArmedTermination| {
                        termination.planned.name() == fault && !termination.done
                    };
                    if let Some(index) = self.terminations.iter().position(at_call) {
                        self.terminate_target(index, attempt, &evidence)?;
                    }
                    for active in self.faults.iter_mut().filter(|active| active.name == fault) {
                        active.inject(&self.context)?;
                    }
                    drop(done);
                }
            }
        }
        Ok(())
    }

    /// Kills a target that makes no progress or ignored a request to exit. While a fault stops the target,
    /// its time does not run.
    fn check_timeouts(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        let target = self.context.trainer.file;
        let now = Instant::now();
        if self.faults.iter().any(ActiveFault::pauses_target) {
            attempt.paused += now - attempt.checked_at;
            attempt.last_output_at = now;
        }
        attempt.checked_at = now;
        let is_late = attempt.last_output_at.elapsed() > target.stall()
            || attempt.started_at.elapsed() > target.finish() + attempt.paused;
        let ignored_request = attempt.exit_deadline.is_some_and(|deadline| now > deadline);
        if (is_late && attempt.termination_evidence.is_none() || ignored_request) && !attempt.timed_out {
            attempt.timed_out = true;
            self.context.sandbox.kill_all()?;
        }
        Ok(())
    }

    /// Injects every fault whose trigger is due, and starts the GPU counters that are due.
    fn inject_where(&mut self, due: impl Fn(&Trigger) -> bool) -> Result<(), RunError> {
        self.gpu_counters.start_where(&due, &self.context)?;
        let mut due = self.faults.iter_mut().filter(|fault| due(&fault.planned.fault.when));
        due.try_for_each(|fault| fault.inject(&self.context))
    }

    /// Injects the first termination whose trigger is due, at most one per attempt.
    fn terminate_where(
        &mut self,
        attempt: &mut Attempt,
        due: impl Fn(&Trigger, u64) -> bool,
    ) -> Result<(), RunError> {
        let step = self.step;
        let is_due = |termination: &ArmedTermination| {
            matches!(termination.planned.injection_point, InjectionPoint::Trigger)
                && !termination.done
                && due(&termination.planned.fault.when, step)
        };
        match self.terminations.iter().position(is_due).filter(|_| attempt.termination_evidence.is_none()) {
            Some(index) => self.terminate_target(index, attempt, &format!("after step {step}")),
            None => Ok(()),
        }
    }

    fn terminate_target(&mut self, index: usize, attempt: &mut Attempt, when: &str) -> Result<(), RunError> {
        let termination = &mut self.terminations[index];
        termination.done = termination.planned.fault.persistence == scenarios::Persistence::Transient;
        let signal = match &termination.planned.fault.effect {
            Effect::Signal { signals } => signals.first().and_then(|sent| Some((sent, sent.exit_time()?))),
            _ => None,
        };
        match signal {
            Some((sent, exit_time)) => {
                if !send_signal(self.context.sandbox, attempt.process.pid_inside(), sent)? {
                    return Ok(());
                }
                attempt.exit_deadline = Some(Instant::now() + exit_time);
                attempt.termination_evidence = Some(format!("sent {sent} {when}"));
            }
            None => {
                self.context.sandbox.kill_all()?;
                attempt.termination_evidence = Some(format!("every process was killed {when}"));
            }
        }
        Ok(())
    }

    fn measure_memory(&mut self) -> Result<(), RunError> {
        if self.memory_measured_at.elapsed() < MEMORY_INTERVAL {
            return Ok(());
        }
        self.memory_measured_at = Instant::now();
        let peak =
            self.context.sandbox.processes().iter().map(|process| process.peak_bytes).max().unwrap_or(0);
        if peak > self.peak_bytes {
            self.peak_bytes = peak;
            self.reporter.emit(Event::Memory { peak_bytes: peak });
        }
        Ok(())
    }

    /// Peak memory of the target's largest process, or `None` if it could not be read.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        Some(self.peak_bytes).filter(|peak| *peak > 0)
    }

    /// Reverts every fault, so that the probes at the end see an undisturbed machine.
    ///
    /// # Errors
    /// If a fault could not be reverted.
    pub(super) fn revert_all(&mut self) -> Result<(), RunError> {
        for fault in &mut self.faults {
            fault.finish(&self.context, self.reporter)?;
        }
        Ok(())
    }
}

fn ending(exit: ProcessExit, attempt: &Attempt) -> Ending {
    match exit {
        _ if attempt.timed_out => Ending::TimedOut,
        _ if attempt.termination_evidence.is_some() => Ending::KilledByFault,
        ProcessExit::Exited(code) => Ending::Exited(code),
        ProcessExit::Signalled(signal) => Ending::Signalled(signal),
    }
}
