//! Prints the result of an exploration, and writes it as JSON and HTML. Decides nothing.

use std::path::Path;

use scenarios::{CrashCategory, Exploration, Finding, MessageCount, grouped};

use crate::error::CliError;
use crate::print;
use crate::report_paths::ReportDir;
use engine::explore::{ExploreError, ExploreResult, FailingTree, KeptRecording, RecordingGaps, TriedState};
use engine::file_error::file_error;

/// The files of a report.
const REPORT_FILES: [&str; 2] = ["explore.json", "explore.html"];
/// The directory in a report with its recording.
pub(crate) const RECORDING_DIR: &str = "recording";
/// What a report consists of.
pub(crate) const REPORT_NAMES: [&str; 3] = [REPORT_FILES[0], REPORT_FILES[1], RECORDING_DIR];
/// At most this many files that were never synced are printed.
const MAX_UNSYNCED_LINES: usize = 12;
/// At most this many paths outside the watched directories are printed.
const MAX_OUTSIDE_LINES: usize = 8;

/// Prints the counts, the findings, and what the recording could not see. `selected`: whether the state was
/// selected with `--state`.
pub(crate) fn print_exploration(explored: &ExploreResult, exploration: &Exploration, selected: bool) {
    for category in CrashCategory::ALL {
        print_counts(exploration, category);
    }
    if exploration.tried > 0 {
        print::line(&format!(
            "{} states in {:.1} s, {}",
            exploration.tried,
            exploration.seconds,
            exploration.speed()
        ));
    }
    exploration.controls_line().iter().for_each(|line| print::line(line));
    exploration.forked.iter().for_each(|forked| print::line(&forked.to_string()));
    exploration.left_out_lines().iter().for_each(|line| print::line(line));
    if selected {
        explored.tried.iter().for_each(print_tried_state);
    }
    for (number, finding) in exploration.findings.iter().enumerate() {
        print_finding(number + 1, finding);
    }
    print_unconfirmed_count(exploration);
    if exploration.tried == 0 {
        // Else it has been said why.
        if exploration.untried == 0 {
            print::line("no state was tried");
        }
    } else if exploration.has_unjudged() {
        print::line(
            "\nnot judged: each recovery that ended with exit code 0, because nothing else was checked",
        );
    } else if exploration.findings.is_empty() {
        print::line("the trainer recovered from every state that was tried");
    }
    print_notes(exploration);
    print_never_synced(&exploration.never_synced);
    print_gaps(&explored.recording.gaps);
}

/// Prints what limits the result.
fn print_notes(exploration: &Exploration) {
    if !exploration.notes.is_empty() {
        print::line("\nwhat limits this result:");
        exploration.notes.iter().for_each(|note| print::line(&format!("  {note}")));
    }
}

fn print_unconfirmed_count(exploration: &Exploration) {
    let unconfirmed = exploration.findings.iter().filter(|finding| !finding.is_confirmed());
    let states: u64 = unconfirmed.clone().map(|finding| finding.states).sum();
    let (count, all) = (unconfirmed.count(), exploration.findings.len());
    if count > 0 {
        print::line(&format!("\n{count} of {all} findings not confirmed, with {states} states"));
    }
}

fn print_counts(exploration: &Exploration, category: CrashCategory) {
    let candidates = exploration.candidates.get(&category).copied().unwrap_or(0);
    if candidates == 0 {
        return;
    }
    let outcomes = exploration.outcomes.get(&category).into_iter().flatten();
    let outcomes: Vec<String> = outcomes.map(|(outcome, count)| format!("{count} {outcome}")).collect();
    let outcomes = if outcomes.is_empty() { String::new() } else { format!(": {}", outcomes.join(", ")) };
    print::line(&format!(
        "{:<8} {} of {} states tried, of {candidates} candidates{outcomes}",
        category.name(),
        exploration.tried_in(category),
        exploration.distinct.get(&category).copied().unwrap_or(0)
    ));
}

