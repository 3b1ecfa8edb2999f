//! One scenario's section.

use maud::{Markup, html};
use scenarios::{Event, Outcome, OutputStream, TrialFacts};

use super::{anchor_id, timeline};
use crate::clean::{clean, clean_block};
use crate::view::{ScenarioView, TrialView};

/// Rows of the table of trials, and cells of the strip; the rest are counted.
const MAX_TRIALS_SHOWN: usize = 200;
/// Findings shown under one expectation.
const MAX_REASONS_SHOWN: usize = 4;
/// Last lines of a target that did not end well.
const MAX_OUTPUT_LINES: usize = 12;

pub(super) fn section(one: &ScenarioView<'_>) -> Markup {
    let mark = one.status();
    html! {
        section id=(anchor_id(one.id)) class={ "scenario " (mark.tone()) } aria-label=(clean(one.id)) {
            header {
                h2 { code { (clean(one.id)) } " " (clean(&one.started.title)) }
                span class={ "verdict " (mark.tone()) } { (mark.symbol()) " " (mark.label()) }
                @if let Some(guard) = &one.started.guard_removed { span.soft { "without the guard " code { (clean(guard)) } } }
            }
            @if let Some(why) = one.why() { p { (clean(why)) } }
            (checks(one))
            @if let Some(trial) = one.most_relevant_trial() {
                h3 { "Trial " (trial.number) @if let Some(facts) = trial.facts { ": " (clean(&facts.what)) } }
                (timeline::chart(one, trial))
                @if let Some(facts) = trial.facts { (trial_summary(facts)) }
                (last_output(trial))
            }
            @if one.trials.len() > 1 { (trials(one)) }
            h3 { "Repeat it" }
            pre { code { (clean(&one.started.repeat)) @if one.trials.len() > 1 { @if let Some(trial) = one.most_relevant_trial() { "\n" (clean(&one.started.repeat)) " --trial " (trial.number) } } } }
            (sources(one))
        }
    }
}

fn checks(one: &ScenarioView<'_>) -> Markup {
    html! {
        ul.checks {
            @for (text, found) in &one.expectations {
                @let held = found.is_empty() && one.verdict.is_some() && !one.trials.is_empty();
                li {
                    span class=(if !found.is_empty() { "bad" } else if held { "good" } else { "none" }) { (if !found.is_empty() { "✗ " } else if held { "✓ " } else { "– " }) }
                    code { (clean(text)) }
                    @for finding in found.iter().take(MAX_REASONS_SHOWN) { br; span.bad { (clean(finding)) } }
                    @if found.len() > MAX_REASONS_SHOWN { br; span.soft { "and in " (found.len() - MAX_REASONS_SHOWN) " more trials" } }
                }
            }
        }
    }
}

fn trial_summary(facts: &TrialFacts) -> Markup {
    let step = |step: Option<u64>| step.map_or_else(|| "none".to_owned(), |step| step.to_string());
    html! {
        p { strong { (facts.outcome) } ": " (clean(&facts.because)) }
        @if facts.step_at_fault.is_some() {
            p.soft { "step at the fault " (step(facts.step_at_fault)) ", last promised save " (step(facts.acknowledged)) ", resumed from " (step(facts.resumed_from)) ", steps lost " (step(facts.lost_steps))
                @if let Some(seconds) = facts.recovery_seconds { ", " (format!("{seconds:.2}")) " s to the next step" } }
        }
        @for evidence in &facts.evidence { p { "It landed: " (clean(evidence)) } }
        @if facts.evidence.is_empty() { p.unsure { "The fault did not land." } }
    }
}

fn last_output(trial: &TrialView<'_>) -> Markup {
    let recovered = trial.facts.is_some_and(|facts| facts.outcome == Outcome::Recovered);
    let words: Vec<&str> = trial
        .entries
        .iter()
        .filter_map(|entry| {
            if let Event::Output { stream: OutputStream::Stderr, line } = &entry.event {
                Some(line.as_str())
            } else {
                None
            }
        })
        .collect();
    let shown = &words[words.len().saturating_sub(MAX_OUTPUT_LINES)..];
    html! {
        @if !recovered && !shown.is_empty() {
            h3 { "Its last words" }
            pre { @for line in shown { (clean(line)) "\n" } }
        }
    }
}

