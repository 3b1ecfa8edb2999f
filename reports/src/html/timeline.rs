//! A trial's picture: steps over time, with saves, the fault, ends and starts; the steady state behind it.

use maud::{Markup, html};
use scenarios::{Ending, Event, RecordEntry};

use crate::clean::clean;
use crate::view::{ScenarioView, TrialView};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 26.0;
/// Points of a line; more would not be seen.
const MAX_POINTS: usize = 400;
const MAX_MARKS: usize = 60;

/// Seconds and steps to places.
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

pub(super) fn chart(one: &ScenarioView<'_>, trial: &TrialView<'_>) -> Markup {
    let (own, steady) = (step_lines(&trial.entries), step_lines(&one.baseline_entries));
    let steps = own.iter().chain(&steady).flatten().map(|(_, step)| *step).max().unwrap_or(1).max(1);
    let scale = Scale {
        seconds: duration_seconds(&trial.entries).max(duration_seconds(&one.baseline_entries)).max(1e-3),
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
            @for piece in &steady { polyline.steady points=(points(&scale, piece)) {} }
            @for piece in &own { polyline.run points=(points(&scale, piece)) {} }
            (saves(&scale, trial))
            (starts_and_ends(&scale, trial))
        }
        p.soft { "Steps over time; dots are saves, the dashed line is the undisturbed run, red is the fault." }
    }
}

fn seconds_since_start(entries: &[&RecordEntry], entry: &RecordEntry) -> f64 {
    let began = entries
        .iter()
        .find(|entry| matches!(entry.event, Event::TargetStarted(_)))
        .or(entries.first())
        .map_or(0, |first| first.at_us);
    entry.at_us.saturating_sub(began) as f64 / 1e6
}

fn duration_seconds(entries: &[&RecordEntry]) -> f64 {
    entries.last().map_or(0.0, |last| seconds_since_start(entries, last))
}

/// One piece for each start of the target, and one from each resume on.
fn step_lines(entries: &[&RecordEntry]) -> Vec<Vec<(f64, u64)>> {
    let mut pieces: Vec<Vec<(f64, u64)>> = vec![Vec::new()];
    for entry in entries {
        match &entry.event {
            Event::Step { step, .. } => pieces
                .last_mut()
                .into_iter()
                .for_each(|piece| piece.push((seconds_since_start(entries, entry), *step))),
            Event::Resumed { step } => pieces.push(vec![(seconds_since_start(entries, entry), *step)]),
            Event::TargetEnded { .. } => pieces.push(Vec::new()),
            _ => {}
        }
    }
    pieces.retain(|piece| piece.len() > 1);
    pieces.into_iter().map(thinned).collect()
}

fn thinned(piece: Vec<(f64, u64)>) -> Vec<(f64, u64)> {
    let every = piece.len().div_ceil(MAX_POINTS).max(1);
    let last = piece.len() - 1;
    piece
        .into_iter()
        .enumerate()
        .filter(|(n, _)| n % every == 0 || *n == last)
        .map(|(_, point)| point)
        .collect()
}

fn points(scale: &Scale, piece: &[(f64, u64)]) -> String {
    piece
        .iter()
        .map(|(seconds, step)| format!("{:.1},{:.1}", scale.x(*seconds), scale.y(*step)))
        .collect::<Vec<_>>()
        .join(" ")
}

fn saves(scale: &Scale, trial: &TrialView<'_>) -> Markup {
    let saved = |entry: &&RecordEntry| {
        if let Event::Saved { step } = entry.event {
            Some((seconds_since_start(&trial.entries, entry), step))
        } else {
            None
        }
    };
    html! {
        @for (seconds, step) in trial.entries.iter().filter_map(saved).take(MAX_MARKS) {
            circle.save cx=(format!("{:.1}", scale.x(seconds))) cy=(format!("{:.1}", scale.y(step))) r="3.2" { title { "saved step " (step) } }
        }
    }
}

/// From where it landed to where it was taken back, or a line where it struck.
fn faults(scale: &Scale, trial: &TrialView<'_>) -> Markup {
    let lifted = |fault: &str| {
        let is_it = |entry: &&&RecordEntry| matches!(&entry.event, Event::FaultReverted { fault: lifted, .. } if lifted == fault);
        trial.entries.iter().find(is_it).map(|entry| seconds_since_start(&trial.entries, entry))
    };
    let landed = |entry: &&RecordEntry| match &entry.event {
        Event::FaultEffective { fault, evidence } => {
            Some((fault.clone(), evidence.clone(), seconds_since_start(&trial.entries, entry)))
        }
        _ => None,
    };
    html! {
        @for (fault, evidence, from) in trial.entries.iter().filter_map(landed).take(MAX_MARKS) {
            @let x = scale.x(from.max(0.0));
            @if let Some(to) = lifted(&fault) {
                rect.band x=(format!("{x:.1}")) y=(TOP) width=(format!("{:.1}", (scale.x(to) - x).max(1.0))) height=(HEIGHT - TOP - BOTTOM) {}
            }
            line.strike x1=(format!("{x:.1}")) x2=(format!("{x:.1}")) y1=(TOP - 6.0) y2=(HEIGHT - BOTTOM) { title { (clean(&evidence)) } }
            text.label-bad x=(format!("{:.1}", (x + 4.0).min(WIDTH - 120.0))) y=(TOP - 8.0) { (clean(&fault)) }
        }
    }
}

fn starts_and_ends(scale: &Scale, trial: &TrialView<'_>) -> Markup {
    let shown = |entry: &&RecordEntry| {
        // An end's word stands to its left, a beginning's to its right, so that a restart does not write over itself.
        let (word, anchor) = match &entry.event {
            Event::TargetEnded { ending, .. } => (ending_label(*ending), "end"),
            Event::Resumed { step } => (format!("from {step}"), "start"),
            _ => return None,
        };
        Some((seconds_since_start(&trial.entries, entry), word, anchor))
    };
    html! {
        @for (seconds, word, anchor) in trial.entries.iter().filter_map(shown).take(MAX_MARKS) {
            @let x = scale.x(seconds.max(0.0));
            line.end x1=(format!("{x:.1}")) x2=(format!("{x:.1}")) y1=(HEIGHT - BOTTOM - 8.0) y2=(HEIGHT - BOTTOM) { title { (word) } }
            text x=(format!("{x:.1}")) y=(HEIGHT - 8.0) text-anchor=(anchor) { (word) }
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