/// Prints the findings of crashes during the recovery from a first crash.
pub(crate) fn print_second_crashes(first: &Exploration) {
    let (tried, untried) = (first.second.len(), first.untried_recoveries);
    let interrupted = untried > 0;
    if interrupted {
        let why = if first.max_time_s.is_some() { "stopped by --max-time" } else { "interrupted" };
        print::line(&format!(
            "\n{why}: second crashes were tried in {tried} recoveries, and not in {untried} others"
        ));
    } else if first.second.is_empty() && first.untried == 0 && first.unrecorded_recoveries == 0 {
        print::line("\nno second crash was tried: no recovery from a kill both succeeded and changed a file");
    }
    let has_all = first.only_state.is_none() && !first.second.is_empty();
    if !interrupted && has_all {
        print::line(&format!(
            "\nsecond crashes were tried in {} of {} recoveries from a kill",
            first.second.len(),
            first.recovered_kills
        ));
    }
    if has_all {
        print::line(&pairs_line(first));
    }
    for second in &first.second {
        print::line(&format!("\na second crash, {}:", second.after.as_deref().unwrap_or_default()));
        let counts = second.outcomes.iter().flat_map(|(category, outcomes)| {
            outcomes.iter().map(move |(outcome, count)| format!("{count} {outcome} ({})", category.name()))
        });
        let counts: Vec<String> = counts.collect();
        let counts = if counts.is_empty() { String::new() } else { format!(": {}", counts.join(", ")) };
        // The others were not counted if only one was asked for.
        let states = second.only_state.as_ref().map_or(second.states, |_| second.tried);
        print::line(&format!("  {} of {states} states tried{counts}", second.tried));
        second.forked.iter().for_each(|forked| print::line(&format!("  {forked}")));
        second.left_out_lines().iter().for_each(|line| print::line(&format!("  {line}")));
        second.notes.iter().for_each(|note| print::line(&format!("  {note}")));
        let is_known = |finding: &&Finding| first.findings.iter().any(|known| known.is_like(finding));
        for finding in second.findings.iter().filter(|finding| !is_known(finding)) {
            print::line(&format!("  {} -> {}: {}", finding.cause, outcomes_of(finding), finding.error));
            if let Some(doubt) = finding.doubt() {
                print::line(&format!("     {doubt}"));
            }
            finding.operations.iter().for_each(|line| print::line(&format!("     {}", line.text)));
            print::line(&format!("     repeat: {}", finding.repeat));
        }
        let known = second.findings.iter().filter(is_known).count();
        if known > 0 {
            print::line(&format!("  and {known} of the findings above again"));
        }
    }
}

/// How many pairs of crashes were tried, and how many there are.
fn pairs_line(first: &Exploration) -> String {
    let tried: u64 = first.second.iter().map(|second| second.tried).sum();
    let known: u64 = first.second.iter().map(|second| second.states).sum();
    let recorded = first.second.len() as u64;
    let others = first.recovered_kills.saturating_sub(recorded);
    let line =
        format!("{} of {} pairs of crash states in these recoveries tried", grouped(tried), grouped(known));
    if others == 0 {
        return line;
    }
    // Those that were chosen lie far apart, so that the others are probably like them.
    let estimate = known * others / recorded.max(1);
    format!(
        "{line}; the other {} recoveries were not recorded and have about {} more",
        grouped(others),
        grouped(estimate)
    )
}

/// Prints the outcome of a state that was selected with `--state`.
fn print_tried_state(tried: &TriedState) {
    for (crash, outcome) in &tried.outcomes {
        print::line(&format!("this state ({}): {outcome}", crash.crash_model().name()));
    }
    if !tried.result.message.is_empty() {
        print::line(&format!("  output: {}", tried.result.message));
    }
}

fn outcomes_of(finding: &Finding) -> String {
    let outcomes: Vec<String> = finding.all_outcomes().iter().map(ToString::to_string).collect();
    outcomes.join(" and ")
}

fn print_finding(number: usize, finding: &Finding) {
    let under: Vec<&str> = finding.under.iter().map(|model| model.name()).collect();
    let under = if under.is_empty() { String::new() } else { format!(", under {}", under.join(", ")) };
    print::line(&format!(
        "\n{number}. {} -> {}: {}{under}",
        finding.cause,
        outcomes_of(finding),
        finding.states_text()
    ));
    if let Some(doubt) = finding.doubt() {
        print::line(&format!("   {doubt}"));
    }
    match &finding.controls {
        Some(controls) => print::line(&format!("   {controls}")),
        None => print_crash(finding),
    }
    if !finding.error.is_empty() {
        print::line(&format!("   output: {}", finding.error));
    }
    if !finding.messages.is_empty() {
        print::line(&format!("   {} different messages:", finding.messages.len()));
        let line =
            |message: &MessageCount| print::line(&format!("   {:>6}  {}", message.states, message.line));
        finding.messages.iter().for_each(line);
    }
    print::line(&format!("   advice: {}", finding.advice));
    print::line(&format!("   repeat: {}", finding.repeat));
}

