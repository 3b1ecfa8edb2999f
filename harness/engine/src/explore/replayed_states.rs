//! Tries the crash states of an exploration, forked or as new processes, and groups those that fail. Knows neither the
//! recording of a run nor the enumeration.

use scenarios::{Finding, ForkedRecoveries};
use std::time::Instant;

use super::controls::Controls;
use super::error::ExploreError;
use super::explore_progress::ExploreProgress;
use super::failing_trees::{FailingTree, FailingTreesSpec};
use super::noted_start::NotedStart;
use super::repeated_states::RepeatedStates;
use super::replay::{RecoveryWorker, ReplaySpec, Replayer, TriedReports, TriedState, WarmStart};
use super::report::{FindingsSource, FirstMet, group_findings};
use super::start_comparison::{ComparedStarts, StartComparison};
use super::states::CrashState;
use super::warm_news::{ColdReason, WarmNews};
use super::warm_start::{ForkedStart, WarmStarter, close_all};

/// What trying the states gave.
pub(super) struct ReplayedStates {
    pub(super) tried: Vec<TriedState>,
    pub(super) findings: Vec<Finding>,
    pub(super) failing_trees: Result<Vec<FailingTree>, ExploreError>,
    /// The time for trying, without what comes after.
    pub(super) seconds: f64,
    /// How recoveries were compared that were forked. `None`: each was a new process.
    pub(super) forked: Option<ForkedRecoveries>,
}

impl ReplayedStates {
    pub(super) fn nothing() -> ReplayedStates {
        let (tried, findings, failing_trees) = (Vec::new(), Vec::new(), Ok(Vec::new()));
        ReplayedStates { tried, findings, failing_trees, seconds: 0.0, forked: None }
    }
}

/// What is tried.
#[derive(Clone, Copy)]
pub(super) struct StateReplay<'a> {
    pub(super) warm: WarmStarter<'a>,
    pub(super) states: &'a [CrashState],
    pub(super) controls: &'a Controls,
    pub(super) report: &'a (dyn Fn(ExploreProgress) + Sync),
}

/// How trying the states by forking went.
enum ForkedAttempt {
    /// Each recovery that was compared did what a new process does.
    Tried(ReplayedStates),
    /// It did not begin. Why has been told.
    NotBegun,
    /// The results do not count.
    Discarded { reason: ColdReason, tried: usize },
}

