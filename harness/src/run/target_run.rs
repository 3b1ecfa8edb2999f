//! One run of a target from its first start to its last end, with faults striking on the way.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regex::Regex;
use scenarios::{Effect, Ending, Event, OutputStream, Probed, Scenario, TargetStarted, Trigger};

use crate::faults::FaultContext;
use crate::gate::{WatchedMounts, build_filter, file_id_of, mount_id, serve_notifications};
use crate::observe::Reporter;
use crate::plan::{InjectionPoint, PlannedFault};
use crate::run::RunError;
use crate::run::active_fault::{ActiveFault, GpuCallCounters};
use crate::run::call_injector::{InjectorEvent, InjectorHandle};
use crate::run::output_lines::{NextLine, OutputLines};
use crate::run::probe::{expected_exit_codes, requested_lines};
use crate::run::trial_env::emit_gpu_defects;
use crate::sandbox::{LaunchSpec, ProcessExit, SandboxError, SpawnedProcess};
use crate::target::{OutputPatterns, ParsedLine};

/// How long the loop sleeps at most before it looks at clocks, faults and processes again.
const POLL_INTERVAL: Duration = Duration::from_millis(4);
/// Between two looks at the memory of the target's processes.
const MEMORY_INTERVAL: Duration = Duration::from_millis(40);
/// Outputs that some process of the target holds open after its main process has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);
/// Starts beside those that the method causes.
const MAX_RESTARTS: u32 = 2;
/// Lines kept of an end that was not good, and lines kept of a trial in all.
const MAX_LAST_LINES: usize = 20;
const MAX_KEPT_LINES: usize = 400;

/// A fault that ends the target, which the run itself carries out.
pub(super) struct ArmedTermination {
    pub(super) planned: PlannedFault,
    pub(super) done: bool,
}

/// A target under way.
pub(super) struct TargetRun<'a> {
    context: FaultContext<'a>,
    patterns: OutputPatterns<'a>,
    reporter: &'a Reporter,
    requested_lines: Vec<Regex>,
    /// Exit codes that are expected of a target that was asked to end, each with its expectation's text.
    expected_exit_codes: Vec<(String, Vec<i32>)>,
    faults: Vec<ActiveFault>,
    /// Of calls of the GPU's driver; in a steady state.
    pub(super) gpu_counters: GpuCallCounters,
    terminations: Vec<ArmedTermination>,
    /// Where calls are counted and struck at.
    pub(super) injector: Option<InjectorHandle>,
    /// So many starts have been already: of those, none is made here.
    pub(super) earlier_starts: u32,
    measured_phase: Option<String>,
    step: u64,
    kept_lines: usize,
    last_lines: VecDeque<(OutputStream, String)>,
    peak_bytes: u64,
    memory_measured_at: Instant,
    phase_end_hook: Option<Box<dyn FnMut() + Send>>,
}

/// One start, from spawn to end.
struct Attempt {
    running: SpawnedProcess,
    lines: OutputLines,
    started_at: Instant,
    last_output_at: Instant,
    termination_evidence: Option<String>,
    /// After a SIGTERM.
    exit_deadline: Option<Instant>,
    timed_out: bool,
}

impl<'a> TargetRun<'a> {
    pub(super) fn new(
        scene: FaultContext<'a>,
        reporter: &'a Reporter,
        scenario: Option<&Scenario>,
        faults: &[PlannedFault],
    ) -> TargetRun<'a> {
        let mut live = TargetRun {
            context: scene,
            patterns: OutputPatterns::new(scene.trainer.file),
            reporter,
            requested_lines: scenario.map(requested_lines).unwrap_or_default(),
            expected_exit_codes: scenario.map(expected_exit_codes).unwrap_or_default(),
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
        faults.iter().for_each(|planned| live.arm(planned));
        live
    }

    fn arm(&mut self, planned: &PlannedFault) {
        if let Some(standing) = ActiveFault::arm(planned) {
            self.emit_armed(&standing.name, &standing.mechanism());
            self.faults.push(standing);
        } else if let Some(mechanism) = planned.termination_mechanism() {
            self.emit_armed(&planned.name(), mechanism);
            self.terminations.push(ArmedTermination { planned: planned.clone(), done: false });
        }
    }

