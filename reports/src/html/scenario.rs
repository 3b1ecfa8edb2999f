//! The section of one scenario on the page of a run.

use maud::{Markup, html};
use scenarios::{Event, Outcome, OutputStream, TrialFacts};

use super::trials::{trial_anchor, trials};
use super::{anchor_id, sandbox_hints, timeline};
use crate::clean::{clean, clean_block};
use crate::view::{ScenarioView, TrialView};

/// Largest number of reasons that are shown under one expectation.
const MAX_REASONS_SHOWN: usize = 4;
/// Largest number of last output lines that are shown of a target that did not recover.
const MAX_OUTPUT_LINES: usize = 12;

pub(super) fn section(scenario: &ScenarioView<'_>) -> Markup {
    let status = scenario.status();
    html! {
        section
            id=(anchor_id(scenario.id))
            class={ "scenario " (status.tone()) }
            aria-label=(clean(scenario.id)) {
            header {
                h2 { code { (clean(scenario.id)) } " " (clean(&scenario.started.title)) }
                span class={ "verdict " (status.tone()) } { (status.symbol()) " " (scenario.label()) }
                @if let Some(guard) = &scenario.started.guard_removed {
                    span.soft { "without the guard " code { (clean(guard)) } }
                }
                @if !scenario.counts.is_empty() { span.soft { (scenario.counts) " tried" } }
            }
            @if let Some(why) = scenario.why() { p { (clean(why)) } }
            @if let Some(starts) = scenario.starts { p.soft { (clean(&starts.to_string())) } }
            @for failed in &scenario.failed_runs {
                h3 { "Why " (clean(&failed.command.to_string())) " failed" }
                pre { @for line in failed.details() { (clean(&line)) "\n" } }
            }
            (checks(scenario))
            @if let Some(trial) = scenario.most_relevant_trial() {
                h3 id=(trial_anchor(scenario, trial.number)) {
                    "Trial " (trial.number) @if let Some(facts) = trial.facts { ": " (clean(&facts.what)) }
                }
                (timeline::chart(scenario, trial))
                @if let Some(facts) = trial.facts { (trial_summary(facts)) }
                (last_output(trial))
            }
            @if scenario.trials.len() > 1 { (trials(scenario)) }
            @if let Some(baseline) = scenario.baseline { (sandbox_hints(&baseline.sandbox_hints)) }
            h3 { "How to repeat it" }
            pre {
                code {
                    (clean_block(&scenario.started.repeat))
                    @if scenario.trials.len() > 1 {
                        @if let Some(trial) = scenario.most_relevant_trial() {
                            "\n" (clean_block(&scenario.started.repeat)) " --trial " (trial.number)
                        }
                    }
                }
            }
            (sources(scenario))
        }
    }
}

fn checks(scenario: &ScenarioView<'_>) -> Markup {
    html! {
        ul.checks {
            @for (text, found) in &scenario.expectations {
                @let held = found.is_empty() && scenario.is_judged();
                li {
                    span class=(if !found.is_empty() { "bad" } else if held { "good" } else { "none" }) {
                        (if !found.is_empty() { "✗ " } else if held { "✓ " } else { "– " })
                    }
                    code { (clean(text)) }
                    @for reason in found.iter().take(MAX_REASONS_SHOWN) { br; span.bad { (clean(reason)) } }
                    @if found.len() > MAX_REASONS_SHOWN {
                        br;
                        span.soft { "and " (found.len() - MAX_REASONS_SHOWN) " others" }
                    }
                }
            }
        }
    }
}

fn trial_summary(facts: &TrialFacts) -> Markup {
    let step = |step: Option<u64>| step.map_or_else(|| "none".to_owned(), |step| step.to_string());
    html! {
        p { strong { (facts.outcome) } ": " (clean(&facts.because)) }
        @if let Some(said) = &facts.said { p { "It said: " code { (clean(said)) } } }
        @if facts.step_at_fault.is_some() {
            p.soft {
                "step at the fault " (step(facts.step_at_fault))
                ", last acknowledged step " (step(facts.acknowledged))
                ", resumed from " (step(facts.resumed_from))
                ", lost steps " (step(facts.lost_steps))
                @if let Some(seconds) = facts.recovery_seconds {
                    ", " (format!("{seconds:.2}")) " s to the next step"
                }
            }
        }
        @for evidence in &facts.evidence { p { "Evidence: " (clean(evidence)) } }
        @for missing in &facts.not_effective {
            p.unsure { "Not effective: " (clean(&missing.to_string())) }
        }
        @if facts.evidence.is_empty() && facts.not_effective.is_empty() {
            p.unsure { "No fault was effective; all are optional." }
        }
    }
}

fn last_output(trial: &TrialView<'_>) -> Markup {
    let recovered = trial.facts.is_some_and(|facts| facts.outcome == Outcome::Recovered);
    let lines: Vec<&str> = trial
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
    let shown = &lines[lines.len().saturating_sub(MAX_OUTPUT_LINES)..];
    html! {
        @if !recovered && !shown.is_empty() {
            h3 { "Last lines of its standard error" }
            pre { @for line in shown { (clean(line)) "\n" } }
        }
    }
}

fn sources(scenario: &ScenarioView<'_>) -> Markup {
    html! {
        details {
            summary { "Scenario file " code { (clean(&scenario.started.file)) } }
            pre { code { (clean_block(&scenario.started.source)) } }
        }
        @if let Some(baseline) = scenario.baseline {
            details {
                summary { "Baseline" }
                p {
                    (baseline.steps) " steps in " (format!("{:.2}", baseline.seconds)) " s, "
                    (baseline.saves.len()) " saves"
                    @if let Some(bytes) = baseline.peak_memory_bytes { ", peak memory " (bytes >> 20) " MiB" }
                    @if !baseline.ended_well { ", " strong.unsure { "failed" } }
                }
                @for value in &baseline.same { p { code { (clean(value)) } } }
                @for (what, count) in &baseline.counted { p.soft { (clean(what)) ": " (count) } }
            }
        }
    }
}
