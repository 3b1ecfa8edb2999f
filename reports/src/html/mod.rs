//! The page of a run: first the verdicts, then each scenario with a chart, its evidence, and the command that
//! repeats it.

mod exploration_page;
mod html_file;
mod sandbox_hints;
mod scenario;
mod timeline;
mod trials;

use html_file::{anchor_id, document};
use maud::{Markup, html};
use sandbox_hints::sandbox_hints;

use crate::clean::clean;
use crate::summary;
use crate::view::{RunView, ScenarioView};

pub(crate) use exploration_page::page as exploration;

pub(crate) fn page(run: &RunView<'_>) -> Markup {
    let body = html! {
        (page_header(run))
        main {
            (overview(run))
            @for scenario in worst_first(run) { (scenario::section(scenario)) }
        }
        (machine(run))
    };
    document(&format!("Trainwreck: {}", clean(&run.started.run)), &body)
}

/// The scenarios, the worst first.
fn worst_first<'a, 'r>(run: &'a RunView<'r>) -> Vec<&'a ScenarioView<'r>> {
    let mut all: Vec<&ScenarioView<'_>> = run.scenarios.iter().collect();
    all.sort_by_key(|scenario| (scenario.status(), scenario.id));
    all
}

fn page_header(run: &RunView<'_>) -> Markup {
    let summary = summary::summarize(run);
    let seconds = run.ended.map(|ended| format!(", {:.1} s", ended.seconds)).unwrap_or_default();
    let is_ablation = run.scenarios.iter().any(|scenario| scenario.started.guard_removed.is_some());
    html! {
        header {
            h1 { "Which faults the trainer survived" }
            p.soft {
                (clean(&run.started.started)) ", seed " (run.started.seed) (seconds)
            }
            p { (summary.trials) }
            @if is_ablation {
                p {
                    "In this run, one guard of the trainer at a time was removed. A scenario that was then "
                    "violated caught the removal. A scenario that survived missed it."
                }
            }
            @if !summary.finished {
                p.notice role="alert" {
                    strong { "The run did not finish." }
                    " This is what its record contains."
                }
            }
            ul.counts {
                @for count in &summary.counts {
                    li class=(count.status.tone()) { b { (count.scenarios) } (count.label) }
                }
            }
        }
    }
}

fn overview(run: &RunView<'_>) -> Markup {
    html! {
        div.wide {
            table {
                thead {
                    tr {
                        th { "verdict" }
                        th { "scenario" }
                        th { "what happens to the trainer" }
                        th { "severity" }
                        th { "tried" }
                        th.n { "seconds" }
                        th { "guards" }
                    }
                }
                tbody {
                    @for scenario in worst_first(run) {
                        @let status = scenario.status();
                        tr {
                            td class={ "verdict " (status.tone()) } { (status.symbol()) " " (scenario.label()) }
                            td { a href={ "#" (anchor_id(scenario.id)) } { code { (clean(scenario.id)) } } }
                            td { (clean(&scenario.started.title)) }
                            td { (clean(&scenario.started.severity)) }
                            td { (scenario.counts) }
                            td.n { (format!("{:.1}", scenario.seconds)) }
                            td { (guards(scenario)) }
                        }
                    }
                }
            }
        }
    }
}

fn guards(scenario: &ScenarioView<'_>) -> Markup {
    match &scenario.started.guard_removed {
        Some(guard) => html! { "without " code { (clean(guard)) } },
        None => html! { code { (clean(&scenario.started.guards.join(", "))) } },
    }
}

fn machine(run: &RunView<'_>) -> Markup {
    let machine = &run.started.machine;
    html! {
        footer {
            h3 { "Machine" }
            p {
                "Linux " (clean(&machine.kernel)) ", " (machine.cores) " cores, "
                (machine.memory_bytes >> 30) " GiB, " (clean(&machine.user))
                ", trainwreck " (clean(&run.started.version))
            }
            p { code { (clean(&run.started.command.join(" "))) } }
            ul.checks {
                @for mechanism in &machine.mechanisms {
                    li {
                        span class=(if mechanism.granted { "good" } else { "none" }) {
                            (if mechanism.granted { "✓ " } else { "– " })
                        }
                        code { (clean(&mechanism.name)) } " " (clean(&mechanism.detail))
                    }
                }
            }
        }
    }
}
