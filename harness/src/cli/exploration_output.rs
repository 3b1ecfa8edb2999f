//! What an expedition found, for people and for programs.

use std::path::Path;

use serde_json::json;

use crate::cli::print;
use crate::explore::{CrashState, ExploreConfig, ExploreResult, Finding};

pub(super) fn print_exploration(explored: &ExploreResult, orders: &ExploreConfig, repeat: &str) {
    let counted = &explored.counts;
    for kind in ["process", "power"] {
        let figure =
            |counts: &std::collections::BTreeMap<&'static str, u64>| counts.get(kind).copied().unwrap_or(0);
        let (candidates, distinct) = (figure(&counted.candidates), figure(&counted.distinct));
        if candidates == 0 {
            continue;
        }
        let outcomes = explored.outcomes();
        let words: Vec<String> = outcomes
            .get(kind)
            .into_iter()
            .flatten()
            .map(|(outcome, count)| format!("{count} {outcome}"))
            .collect();
        print::line(&format!(
            "{kind:<8} {distinct} distinct states of {candidates} candidates, {} left out: {}",
            figure(&counted.left_out),
            words.join(", ")
        ));
    }
    print::line(&format!(
        "{} states in {:.1} s, {:.0} states/s",
        explored.tried.len(),
        explored.seconds,
        explored.states_per_second()
    ));
    if orders.only_state.is_some() {
        print_single_state(explored);
    }
    for (number, finding) in explored.findings.iter().enumerate() {
        print_finding(number + 1, finding, repeat);
    }
    if explored.findings.is_empty() {
        print::line("it came back from every state that was tried");
    }
    print_remarks(explored);
}

/// What second crashes, in the recoveries from first ones, came to.
pub(super) fn print_second_crashes(first: &ExploreResult, again: &[(CrashState, ExploreResult)]) {
    if again.is_empty() {
        print::line("\nno second crash was tried: no recovery from a kill both succeeded and changed a file");
    }
    for (state, explored) in again {
        print::line(&format!("\na second crash, {}:", state.describe(&first.recording)));
        let figures = explored.outcomes().into_iter().flat_map(|(kind, outcomes)| {
            outcomes.into_iter().map(move |(outcome, count)| format!("{count} {outcome} ({kind})"))
        });
        let figures: Vec<String> = figures.collect();
        print::line(&format!("  {} states: {}", explored.tried.len(), figures.join(", ")));
        let known = |one: &Finding| {
            first.findings.iter().any(|before| before.cause == one.cause && before.outcome == one.outcome)
        };
        for finding in explored.findings.iter().filter(|one| !known(one)) {
            print::line(&format!("  {} -> {}: {}", finding.cause.name(), finding.outcome, finding.message));
            finding.operations.iter().for_each(|line| print::line(&format!("     {line}")));
        }
        let again = explored.findings.iter().filter(|one| known(one)).count();
        if again > 0 {
            print::line(&format!("  {again} of the causes above again"));
        }
    }
}

/// One state was asked for: what became of it.
fn print_single_state(explored: &ExploreResult) {
    for one in &explored.tried {
        for (crash, outcome) in &one.outcomes {
            print::line(&format!("state {} ({}): {outcome}", one.state.candidate().name(), crash.category()));
        }
        if !one.result.message.is_empty() {
            print::line(&format!("  it said: {}", one.result.message));
        }
    }
}

fn print_finding(number: usize, finding: &Finding, repeat: &str) {
    let under = finding.under.join(", ");
    print::line(&format!(
        "\n{number}. {} -> {}: {} states, under {under}",
        finding.cause.name(),
        finding.outcome,
        finding.state_count
    ));
    print::line(&format!("   breaks between  {}  and  {}", finding.between.0, finding.between.1));
    finding.operations.iter().for_each(|line| print::line(&format!("   {line}")));
    if !finding.difference.is_empty() {
        print::line("   files, against the tree before the fault:");
        finding.difference.iter().for_each(|line| print::line(&format!("     {line}")));
    }
    if !finding.message.is_empty() {
        print::line(&format!("   it said: {}", finding.message));
    }
    print::line(&format!("   advice: {}", finding.cause.advice()));
    print::line(&format!("   repeat: {}", repeat_command_for(repeat, finding)));
}

