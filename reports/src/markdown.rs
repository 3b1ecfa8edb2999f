//! Markdown, for a CI job's summary or a comment.

use std::fmt::Write;

use scenarios::Verdict;

use crate::clean::clean;
use crate::summary;
use crate::view::{RunView, ScenarioStatus, ScenarioView};

/// Reasons shown of one scenario.
const MAX_REASONS: usize = 5;

pub(crate) fn text(run: &RunView<'_>) -> String {
    let mut text = String::new();
    let counted = summary::summarize(run);
    let counts: Vec<String> =
        counted.counts.iter().map(|count| format!("{} {}", count.scenarios, count.label)).collect();
    // Writing to a string can't fail.
    let _ = writeln!(text, "## Trainwreck: {}\n", counts.join(", "));
    if !counted.finished {
        let _ = writeln!(text, "> **The run did not finish**: what follows is what the record holds.\n");
    }
    let _ = writeln!(
        text,
        "| | scenario | what happens to the trainer | trials | seconds |\n|---|---|---|--:|--:|"
    );
    for one in &run.scenarios {
        let guard = one
            .started
            .guard_removed
            .as_ref()
            .map(|guard| format!(" (without `{}`)", cell(guard)))
            .unwrap_or_default();
        let mark = one.status();
        let _ = writeln!(
            text,
            "| {} {} | `{}` | {}{guard} | {} | {:.1} |",
            mark.symbol(),
            mark.label(),
            cell(one.id),
            cell(&one.started.title),
            one.trials.len(),
            one.seconds
        );
    }
    run.scenarios.iter().for_each(|one| details_block(&mut text, one));
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

/// What is to be looked at gets a block of its own.
fn details_block(text: &mut String, one: &ScenarioView<'_>) {
    let mark = one.status();
    if matches!(mark, ScenarioStatus::Survived | ScenarioStatus::Caught) {
        return;
    }
    let _ = writeln!(
        text,
        "\n<details><summary>{} <code>{}</code> {}</summary>\n",
        mark.symbol(),
        escaped(one.id),
        mark.label()
    );
    if let Some(why) = one.why() {
        let _ = writeln!(text, "{}\n", cell(why));
    }
    if let Some(Verdict::Violated { reasons }) = one.verdict {
        for reason in reasons.iter().take(MAX_REASONS) {
            let trial = reason.trial.map(|trial| format!(", trial {trial}")).unwrap_or_default();
            let _ = writeln!(text, "- `{}`{trial}: {}", cell(&reason.expectation), cell(&reason.found));
        }
        let more = reasons.len().saturating_sub(MAX_REASONS);
        if more > 0 {
            let _ = writeln!(text, "- and {more} more");
        }
    }
    let _ = writeln!(text, "\n```sh\n{}\n```\n</details>", clean(&one.started.repeat).replace('`', "'"));
}

fn escaped(text: &str) -> String {
    clean(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Text that can't leave its cell or its code span.
fn cell(text: &str) -> String {
    escaped(text).replace('|', "\\|").replace('`', "'")
}
