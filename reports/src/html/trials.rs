//! All trials of a scenario: a strip of cells, coloured by whether an expectation failed, with its legend, and
//! a table with the details of each.

use std::collections::BTreeSet;

use maud::{Markup, html};
use scenarios::{Outcome, TrialFacts, grouped};

use super::anchor_id;
use crate::clean::clean;
use crate::view::{ScenarioView, TrialResult, TrialView};

/// Largest number of trials in the strip and in the table. The rest are counted.
const MAX_TRIALS_SHOWN: usize = 200;
/// Largest number of failed expectations that are shown of one trial.
const MAX_FAILED_SHOWN: usize = 4;
/// With more trials than this, the table is folded.
const MAX_UNFOLDED_ROWS: usize = 24;

/// The anchor of a trial's chart, or of its row in the table.
pub(super) fn trial_anchor(scenario: &ScenarioView<'_>, number: u32) -> String {
    format!("{}-trial-{number}", anchor_id(scenario.id))
}

pub(super) fn trials(scenario: &ScenarioView<'_>) -> Markup {
    let shown = shown_trials(scenario);
    let hidden = scenario.trials.len() - shown.len();
    html! {
        h3 { "Tried: " (scenario.counts) }
        @if hidden > 0 {
            p.soft { (hidden) " of the trials are not shown. Those with a failed expectation come first." }
        }
        div.strip { @for trial in &shown { (cell(scenario, trial)) } }
        (legend(&shown))
        details open[shown.len() <= MAX_UNFOLDED_ROWS] {
            summary { "Details of each trial" @if hidden > 0 { " that is shown" } }
            div.wide { table {
                thead {
                    tr {
                        th.n { "trial" }
                        th { "fault" }
                        th { "expectations" }
                        th { "outcome" }
                        th { "reason" }
                        th.n { "lost steps" }
                        th.n { "resumed from" }
                        th.n { "recovery, s" }
                        th { "evidence" }
                    }
                }
                tbody { @for trial in &shown { (row(scenario, trial)) } }
            } }
        }
    }
}

/// The trials of the strip, in order. If there are too many, those in which an expectation failed come first.
fn shown_trials<'a, 'r>(scenario: &'a ScenarioView<'r>) -> Vec<&'a TrialView<'r>> {
    let mut shown: Vec<&TrialView<'_>> = scenario.trials.iter().collect();
    shown.sort_by_key(|trial| trial.result != TrialResult::Failed);
    shown.truncate(MAX_TRIALS_SHOWN);
    shown.sort_by_key(|trial| trial.number);
    shown
}

fn cell(scenario: &ScenarioView<'_>, trial: &TrialView<'_>) -> Markup {
    let label = match trial.facts {
        Some(facts) => format!(
            "trial {}: {}, {}, {}",
            trial.number,
            clean(&facts.what),
            facts.outcome,
            trial.result.label()
        ),
        None => format!("trial {}: {}", trial.number, trial.result.label()),
    };
    html! {
        a
            class={ "cell " (trial.result.tone()) }
            href={ "#" (trial_anchor(scenario, trial.number)) }
            title=(label) aria-label=(label) {
            (letter(trial))
        }
    }
}

/// The letter of a trial's outcome.
fn letter(trial: &TrialView<'_>) -> &'static str {
    match trial.facts.map(|facts| facts.outcome) {
        None => "…",
        Some(_) if trial.result == TrialResult::NotEffective => "?",
        Some(Outcome::Recovered) => "r",
        Some(Outcome::Refused) => "f",
        Some(Outcome::NotJudged) => "n",
        Some(Outcome::LostWork) => "L",
        Some(Outcome::Restarted) => "0",
        Some(Outcome::EndedEarly) => "E",
        Some(Outcome::Crashed) => "X",
        Some(Outcome::Hung) => "H",
        Some(Outcome::Corrupt) => "C",
    }
}

/// What the colours and the letters that occur mean.
fn legend(shown: &[&TrialView<'_>]) -> Markup {
    let results: BTreeSet<TrialResult> = shown.iter().map(|trial| trial.result).collect();
    let letters: BTreeSet<(&str, String)> = shown
        .iter()
        .filter_map(|trial| Some((letter(trial), trial.facts?.outcome.to_string())))
        .filter(|(letter, _)| *letter != "?")
        .collect();
    html! {
        p.legend {
            @for result in &results {
                span.entry { span class={ "cell sample " (result.tone()) } {} " " (result.label()) }
            }
            @for (letter, outcome) in &letters { span.entry { code { (letter) } " " (outcome) } }
        }
    }
}

fn row(scenario: &ScenarioView<'_>, trial: &TrialView<'_>) -> Markup {
    let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let seconds = |value: Option<f64>| value.map(|value| format!("{value:.2}")).unwrap_or_default();
    // The trial with the chart has its anchor there.
    let has_chart = scenario.most_relevant_trial().is_some_and(|shown| shown.number == trial.number);
    let anchor = trial_anchor(scenario, trial.number);
    html! {
        tr id=[(!has_chart).then_some(&anchor)] {
            td.n { @if has_chart { a href={ "#" (anchor) } { (trial.number) } } @else { (trial.number) } }
            @match trial.facts {
                Some(facts) => {
                    td { (clean(&facts.what)) }
                    td class=(trial.result.tone()) { (expectations(trial)) }
                    td { (facts.outcome) }
                    td { (clean(&facts.because)) }
                    td.n { (number(facts.lost_steps)) }
                    td.n { (number(facts.resumed_from)) }
                    td.n { (seconds(facts.recovery_seconds)) }
                    td { (clean(&evidence(facts))) }
                }
                None => { td colspan="8" { (trial.result.label()) } }
            }
        }
    }
}

/// What shows the effect of each fault, and why others had none.
fn evidence(facts: &TrialFacts) -> String {
    let missing = facts.not_effective.iter().map(|missing| format!("not effective: {missing}"));
    facts.evidence.iter().cloned().chain(missing).collect::<Vec<_>>().join("; ")
}

/// Whether the expectations held in a trial, and which did not.
fn expectations(trial: &TrialView<'_>) -> Markup {
    html! {
        (trial.result.label())
        @for reason in trial.failed.iter().take(MAX_FAILED_SHOWN) {
            br;
            code { (clean(&reason.expectation)) } ": " (clean(&reason.found))
        }
        @if trial.failed.len() > MAX_FAILED_SHOWN {
            br;
            "and " (grouped((trial.failed.len() - MAX_FAILED_SHOWN) as u64)) " more"
        }
    }
}