impl StateReplay<'_> {
    /// Tries the states and groups the failing ones. Recoveries are forked as long as they do what new processes do.
    pub(super) fn try_and_group(
        self,
        noted: Option<&NotedStart>,
        forked: Option<ForkedStart<'_>>,
    ) -> Result<ReplayedStates, ExploreError> {
        let WarmStarter { config, recording, oracle, .. } = self.warm;
        let cold = Replayer::new(&config.replay, oracle, recording);
        if cold.is_over() {
            forked.map_or(Ok(()), ForkedStart::close)?;
            return self.group_new(ReplayedStates::nothing());
        }
        if let Some(forked) = forked {
            let first_met = FirstMet::new(recording);
            let attempt = match self.try_forked(&cold, forked, noted, &first_met)? {
                ForkedAttempt::Tried(replayed) => self.group(replayed)?,
                other => other,
            };
            match attempt {
                ForkedAttempt::Tried(replayed) => return Ok(replayed),
                ForkedAttempt::NotBegun => {}
                ForkedAttempt::Discarded { reason, tried } => {
                    self.warm.tell_discarded(reason, tried, first_met.line_count());
                }
            }
        }
        let began = Instant::now();
        let tried = self.try_all(&cold, &mut [], &FirstMet::new(recording), &|_| true)?;
        let seconds = began.elapsed().as_secs_f64();
        self.group_new(ReplayedStates { tried, seconds, ..ReplayedStates::nothing() })
    }

    fn try_forked(
        self,
        cold: &Replayer<'_>,
        forked: ForkedStart<'_>,
        noted: Option<&NotedStart>,
        first_met: &FirstMet<'_>,
    ) -> Result<ForkedAttempt, ExploreError> {
        let WarmStarter { recording, .. } = self.warm;
        let replayer = forked.replayer;
        let comparison = StartComparison::new(cold, recording);
        let workers = match self.warm.workers(forked, self.controls, &comparison) {
            Err(_) if cold.is_cancelled() => return Ok(ForkedAttempt::Tried(ReplayedStates::nothing())),
            workers => workers?,
        };
        let Some(mut workers) = workers else {
            comparison.finish()?;
            return Ok(ForkedAttempt::NotBegun);
        };
        if let Some(noted) = noted {
            let modules = noted.notes.module_count();
            (self.report)(ExploreProgress::WarmStart(WarmNews::Forked { modules }));
        }
        let began = Instant::now();
        let tried = self.try_all(replayer, &mut workers, first_met, &|tried| comparison.go_on(tried));
        let ComparedStarts { recovered: compared, difference } = comparison.finish()?;
        let tried = match tried {
            Ok(tried) => tried,
            Err(error) => {
                let reason = self.warm.reason_of(error)?;
                return Ok(ForkedAttempt::Discarded { reason, tried: 0 });
            }
        };
        close_all(workers)?;
        if let Some(reason) = difference {
            return Ok(ForkedAttempt::Discarded { reason, tried: tried.len() });
        }
        let seconds = began.elapsed().as_secs_f64();
        let recovered = tried.iter().filter(|tried| !tried.is_failing()).count() as u64;
        let forked = Some(ForkedRecoveries { recovered, compared });
        Ok(ForkedAttempt::Tried(ReplayedStates { tried, seconds, forked, ..ReplayedStates::nothing() }))
    }

    fn try_all(
        self,
        replayer: &Replayer<'_>,
        workers: &mut [RecoveryWorker<'_>],
        first_met: &FirstMet<'_>,
        go_on: &(dyn Fn(&TriedState) -> bool + Sync),
    ) -> Result<Vec<TriedState>, ExploreError> {
        let on_tried = |progress| (self.report)(ExploreProgress::Tried(progress));
        let on_failing = |tried: &TriedState| {
            let lines = first_met.new_failures(tried).into_iter();
            lines.for_each(|text| (self.report)(ExploreProgress::FirstMet(text)));
        };
        let reports = TriedReports { on_tried: &on_tried, on_failing: &on_failing };
        replayer.try_states(self.states, workers, reports, go_on)
    }

    /// The same as [`group`](StateReplay::group) for recoveries that were new processes.
    fn group_new(self, replayed: ReplayedStates) -> Result<ReplayedStates, ExploreError> {
        match self.group(replayed)? {
            ForkedAttempt::Tried(grouped) => Ok(grouped),
            ForkedAttempt::NotBegun | ForkedAttempt::Discarded { .. } => Ok(ReplayedStates::nothing()),
        }
    }

    /// Groups the failing states, and confirms the findings by new processes. Forked recoveries are discarded if no new
    /// process does what one of them did.
    fn group(self, replayed: ReplayedStates) -> Result<ForkedAttempt, ExploreError> {
        let WarmStarter { config, recording, oracle, .. } = self.warm;
        (self.report)(ExploreProgress::Confirming);
        let tried = &replayed.tried;
        let alone = ReplaySpec { warm: WarmStart::Never, jobs: 1, ..config.replay.clone() };
        let replayer = Replayer::new(&alone, oracle, recording);
        let mut repeats = RepeatedStates::new(&replayer, tried, config.replay.cancelled);
        let source = FindingsSource {
            spec: &config.report,
            recording,
            controls: &self.controls.tried,
            tried,
            has_process_crashes: config.enumerate.has_process_crashes(),
        };
        let findings = group_findings(source, &mut repeats);
        let unlike = match replayed.forked {
            None => None,
            Some(_) => findings.iter().find_map(difference_of).or_else(|| repeats.difference_of_confirmed()),
        };
        if let Some(reason) = unlike {
            repeats.close()?;
            return Ok(ForkedAttempt::Discarded { reason, tried: tried.len() });
        }
        let failing_trees = config.keep_files.as_ref().map_or_else(
            || Ok(Vec::new()),
            |dir| {
                let spec = FailingTreesSpec { dir, recording, began_unix_s: config.replay.began_unix_s };
                spec.keep(&findings, config.enumerate.only_state.as_ref(), &mut repeats)
            },
        );
        repeats.close()?;
        Ok(ForkedAttempt::Tried(ReplayedStates { findings, failing_trees, ..replayed }))
    }
}

/// In what new processes differ from the forked recovery that a finding shows. `None`: one of them did the same.
fn difference_of(finding: &Finding) -> Option<ColdReason> {
    let confirmation = finding.confirmation.as_ref().filter(|confirmation| confirmation.failed == 1)?;
    let other = confirmation.other?;
    let (state, forked) = (finding.state.clone(), format!("is `{}`", finding.outcome));
    Some(ColdReason::Differs { state, forked, new_process: format!("is `{other}`") })
}