    fn emit_armed(&self, fault: &str, mechanism: &str) {
        self.reporter.emit(Event::FaultArmed { fault: fault.into(), mechanism: mechanism.into() });
    }

    /// Done at each end of this phase.
    pub(super) fn on_phase_end(&mut self, phase: &str, hook: Box<dyn FnMut() + Send>) {
        (self.measured_phase, self.phase_end_hook) = (Some(phase.to_owned()), Some(hook));
    }

    /// Starts, and starts again, until the target has come to its end.
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

    /// As a supervisor would: not at once, and faults that end with time may end meanwhile.
    fn wait_before_restart(&mut self) -> Result<(), RunError> {
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            std::thread::sleep(POLL_INTERVAL);
            self.tick(None)?;
        }
        Ok(())
    }

    fn run_attempt(&mut self, number: u32, launch: &LaunchSpec) -> Result<Ending, RunError> {
        self.inject_at_start(number)?;
        let mut running = self.spawn(launch)?;
        let command = launch.argv.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        self.reporter.emit(Event::TargetStarted(TargetStarted { attempt: number, command }));
        let lines = OutputLines::read_from(&mut running);
        let now = Instant::now();
        let mut attempt = Attempt {
            running,
            lines,
            started_at: now,
            last_output_at: now,
            termination_evidence: None,
            exit_deadline: None,
            timed_out: false,
        };
        let ended = loop {
            match attempt.lines.next_line(POLL_INTERVAL) {
                NextLine::Line(stream, line) => {
                    attempt.last_output_at = Instant::now();
                    self.on_line(stream, &line, &mut attempt)?;
                }
                NextLine::Timeout => {}
                NextLine::Closed => std::thread::sleep(POLL_INTERVAL),
            }
            self.tick(Some(&mut attempt))?;
            if let Some(ended) = attempt.running.wait_timeout(Duration::ZERO) {
                break ended;
            }
        };
        self.drain_output(&mut attempt)?;
        self.handle_injector_events(&mut attempt)?;
        if attempt.exit_deadline.is_some() {
            self.probe_exit_code(ended);
        }
        let ending = ending(ended, &attempt);
        self.on_target_ended(&attempt, ending);
        Ok(ending)
    }

    /// Behind the gate, where something is to happen at a call.
    fn spawn(&self, launch: &LaunchSpec) -> Result<SpawnedProcess, RunError> {
        let room = self.context.sandbox;
        let Some(guardroom) = self.injector.as_ref().filter(|guardroom| guardroom.is_needed()) else {
            return Ok(room.spawn(launch)?);
        };
        let places = self.context.trainer.file.places().values().map(|place| room.host_path_in_root(place));
        let roots = std::iter::once(room.host_path(room.root())).chain(places);
        // A place that does not exist yet will be made on the root's own mount.
        let watched = WatchedMounts::new(roots.filter_map(|root| mount_id(&root).ok()));
        let pipe = || {
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
                .map_err(|error| SandboxError::System { doing: "make a pipe", error: error.into() })
        };
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        guardroom.set_main_outputs(
            [&stdout, &stderr].into_iter().filter_map(|pipe| file_id_of(pipe.as_fd()).ok()).collect(),
        );
        let running = room.spawn_filtered(
            launch,
            build_filter(guardroom.interest()),
            [their_stdout, their_stderr],
            |listener| {
                // It ends by itself, with the last process behind the filter.
                serve_notifications(listener, watched, std::sync::Arc::clone(&guardroom.injector));
            },
        )?;
        Ok(running.with_outputs(stdout, stderr))
    }

    fn inject_at_start(&mut self, number: u32) -> Result<(), RunError> {
        self.inject_where(|when| number == 1 && matches!(when, Trigger::Start))
    }

    fn drain_output(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        let until = Instant::now() + DRAIN_TIMEOUT;
        while let NextLine::Line(stream, line) =
            attempt.lines.next_line(until.saturating_duration_since(Instant::now()))
        {
            self.on_line(stream, &line, attempt)?;
        }
        Ok(())
    }

    fn probe_exit_code(&self, ended: ProcessExit) {
        for (probe, codes) in &self.expected_exit_codes {
            let held = matches!(ended, ProcessExit::Exited(code) if codes.contains(&code));
            let found = ended.to_string();
            self.reporter.emit(Event::Probed(Probed { probe: probe.clone(), held, found }));
        }
    }

    fn on_target_ended(&mut self, attempt: &Attempt, ending: Ending) {
        if let Some(evidence) = &attempt.termination_evidence {
            let fault = self.terminations.first().map(|crash| crash.planned.name()).unwrap_or_default();
            self.reporter.emit(Event::FaultEffective { fault, evidence: evidence.clone() });
        }
        for one in &mut self.faults {
            if one.on_target_ended(ending) {
                self.reporter.emit(Event::FaultReverted {
                    fault: one.name.clone(),
                    how: "calls are answered as usual again".into(),
                });
            }
        }
        self.end_finished_call_faults();
    }

    fn on_line(&mut self, stream: OutputStream, line: &str, attempt: &mut Attempt) -> Result<(), RunError> {
        let heard =
            if stream == OutputStream::Stdout { self.patterns.parse(line) } else { ParsedLine::Other };
        match heard {
            ParsedLine::Step { step, loss } => {
                self.step = step;
                self.reporter.emit(Event::Step { step, loss: loss.filter(|loss| loss.is_finite()) });
            }
            ParsedLine::Saved { step } => self.reporter.emit(Event::Saved { step }),
            ParsedLine::Resumed { step } => self.reporter.emit(Event::Resumed { step }),
            ParsedLine::Other => {}
        }
        self.keep_line(stream, line, heard == ParsedLine::Other);
        self.run_phase_end_hook(line);
        self.pass_line_to_faults(line);
        if let ParsedLine::Step { .. } = heard {
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

    fn keep_line(&mut self, stream: OutputStream, line: &str, other: bool) {
        let wanted = self.patterns.has_compared_value(line)
            || self.requested_lines.iter().any(|pattern| pattern.is_match(line));
        let spoken = other && stream == OutputStream::Stdout && self.kept_lines < MAX_KEPT_LINES;
        if wanted || spoken {
            self.kept_lines += 1;
            self.reporter.emit(Event::Output { stream, line: line.to_owned() });
        } else if other {
            self.last_lines.push_back((stream, line.to_owned()));
            if self.last_lines.len() > MAX_LAST_LINES {
                self.last_lines.pop_front();
            }
        }
    }

    /// The last lines before an end that was not good.
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
        for one in self.faults.iter_mut() {
            one.on_line(line, &self.patterns, self.reporter);
        }
    }

    /// Looks after everything that goes by time.
    fn tick(&mut self, attempt: Option<&mut Attempt>) -> Result<(), RunError> {
        self.measure_memory()?;
        emit_gpu_defects(self.context.gpu, self.reporter)?;
        for one in &mut self.faults {
            one.tick(&self.context, self.reporter)?;
        }
        self.end_finished_call_faults();
        let Some(attempt) = attempt else { return Ok(()) };
        let running_for = attempt.started_at.elapsed();
        let due = |when: &Trigger| matches!(when, Trigger::After(time) if running_for >= *time);
        self.inject_where(due)?;
        self.terminate_where(attempt, |when, _| due(when))?;
        self.handle_injector_events(attempt)?;
        self.check_timeouts(attempt)
    }

    /// Calls that a fault has no more business with are answered as usual.
    fn end_finished_call_faults(&self) {
        if let Some(guardroom) = &self.injector {
            let over = self.faults.iter().filter(|one| one.is_over() && one.planned.call_trigger().is_some());
            over.for_each(|one| guardroom.end_fault(&one.name));
        }
    }

    /// What the sentry has done, or wants done while a call waits.
    fn handle_injector_events(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        while let Some(hit) = self.injector.as_ref().and_then(|guardroom| guardroom.events.try_recv().ok()) {
            match hit {
                InjectorEvent::Killed { fault, evidence } => {
                    attempt.termination_evidence.get_or_insert(evidence);
                    self.terminations
                        .iter_mut()
                        .filter(|crash| crash.planned.name() == fault)
                        .for_each(|crash| crash.done = true);
                }
                InjectorEvent::Effective { fault, evidence } => {
                    if let Some(one) = self.faults.iter_mut().find(|one| one.name == fault) {
                        one.take_effect(evidence, self.reporter);
                    }
                }
                InjectorEvent::InjectNow { fault, evidence, done } => {
                    let at_call = |crash: &ArmedTermination| crash.planned.name() == fault && !crash.done;
                    if let Some(at) = self.terminations.iter().position(at_call) {
                        self.terminate_target(at, attempt, &evidence)?;
                    }
                    for one in self.faults.iter_mut().filter(|one| one.name == fault) {
                        one.inject(&self.context)?;
                    }
                    drop(done);
                }
            }
        }
        Ok(())
    }

    fn check_timeouts(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        let target = self.context.trainer.file;
        let late = attempt.last_output_at.elapsed() > target.stall()
            || attempt.started_at.elapsed() > target.finish();
        let ignored = attempt.exit_deadline.is_some_and(|until| Instant::now() > until);
        if (late && attempt.termination_evidence.is_none() || ignored) && !attempt.timed_out {
            attempt.timed_out = true;
            self.context.sandbox.kill_all()?;
        }
        Ok(())
    }

    fn inject_where(&mut self, due: impl Fn(&Trigger) -> bool) -> Result<(), RunError> {
        self.gpu_counters.arm_where(&due, &self.context)?;
        let mut due = self.faults.iter_mut().filter(|one| due(&one.planned.fault.when));
        due.try_for_each(|one| one.inject(&self.context))
    }

    fn terminate_where(
        &mut self,
        attempt: &mut Attempt,
        due: impl Fn(&Trigger, u64) -> bool,
    ) -> Result<(), RunError> {
        let step = self.step;
        let is_due = |crash: &ArmedTermination| {
            matches!(crash.planned.injection_point, InjectionPoint::Trigger)
                && !crash.done
                && due(&crash.planned.fault.when, step)
        };
        match self.terminations.iter().position(is_due).filter(|_| attempt.termination_evidence.is_none()) {
            Some(at) => self.terminate_target(at, attempt, &format!("after step {step}")),
            None => Ok(()),
        }
    }

    fn terminate_target(&mut self, at: usize, attempt: &mut Attempt, when: &str) -> Result<(), RunError> {
        let crash = &mut self.terminations[at];
        crash.done = crash.planned.fault.persistence == scenarios::Persistence::Transient;
        match crash.planned.fault.effect {
            Effect::Terminate { grace } => {
                self.context.sandbox.signal(attempt.running.pid_inside(), Signal::SIGTERM as i32)?;
                attempt.exit_deadline = Some(Instant::now() + grace);
                attempt.termination_evidence = Some(format!("SIGTERM was sent {when}"));
            }
            _ => {
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

    pub(super) fn peak_bytes(&self) -> Option<u64> {
        Some(self.peak_bytes).filter(|peak| *peak > 0)
    }

    /// Takes everything back; the questions at the end are asked of a world in order.
    pub(super) fn revert_all(&mut self) -> Result<(), RunError> {
        for one in &mut self.faults {
            one.finish(&self.context, self.reporter)?;
        }
        Ok(())
    }
}

fn ending(ended: ProcessExit, attempt: &Attempt) -> Ending {
    match ended {
        _ if attempt.timed_out => Ending::TimedOut,
        _ if attempt.termination_evidence.is_some() => Ending::KilledByFault,
        ProcessExit::Exited(code) => Ending::Exited(code),
        ProcessExit::Signalled(signal) => Ending::Signalled(signal),
    }
}
