//! One trial: builds its environment, runs the target with the planned faults, evaluates the probes, derives
//! the facts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use scenarios::{Event, Scenario, TrialFacts, last_attempt};

use crate::announcements::AnnouncementPatterns;
use crate::faults::{FaultContext, TargetClock};
use crate::judge::{TrialEvents, can_resume_from_saves, trial_facts};
use crate::locks::LockExt;
use crate::observe::Reporter;
use crate::plan::{CrashStateId, InjectionPoint, PlannedFault, Trial};
use crate::run::baseline::MeasuredBaseline;
use crate::run::call_injector::{InjectorHandle, InjectorTarget, WatchedEffects, WatchedRefusals};
use crate::run::crash_state_trials::RecordedRun;
use crate::run::error::RunError;
use crate::run::fault_schedule::{FaultRefusals, FaultSchedule};
use crate::run::forked_envs::{ForkedEnv, ForkedEnvs};
use crate::run::probe::{self, ExitCodeProbe, ProbeTime};
use crate::run::resume_check::{EndedTrial, ResumeCache};
use crate::run::save_snapshots::{SaveSnapshots, SharedSnapshots};
use crate::run::target_run::TargetRun;
use crate::run::trial_env::{TrialConfig, TrialEnv};
use crate::sandbox::{StoredCommand, fail_if_interrupted};

/// The facts of a trial and the recorded lines of its target.
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
    /// The recorded run, if the method tries crash states.
    pub(super) recorded: Option<&'a RecordedRun>,
    /// Whether the trials must end with the baseline's values.
    pub(super) comparable: bool,
    /// Whether the faults leave the workload unchanged.
    pub(super) same_workload: bool,
    /// Whether a fault gives the target more to do.
    pub(super) adds_work: bool,
    /// Whether a fault makes calls fail.
    pub(super) makes_calls_fail: bool,
    pub(super) trial_count: u32,
    /// The resumes from the files that trials left.
    pub(super) resumes: &'a ResumeCache,
}

/// The crash state that a trial starts from.
#[derive(Clone, Copy)]
struct CrashStart<'a> {
    recorded: &'a RecordedRun,
    id: CrashStateId,
    planned: &'a PlannedFault,
}

/// Where a trial runs.
enum TrialPlace<'o, 'f> {
    /// In an environment of its own.
    Own(TrialEnv<'o>),
    /// In one after the other trials, where resumes are forked.
    Forked(ForkedEnv<'f>),
}

impl TrialPlace<'_, '_> {
    fn env(&self) -> &TrialEnv<'_> {
        match self {
            TrialPlace::Own(env) => env,
            TrialPlace::Forked(place) => &place.env,
        }
    }

    fn forked_resume(&self) -> Option<StoredCommand> {
        match self {
            TrialPlace::Own(_) => None,
            TrialPlace::Forked(place) => Some(place.resume),
        }
    }
}

/// Runs one trial in the empty directory `dir`. Whether it counts, the caller emits. If it starts from a crash state, it
/// runs in one of the environments `forked`, if there are some.
///
/// # Errors
/// If the harness cannot do its work. A target that fails is an outcome.
pub(super) fn run_trial(
    dir: PathBuf,
    context: TrialContext<'_>,
    trial: &Trial,
    forked: Option<&ForkedEnvs<'_>>,
    reporter: &Reporter,
) -> Result<FinishedTrial, RunError> {
    reporter.emit(Event::TrialStarted { of: context.trial_count, what: trial.description.clone() });
    let config = TrialConfig { faults: &trial.faults, ..context.config };
    let start = trial.faults.iter().find_map(|planned| match &planned.injection_point {
        InjectionPoint::CrashState(state) => {
            Some(CrashStart { recorded: context.recorded?, id: state.id, planned })
        }
        _ => None,
    });
    let place = match (start, forked) {
        (Some(CrashStart { id, .. }), Some(forked)) => TrialPlace::Forked(forked.take(id)?),
        (Some(CrashStart { recorded, id, .. }), None) => {
            TrialPlace::Own(recorded.trial_env(id, dir.clone(), config)?)
        }
        (None, _) => TrialPlace::Own(TrialEnv::build(dir.clone(), config)?),
    };
    let env = place.env();
    probe_all(env, context.scenario, ProbeTime::BeforeResume, reporter)?;
    let trainer = env.trainer();
    let clock = Arc::new(TargetClock::default());
    let fault_context = FaultContext {
        expects_command_codes: !ExitCodeProbe::of_commands(context.scenario).is_empty(),
        ..env.fault_context(&trainer, context.baseline.facts.peak_memory_bytes, &clock)
    };
    let faults = FaultSchedule::armed(&trial.faults, reporter);
    let root = PathBuf::from(env.visible_root());
    let watched = |refusals: FaultRefusals<'_>| WatchedRefusals {
        number: refusals.number,
        dir: refusals
            .calls
            .place
            .map_or_else(|| root.clone(), |place| root.join(trainer.place_below_root(place))),
        errnos: refusals.calls.errnos.to_vec(),
        extra_kinds: refusals.calls.extra_kinds,
        although_modes_allow: refusals.calls.although_modes_allow,
    };
    let refusals = faults.refused_calls().into_iter().map(watched).collect();
    let kill_switch = env.sandbox.kill_switch();
    let target = InjectorTarget { target: context.config.target, root: root.clone(), kill_switch };
    let snapshots = snapshots_of(context, env, &dir);
    let watched = WatchedEffects { refusals, clock: Arc::clone(&clock) };
    let injector = InjectorHandle::for_trial(target, &trial.faults, watched, context.config.has_gate);
    let injector = injector.map(|injector| injector.with_snapshots(Arc::clone(&snapshots)));
    let earlier_starts =
        start.map_or(0, |start| start.recorded.emit_history(start.id, start.planned, reporter));
    let run = TargetRun::new(fault_context, reporter, context.scenario, faults, injector);
    let mut run = run.with_forked_resume(place.forked_resume());
    run.run(earlier_starts)?;
    run.finish()?;
    probe_all(env, context.scenario, ProbeTime::AtEnd, reporter)?;
    env.emit_gpu_defects(reporter)?;
    resume_from_left_files(context, env, &snapshots, &dir, reporter)?;
    match (place, forked) {
        (TrialPlace::Forked(place), Some(forked)) => forked.give_back(place)?,
        (TrialPlace::Forked(ForkedEnv { env, .. }), None) | (TrialPlace::Own(env), _) => {
            env.sandbox.close()?;
        }
    }
    fail_if_interrupted()?;
    Ok(finish_trial(context, trial.number, reporter))
}

