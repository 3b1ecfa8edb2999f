//! A Markdown summary for a CI job or a pull request.

use std::fmt::Write;

use scenarios::{ReasonGroup, Verdict};

use crate::clean::{clean, clean_block};
use crate::summary;
use crate::view::{RunView, ScenarioStatus, ScenarioView};

/// Largest number of reasons that are shown of one scenario.
const MAX_REASONS: usize = 5;

pub(crate) fn text(run: &RunView<'_>) -> String {
    let mut text = String::new();
    let summary = summary::summarize(run);
    let counts: Vec<String> =
        summary.counts.iter().map(|count| format!("{} {}", count.scenarios, count.label)).collect();
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "## Trainwreck: {}\n", counts.join(", "));
    if !summary.finished {
        let _ = writeln!(text, "> **The run did not finish.** This is what the record contains.\n");
    }
    let _ = writeln!(text, "{}.\n", summary.trials);
    let _ = writeln!(
        text,
        "| | scenario | what happens to the trainer | tried | seconds |\n|---|---|---|---|--:|"
    );
    for scenario in &run.scenarios {
        let guard = scenario
            .started
            .guard_removed
            .as_ref()
            .map(|guard| format!(" (without `{}`)", cell(guard)))
            .unwrap_or_default();
        let status = scenario.status();
        let _ = writeln!(
            text,
            "| {} {} | `{}` | {}{guard} | {} | {:.1} |",
            status.symbol(),
            scenario.label(),
            cell(scenario.id),
            cell(&scenario.started.title),
            scenario.counts,
            scenario.seconds
        );
    }
    run.scenarios.iter().for_each(|scenario| details_block(&mut text, scenario));
    let machine = &run.started.machine;
    let _ = writeln!(
        text,
        "\nSeed {}, Linux {}, {} cores, {}.",
        run.started.seed,
        cell(&machine.kernel),
        machine.cores,
        cell(&machine.user)
    );
    text
}

/// A block with details for a scenario that did not pass.
fn details_block(text: &mut String, scenario: &ScenarioView<'_>) {
    let status = scenario.status();
    if matches!(status, ScenarioStatus::Survived | ScenarioStatus::Caught) {
        return;
    }
    let _ = writeln!(
        text,
        "\n<details><summary>{} <code>{}</code> {}</summary>\n",
        status.symbol(),
        escaped(scenario.id),
        status.label()
    );
    if let Some(why) = scenario.why() {
        let _ = writeln!(text, "{}\n", cell(why));
    }
    for failed in &scenario.failed_runs {
        let lines: Vec<String> = failed.details().iter().map(|line| clean(line).replace('`', "'")).collect();
        let _ = writeln!(text, "```text\n{}\n```\n", lines.join("\n"));
    }
    if let Some(Verdict::Violated { reasons }) = scenario.verdict {
        let groups = ReasonGroup::of(reasons);
        for group in groups.iter().take(MAX_REASONS) {
            let (expectation, found) = (cell(&group.first.expectation), cell(&group.first.found));
            let _ = writeln!(text, "- `{expectation}`: {}{found}", group.trials_text());
        }
        let more = groups.len().saturating_sub(MAX_REASONS);
        if more > 0 {
            let _ = writeln!(text, "- and {more} more");
        }
    }
    // The command must stay what it is, whatever is in it.
    let repeat = clean_block(&scenario.started.repeat);
    let fence = "`".repeat(3.max(longest_run(&repeat, '`') + 1));
    let _ = writeln!(text, "\n{fence}sh\n{repeat}\n{fence}\n</details>");
}

/// How many of these letters there are at most in a row.
fn longest_run(text: &str, wanted: char) -> usize {
    text.split(|letter| letter != wanted).map(str::len).max().unwrap_or(0)
}

fn escaped(text: &str) -> String {
    clean(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Escapes text for a table cell or a code span.
fn cell(text: &str) -> String {
    escaped(text).replace('|', "\\|").replace('`', "'")
}
