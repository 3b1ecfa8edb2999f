//! The page of an exploration: the outcomes of all crash states, then each finding with the operations that
//! show it.

use std::collections::BTreeMap;

use maud::{Markup, html};
use scenarios::{
    CrashCategory, CrashModel, Exploration, Finding, OperationLine, Outcome, RecoveryCheck, grouped,
};

use super::{document, sandbox_hints};
use crate::clean::{clean, clean_block};

/// Largest number of lines of a list that are shown. The rest are counted.
const MAX_LINES: usize = 40;

pub(crate) fn page(exploration: &Exploration) -> Markup {
    let body = html! {
        header {
            h1 { (headline(exploration)) }
            p.soft {
                (exploration.operations.values().sum::<u64>()) " file operations recorded, "
                (exploration.tried) " states tried in " (format!("{:.1}", exploration.seconds)) " s ("
                (exploration.speed()) ")"
            }
            p.soft { (clean(&RecoveryCheck::describe(&exploration.checks))) }
            @if let Some(line) = exploration.controls_line() { p.soft { (clean(&line)) } }
            @if let Some(forked) = exploration.forked { p.soft { (clean(&forked.to_string())) } }
            @for line in exploration.left_out_lines() { p.unsure { (clean(&line)) } }
            @for note in &exploration.notes { p.unsure { (clean(&note.to_string())) } }
        }
        main {
            (state_counts(exploration))
            @for (index, finding) in exploration.findings.iter().enumerate() {
                (section(&(index + 1).to_string(), finding))
            }
            @if exploration.recovered_kills > 0 {
                p {
                    "Second crashes were tried in " (exploration.second.len()) " of "
                    (grouped(exploration.recovered_kills)) " recoveries from a kill."
                }
            }
            @for (index, second) in exploration.second.iter().enumerate() { (second_crash(index, second)) }
            (list("Not synced before the save was acknowledged, or never synced", &exploration.never_synced))
            (list("Written outside the recorded directories, so in no crash state", &exploration.outside))
            (sandbox_hints(&exploration.sandbox_hints))
            h3 { "Recorded operations" }
            p { @for (kind, count) in &exploration.operations { code { (clean(kind)) } " " (count) "  " } }
        }
    };
    document("Trainwreck: crash states", &body)
}

/// The heading of the page.
fn headline(exploration: &Exploration) -> String {
    let findings = exploration.findings.len()
        + exploration.second.iter().map(|second| second.findings.len()).sum::<usize>();
    match findings {
        1.. if !exploration.has_confirmed_findings() => {
            format!("{findings} findings, none of them confirmed")
        }
        0 if exploration.tried == 0 => "No crash state was tried".into(),
        0 if exploration.has_unjudged() => {
            "Nothing is known: exit code 0 alone does not show that a recovery is right".into()
        }
        0 if exploration.is_weakened() => {
            "The command recovered from every crash state that was tried, but the recording has limits".into()
        }
        0 => "The command recovered from every crash state that was tried".into(),
        _ if exploration.findings.iter().any(|finding| finding.controls.is_some()) => {
            format!(
                "{findings} finding{}: the command does not recover even without a crash",
                plural(findings as u64)
            )
        }
        1 => "1 finding: crash states from which the command does not recover".into(),
        count => format!("{count} findings: crash states from which the command does not recover"),
    }
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn heading(category: CrashCategory) -> &'static str {
    match category {
        CrashCategory::Process => "Process killed",
        CrashCategory::Power => "Power lost",
    }
}

/// The CSS class of an outcome.
fn tone(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Recovered => "good",
        Outcome::Refused => "none",
        Outcome::LostWork | Outcome::Restarted | Outcome::EndedEarly | Outcome::NotJudged => "unsure",
        Outcome::Crashed | Outcome::Hung | Outcome::Corrupt => "bad",
    }
}