fn trials(one: &ScenarioView<'_>) -> Markup {
    let more = one.trials.len().saturating_sub(MAX_TRIALS_SHOWN);
    html! {
        h3 { "All " (one.trials.len()) " trials" @if one.left_out > 0 { span.soft { " (" (one.left_out) " more like them were left out by max-trials)" } } }
        div.strip {
            @for trial in one.trials.iter().take(MAX_TRIALS_SHOWN) {
                @let (letter, tone) = trial_symbol(trial);
                span class={ "cell " (tone) } title=(trial_label(trial)) aria-label=(trial_label(trial)) role="img" { (letter) }
            }
        }
        details {
            summary { "as a table" @if more > 0 { ", the first " (MAX_TRIALS_SHOWN) } }
            div.wide { table {
                thead { tr { th.n { "trial" } th { "what" } th { "outcome" } th { "because" } th.n { "lost" } th.n { "resumed" } th.n { "s" } th { "it landed" } } }
                tbody { @for trial in one.trials.iter().take(MAX_TRIALS_SHOWN) { (trial_row(trial)) } }
            } }
        }
    }
}

fn trial_row(trial: &TrialView<'_>) -> Markup {
    let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    html! {
        tr {
            td.n { (trial.number) }
            @match trial.facts {
                Some(facts) => {
                    td { (clean(&facts.what)) }
                    td class=(trial_symbol(trial).1) { (facts.outcome) }
                    td { (clean(&facts.because)) }
                    td.n { (number(facts.lost_steps)) }
                    td.n { (number(facts.resumed_from)) }
                    td.n { (facts.recovery_seconds.map(|seconds| format!("{seconds:.2}")).unwrap_or_default()) }
                    td { (clean(&facts.evidence.join("; "))) }
                }
                None => { td colspan="7" { "cut off" } }
            }
        }
    }
}

/// A letter beside the colour: nobody has to tell red from green.
fn trial_symbol(trial: &TrialView<'_>) -> (&'static str, &'static str) {
    let Some(facts) = trial.facts else { return ("…", "unsure") };
    if facts.evidence.is_empty() {
        return ("?", "unsure");
    }
    match facts.outcome {
        Outcome::Recovered => ("r", "good"),
        Outcome::Refused => ("f", "unsure"),
        Outcome::LostWork => ("L", "bad"),
        Outcome::Restarted => ("0", "bad"),
        Outcome::Crashed => ("X", "bad"),
        Outcome::Hung => ("H", "bad"),
        Outcome::Corrupt => ("C", "bad"),
    }
}

fn trial_label(trial: &TrialView<'_>) -> String {
    match trial.facts {
        Some(facts) => format!("trial {}: {}, {}", trial.number, clean(&facts.what), facts.outcome),
        None => format!("trial {}: cut off", trial.number),
    }
}

fn sources(one: &ScenarioView<'_>) -> Markup {
    html! {
        details { summary { "the scenario, " code { (clean(&one.started.file)) } } pre { code { (clean_block(&one.started.source)) } } }
        @if let Some(steady) = one.baseline {
            details {
                summary { "the steady state" }
                p { (steady.steps) " steps in " (format!("{:.2}", steady.seconds)) " s, " (steady.saves.len()) " saves"
                    @if let Some(bytes) = steady.peak_memory_bytes { ", " (bytes >> 20) " MiB at most" }
                    @if !steady.ended_well { ", " strong.unsure { "did not end well" } } }
                @for value in &steady.same { p { code { (clean(value)) } } }
                @for (what, count) in &steady.counted { p.soft { (clean(what)) ": " (count) } }
            }
        }
    }
}