/// Prints where the crash falls, and what it leaves.
fn print_crash(finding: &Finding) {
    print::line(&format!("   {}", finding.crash_text()));
    finding.operations.iter().for_each(|line| print::line(&format!("   {}", line.text)));
    if !finding.difference.is_empty() {
        print::line("   files, compared with the tree before the crash:");
        finding.difference.iter().for_each(|line| print::line(&format!("     {line}")));
    }
}

fn print_never_synced(never_synced: &[String]) {
    if never_synced.is_empty() {
        return;
    }
    print::line("\nnot synced before the save was acknowledged, or never synced:");
    never_synced.iter().take(MAX_UNSYNCED_LINES).for_each(|line| print::line(&format!("  {line}")));
    if never_synced.len() > MAX_UNSYNCED_LINES {
        print::line(&format!("  and {} more", never_synced.len() - MAX_UNSYNCED_LINES));
    }
}

/// Prints what the recording could not see.
fn print_gaps(gaps: &RecordingGaps) {
    if !gaps.sandbox_hints.is_empty() {
        print::line("\nwhat the trainer met in the sandbox:");
        gaps.sandbox_hints.iter().take(MAX_OUTSIDE_LINES).for_each(|hint| print::line(&format!("  {hint}")));
        if gaps.sandbox_hints.len() > MAX_OUTSIDE_LINES {
            print::line(&format!("  and {} more", gaps.sandbox_hints.len() - MAX_OUTSIDE_LINES));
        }
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

/// Prints why the recording was not kept. Returns the error, if there was one.
pub(crate) fn print_kept_recording(kept: Option<KeptRecording>) -> Option<CliError> {
    let reason = match kept {
        None | Some(KeptRecording::Kept) => return None,
        Some(KeptRecording::Failed(error)) => return Some(error.into()),
        Some(KeptRecording::TooLarge { len_bytes, max_bytes }) => {
            format!("it has {} bytes, and --keep-recording allows {}", grouped(len_bytes), grouped(max_bytes))
        }
        Some(KeptRecording::HasOverlays) => "it refers to files of a large watched directory".into(),
    };
    print::line(&format!(
        "\nthe recording is not kept, because {reason}: the repeat commands record the trainer again"
    ));
    None
}

/// Prints where the files of failing states are. Returns the error, if they could not be kept.
pub(crate) fn print_failing_trees(kept: Result<Vec<FailingTree>, ExploreError>) -> Option<CliError> {
    match kept {
        Ok(trees) => {
            trees
                .iter()
                .for_each(|tree| print::line(&format!("files of {}: {}", tree.state, tree.dir.display())));
            None
        }
        Err(error) => Some(error.into()),
    }
}

/// Removes the recording of a report that was not written: nobody is told of it.
pub(crate) fn remove_recording_without_report(dir: &ReportDir) {
    let (report, recording) = (dir.path().join(REPORT_FILES[0]), dir.path().join(RECORDING_DIR));
    if !report.exists() {
        // Without a report there is also an error that is printed.
        let _ = std::fs::remove_dir_all(recording);
    }
}

/// Writes the files of the report, [`REPORT_FILES`]. Returns those that could not be written.
pub(crate) fn write_report_files(exploration: &Exploration, out_dir: &Path) -> Vec<CliError> {
    let texts = [exploration.to_json(), reports::exploration(exploration)];
    let write = |(name, text): (&&str, String)| {
        let path = out_dir.join(name);
        std::fs::write(&path, text).map_err(file_error::<CliError>("write", &path)).err()
    };
    let failures: Vec<CliError> = REPORT_FILES.iter().zip(texts).filter_map(write).collect();
    if failures.is_empty() {
        print::line(&format!("report: {}", out_dir.join("explore.html").display()));
    }
    failures
}
