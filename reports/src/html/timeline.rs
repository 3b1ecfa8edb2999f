//! The chart of a trial: steps over time, with saves, the fault, exits and resumes, and the baseline for
//! comparison.

use maud::{Markup, html};
use scenarios::{Ending, Event, FaultId, RecordEntry};

use crate::clean::clean;
use crate::view::{ScenarioView, TrialView};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 26.0;
/// Largest number of points of a line. More could not be distinguished.
const MAX_POINTS: usize = 400;
/// Largest number of marks of one kind.
const MAX_MARKS: usize = 60;

/// Maps seconds and steps to coordinates of the chart.
struct Scale {
    seconds: f64,
    steps: f64,
}

impl Scale {
    fn x(&self, seconds: f64) -> f64 {
        LEFT + seconds / self.seconds * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, step: u64) -> f64 {
        HEIGHT - BOTTOM - step as f64 / self.steps * (HEIGHT - TOP - BOTTOM)
    }
}

pub(super) fn chart(scenario: &ScenarioView<'_>, trial: &TrialView<'_>) -> Markup {
    let (own, baseline) = (step_lines(&trial.entries), step_lines(&scenario.baseline_entries));
    let steps = own.iter().chain(&baseline).flatten().map(|(_, step)| *step).max().unwrap_or(1).max(1);
    let scale = Scale {
        seconds: duration_seconds(&trial.entries).max(duration_seconds(&scenario.baseline_entries)).max(1e-3),
        steps: steps as f64,
    };
    let middle = HEIGHT - BOTTOM;
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(alt_text(trial)) {
            (faults(&scale, trial))
            line.axis x1=(LEFT) x2=(WIDTH - RIGHT) y1=(middle) y2=(middle) {}
            line.axis x1=(LEFT) x2=(LEFT) y1=(TOP) y2=(middle) {}
            text x=(LEFT - 6.0) y=(TOP + 4.0) text-anchor="end" { (steps) }
            text x=(LEFT - 6.0) y=(middle) text-anchor="end" { "0" }
            text x="4" y="12" { "step" }
            text x=(WIDTH - RIGHT) y="12" text-anchor="end" { (format!("{:.2} s", scale.seconds)) }
            @for line in &baseline { polyline.baseline points=(points(&scale, line)) {} }
            @for line in &own { polyline.run points=(points(&scale, line)) {} }
            (saves(&scale, trial))
            (starts_and_ends(&scale, trial))
        }
        p.soft { "Steps over time; dots are saves, the dashed line is the baseline, red is the fault." }
    }
}

/// Seconds from the first start of the target to an entry.
fn seconds_since_start(entries: &[&RecordEntry], entry: &RecordEntry) -> f64 {
    let start_us = entries
        .iter()
        .find(|entry| matches!(entry.event, Event::TargetStarted(_)))
        .or(entries.first())
        .map_or(0, |first| first.at_us);
    entry.at_us.saturating_sub(start_us) as f64 / 1e6
}

fn duration_seconds(entries: &[&RecordEntry]) -> f64 {
    entries.last().map_or(0.0, |last| seconds_since_start(entries, last))
}

/// The lines of the chart, as seconds and steps: a new line starts at each start and each resume of the
/// target.
fn step_lines(entries: &[&RecordEntry]) -> Vec<Vec<(f64, u64)>> {
    let mut lines: Vec<Vec<(f64, u64)>> = vec![Vec::new()];
    for entry in entries {
        match &entry.event {
            Event::Step { step, .. } => lines
                .last_mut()
                .into_iter()
                .for_each(|line| line.push((seconds_since_start(entries, entry), *step))),
            Event::Resumed { step, .. } => lines.push(vec![(seconds_since_start(entries, entry), *step)]),
            Event::TargetEnded { .. } => lines.push(Vec::new()),
            _ => {}
        }
    }
    lines.retain(|line| line.len() > 1);
    lines.into_iter().map(thinned).collect()
}

/// Every n-th point of a line, and the last one.
fn thinned(line: Vec<(f64, u64)>) -> Vec<(f64, u64)> {
    let every = line.len().div_ceil(MAX_POINTS).max(1);
    let last = line.len() - 1;
    line.into_iter()
        .enumerate()
        .filter(|(n, _)| n % every == 0 || *n == last)
        .map(|(_, point)| point)
        .collect()
}

