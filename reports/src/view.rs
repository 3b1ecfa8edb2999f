//! A record sorted by scenario and trial, from which all reports are made. Knows nothing of their formats.

use std::collections::BTreeMap;

use scenarios::{
    BaselineFacts, Event, FailedRun, Outcome, Reason, ReasonGroup, Record, RecordEntry, RunEnded, RunStarted,
    Scenario, ScenarioStarted, TrialCounts, TrialFacts, TrialStarts, Verdict, ViolationKind, last_attempt,
};

use crate::error::ReportError;

/// A whole run.
pub(crate) struct RunView<'a> {
    pub(crate) started: &'a RunStarted,
    /// `None` if the record ends before the end of the run.
    pub(crate) ended: Option<&'a RunEnded>,
    pub(crate) scenarios: Vec<ScenarioView<'a>>,
}

/// One scenario of a run.
pub(crate) struct ScenarioView<'a> {
    pub(crate) id: &'a str,
    pub(crate) started: &'a ScenarioStarted,
    pub(crate) baseline: Option<&'a BaselineFacts>,
    pub(crate) baseline_entries: Vec<&'a RecordEntry>,
    pub(crate) trials: Vec<TrialView<'a>>,
    /// The runs without any fault that did not end well.
    pub(crate) failed_runs: Vec<&'a FailedRun>,
    pub(crate) counts: TrialCounts,
    /// How the target was started in its trials, if there was a choice.
    pub(crate) starts: Option<&'a TrialStarts>,
    /// `None` if the record ends before the verdict.
    pub(crate) verdict: Option<&'a Verdict>,
    pub(crate) seconds: f64,
    /// Each expectation, with what was observed where it did not hold.
    pub(crate) expectations: Vec<(String, Vec<String>)>,
}

/// One trial of a scenario.
pub(crate) struct TrialView<'a> {
    pub(crate) number: u32,
    pub(crate) entries: Vec<&'a RecordEntry>,
    /// `None` if the record ends before the end of the trial.
    pub(crate) facts: Option<&'a TrialFacts>,
    /// Whether an expectation failed.
    pub(crate) result: TrialResult,
    /// The expectations that failed in this trial alone.
    pub(crate) failed: Vec<&'a Reason>,
}

/// Whether the expectations of a scenario held in one trial. The worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TrialResult {
    /// An expectation failed in this trial, or in all trials together.
    Failed,
    /// A fault was not effective, so that the trial does not count.
    NotEffective,
    /// The call at which a fault waits did not come, so that the trial does not count.
    NotReached,
    /// The trial did not end, or the scenario has no verdict that the trial is a part of.
    NotJudged,
    /// Every expectation held.
    Held,
}

impl TrialResult {
    fn of(number: u32, facts: Option<&TrialFacts>, verdict: Option<&Verdict>) -> TrialResult {
        let Some(facts) = facts else { return TrialResult::NotJudged };
        let is_control = |reason: &Reason| reason.kind == ViolationKind::Control;
        let is_about = |reason: &Reason| match reason.trial {
            Some(trial) => trial == number,
            None => !is_control(reason),
        };
        match verdict {
            Some(Verdict::Violated { reasons }) if reasons.iter().any(is_about) => TrialResult::Failed,
            _ if facts.is_not_reached() => TrialResult::NotReached,
            _ if !facts.counts() => TrialResult::NotEffective,
            Some(Verdict::Survived | Verdict::Violated { .. }) => TrialResult::Held,
            Some(Verdict::Inconclusive { .. } | Verdict::Skipped { .. }) | None => TrialResult::NotJudged,
        }
    }

    pub(crate) fn label(self) -> &'static str {
        match self {
            TrialResult::Failed => "an expectation failed",
            TrialResult::NotEffective => "a fault was not effective",
            TrialResult::NotReached => "the call of a fault was not reached",
            TrialResult::NotJudged => "not judged",
            TrialResult::Held => "the expectations held",
        }
    }

    /// The CSS class: `good`, `bad`, `unsure` or `none`.
    pub(crate) fn tone(self) -> &'static str {
        match self {
            TrialResult::Failed => "bad",
            TrialResult::NotEffective | TrialResult::NotReached => "unsure",
            TrialResult::NotJudged => "none",
            TrialResult::Held => "good",
        }
    }
}

