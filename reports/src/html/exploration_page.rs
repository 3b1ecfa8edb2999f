//! The page on crash states: how many came to what, as a picture; then each cause with its story.

use maud::{Markup, html};

use super::document;
use crate::clean::clean;
use crate::exploration::{Exploration, Finding};

/// Crashes in the order in which people think of them.
const CRASH_KINDS: [(&str, &str); 2] = [("process", "killed"), ("power", "power lost")];
/// Lines of a list that are shown; the rest are counted.
const MAX_LINES: usize = 40;

pub(crate) fn page(found: &Exploration) -> Markup {
    let body = html! {
        header {
            h1 { (headline(found)) }
            p.soft {
                (found.operations.values().sum::<u64>()) " file operations recorded, "
                (found.tried) " states tried in " (format!("{:.1}", found.seconds)) " s ("
                (format!("{:.0}", found.states_per_second)) " /s)"
            }
        }
        main {
            (state_counts(found))
            @for (number, finding) in found.findings.iter().enumerate() { (section(&(number + 1).to_string(), finding)) }
            @for (number, again) in found.second.iter().enumerate() { (second_crash(number, again)) }
            (list("Never synced before it was called saved, or at all", &found.never_synced))
            (list("Written outside of the watched folders, so not part of any state", &paths(found)))
            h3 { "Operations recorded" }
            p { @for (kind, count) in &found.operations { code { (clean(kind)) } " " (count) "  " } }
        }
    };
    document("Trainwreck: crash states", &body)
}

fn paths(found: &Exploration) -> Vec<String> {
    found.outside.iter().map(|path| path.display().to_string()).collect()
}

fn headline(found: &Exploration) -> String {
    let causes = found.findings.len() + found.second.iter().map(|again| again.findings.len()).sum::<usize>();
    match causes {
        0 => "It came back from every state that was tried".into(),
        1 => "One thing that it does not come back from".into(),
        many => format!("{many} things that it does not come back from"),
    }
}

fn tone(outcome: &str) -> &'static str {
    match outcome {
        "recovered" => "good",
        "refused" => "none",
        "lost-work" | "restarted" => "unsure",
        _ => "bad",
    }
}

fn state_counts(found: &Exploration) -> Markup {
    html! {
        @for (crash, words) in CRASH_KINDS {
            @if let Some(outcomes) = found.outcomes.get(crash).filter(|outcomes| !outcomes.is_empty()) {
                @let of = |counts: &std::collections::BTreeMap<String, u64>| counts.get(crash).copied().unwrap_or(0);
                h3 { (words) ": " (of(&found.distinct)) " distinct states of " (of(&found.candidates)) " candidates, " (of(&found.left_out)) " left out" }
                div.bar role="img" aria-label=(legend(outcomes)) {
                    @for (outcome, count) in outcomes {
                        span class=(tone(outcome)) style={ "flex:" (count) } title={ (outcome) ": " (count) } {}
                    }
                }
                p { @for (outcome, count) in outcomes { span class=(tone(outcome)) { "\u{25a0} " (clean(outcome)) " " (count) } "   " } }
            }
        }
    }
}

fn legend(outcomes: &std::collections::BTreeMap<String, u64>) -> String {
    let words: Vec<String> = outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    words.join(", ")
}

fn section(number: &str, finding: &Finding) -> Markup {
    html! {
        section class={ "scenario " (tone(&finding.outcome)) } aria-label={ "finding " (number) } {
            header {
                h2 { (number) ". " code { (clean(&finding.cause)) } }
                span class={ "verdict " (tone(&finding.outcome)) } { (clean(&finding.outcome)) }
                span.soft { " " (finding.states) " states, under " (clean(&finding.under.join(", "))) }
            }
            p { strong { (clean(&finding.advice)) } }
            p.soft { "Breaks between " code { (clean(&finding.between[0])) } " and " code { (clean(&finding.between[1])) } }
            ol.ops {
                @for line in &finding.operations { li class=(line_class(line)) { (clean(line)) } }
            }
            @if !finding.difference.is_empty() {
                h3 { "Files, against the tree before the fault" }
                ol.ops { @for line in &finding.difference { li { (clean(line)) } } }
            }
            @if !finding.error.is_empty() { h3 { "What it said" } pre { (clean(&finding.error)) } }
            h3 { "Repeat it" }
            pre { code { (clean(&finding.repeat)) } }
        }
    }
}

/// Operations that were lost or torn stand out.
fn line_class(line: &str) -> &'static str {
    let struck = ["  lost", "  half lost", "  zeroes", "  torn:"];
    if struck.iter().any(|word| line.contains(word)) { "bad" } else { "" }
}

fn second_crash(number: usize, again: &Exploration) -> Markup {
    html! {
        h2 { "A second crash, " @if let Some(after) = &again.after { (clean(after)) } }
        (state_counts(again))
        @for (at, finding) in again.findings.iter().enumerate() {
            (section(&format!("{}.{}", number + 1, at + 1), finding))
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
