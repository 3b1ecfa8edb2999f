//! The page: verdicts first, then each scenario with its picture, its evidence, and the command that repeats it.

mod exploration_page;
mod scenario;
mod timeline;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::clean::clean;
use crate::summary;
use crate::view::{RunView, ScenarioView};

const STYLE: &str = include_str!("style.css");

pub(crate) use exploration_page::page as exploration;

pub(crate) fn page(run: &RunView<'_>) -> Markup {
    let body = html! {
        (page_header(run))
        main {
            (overview(run))
            @for one in worst_first(run) { (scenario::section(one)) }
        }
        (machine(run))
    };
    document(&format!("Trainwreck: {}", clean(&run.started.run)), &body)
}

/// A whole file: it needs nothing beside itself, and runs nothing.
fn document(title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    }
}

/// The worst first.
fn worst_first<'a, 'r>(run: &'a RunView<'r>) -> Vec<&'a ScenarioView<'r>> {
    let mut all: Vec<&ScenarioView<'_>> = run.scenarios.iter().collect();
    all.sort_by_key(|one| (one.status(), one.id));
    all
}

fn page_header(run: &RunView<'_>) -> Markup {
    let counted = summary::summarize(run);
    let seconds = run.ended.map(|ended| format!(", {:.1} s", ended.seconds)).unwrap_or_default();
    let proving = run.scenarios.iter().any(|one| one.started.guard_removed.is_some());
    html! {
        header {
            h1 { "What the trainer came back from, and what it did not" }
            p.soft { (clean(&run.started.started)) ", seed " (run.started.seed) (seconds) ", " (counted.trials) " trials" }
            @if proving {
                p { "In this run protections were taken away, one at a time. A scenario that is then violated has shown that it can notice." }
            }
            @if !counted.finished {
                p.notice role="alert" { strong { "The run did not finish." } " What follows is what its record holds." }
            }
            ul.counts {
                @for count in &counted.counts { li class=(tone_of(count.label)) { b { (count.scenarios) } (count.label) } }
            }
        }
    }
}

fn tone_of(word: &str) -> &'static str {
    match word {
        "violated" | "not noticed" => "bad",
        "inconclusive" | "unfinished" => "unsure",
        "skipped" => "none",
        _ => "good",
    }
}

fn overview(run: &RunView<'_>) -> Markup {
    html! {
        div.wide {
            table {
                thead { tr { th { "verdict" } th { "scenario" } th { "what happens to the trainer" } th { "severity" } th.n { "trials" } th.n { "seconds" } th { "guards" } } }
                tbody {
                    @for one in worst_first(run) {
                        @let mark = one.status();
                        tr {
                            td class={ "verdict " (mark.tone()) } { (mark.symbol()) " " (mark.label()) }
                            td { a href={ "#" (anchor_id(one.id)) } { code { (clean(one.id)) } } }
                            td { (clean(&one.started.title)) }
                            td { (clean(&one.started.severity)) }
                            td.n { (one.trials.len()) }
                            td.n { (format!("{:.1}", one.seconds)) }
                            td { (guards(one)) }
                        }
                    }
                }
            }
        }
    }
}

fn guards(one: &ScenarioView<'_>) -> Markup {
    match &one.started.guard_removed {
        Some(guard) => html! { "without " code { (clean(guard)) } },
        None => html! { code { (clean(&one.started.guards.join(", "))) } },
    }
}

fn anchor_id(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

fn machine(run: &RunView<'_>) -> Markup {
    let machine = &run.started.machine;
    html! {
        footer {
            h3 { "The machine" }
            p { "Linux " (clean(&machine.kernel)) ", " (machine.cores) " cores, " (machine.memory_bytes >> 30) " GiB, " (clean(&machine.user)) ", trainwreck " (clean(&run.started.version)) }
            p { code { (clean(&run.started.command.join(" "))) } }
            ul.checks {
                @for mechanism in &machine.mechanisms {
                    li { span class=(if mechanism.granted { "good" } else { "none" }) { (if mechanism.granted { "✓ " } else { "– " }) } code { (clean(&mechanism.name)) } " " (clean(&mechanism.detail)) }
                }
            }
        }
    }
}