/// The result of a scenario, as reports show it. The worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ScenarioStatus {
    Violated,
    /// The scenario survived although a guard was removed.
    Missed,
    Inconclusive,
    /// The record ends before the verdict.
    Unfinished,
    Skipped,
    /// A guard was removed, and the scenario was violated.
    Caught,
    Survived,
}

impl ScenarioStatus {
    pub(crate) fn label(self) -> &'static str {
        match self {
            ScenarioStatus::Violated => "violated",
            ScenarioStatus::Missed => "missed",
            ScenarioStatus::Inconclusive => "inconclusive",
            ScenarioStatus::Unfinished => "unfinished",
            ScenarioStatus::Skipped => "skipped",
            ScenarioStatus::Caught => "caught",
            ScenarioStatus::Survived => "survived",
        }
    }

    pub(crate) fn symbol(self) -> &'static str {
        match self {
            ScenarioStatus::Violated | ScenarioStatus::Missed => "✗",
            ScenarioStatus::Inconclusive => "?",
            ScenarioStatus::Unfinished => "…",
            ScenarioStatus::Skipped => "–",
            ScenarioStatus::Caught | ScenarioStatus::Survived => "✓",
        }
    }

    /// The CSS class: `good`, `bad`, `unsure` or `none`.
    pub(crate) fn tone(self) -> &'static str {
        match self {
            ScenarioStatus::Violated | ScenarioStatus::Missed => "bad",
            ScenarioStatus::Inconclusive | ScenarioStatus::Unfinished => "unsure",
            ScenarioStatus::Skipped => "none",
            ScenarioStatus::Caught | ScenarioStatus::Survived => "good",
        }
    }
}

impl ScenarioView<'_> {
    pub(crate) fn status(&self) -> ScenarioStatus {
        let is_ablation = self.started.guard_removed.is_some();
        match self.verdict {
            None => ScenarioStatus::Unfinished,
            Some(Verdict::Survived) if is_ablation => ScenarioStatus::Missed,
            Some(Verdict::Violated { .. }) if is_ablation => ScenarioStatus::Caught,
            Some(Verdict::Survived) => ScenarioStatus::Survived,
            Some(Verdict::Violated { .. }) => ScenarioStatus::Violated,
            Some(Verdict::Inconclusive { .. }) => ScenarioStatus::Inconclusive,
            Some(Verdict::Skipped { .. }) => ScenarioStatus::Skipped,
        }
    }

    /// Whether each expectation is known to have held or failed in the trials.
    pub(crate) fn is_judged(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Survived | Verdict::Violated { .. })) && !self.trials.is_empty()
    }

    /// The status in words. Of a guard that was caught, it says what showed it.
    pub(crate) fn label(&self) -> &'static str {
        match (self.status(), self.verdict.and_then(Verdict::violation_kind)) {
            (ScenarioStatus::Caught, Some(ViolationKind::Words)) => "caught by words only",
            (ScenarioStatus::Caught, _) => "caught by harm",
            (status, _) => status.label(),
        }
    }

    /// The reason of an inconclusive or skipped scenario.
    pub(crate) fn why(&self) -> Option<&str> {
        match self.verdict? {
            Verdict::Inconclusive { why } | Verdict::Skipped { why } => Some(why),
            _ => None,
        }
    }

    /// The trial to show in detail: the first one in which an expectation did not hold, else the first that
    /// did not recover, else the first.
    pub(crate) fn most_relevant_trial(&self) -> Option<&TrialView<'_>> {
        let violated = match self.verdict {
            Some(Verdict::Violated { reasons }) => reasons.iter().find_map(|reason| reason.trial),
            _ => None,
        };
        let not_recovered =
            |trial: &&TrialView<'_>| trial.facts.is_some_and(|facts| facts.outcome != Outcome::Recovered);
        let by_number = violated.and_then(|number| self.trials.iter().find(|trial| trial.number == number));
        by_number.or_else(|| self.trials.iter().find(not_recovered)).or_else(|| self.trials.first())
    }
}