fn points(scale: &Scale, line: &[(f64, u64)]) -> String {
    line.iter()
        .map(|(seconds, step)| format!("{:.1},{:.1}", scale.x(*seconds), scale.y(*step)))
        .collect::<Vec<_>>()
        .join(" ")
}

fn saves(scale: &Scale, trial: &TrialView<'_>) -> Markup {
    let saved = |entry: &&RecordEntry| {
        if let Event::Saved { step, .. } = entry.event {
            Some((seconds_since_start(&trial.entries, entry), step))
        } else {
            None
        }
    };
    html! {
        @for (seconds, step) in trial.entries.iter().filter_map(saved).take(MAX_MARKS) {
            circle.save cx=(format!("{:.1}", scale.x(seconds))) cy=(format!("{:.1}", scale.y(step))) r="3.2" {
                title { "saved step " (step) }
            }
        }
    }
}

/// A line at each injection, and a band from there to where the fault was reverted.
fn faults(scale: &Scale, trial: &TrialView<'_>) -> Markup {
    let reverted = |fault: &FaultId| {
        let is_revert = |entry: &&&RecordEntry| match &entry.event {
            Event::FaultReverted { fault: reverted, .. } => reverted == fault,
            _ => false,
        };
        trial.entries.iter().find(is_revert).map(|entry| seconds_since_start(&trial.entries, entry))
    };
    let effective = |entry: &&RecordEntry| match &entry.event {
        Event::FaultEffective { fault, evidence } => {
            Some((fault.clone(), evidence.clone(), seconds_since_start(&trial.entries, entry)))
        }
        _ => None,
    };
    html! {
        @for (fault, evidence, from) in trial.entries.iter().filter_map(effective).take(MAX_MARKS) {
            @let x = scale.x(from.max(0.0));
            @if let Some(to) = reverted(&fault) {
                @let width = (scale.x(to) - x).max(1.0);
                rect.band
                    x=(format!("{x:.1}")) y=(TOP)
                    width=(format!("{width:.1}")) height=(HEIGHT - TOP - BOTTOM) {}
            }
            line.injection x1=(format!("{x:.1}")) x2=(format!("{x:.1}")) y1=(TOP - 6.0) y2=(HEIGHT - BOTTOM) {
                title { (clean(&evidence)) }
            }
            text.label-bad x=(format!("{:.1}", (x + 4.0).min(WIDTH - 120.0))) y=(TOP - 8.0) {
                (clean(&fault.key))
            }
        }
    }
}

fn starts_and_ends(scale: &Scale, trial: &TrialView<'_>) -> Markup {
    let shown = |entry: &&RecordEntry| {
        // The label of an exit is on its left and that of a resume on its right, so that they do not overlap
        // at a restart.
        let (label, anchor) = match &entry.event {
            Event::TargetEnded { ending, .. } => (ending_label(*ending), "end"),
            Event::Resumed { step, .. } => (format!("from {step}"), "start"),
            _ => return None,
        };
        Some((seconds_since_start(&trial.entries, entry), label, anchor))
    };
    html! {
        @for (seconds, label, anchor) in trial.entries.iter().filter_map(shown).take(MAX_MARKS) {
            @let x = scale.x(seconds.max(0.0));
            line.end
                x1=(format!("{x:.1}")) x2=(format!("{x:.1}"))
                y1=(HEIGHT - BOTTOM - 8.0) y2=(HEIGHT - BOTTOM) {
                title { (label) }
            }
            text x=(format!("{x:.1}")) y=(HEIGHT - 8.0) text-anchor=(anchor) { (label) }
        }
    }
}

fn ending_label(ending: Ending) -> String {
    match ending {
        Ending::Exited(code) => format!("exit {code}"),
        Ending::Signalled(signal) => format!("signal {signal}"),
        Ending::KilledByFault => "killed".into(),
        Ending::TimedOut => "hung".into(),
    }
}

fn alt_text(trial: &TrialView<'_>) -> String {
    match trial.facts {
        Some(facts) => format!("Steps over time in trial {}: {}", trial.number, clean(&facts.because)),
        None => format!("Steps over time in trial {}", trial.number),
    }
}
