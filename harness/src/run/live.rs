//! One run of a target from its first start to its last end, with faults striking on the way.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regex::Regex;
use scenarios::{Effect, Ending, Event, Probed, Scenario, Stream, TargetStarted, Trigger};

use crate::faults::Scene;
use crate::gate::{Watched, attend, filter, key_of, mount_id};
use crate::observe::Reporter;
use crate::plan::{Moment, Planned};
use crate::run::RunError;
use crate::run::lines::{Lines, Next};
use crate::run::probe::{asked_for, ends_with};
use crate::run::sentry::{Guardroom, Hit};
use crate::run::stage::tell_findings;
use crate::run::standing::{Counters, Standing};
use crate::sandbox::{Ended, Launch, Running, SandboxError};
use crate::target::{Heard, Words};

/// How long the loop sleeps at most before it looks at clocks, faults and processes again.
const TICK: Duration = Duration::from_millis(4);
/// Between two looks at the memory of the target's processes.
const MEMORY_EVERY: Duration = Duration::from_millis(40);
/// Outputs that some process of the target holds open after its main process has ended.
const DRAIN: Duration = Duration::from_millis(300);
/// Starts beside those that the method causes.
const RESTARTS: u32 = 2;
/// Lines kept of an end that was not good, and lines kept of a trial in all.
const LAST_WORDS: usize = 20;
const WORDS_MAX: usize = 400;

/// A fault that ends the target, which the run itself carries out.
pub(super) struct Crash {
    pub(super) planned: Planned,
    pub(super) done: bool,
}

/// A target under way.
pub(super) struct Live<'a> {
    scene: Scene<'a>,
    words: Words<'a>,
    reporter: &'a Reporter,
    asked_for: Vec<Regex>,
    /// Exit codes that are expected of a target that was asked to end, each with its expectation's text.
    ends_with: Vec<(String, Vec<i32>)>,
    standing: Vec<Standing>,
    /// Of calls of the GPU's driver; in a steady state.
    pub(super) counters: Counters,
    crashes: Vec<Crash>,
    /// Where calls are counted and struck at.
    pub(super) guardroom: Option<Guardroom>,
    /// So many starts have been already: of those, none is made here.
    pub(super) started: u32,
    phase: Option<String>,
    step: u64,
    said: usize,
    last_words: VecDeque<(Stream, String)>,
    peak_bytes: u64,
    memory_at: Instant,
    save_hook: Option<Box<dyn FnMut() + Send>>,
}

/// One start, from spawn to end.
struct Attempt {
    running: Running,
    lines: Lines,
    started: Instant,
    sign_of_life: Instant,
    struck: Option<String>,
    /// After a SIGTERM.
    to_end_by: Option<Instant>,
    timed_out: bool,
}

