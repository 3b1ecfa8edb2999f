//! Prints the result of an exploration, and writes it as JSON and HTML. Decides nothing.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::print;
use engine::explore::{CrashState, ExploreConfig, ExploreResult, Finding};

/// Prints the counts, the findings, and what the recording could not see. `repeat` is this command line with
/// a placeholder for the name of a state.
pub(crate) fn print_exploration(explored: &ExploreResult, config: &ExploreConfig, repeat: &str) {
    let counts = &explored.counts;
    for kind in ["process", "power"] {
        let count = |by_kind: &BTreeMap<&'static str, u64>| by_kind.get(kind).copied().unwrap_or(0);
        let (candidates, distinct) = (count(&counts.candidates), count(&counts.distinct));
        if candidates == 0 {
            continue;
        }
        let outcomes = explored.outcomes();
        let outcome_counts: Vec<String> = outcomes
            .get(kind)
            .into_iter()
            .flatten()
            .map(|(outcome, count)| format!("{count} {outcome}"))
            .collect();
        print::line(&format!(
            "{kind:<8} {distinct} states of {candidates} candidates, {} left out: {}",
            count(&counts.left_out),
            outcome_counts.join(", ")
        ));
    }
    print::line(&format!(
        "{} states in {:.1} s, {:.0} states/s",
        explored.tried.len(),
        explored.seconds,
        explored.states_per_second()
    ));
    if config.only_state.is_some() {
        print_single_state(explored);
    }
    for (number, finding) in explored.findings.iter().enumerate() {
        print_finding(number + 1, finding, repeat);
    }
    if explored.findings.is_empty() {
        print::line("the trainer recovered from every state that was tried");
    }
    print_remarks(explored);
}

/// Prints the findings of crashes during the recovery from a first crash.
pub(crate) fn print_second_crashes(first: &ExploreResult, second_crashes: &[(CrashState, ExploreResult)]) {
    if second_crashes.is_empty() {
        print::line("\nno second crash was tried: no recovery from a kill both succeeded and changed a file");
    }
    for (state, explored) in second_crashes {
        print::line(&format!("\na second crash, {}:", state.describe(&first.recording)));
        let counts = explored.outcomes().into_iter().flat_map(|(kind, outcomes)| {
            outcomes.into_iter().map(move |(outcome, count)| format!("{count} {outcome} ({kind})"))
        });
        let counts: Vec<String> = counts.collect();
        print::line(&format!("  {} states: {}", explored.tried.len(), counts.join(", ")));
        let is_known = |finding: &Finding| {
            let is_same = |known: &Finding| known.cause == finding.cause && known.outcome == finding.outcome;
            first.findings.iter().any(is_same)
        };
        for finding in explored.findings.iter().filter(|finding| !is_known(finding)) {
            print::line(&format!("  {} -> {}: {}", finding.cause.name(), finding.outcome, finding.message));
            finding.operations.iter().for_each(|line| print::line(&format!("     {line}")));
        }
        let known = explored.findings.iter().filter(|finding| is_known(finding)).count();
        if known > 0 {
            print::line(&format!("  and {known} of the findings above again"));
        }
    }
}

/// Prints the outcome of the state that was selected with `--state`.
fn print_single_state(explored: &ExploreResult) {
    for tried in &explored.tried {
        for (crash, outcome) in &tried.outcomes {
            let name = tried.state.candidate().name();
            print::line(&format!("state {name} ({}): {outcome}", crash.category()));
        }
        if !tried.result.message.is_empty() {
            print::line(&format!("  output: {}", tried.result.message));
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
        print::line("   files, compared with the tree before the crash:");
        finding.difference.iter().for_each(|line| print::line(&format!("     {line}")));
    }
    if !finding.message.is_empty() {
        print::line(&format!("   output: {}", finding.message));
    }
    print::line(&format!("   advice: {}", finding.cause.advice()));
    print::line(&format!("   repeat: {}", repeat_command_for(repeat, finding)));
}

/// The command that tries the finding's state alone.
fn repeat_command_for(repeat: &str, finding: &Finding) -> String {
    repeat.replacen("--state STATE", &format!("--state '{}'", finding.candidate.name()), 1)
}

/// Prints files that were never synced, and what the recording could not see.
fn print_remarks(explored: &ExploreResult) {
    let never_synced = explored.recording.never_synced();
    if !never_synced.is_empty() {
        print::line("\nnot synced before the save was acknowledged, or never synced:");
        never_synced.iter().take(12).for_each(|line| print::line(&format!("  {line}")));
        if never_synced.len() > 12 {
            print::line(&format!("  and {} more", never_synced.len() - 12));
        }
    }
    let gaps = &explored.recording.gaps;
    if !gaps.outside_paths.is_empty() {
        print::line(
            "\nopened for writing outside the watched directories, and therefore not part of any state:",
        );
        gaps.outside_paths.iter().take(8).for_each(|path| print::line(&format!("  {}", path.display())));
    }
    for call in &gaps.refused_calls {
        print::line(&format!("{call} was refused, so that the trainer used ordinary calls"));
    }
    for path in &gaps.mapped_paths {
        print::line(&format!(
            "`{}` was changed through a shared mapping: its content is known only at syncs and renames",
            path.display()
        ));
    }
    if gaps.unknown_files > 0 {
        print::line(&format!("{} operations on unknown files are not part of any state", gaps.unknown_files));
    }
}

/// The result as JSON, with the findings of second crashes under `second`.
pub(crate) fn exploration_json(
    first: &ExploreResult,
    second_crashes: &[(CrashState, ExploreResult)],
    config: &ExploreConfig,
    repeat: &str,
) -> String {
    let mut value = exploration_value(first, config, repeat);
    let second: Vec<serde_json::Value> = second_crashes
        .iter()
        .map(|(state, explored)| {
            // `--state` cannot name a state of a second crash. `after` describes the first crash.
            let mut value = exploration_value(explored, config, repeat);
            value["after"] = json!(state.describe(&first.recording));
            value
        })
        .collect();
    if !second.is_empty() {
        value["second"] = json!(second);
    }
    serde_json::to_string_pretty(&value).unwrap_or_default() + "\n"
}

fn exploration_value(explored: &ExploreResult, config: &ExploreConfig, repeat: &str) -> serde_json::Value {
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
        "jobs": config.jobs,
        "seconds": explored.seconds,
        "recording_seconds": explored.recording_seconds,
        "states_per_second": explored.states_per_second(),
    })
}

/// Writes `explore.json` and `explore.html`.
///
/// # Errors
/// Returns a message for the user that names the file that could not be written.
pub(crate) fn write_report_files(json: &str, out_dir: &Path) -> Result<(), String> {
    let write = |name: &str, text: &str| {
        let path = out_dir.join(name);
        std::fs::write(&path, text).map_err(|error| format!("could not write `{}`: {error}", path.display()))
    };
    write("explore.json", json)?;
    let exploration = serde_json::from_str(json)
        .map_err(|error| format!("could not read the JSON result back: {error}"))?;
    write("explore.html", &reports::exploration(&exploration))?;
    print::line(&format!("report: {}", out_dir.join("explore.html").display()));
    Ok(())
}
