//! One trial: a fresh stage, one way of striking, the questions at the end, the facts.

use std::path::PathBuf;

use scenarios::{Event, Scenario, TrialFacts};

use crate::judge::{TrialStory, trial_facts};
use crate::observe::Reporter;
use crate::plan::{Moment, Planned, Trial};
use crate::run::RunError;
use crate::run::crash_states::Recorded;
use crate::run::live::Live;
use crate::run::probe::{self, When};
use crate::run::sentry::Guardroom;
use crate::run::stage::{Script, Stage};
use crate::run::steady::Steady;

/// What a trial came to, with the lines that were kept of it.
pub(super) struct TrialEnd {
    pub(super) number: u32,
    pub(super) facts: TrialFacts,
    pub(super) said: Vec<String>,
}

/// What all trials of a scenario share.
#[derive(Clone, Copy)]
pub(super) struct Course<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) script: Script<'a>,
    pub(super) steady: &'a Steady,
    /// Where the method lays out crash states.
    pub(super) recorded: Option<&'a Recorded>,
    pub(super) comparable: bool,
    pub(super) of: u32,
}

pub(super) fn run_trial(
    dir: PathBuf,
    course: Course<'_>,
    trial: &Trial,
    reporter: &Reporter,
) -> Result<TrialEnd, RunError> {
    reporter.emit(Event::TrialStarted { of: course.of, what: trial.what.clone() });
    let poisoned: Vec<(u32, f64)> = trial.faults.iter().filter_map(poison_of).collect();
    let script = Script { poisoned: &poisoned, ..course.script };
    let state = trial.faults.iter().find_map(|planned| match &planned.moment {
        Moment::State(state) => Some((course.recorded?, &state.state)),
        _ => None,
    });
    let stage = match state {
        Some((recorded, state)) => recorded.stage(dir, script, state)?,
        None => Stage::build(dir, script)?,
    };
    probe_all(&stage, course.scenario, When::BeforeResume, reporter)?;
    let trainer = stage.trainer();
    let scene = stage.scene(&trainer, course.steady.facts.peak_memory_bytes);
    let mut live = Live::new(scene, reporter, Some(course.scenario), &trial.faults);
    let (target, base, striker) = (course.script.target, stage.room.root().into(), stage.room.striker());
    live.guardroom = Guardroom::for_trial(target, base, striker, &trial.faults);
    if let Some((recorded, state)) = state {
        live.started = recorded.tell(state, reporter);
    }
    live.run()?;
    live.lift_all()?;
    drop(live);
    probe_all(&stage, course.scenario, When::AtEnd, reporter)?;
    stage.tell_findings(reporter)?;
    stage.room.close()?;
    Ok(end(course, trial.number, reporter))
}

fn probe_all(
    stage: &Stage<'_>,
    scenario: &Scenario,
    when: When,
    reporter: &Reporter,
) -> Result<(), RunError> {
    for expectation in scenario.expect() {
        if let Some(probed) = probe::ask(stage, expectation, when)? {
            reporter.emit(Event::Probed(probed));
        }
    }
    Ok(())
}

fn end(course: Course<'_>, number: u32, reporter: &Reporter) -> TrialEnd {
    let entries = reporter.kept();
    let story = TrialStory {
        target: course.script.target,
        steady: &course.steady.facts,
        comparable: course.comparable,
        entries: &entries,
    };
    let facts = trial_facts(&story);
    reporter.emit(Event::TrialEnded(Box::new(facts.clone())));
    let said = entries
        .into_iter()
        .filter_map(|entry| if let Event::Said { line, .. } = entry.event { Some(line) } else { None });
    TrialEnd { number, facts, said: said.collect() }
}

fn poison_of(planned: &Planned) -> Option<(u32, f64)> {
    match planned.fault.effect {
        scenarios::Effect::PoisonSample { sample, weight } => Some((sample, weight)),
        _ => None,
    }
}