impl<'a> Live<'a> {
    pub(super) fn new(
        scene: Scene<'a>,
        reporter: &'a Reporter,
        scenario: Option<&Scenario>,
        faults: &[Planned],
    ) -> Live<'a> {
        let mut live = Live {
            scene,
            words: Words::new(scene.trainer.file),
            reporter,
            asked_for: scenario.map(asked_for).unwrap_or_default(),
            ends_with: scenario.map(ends_with).unwrap_or_default(),
            standing: Vec::new(),
            counters: Counters::default(),
            crashes: Vec::new(),
            guardroom: None,
            started: 0,
            phase: None,
            step: 0,
            said: 0,
            last_words: VecDeque::new(),
            peak_bytes: 0,
            memory_at: Instant::now(),
            save_hook: None,
        };
        faults.iter().for_each(|planned| live.arm(planned));
        live
    }

    fn arm(&mut self, planned: &Planned) {
        if let Some(standing) = Standing::arm(planned) {
            self.armed(&standing.name, &standing.mechanism());
            self.standing.push(standing);
        } else if let Some(mechanism) = planned.ends_target() {
            self.armed(&planned.name(), mechanism);
            self.crashes.push(Crash { planned: planned.clone(), done: false });
        }
    }

    fn armed(&self, fault: &str, mechanism: &str) {
        self.reporter.emit(Event::FaultArmed { fault: fault.into(), mechanism: mechanism.into() });
    }

    /// Done at each end of this phase.
    pub(super) fn at_end_of(&mut self, phase: &str, hook: Box<dyn FnMut() + Send>) {
        (self.phase, self.save_hook) = (Some(phase.to_owned()), Some(hook));
    }

    /// Starts, and starts again, until the target has come to its end.
    pub(super) fn run(&mut self) -> Result<Ending, RunError> {
        let (mut attempt, mut restarts) = (self.started + 1, 0);
        loop {
            let launch = if attempt == 1 { self.scene.trainer.start() } else { self.scene.trainer.resume() };
            let ending = self.attempt(attempt, &launch)?;
            self.reporter.emit(Event::TargetEnded { attempt, ending });
            match ending {
                Ending::Exited(0) | Ending::TimedOut => break Ok(ending),
                Ending::Struck => {}
                Ending::Exited(_) | Ending::Signalled(_) if restarts == RESTARTS => break Ok(ending),
                Ending::Exited(_) | Ending::Signalled(_) => {
                    restarts += 1;
                    self.confess();
                    self.wait_a_little()?;
                }
            }
            attempt += 1;
        }
        .inspect(|ending| {
            if *ending != Ending::Exited(0) {
                self.confess()
            }
        })
    }

    /// As a supervisor would: not at once, and faults that end with time may end meanwhile.
    fn wait_a_little(&mut self) -> Result<(), RunError> {
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            std::thread::sleep(TICK);
            self.tend(None)?;
        }
        Ok(())
    }

    fn attempt(&mut self, number: u32, launch: &Launch) -> Result<Ending, RunError> {
        self.strike_at_start(number)?;
        let mut running = self.start(launch)?;
        let command = launch.argv.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        self.reporter.emit(Event::TargetStarted(TargetStarted { attempt: number, command }));
        let lines = Lines::of(&mut running);
        let now = Instant::now();
        let mut attempt = Attempt {
            running,
            lines,
            started: now,
            sign_of_life: now,
            struck: None,
            to_end_by: None,
            timed_out: false,
        };
        let ended = loop {
            match attempt.lines.next(TICK) {
                Next::Line(stream, line) => {
                    attempt.sign_of_life = Instant::now();
                    self.hear(stream, &line, &mut attempt)?;
                }
                Next::Quiet => {}
                Next::Closed => std::thread::sleep(TICK),
            }
            self.tend(Some(&mut attempt))?;
            if let Some(ended) = attempt.running.wait_timeout(Duration::ZERO) {
                break ended;
            }
        };
        self.drain(&mut attempt)?;
        self.take_hits(&mut attempt)?;
        if attempt.to_end_by.is_some() {
            self.ended_as_asked(ended);
        }
        let ending = ending(ended, &attempt);
        self.ended(&attempt, ending);
        Ok(ending)
    }

    /// Behind the gate, where something is to happen at a call.
    fn start(&self, launch: &Launch) -> Result<Running, RunError> {
        let room = self.scene.room;
        let Some(guardroom) = self.guardroom.as_ref().filter(|guardroom| guardroom.is_needed()) else {
            return Ok(room.spawn(launch)?);
        };
        let places = self.scene.trainer.file.places().values().map(|place| room.outside(place));
        let roots = std::iter::once(room.through(room.root())).chain(places);
        // A place that does not exist yet will be made on the root's own mount.
        let watched = Watched::new(roots.filter_map(|root| mount_id(&root).ok()));
        let pipe = || {
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
                .map_err(|error| SandboxError::System { doing: "make a pipe", error: error.into() })
        };
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        guardroom.expect_words_in(
            [&stdout, &stderr].into_iter().filter_map(|pipe| key_of(pipe.as_fd()).ok()).collect(),
        );
        let running = room.spawn_filtered(
            launch,
            filter(guardroom.interest()),
            [their_stdout, their_stderr],
            |listener| {
                // It ends by itself, with the last process behind the filter.
                attend(listener, watched, std::sync::Arc::clone(&guardroom.sentry));
            },
        )?;
        Ok(running.with_outputs(stdout, stderr))
    }

    fn strike_at_start(&mut self, number: u32) -> Result<(), RunError> {
        self.strike_where(|when| number == 1 && matches!(when, Trigger::Start))
    }

    fn drain(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        let until = Instant::now() + DRAIN;
        while let Next::Line(stream, line) =
            attempt.lines.next(until.saturating_duration_since(Instant::now()))
        {
            self.hear(stream, &line, attempt)?;
        }
        Ok(())
    }

    fn ended_as_asked(&self, ended: Ended) {
        for (probe, codes) in &self.ends_with {
            let held = matches!(ended, Ended::Exited(code) if codes.contains(&code));
            let found = ended.to_string();
            self.reporter.emit(Event::Probed(Probed { probe: probe.clone(), held, found }));
        }
    }

    fn ended(&mut self, attempt: &Attempt, ending: Ending) {
        if let Some(evidence) = &attempt.struck {
            let fault = self.crashes.first().map(|crash| crash.planned.name()).unwrap_or_default();
            self.reporter.emit(Event::FaultLanded { fault, evidence: evidence.clone() });
        }
        for one in &mut self.standing {
            if one.target_ended(ending) {
                self.reporter.emit(Event::FaultLifted {
                    fault: one.name.clone(),
                    how: "calls are answered as usual again".into(),
                });
            }
        }
        self.relieve();
    }

    fn hear(&mut self, stream: Stream, line: &str, attempt: &mut Attempt) -> Result<(), RunError> {
        let heard = if stream == Stream::Stdout { self.words.hear(line) } else { Heard::Other };
        match heard {
            Heard::Step { step, loss } => {
                self.step = step;
                self.reporter.emit(Event::Step { step, loss: loss.filter(|loss| loss.is_finite()) });
            }
            Heard::Saved { step } => self.reporter.emit(Event::Saved { step }),
            Heard::Resumed { step } => self.reporter.emit(Event::Resumed { step }),
            Heard::Other => {}
        }
        self.keep(stream, line, heard == Heard::Other);
        self.phase_may_end(line);
        self.faults_hear(line);
        if let Heard::Step { .. } = heard {
            self.crash_where(attempt, |when, step| matches!(when, Trigger::Step(from) if step >= *from))?;
            let step = self.step;
            self.strike_where(|when| matches!(when, Trigger::Step(from) if step >= *from))?;
        }
        self.crash_where(
            attempt,
            |when, _| matches!(when, Trigger::Said(pattern) if pattern.is_match(line)),
        )?;
        self.strike_where(|when| matches!(when, Trigger::Said(pattern) if pattern.is_match(line)))
    }

    fn keep(&mut self, stream: Stream, line: &str, other: bool) {
        let wanted =
            self.words.carries_value(line) || self.asked_for.iter().any(|pattern| pattern.is_match(line));
        let spoken = other && stream == Stream::Stdout && self.said < WORDS_MAX;
        if wanted || spoken {
            self.said += 1;
            self.reporter.emit(Event::Said { stream, line: line.to_owned() });
        } else if other {
            self.last_words.push_back((stream, line.to_owned()));
            if self.last_words.len() > LAST_WORDS {
                self.last_words.pop_front();
            }
        }
    }

    /// The last lines before an end that was not good.
    fn confess(&mut self) {
        for (stream, line) in std::mem::take(&mut self.last_words) {
            self.reporter.emit(Event::Said { stream, line });
        }
    }

    fn phase_may_end(&mut self, line: &str) {
        let Some(phase) = &self.phase else { return };
        if self.words.ends_phase(phase, line)
            && let Some(hook) = &mut self.save_hook
        {
            hook();
        }
    }

    fn faults_hear(&mut self, line: &str) {
        for one in self.standing.iter_mut() {
            one.hear(line, &self.words, self.reporter);
        }
    }

    /// Looks after everything that goes by time.
    fn tend(&mut self, attempt: Option<&mut Attempt>) -> Result<(), RunError> {
        self.measure_memory()?;
        tell_findings(self.scene.gpu, self.reporter)?;
        for one in &mut self.standing {
            one.tend(&self.scene, self.reporter)?;
        }
        self.relieve();
        let Some(attempt) = attempt else { return Ok(()) };
        let running_for = attempt.started.elapsed();
        let due = |when: &Trigger| matches!(when, Trigger::After(time) if running_for >= *time);
        self.strike_where(due)?;
        self.crash_where(attempt, |when, _| due(when))?;
        self.take_hits(attempt)?;
        self.check_time(attempt)
    }

    /// Calls that a fault has no more business with are answered as usual.
    fn relieve(&self) {
        if let Some(guardroom) = &self.guardroom {
            let over = self.standing.iter().filter(|one| one.is_over() && one.planned.call().is_some());
            over.for_each(|one| guardroom.lift(&one.name));
        }
    }

    /// What the sentry has done, or wants done while a call waits.
    fn take_hits(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        while let Some(hit) = self.guardroom.as_ref().and_then(|guardroom| guardroom.hits.try_recv().ok()) {
            match hit {
                Hit::Killed { fault, evidence } => {
                    attempt.struck.get_or_insert(evidence);
                    self.crashes
                        .iter_mut()
                        .filter(|crash| crash.planned.name() == fault)
                        .for_each(|crash| crash.done = true);
                }
                Hit::Landed { fault, evidence } => {
                    if let Some(one) = self.standing.iter_mut().find(|one| one.name == fault) {
                        one.land(evidence, self.reporter);
                    }
                }
                Hit::Wanted { fault, evidence, done } => {
                    let at_call = |crash: &Crash| crash.planned.name() == fault && !crash.done;
                    if let Some(at) = self.crashes.iter().position(at_call) {
                        self.end_target(at, attempt, &evidence)?;
                    }
                    for one in self.standing.iter_mut().filter(|one| one.name == fault) {
                        one.strike(&self.scene)?;
                    }
                    drop(done);
                }
            }
        }
        Ok(())
    }

    fn check_time(&mut self, attempt: &mut Attempt) -> Result<(), RunError> {
        let target = self.scene.trainer.file;
        let late =
            attempt.sign_of_life.elapsed() > target.stall() || attempt.started.elapsed() > target.finish();
        let ignored = attempt.to_end_by.is_some_and(|until| Instant::now() > until);
        if (late && attempt.struck.is_none() || ignored) && !attempt.timed_out {
            attempt.timed_out = true;
            self.scene.room.strike()?;
        }
        Ok(())
    }

    fn strike_where(&mut self, due: impl Fn(&Trigger) -> bool) -> Result<(), RunError> {
        self.counters.arm_where(&due, &self.scene)?;
        let mut due = self.standing.iter_mut().filter(|one| due(&one.planned.fault.when));
        due.try_for_each(|one| one.strike(&self.scene))
    }

    fn crash_where(
        &mut self,
        attempt: &mut Attempt,
        due: impl Fn(&Trigger, u64) -> bool,
    ) -> Result<(), RunError> {
        let step = self.step;
        let is_due = |crash: &Crash| {
            matches!(crash.planned.moment, Moment::Trigger)
                && !crash.done
                && due(&crash.planned.fault.when, step)
        };
        match self.crashes.iter().position(is_due).filter(|_| attempt.struck.is_none()) {
            Some(at) => self.end_target(at, attempt, &format!("after step {step}")),
            None => Ok(()),
        }
    }

    fn end_target(&mut self, at: usize, attempt: &mut Attempt, when: &str) -> Result<(), RunError> {
        let crash = &mut self.crashes[at];
        crash.done = crash.planned.fault.strike == scenarios::Strike::Once;
        match crash.planned.fault.effect {
            Effect::Terminate { grace } => {
                self.scene.room.signal(attempt.running.pid_inside(), Signal::SIGTERM as i32)?;
                attempt.to_end_by = Some(Instant::now() + grace);
                attempt.struck = Some(format!("SIGTERM was sent {when}"));
            }
            _ => {
                self.scene.room.strike()?;
                attempt.struck = Some(format!("every process was killed {when}"));
            }
        }
        Ok(())
    }

    fn measure_memory(&mut self) -> Result<(), RunError> {
        if self.memory_at.elapsed() < MEMORY_EVERY {
            return Ok(());
        }
        self.memory_at = Instant::now();
        let peak = self.scene.room.processes().iter().map(|process| process.peak_bytes).max().unwrap_or(0);
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
    pub(super) fn lift_all(&mut self) -> Result<(), RunError> {
        for one in &mut self.standing {
            one.end(&self.scene, self.reporter)?;
        }
        Ok(())
    }
}

fn ending(ended: Ended, attempt: &Attempt) -> Ending {
    match ended {
        _ if attempt.timed_out => Ending::TimedOut,
        _ if attempt.struck.is_some() => Ending::Struck,
        Ended::Exited(code) => Ending::Exited(code),
        Ended::Signalled(signal) => Ending::Signalled(signal),
    }
}