/// Sorts a record by scenario and trial.
///
/// # Errors
/// If the record has no `run-started` event.
pub(crate) fn run_view(record: &Record) -> Result<RunView<'_>, ReportError> {
    let started = record
        .entries
        .iter()
        .find_map(|entry| if let Event::RunStarted(started) = &entry.event { Some(started) } else { None });
    let ended = record
        .entries
        .iter()
        .rev()
        .find_map(|entry| if let Event::RunEnded(ended) = &entry.event { Some(ended) } else { None });
    let mut by_scenario: BTreeMap<&str, Vec<&RecordEntry>> = BTreeMap::new();
    for entry in &record.entries {
        if let Some(id) = &entry.scenario {
            by_scenario.entry(id).or_default().push(entry);
        }
    }
    let scenarios = by_scenario.into_iter().filter_map(|(id, entries)| scenario_view(id, &entries)).collect();
    Ok(RunView { started: started.ok_or(ReportError::Empty)?, ended, scenarios })
}

fn scenario_view<'a>(id: &'a str, entries: &[&'a RecordEntry]) -> Option<ScenarioView<'a>> {
    let started: &ScenarioStarted = entries.iter().find_map(|entry| {
        if let Event::ScenarioStarted(started) = &entry.event { Some(started.as_ref()) } else { None }
    })?;
    let mut by_trial: BTreeMap<u32, Vec<&RecordEntry>> = BTreeMap::new();
    let mut view = ScenarioView {
        id,
        started,
        baseline: None,
        baseline_entries: Vec::new(),
        trials: Vec::new(),
        failed_runs: Vec::new(),
        counts: TrialCounts::default(),
        starts: None,
        verdict: None,
        seconds: 0.0,
        expectations: Vec::new(),
    };
    for entry in entries {
        view.counts.count(&entry.event);
        match (&entry.event, entry.trial) {
            (Event::Baseline(facts), _) => view.baseline = Some(facts),
            (Event::Judged { verdict, seconds }, _) => {
                (view.verdict, view.seconds) = (Some(verdict), *seconds)
            }
            (Event::UndisturbedRunFailed(failed), _) => view.failed_runs.push(failed.as_ref()),
            (Event::TrialStarts(starts), _) => view.starts = Some(starts),
            (_, Some(trial)) => by_trial.entry(trial).or_default().push(entry),
            _ => {}
        }
    }
    view.baseline_entries = by_trial.remove(&0).unwrap_or_default();
    view.trials =
        by_trial.into_iter().map(|(number, entries)| trial_view(number, entries, view.verdict)).collect();
    view.expectations = expectations(started, view.verdict);
    Some(view)
}

fn trial_view<'a>(number: u32, entries: Vec<&'a RecordEntry>, verdict: Option<&'a Verdict>) -> TrialView<'a> {
    let entries = last_attempt(&entries).to_vec();
    let facts = facts_in(&entries);
    let reasons = if let Some(Verdict::Violated { reasons }) = verdict { reasons.as_slice() } else { &[] };
    let failed = reasons.iter().filter(|reason| reason.trial == Some(number)).collect();
    TrialView { number, entries, facts, result: TrialResult::of(number, facts, verdict), failed }
}

fn facts_in<'a>(entries: &[&'a RecordEntry]) -> Option<&'a TrialFacts> {
    entries.iter().find_map(|entry| {
        if let Event::TrialEnded(facts) = &entry.event { Some(facts.as_ref()) } else { None }
    })
}

/// Each expectation of the file, with what was observed where it did not hold.
fn expectations(started: &ScenarioStarted, verdict: Option<&Verdict>) -> Vec<(String, Vec<String>)> {
    let reasons = if let Some(Verdict::Violated { reasons }) = verdict { reasons.as_slice() } else { &[] };
    let found = |text: &str| {
        let groups = ReasonGroup::of(reasons).into_iter();
        let matching = groups.filter(|group| group.first.expectation == text);
        matching.map(|group| format!("{}{}", group.trials_text(), group.first.found)).collect()
    };
    let scenario = Scenario::parse(&started.source, &started.file);
    let mut texts: Vec<String> = scenario
        .map(|scenario| scenario.expect().iter().map(|expectation| expectation.text.clone()).collect())
        .unwrap_or_default();
    // Expectations that hold for every scenario, such as that the simulated GPU detects no defect.
    for reason in reasons {
        if !texts.contains(&reason.expectation) {
            texts.push(reason.expectation.clone());
        }
    }
    texts.into_iter().map(|text| (text.clone(), found(&text))).collect()
}
