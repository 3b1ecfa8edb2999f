//! `analyze`: judges a recorded run again from its events, and compares the verdicts with the recorded ones.
//! Runs nothing.

use std::collections::BTreeMap;
use std::path::Path;

use scenarios::{
    BaselineFacts, Event, Record, RecordEntry, Scenario, ScenarioStarted, TargetFile, TrialCounts,
    TrialFacts, TrialTotals, TrialsPlanned, Verdict, last_attempt,
};

use crate::error::{CliError, UnusableRecord};
use crate::exit::CommandExit;
use crate::report_paths::ReportDir;
use crate::{diagnostics, print, report_files};
use engine::judge::{
    AblationRuns, JudgedTrial, TrialEvents, ablation_verdict, trial_facts, verdict, weakened_verdict,
};
use engine::plan::TrialPlan;

/// The name of the record in the directory of a report.
const RECORD_FILE: &str = "record.jsonl";

/// Prints each scenario's new verdict, and whether it is the recorded one. `path`: a record, or the directory
/// of a report. With `out` it writes the reports again. With `requires_all` a skipped scenario counts.
///
/// # Errors
/// If the record cannot be read or judged, or the directory for the reports cannot be written.
pub(crate) fn analyze(path: &Path, out: Option<&Path>, requires_all: bool) -> Result<CommandExit, CliError> {
    let path = &if path.is_dir() { path.join(RECORD_FILE) } else { path.to_path_buf() };
    let unusable = |source| CliError::UnusableRecord { path: path.clone(), source };
    let bytes = std::fs::read(path).map_err(|error| unusable(error.into()))?;
    // A record that was cut off may end within a letter.
    let record = Record::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| unusable(error.into()))?;
    let report_dir = out.map(|out| ReportDir::create(Some(out), "")).transpose()?;
    let exit = judge_record(&record, requires_all)
        .map_err(unusable)
        .inspect_err(|_| report_dir.iter().for_each(ReportDir::remove_if_empty))?;
    let failures = report_dir.map(|dir| report_files::write_reports(&record, dir.path()));
    Ok(diagnostics::exit_despite(exit, &failures.unwrap_or_default()))
}

/// Judges each scenario again. A scenario that was skipped counts if nothing else was recorded, or with
/// `requires_all`. A run that did not come to its end has nothing to say of the scenarios that are missing.
fn judge_record(record: &Record, requires_all: bool) -> Result<CommandExit, UnusableRecord> {
    let mut by_scenario: BTreeMap<&str, Vec<&RecordEntry>> = BTreeMap::new();
    for entry in &record.entries {
        by_scenario.entry(entry.scenario.as_deref().unwrap_or_default()).or_default().push(entry);
    }
    by_scenario.remove("");
    let counts = TrialCounts::by_scenario(record);
    let mut exits = Vec::new();
    for (id, entries) in &by_scenario {
        let AgainJudged { verdict, differs } =
            judge_scenario(id, entries, counts.get(id).copied().unwrap_or_default())?;
        let exit = match is_without_guard(entries) {
            true => CommandExit::from_ablation(&verdict),
            false => CommandExit::from_verdict(&verdict),
        };
        exits.extend(exit.or(requires_all.then_some(CommandExit::Inconclusive)));
        // One of the two is wrong.
        exits.extend(differs.then_some(CommandExit::Inconclusive));
    }
    if let Some(why) = why_incomplete(record, by_scenario.len()) {
        print::line(&why);
        exits.push(CommandExit::Inconclusive);
    }
    print::line(&counts.values().collect::<TrialTotals>().to_string());
    Ok(CommandExit::worst(exits))
}

/// Why the record is not that of a whole run, if so. `scenarios`: how many it has.
fn why_incomplete(record: &Record, scenarios: usize) -> Option<String> {
    let planned = record.entries.iter().find_map(|entry| match &entry.event {
        Event::RunStarted(started) => Some(started.scenarios as usize),
        _ => None,
    });
    let ended = record.entries.iter().rev().find_map(|entry| match &entry.event {
        Event::RunEnded(ended) => Some(ended.exit_code),
        _ => None,
    });
    let planned = planned.unwrap_or(scenarios);
    let has = format!("the record has {scenarios} of {planned} scenarios");
    match ended {
        _ if record.truncated => Some(format!("interrupted in the middle of a line: {has}")),
        None => Some(format!("interrupted before the end of the run: {has}")),
        Some(_) if scenarios < planned => Some(format!("incomplete: {has}")),
        Some(code) if code == CommandExit::Interrupted.code() => Some(format!("interrupted: {has}")),
        Some(_) => None,
    }
}

/// The new verdict on a scenario.
struct AgainJudged {
    verdict: Verdict,
    /// Whether the recorded verdict is another one.
    differs: bool,
}

/// Judges a scenario again, and prints how the new verdict compares with the recorded one.
fn judge_scenario(
    id: &str,
    entries: &[&RecordEntry],
    trials: TrialCounts,
) -> Result<AgainJudged, UnusableRecord> {
    let recorded = entries.iter().rev().find_map(|entry| {
        if let Event::Judged { verdict, .. } = &entry.event { Some(verdict) } else { None }
    });
    let verdict = match recorded {
        Some(skipped @ Verdict::Skipped { .. }) => skipped.clone(),
        Some(_) => judge_again(entries)?,
        None => without_end(judge_again(entries)?, entries),
    };
    let differs = recorded.is_some_and(|recorded| verdict_name(recorded) != verdict_name(&verdict));
    let comparison = match recorded {
        Some(recorded) if *recorded == verdict => "as recorded",
        // Only the run itself knows why the harness failed or was interrupted.
        Some(Verdict::Inconclusive { .. }) if !differs => "as recorded",
        Some(_) => "DIFFERS from the recorded verdict",
        None => "the run was interrupted before its verdict",
    };
    let trials = if trials.is_empty() { String::new() } else { format!("  {trials}") };
    print::line(&format!("{id:<9} {:<13} {comparison}{trials}", verdict_name(&verdict)));
    Ok(AgainJudged { verdict, differs })
}