fn state_counts(exploration: &Exploration) -> Markup {
    html! {
        @for crash in CrashCategory::ALL {
            @if let Some(outcomes) = exploration.outcomes.get(&crash).filter(|outcomes| !outcomes.is_empty()) {
                @let count_of = |counts: &BTreeMap<CrashCategory, u64>| counts.get(&crash).copied().unwrap_or(0);
                h3 {
                    (heading(crash)) ": " (grouped(exploration.tried_in(crash)))
                    @if exploration.only_state.is_none() {
                        " of " (grouped(count_of(&exploration.distinct))) " states tried, of "
                        (grouped(count_of(&exploration.candidates))) " candidates"
                    } @else { " states tried" }
                }
                div.bar role="img" aria-label=(legend(outcomes)) {
                    @for (outcome, count) in outcomes {
                        span
                            class=(tone(*outcome))
                            style={ "flex:" (count) }
                            title={ (outcome) ": " (count) } {}
                    }
                }
                p {
                    @for (outcome, count) in outcomes {
                        span class=(tone(*outcome)) { "\u{25a0} " (outcome) " " (count) } "   "
                    }
                }
            }
        }
    }
}

fn legend(outcomes: &BTreeMap<Outcome, u64>) -> String {
    let parts: Vec<String> = outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    parts.join(", ")
}

fn section(number: &str, finding: &Finding) -> Markup {
    html! {
        section class={ "scenario " (tone(finding.outcome)) } aria-label={ "finding " (number) } {
            header {
                h2 { (number) ". " code { (finding.cause) } }
                @for outcome in finding.all_outcomes() {
                    span class={ "verdict " (tone(outcome)) } { (outcome) }
                }
                span.soft {
                    " " (finding.states_text())
                    @if !finding.under.is_empty() { ", crash models: " (names(&finding.under)) }
                }
            }
            @if let Some(doubt) = finding.doubt() { p { strong { (clean(&doubt)) } } }
            p { strong { (clean(&finding.advice)) } }
            @match &finding.controls {
                Some(controls) => { p { "It " (clean(&controls.to_string())) "." } }
                None => { (crash(finding)) }
            }
            @if !finding.error.is_empty() {
                h3 { "What the recovery did" }
                pre { (clean(&finding.error)) }
            }
            @if !finding.messages.is_empty() {
                h3 { (finding.messages.len()) " different messages, with the number of states" }
                ol.ops {
                    @for message in &finding.messages {
                        li { (format!("{:>6}  ", message.states)) (clean(&message.line)) }
                    }
                }
            }
            h3 { "How to repeat it" }
            pre { code { (clean_block(&finding.repeat)) } }
        }
    }
}

/// Where the crash falls, and what it leaves.
fn crash(finding: &Finding) -> Markup {
    html! {
        p.soft { "It " (clean(&finding.crash_text())) "." }
        ol.ops {
            @for line in &finding.operations { li class=(line_class(line)) { (clean(&line.text)) } }
        }
        @if !finding.difference.is_empty() {
            h3 { "Files that differ from the tree before the crash" }
            ol.ops { @for line in &finding.difference { li { (clean(line)) } } }
        }
    }
}

fn names(models: &[CrashModel]) -> String {
    let names: Vec<&str> = models.iter().map(|model| model.name()).collect();
    names.join(", ")
}

/// The CSS class of an operation: those that were lost or torn are highlighted.
fn line_class(line: &OperationLine) -> &'static str {
    if line.fate.is_damaged() { "bad" } else { "" }
}

fn second_crash(first: usize, second: &Exploration) -> Markup {
    html! {
        h2 { "A second crash, " @if let Some(after) = &second.after { (clean(after)) } }
        (state_counts(second))
        @for line in second.left_out_lines() { p.unsure { (clean(&line)) } }
        @for note in &second.notes { p.unsure { (clean(&note.to_string())) } }
        @for (index, finding) in second.findings.iter().enumerate() {
            (section(&format!("{}.{}", first + 1, index + 1), finding))
        }
    }
}

fn list(title: &str, lines: &[String]) -> Markup {
    html! {
        @if !lines.is_empty() {
            details open[lines.len() <= 6] {
                summary { (title) ": " (lines.len()) }
                ol.ops { @for line in lines.iter().take(MAX_LINES) { li { (clean(line)) } } }
                @if lines.len() > MAX_LINES { p.soft { "and " (lines.len() - MAX_LINES) " more" } }
            }
        }
    }
}