/// Takes copies of the files right after saves that come after a fault, if the target is known to resume from such.
fn snapshots_of(context: TrialContext<'_>, env: &TrialEnv<'_>, dir: &Path) -> SharedSnapshots {
    let can_resume = can_resume_from_saves(&context.baseline.facts.progress);
    let patterns = AnnouncementPatterns::of_target(context.config.target);
    // Without a pattern no save is seen.
    let saved = patterns.saved.clone().filter(|_| can_resume);
    let root = env.sandbox.host_path_in_root(Path::new(""));
    let patterns = AnnouncementPatterns { saved, ..patterns };
    SaveSnapshots::of_trial(patterns, root, dir.join("saves")).into_shared()
}

/// Resumes from the files of the end and of the saves after faults, and emits what that shows.
fn resume_from_left_files(
    context: TrialContext<'_>,
    env: &TrialEnv<'_>,
    snapshots: &SharedSnapshots,
    dir: &Path,
    reporter: &Reporter,
) -> Result<(), RunError> {
    let entries = reporter.entries();
    let trial = EndedTrial {
        env,
        config: context.config,
        baseline: &context.baseline.facts.progress,
        entries: last_attempt(&entries),
    };
    let taken = snapshots.locked().take();
    let from_saves = context.resumes.resume_from_saves(trial, &taken, dir)?;
    let from_end = context.resumes.resume_from_end(trial)?;
    from_saves.into_iter().chain(from_end).for_each(|resumed| reporter.emit(Event::EndResumed(resumed)));
    Ok(())
}

fn probe_all(
    env: &TrialEnv<'_>,
    scenario: &Scenario,
    time: ProbeTime,
    reporter: &Reporter,
) -> Result<(), RunError> {
    let probed = probe::evaluate_due(env, scenario, time)?;
    probed.into_iter().for_each(|probed| reporter.emit(Event::Probed(probed)));
    Ok(())
}

fn finish_trial(context: TrialContext<'_>, number: u32, reporter: &Reporter) -> FinishedTrial {
    let entries = reporter.entries();
    let events = TrialEvents {
        target: context.config.target,
        baseline: &context.baseline.facts,
        comparable: context.comparable,
        same_workload: context.same_workload,
        adds_work: context.adds_work,
        makes_calls_fail: context.makes_calls_fail,
        entries: &entries,
    };
    let facts = trial_facts(&events);
    let lines = entries
        .into_iter()
        .filter_map(|entry| if let Event::Output { line, .. } = entry.event { Some(line) } else { None });
    FinishedTrial { number, facts, lines: lines.collect() }
}