/// Whether a guard was removed from the scenario, so that a violation is the good result.
fn is_without_guard(entries: &[&RecordEntry]) -> bool {
    let is_start_without =
        |entry: &&RecordEntry| matches!(&entry.event, Event::ScenarioStarted(s) if s.guard_removed.is_some());
    entries.iter().any(is_start_without)
}

/// The verdict on a scenario whose record ends before its own. What was violated stays violated. What else the
/// run would have said, such as that the harness failed, is not known; nor is what a removed guard would have
/// let pass.
fn without_end(judged: Verdict, entries: &[&RecordEntry]) -> Verdict {
    match judged {
        Verdict::Violated { reasons } if !is_without_guard(entries) => Verdict::Violated { reasons },
        Verdict::Survived | Verdict::Violated { .. } => {
            Verdict::Inconclusive { why: "the record ends before the verdict".into() }
        }
        other => other,
    }
}

fn verdict_name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Survived => "survived",
        Verdict::Violated { .. } => "violated",
        Verdict::Inconclusive { .. } => "inconclusive",
        Verdict::Skipped { .. } => "skipped",
    }
}

fn judge_again(entries: &[&RecordEntry]) -> Result<Verdict, UnusableRecord> {
    let started: &ScenarioStarted = entries
        .iter()
        .find_map(
            |entry| if let Event::ScenarioStarted(started) = &entry.event { Some(started) } else { None },
        )
        .ok_or(UnusableRecord::NotStarted)?;
    let scenario = Scenario::parse(&started.source, &started.file)?;
    let target = TargetFile::parse(&started.target_source, &started.target_file)?;
    let baseline = entries
        .iter()
        .find_map(|entry| if let Event::Baseline(facts) = &entry.event { Some(facts) } else { None });
    let Some(baseline) = baseline else {
        return Ok(Verdict::Inconclusive { why: "the record has no baseline".into() });
    };
    let planned = entries.iter().find_map(|entry| {
        if let Event::TrialsPlanned(planned) = &entry.event { Some(*planned) } else { None }
    });
    let planned = match planned {
        Some(planned) => planned,
        None if baseline.ended_well => {
            return Ok(Verdict::Inconclusive {
                why: "the record ends before its trials were planned".into(),
            });
        }
        None => TrialsPlanned::default(),
    };
    let trials = read_trials(entries, &scenario, &target, baseline);
    let judged: Vec<JudgedTrial<'_>> =
        trials.iter().map(|(number, facts, lines)| JudgedTrial { number: *number, facts, lines }).collect();
    let verdict = verdict(&scenario, baseline, &planned, &judged);
    let weaknesses = entries.iter().find_map(|entry| match &entry.event {
        Event::RecordingWeakened { why } => Some(why.as_slice()),
        _ => None,
    });
    let verdict = weakened_verdict(verdict, weaknesses.unwrap_or_default());
    let control = entries.iter().find_map(|entry| {
        if let Event::GuardControl(facts) = &entry.event { Some(facts.as_ref()) } else { None }
    });
    if started.guard_removed.is_some() && control.is_none() {
        let why = "the record has no undisturbed run without the guard".into();
        return Ok(Verdict::Inconclusive { why });
    }
    Ok(ablation_verdict(verdict, &AblationRuns { baseline, control }, &judged))
}

/// Each trial that ended: its number, its facts and its output lines.
fn read_trials(
    entries: &[&RecordEntry],
    scenario: &Scenario,
    target: &TargetFile,
    baseline: &BaselineFacts,
) -> Vec<(u32, TrialFacts, Vec<String>)> {
    let mut by_trial: BTreeMap<u32, Vec<RecordEntry>> = BTreeMap::new();
    for entry in entries {
        if let Some(trial @ 1..) = entry.trial {
            by_trial.entry(trial).or_default().push((*entry).clone());
        }
    }
    let plan = TrialPlan::new(scenario, 0, &BTreeMap::new());
    let (comparable, same_workload) = (plan.comparable(), plan.same_workload());
    let has_ended = |entries: &[RecordEntry]| {
        last_attempt(entries).iter().any(|entry| matches!(entry.event, Event::TrialEnded(_)))
    };
    let read = |(number, entries): (u32, Vec<RecordEntry>)| {
        // The recorded summary of the trial is not used: all facts are derived from the events again.
        let attempt = last_attempt(&entries).iter();
        let events: Vec<RecordEntry> =
            attempt.filter(|entry| !matches!(entry.event, Event::TrialEnded(_))).cloned().collect();
        let facts = trial_facts(&TrialEvents {
            target,
            baseline,
            comparable,
            same_workload,
            adds_work: plan.adds_work(),
            makes_calls_fail: plan.makes_calls_fail(),
            entries: &events,
        });
        let lines = events.iter().filter_map(|entry| {
            if let Event::Output { line, .. } = &entry.event { Some(line.clone()) } else { None }
        });
        (number, facts, lines.collect())
    };
    by_trial.into_iter().filter(|(_, entries)| has_ended(entries)).map(read).collect()
}
