//! One trial: a fresh stage, one way of striking, the questions at the end, the facts.

use std::path::PathBuf;

use scenarios::{Event, Scenario, TrialFacts};

use crate::judge::{TrialEvents, trial_facts};
use crate::observe::Reporter;
use crate::plan::{InjectionPoint, PlannedFault, Trial};
use crate::run::RunError;
use crate::run::baseline::MeasuredBaseline;
use crate::run::call_injector::InjectorHandle;
use crate::run::crash_state_trials::RecordedRun;
use crate::run::probe::{self, ProbeTime};
use crate::run::target_run::TargetRun;
use crate::run::trial_env::{TrialConfig, TrialEnv};

/// What a trial came to, with the lines that were kept of it.
pub(super) struct FinishedTrial {
    pub(super) number: u32,
    pub(super) facts: TrialFacts,
    pub(super) lines: Vec<String>,
}

/// What all trials of a scenario share.
#[derive(Clone, Copy)]
pub(super) struct TrialContext<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) config: TrialConfig<'a>,
    pub(super) baseline: &'a MeasuredBaseline,
    /// Where the method lays out crash states.
    pub(super) recorded: Option<&'a RecordedRun>,
    pub(super) comparable: bool,
    pub(super) trial_count: u32,
}

pub(super) fn run_trial(
    dir: PathBuf,
    course: TrialContext<'_>,
    trial: &Trial,
    reporter: &Reporter,
) -> Result<FinishedTrial, RunError> {
    reporter.emit(Event::TrialStarted { of: course.trial_count, what: trial.description.clone() });
    let poisoned: Vec<(u32, f64)> = trial.faults.iter().filter_map(poison_of).collect();
    let script = TrialConfig { poisoned_samples: &poisoned, ..course.config };
    let state = trial.faults.iter().find_map(|planned| match &planned.injection_point {
        InjectionPoint::CrashState(state) => Some((course.recorded?, &state.state)),
        _ => None,
    });
    let stage = match state {
        Some((recorded, state)) => recorded.trial_env(dir, script, state)?,
        None => TrialEnv::build(dir, script)?,
    };
    probe_all(&stage, course.scenario, ProbeTime::BeforeResume, reporter)?;
    let trainer = stage.trainer();
    let scene = stage.fault_context(&trainer, course.baseline.facts.peak_memory_bytes);
    let mut live = TargetRun::new(scene, reporter, Some(course.scenario), &trial.faults);
    let (target, base, striker) =
        (course.config.target, stage.sandbox.root().into(), stage.sandbox.kill_switch());
    live.injector = InjectorHandle::for_trial(target, base, striker, &trial.faults);
    if let Some((recorded, state)) = state {
        live.earlier_starts = recorded.emit_history(state, reporter);
    }
    live.run()?;
    live.revert_all()?;
    drop(live);
    probe_all(&stage, course.scenario, ProbeTime::AtEnd, reporter)?;
    stage.emit_gpu_defects(reporter)?;
    stage.sandbox.close()?;
    Ok(finish_trial(course, trial.number, reporter))
}

fn probe_all(
    stage: &TrialEnv<'_>,
    scenario: &Scenario,
    when: ProbeTime,
    reporter: &Reporter,
) -> Result<(), RunError> {
    for expectation in scenario.expect() {
        if let Some(probed) = probe::evaluate(stage, expectation, when)? {
            reporter.emit(Event::Probed(probed));
        }
    }
    Ok(())
}

fn finish_trial(course: TrialContext<'_>, number: u32, reporter: &Reporter) -> FinishedTrial {
    let entries = reporter.entries();
    let story = TrialEvents {
        target: course.config.target,
        baseline: &course.baseline.facts,
        comparable: course.comparable,
        entries: &entries,
    };
    let facts = trial_facts(&story);
    reporter.emit(Event::TrialEnded(Box::new(facts.clone())));
    let said = entries
        .into_iter()
        .filter_map(|entry| if let Event::Output { line, .. } = entry.event { Some(line) } else { None });
    FinishedTrial { number, facts, lines: said.collect() }
}

fn poison_of(planned: &PlannedFault) -> Option<(u32, f64)> {
    match planned.fault.effect {
        scenarios::Effect::PoisonSample { sample, weight } => Some((sample, weight)),
        _ => None,
    }
}