fn repeat_command_for(repeat: &str, finding: &Finding) -> String {
    repeat.replacen("--state STATE", &format!("--state '{}'", finding.candidate.name()), 1)
}

/// What the recording shows beside the states, and what it can't show.
fn print_remarks(explored: &ExploreResult) {
    let never = explored.recording.never_synced();
    if !never.is_empty() {
        print::line("\nnever synced before it was called saved, or at all:");
        never.iter().take(12).for_each(|line| print::line(&format!("  {line}")));
        if never.len() > 12 {
            print::line(&format!("  and {} more", never.len() - 12));
        }
    }
    let blind = &explored.recording.gaps;
    if !blind.outside_paths.is_empty() {
        print::line("\nopened for writing outside of the watched folders, so not part of any state:");
        blind.outside_paths.iter().take(8).for_each(|path| print::line(&format!("  {}", path.display())));
    }
    blind
        .refused_calls
        .iter()
        .for_each(|what| print::line(&format!("{what} was refused, so that the target used ordinary calls")));
    for path in &blind.mapped_paths {
        print::line(&format!(
            "`{}` was changed through a shared mapping: seen at syncs, renames and the end only",
            path.display()
        ));
    }
    if blind.unknown_files > 0 {
        print::line(&format!(
            "{} operations on files that were not known could not be placed",
            blind.unknown_files
        ));
    }
}

/// The same for programs.
pub(super) fn exploration_json(
    first: &ExploreResult,
    again: &[(CrashState, ExploreResult)],
    orders: &ExploreConfig,
    repeat: &str,
) -> String {
    let mut value = exploration_value(first, orders, repeat);
    let second: Vec<serde_json::Value> = again
        .iter()
        .map(|(state, explored)| {
            // A state of a second crash can't be named by itself: the command of the first one repeats it.
            let mut of = self::exploration_value(explored, orders, repeat);
            of["after"] = json!(state.describe(&first.recording));
            of
        })
        .collect();
    if !second.is_empty() {
        value["second"] = json!(second);
    }
    serde_json::to_string_pretty(&value).unwrap_or_default() + "\n"
}

fn exploration_value(explored: &ExploreResult, orders: &ExploreConfig, repeat: &str) -> serde_json::Value {
    let findings: Vec<serde_json::Value> = explored
        .findings
        .iter()
        .map(|finding| {
            json!({
                "cause": finding.cause.name(),
                "outcome": finding.outcome.to_string(),
                "under": finding.under,
                "states": finding.state_count,
                "between": [finding.between.0, finding.between.1],
                "operations": finding.operations,
                "difference": finding.difference,
                "error": finding.message,
                "advice": finding.cause.advice(),
                "state": finding.candidate.name(),
                "repeat": repeat_command_for(repeat, finding),
            })
        })
        .collect();
    json!({
        "version": 1,
        "operations": explored.recording.count_by_kind(),
        "candidates": explored.counts.candidates,
        "distinct": explored.counts.distinct,
        "left_out": explored.counts.left_out,
        "outcomes": explored.outcomes(),
        "findings": findings,
        "never_synced": explored.recording.never_synced(),
        "outside": explored.recording.gaps.outside_paths,
        "refused_calls": explored.recording.gaps.refused_calls,
        "tried": explored.tried.len(),
        "jobs": orders.jobs,
        "seconds": explored.seconds,
        "recording_seconds": explored.recording_seconds,
        "states_per_second": explored.states_per_second(),
    })
}

/// The report's files.
pub(super) fn write_report_files(json: &str, out: &Path) -> Result<(), String> {
    let write = |name: &str, text: &str| {
        let path = out.join(name);
        std::fs::write(&path, text).map_err(|error| format!("writing `{}`: {error}", path.display()))
    };
    write("explore.json", json)?;
    let exploration = serde_json::from_str(json).map_err(|error| format!("reading it back: {error}"))?;
    write("explore.html", &reports::exploration(&exploration))?;
    print::line(&format!("report: {}", out.join("explore.html").display()));
    Ok(())
}
