//! One run of a target from its first start to its last end, with faults striking on the way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regex::Regex;
use scenarios::{Effect, Ending, Event, Fact, Scenario, Stream, TargetStarted, Trigger, Until};

use crate::faults::{Armed, Scene, Since, arm};
use crate::observe::Reporter;
use crate::plan::{Moment, Planned};
use crate::run::RunError;
use crate::run::file_events::FileEvents;
use crate::run::lines::{Lines, Next};
use crate::sandbox::{Ended, Launch, Running};
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

/// A fault and where it stands.
struct Standing {
    name: String,
    planned: Planned,
    armed: Box<dyn Armed>,
    struck_at: Option<Instant>,
    since: Since,
    landed: bool,
    over: bool,
}

/// A crash that the file events or a trigger set off.
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
    standing: Vec<Standing>,
    crashes: Vec<Crash>,
    /// Where the file-event watcher reports that it struck.
    hits: Option<std::sync::mpsc::Receiver<String>>,
    pub(super) events: Option<FileEvents>,
    phase: Option<String>,
    step: u64,
    said: usize,
    last_words: VecDeque<(Stream, String)>,
    peak_bytes: u64,
    memory_at: Instant,
    pub(super) save_hook: Option<Box<dyn FnMut() + 'a>>,
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
            standing: Vec::new(),
            crashes: Vec::new(),
            hits: None,
            events: None,
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
        let name = planned.name();
        match arm(planned) {
            None => {
                if let Some(mechanism) = planned.ends_target() {
                    self.armed(&name, mechanism);
                    self.crashes.push(Crash { planned: planned.clone(), done: false });
                }
            }
            Some(armed) => {
                self.armed(&name, &armed.mechanism());
                let planned = planned.clone();
                let (struck_at, since) = (None, Since::default());
                self.standing.push(Standing {
                    name,
                    planned,
                    armed,
                    struck_at,
                    since,
                    landed: false,
                    over: false,
                });
            }
        }
    }

    fn armed(&self, fault: &str, mechanism: &str) {
        self.reporter.emit(Event::FaultArmed { fault: fault.into(), mechanism: mechanism.into() });
    }

    /// File events of this phase are counted; a hit comes through `hits`.
    pub(super) fn count_events(
        &mut self,
        phase: &str,
        events: FileEvents,
        hits: Option<std::sync::mpsc::Receiver<String>>,
    ) {
        (self.phase, self.events, self.hits) = (Some(phase.to_owned()), Some(events), hits);
    }

    /// Starts, and starts again, until the target has come to its end.
    pub(super) fn run(&mut self) -> Result<Ending, RunError> {
        let (mut attempt, mut restarts) = (1, 0);
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
        let mut running = self.scene.room.spawn(launch)?;
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
        self.take_hit(&mut attempt);
        let ending = ending(ended, &attempt);
        self.ended(&attempt, ending);
        Ok(ending)
    }

    fn strike_at_start(&mut self, number: u32) -> Result<(), RunError> {
        let due = |one: &Standing| number == 1 && matches!(one.planned.fault.when, Trigger::Start);
        self.strike_where(due)
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

    fn ended(&mut self, attempt: &Attempt, ending: Ending) {
        if let Some(evidence) = &attempt.struck {
            let fault = self.crashes.first().map(|crash| crash.planned.name()).unwrap_or_default();
            self.reporter.emit(Event::FaultLanded { fault, evidence: evidence.clone() });
        }
        for one in self.standing.iter_mut().filter(|one| one.struck_at.is_some()) {
            one.since.ended_badly |= !matches!(ending, Ending::Exited(0) | Ending::Struck);
        }
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
            self.strike_where(|one| matches!(one.planned.fault.when, Trigger::Step(from) if step >= from))?;
        }
        self.crash_where(
            attempt,
            |when, _| matches!(when, Trigger::Said(pattern) if pattern.is_match(line)),
        )?;
        self.strike_where(
            |one| matches!(&one.planned.fault.when, Trigger::Said(pattern) if pattern.is_match(line)),
        )
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
        if self.words.ends_phase(phase, line) {
            if let Some(hook) = &mut self.save_hook {
                hook();
            }
            if let Some(events) = &self.events {
                events.save_ended();
            }
        }
    }

    fn faults_hear(&mut self, line: &str) {
        for one in self.standing.iter_mut().filter(|one| one.struck_at.is_some()) {
            let place = one.armed.place();
            one.since.met_in_place |= place.is_some_and(|place| self.words.speaks_of(place, line));
            let landed_by_word =
                one.planned.fault.landed_if_said.as_ref().is_some_and(|pattern| pattern.is_match(line));
            if landed_by_word && !one.landed {
                one.landed = true;
                let evidence = format!("the target said: {line}");
                self.reporter.emit(Event::FaultLanded { fault: one.name.clone(), evidence });
            }
        }
        let said = |one: &Standing| matches!(&one.planned.fault.until, Until::Said(pattern) if pattern.is_match(line));
        self.standing
            .iter_mut()
            .filter(|one| one.struck_at.is_some() && said(one))
            .for_each(|one| one.over = true);
    }

    /// Looks after everything that goes by time.
    fn tend(&mut self, attempt: Option<&mut Attempt>) -> Result<(), RunError> {
        self.measure_memory()?;
        for one in self.standing.iter_mut().filter(|one| one.struck_at.is_some()) {
            tend_fault(one, &self.scene, self.reporter)?;
        }
        let Some(attempt) = attempt else { return Ok(()) };
        let running_for = attempt.started.elapsed();
        let due = |when: &Trigger| matches!(when, Trigger::After(time) if running_for >= *time);
        self.strike_where(|one| due(&one.planned.fault.when))?;
        self.crash_where(attempt, |when, _| due(when))?;
        self.take_hit(attempt);
        self.check_time(attempt)
    }

    /// The file-event watcher has killed the target by itself, without waiting for this loop.
    fn take_hit(&mut self, attempt: &mut Attempt) {
        if let Some(evidence) = self.hits.as_ref().and_then(|hits| hits.try_recv().ok()) {
            attempt.struck.get_or_insert(evidence);
            self.crashes.iter_mut().for_each(|crash| crash.done = true);
        }
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

    fn strike_where(&mut self, due: impl Fn(&Standing) -> bool) -> Result<(), RunError> {
        let again = |one: &Standing| one.planned.fault.strike == scenarios::Strike::FromThenOn && !one.over;
        for one in self.standing.iter_mut().filter(|one| due(one) && (one.struck_at.is_none() || again(one)))
        {
            one.armed.strike(&self.scene)?;
            one.struck_at.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn crash_where(
        &mut self,
        attempt: &mut Attempt,
        due: impl Fn(&Trigger, u64) -> bool,
    ) -> Result<(), RunError> {
        let step = self.step;
        let is_due = |crash: &&mut Crash| {
            matches!(crash.planned.moment, Moment::Trigger)
                && !crash.done
                && due(&crash.planned.fault.when, step)
        };
        let Some(crash) = self.crashes.iter_mut().find(is_due).filter(|_| attempt.struck.is_none()) else {
            return Ok(());
        };
        crash.done = crash.planned.fault.strike == scenarios::Strike::Once;
        match crash.planned.fault.effect {
            Effect::Terminate { grace } => {
                self.scene.room.signal(attempt.running.pid_inside(), Signal::SIGTERM as i32)?;
                attempt.to_end_by = Some(Instant::now() + grace);
                attempt.struck = Some(format!("SIGTERM was sent after step {step}"));
            }
            _ => {
                self.scene.room.strike()?;
                attempt.struck = Some(format!("every process was killed after step {step}"));
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
            tend_fault(one, &self.scene, self.reporter)?;
            one.over = true;
            lift(one, &self.scene, self.reporter)?;
        }
        Ok(())
    }
}

fn tend_fault(one: &mut Standing, scene: &Scene<'_>, reporter: &Reporter) -> Result<(), RunError> {
    if !one.over {
        one.armed.press(scene)?;
    }
    let evidence = if one.landed || one.planned.fault.landed_if_said.is_some() {
        None
    } else {
        one.armed.landed(scene, one.since)
    };
    if let Some(evidence) = evidence {
        one.landed = true;
        reporter.emit(Event::FaultLanded { fault: one.name.clone(), evidence });
    }
    let struck_for = one.struck_at.map(|at| at.elapsed());
    one.over |= matches!((&one.planned.fault.until, struck_for), (Until::After(time), Some(lasted)) if lasted >= *time);
    if one.over { lift(one, scene, reporter) } else { Ok(()) }
}

fn lift(one: &mut Standing, scene: &Scene<'_>, reporter: &Reporter) -> Result<(), RunError> {
    if let Some(how) = one.armed.lift(scene)? {
        reporter.emit(Event::FaultLifted { fault: one.name.clone(), how });
    }
    Ok(())
}

fn ending(ended: Ended, attempt: &Attempt) -> Ending {
    match ended {
        _ if attempt.timed_out => Ending::TimedOut,
        _ if attempt.struck.is_some() => Ending::Struck,
        Ended::Exited(code) => Ending::Exited(code),
        Ended::Signalled(signal) => Ending::Signalled(signal),
    }
}

/// Lines that the scenario's expectations and faults ask for.
fn asked_for(scenario: &Scenario) -> Vec<Regex> {
    let says = scenario.expect().iter().filter_map(|expectation| match &expectation.fact {
        Fact::Says(pattern) => Some(pattern.clone()),
        _ => None,
    });
    let landed = scenario.method().iter().filter_map(|fault| fault.landed_if_said.clone());
    says.chain(landed).collect()
}
