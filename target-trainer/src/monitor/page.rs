//! The page for people. It needs nothing but itself: no script, no font, no picture from elsewhere. It loads
//! itself again every few seconds. Changes nothing.

use std::time::{Duration, SystemTime};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::history::StepPoint;
use super::journal::{EventKind, JournalEntry};
use super::monitor_view::MonitorView;

/// Seconds until the page loads itself again.
const RELOAD_S: u32 = 5;
/// Size of the loss curve, in units of its own: it is stretched to the width of the page.
const CURVE_WIDTH: f64 = 1000.0;
const CURVE_HEIGHT: f64 = 200.0;
/// Points whose mean is drawn as well.
const MEAN_POINTS: usize = 25;

const STYLE: &str = "
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --text: #1a1d21; --soft: #5b6470;
  --line: #d9dee5; --blue: #1f5fd0; --good: #14713d; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --card: #1e2228; --text: #e6e9ed;
  --soft: #9aa4b0; --line: #343b45; --blue: #7aa8ff; --good: #5fd08f; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.45 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem 1rem; }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 0 0 .5rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .9rem;
  margin-top: 1rem; }
progress { width: 100%; height: .8rem; accent-color: var(--blue); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; margin: .8rem 0 0; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.15rem; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
dd small { display: block; color: var(--soft); font-size: .8rem; }
.plot { display: grid; grid-template-columns: auto 1fr; gap: .25rem .5rem; color: var(--soft);
  font-size: .8rem; font-variant-numeric: tabular-nums; }
.plot div { display: flex; justify-content: space-between; } .plot .y { flex-direction: column; }
.plot .x { grid-column: 2; }
svg { display: block; width: 100%; height: 12rem; border: solid var(--line); border-width: 0 0 1px 1px; }
polyline { fill: none; stroke: var(--blue); stroke-width: 2; stroke-linejoin: round;
  vector-effect: non-scaling-stroke; } .each { stroke-width: 1; opacity: .35; }
ol { list-style: none; margin: 0; padding: 0; } li { padding: .35rem 0; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; } li:first-child { border: 0; } li time { color: var(--soft); margin-right: .6rem;
  font-variant-numeric: tabular-nums; }
footer { margin: 1rem 0; color: var(--soft); font-size: .85rem; } a { color: var(--blue); }
";

/// The page. `hangs_for`: for how long the daemon has not done its work, if that is too long.
pub(super) fn page(root_name: &str, view: &MonitorView, hangs_for: Option<Duration>) -> String {
    let now = SystemTime::now();
    let title = format!("{} · trainer", state(view));
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content=(RELOAD_S);
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    header {
                        h1 { "Trainer " (root_name) }
                        span { (state(view)) }
                        (health(hangs_for))
                    }
                    (progress(view, now))
                    (curve(view.curve.points()))
                    (events(view, now))
                    footer {
                        "Loads itself again every " (RELOAD_S) " s. "
                        a href="/metrics" { "Metrics" } " for Prometheus, "
                        a href="/healthz" { "health" } " for a service manager."
                    }
                }
            }
        }
    };
    markup.into_string()
}

fn state(view: &MonitorView) -> String {
    match (&view.job, percent(view)) {
        (Some(_), Some(percent)) => format!("training, {percent:.0} %"),
        (Some(_), None) => "training".into(),
        (None, _) => "idle".into(),
    }
}

fn percent(view: &MonitorView) -> Option<f64> {
    (view.steps > 0).then(|| 100.0 * view.step as f64 / view.steps as f64)
}

fn health(hangs_for: Option<Duration>) -> Markup {
    html! {
        @match hangs_for {
            None => span class="good" { "✓ healthy" },
            Some(silent) => span class="bad" {
                "✗ the daemon has not looked at its work for " (duration(silent))
            },
        }
    }
}

fn progress(view: &MonitorView, now: SystemTime) -> Markup {
    let last = view.last_point();
    let number = |value: Option<f64>, digits: usize| value.map(|value| format!("{value:.digits$}"));
    let saved = view.last_saved.map(|saved| {
        let age = now.duration_since(saved.at).unwrap_or_default();
        (format!("step {}", saved.step), format!("{} ago", duration(age)))
    });
    html! {
        section {
            @match &view.job {
                Some(job) => {
                    h2 { "Job " (job.get(..12).unwrap_or(job)) }
                    progress max=(view.steps.max(1)) value=(view.step) {}
                }
                None => h2 { "No job is being trained" },
            }
            dl {
                (figure("Step", view.job.as_ref().map(|_| format!("{} of {}", view.step, view.steps)), None))
                (figure("Time left", view.remaining().filter(|_| view.job.is_some()).map(duration), None))
                (figure("Loss", number(last.and_then(|point| point.loss), 4), None))
                (figure(
                    "Learning rate",
                    last.and_then(|point| point.learning_rate).map(|rate| format!("{rate:.3e}")),
                    None,
                ))
                (figure("Tokens/s", number(last.and_then(|point| point.tokens_per_s), 0), None))
                (figure("Gradient norm", number(last.and_then(|point| point.gradient_norm), 3), None))
                @match saved {
                    Some((step, age)) => (figure("Last checkpoint", Some(step), Some(age))),
                    None => (figure("Last checkpoint", None, None)),
                }
                (figure("Device", view.device.clone(), gpu(view)))
            }
            @if let Some(trouble) = &view.trouble {
                p class="bad" { "Last trouble: " (trouble) }
            }
        }
    }
}

/// What a GPU says about itself.
fn gpu(view: &MonitorView) -> Option<String> {
    let gpu = view.gpu.as_ref()?;
    let mut parts = Vec::new();
    parts.extend(gpu.temperature_c.map(|celsius| format!("{celsius} °C")));
    if !gpu.throttled.is_empty() {
        parts.push(format!("throttled: {}", gpu.throttled.join(", ")));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn figure(name: &str, value: Option<String>, note: Option<String>) -> Markup {
    html! {
        div {
            dt { (name) }
            dd {
                (value.unwrap_or_else(|| "–".into()))
                @if let Some(note) = note { small { (note) } }
            }
        }
    }
}

/// The loss of each step as a line.
fn curve(points: &[StepPoint]) -> Markup {
    let losses: Vec<CurvePoint> = points
        .iter()
        .filter_map(|point| Some(CurvePoint { step: point.step as f64, loss: point.loss? }))
        .collect();
    let (Some(first), Some(last)) = (losses.first(), losses.last()) else {
        return html! { section { h2 { "Loss" } p class="soft" { "No step is done yet." } } };
    };
    let min = losses.iter().map(|point| point.loss).fold(f64::INFINITY, f64::min);
    let max = losses.iter().map(|point| point.loss).fold(f64::NEG_INFINITY, f64::max);
    let (steps, range) = ((last.step - first.step).max(1.0), (max - min).clamp(1e-9, f64::MAX));
    let place = |point: &CurvePoint| {
        let x = (point.step - first.step) / steps * CURVE_WIDTH;
        let y = CURVE_HEIGHT - (point.loss - min) / range * CURVE_HEIGHT;
        format!("{x:.1},{y:.1}")
    };
    let line = |points: &[CurvePoint]| points.iter().map(place).collect::<Vec<_>>().join(" ");
    let summary = format!(
        "Loss from {:.4} at step {} to {:.4} at step {}",
        first.loss, first.step, last.loss, last.step
    );
    html! {
        section {
            h2 { "Loss" }
            div class="plot" {
                div class="y" { span { (format!("{max:.3}")) } span { (format!("{min:.3}")) } }
                svg viewBox=(format!("0 0 {CURVE_WIDTH} {CURVE_HEIGHT}")) preserveAspectRatio="none"
                    role="img" aria-label=(summary) {
                    polyline class="each" points=(line(&losses)) {}
                    polyline points=(line(&means(&losses))) {}
                }
                div class="x" { span { "step " (first.step) } span { "step " (last.step) } }
            }
            p class="soft" { "Thin: single steps. Thick: the mean of " (MEAN_POINTS) " points." }
        }
    }
}

/// The mean of each point and those before it.
fn means(points: &[CurvePoint]) -> Vec<CurvePoint> {
    let mean = |end: usize| {
        let window = &points[(end + 1).saturating_sub(MEAN_POINTS)..=end];
        let loss = window.iter().map(|point| point.loss / window.len() as f64).sum();
        CurvePoint { step: points[end].step, loss }
    };
    (0..points.len()).map(mean).collect()
}

/// A loss at a step.
struct CurvePoint {
    step: f64,
    loss: f64,
}

fn events(view: &MonitorView, now: SystemTime) -> Markup {
    html! {
        section {
            h2 { "Recent events" }
            @if view.recent.is_empty() { p class="soft" { "None yet." } }
            ol {
                @for entry in view.recent.iter().rev() {
                    li { time { (age(entry, now)) } (sentence(entry)) }
                }
            }
        }
    }
}

fn age(entry: &JournalEntry, now: SystemTime) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("{} ago", duration(Duration::from_secs(seconds.saturating_sub(entry.at))))
}

fn sentence(entry: &JournalEntry) -> String {
    let step = entry.step.unwrap_or(0);
    let what = match entry.event {
        EventKind::Step => format!("Step {step} done"),
        EventKind::Saved => format!("Step {step} saved"),
        EventKind::SaveFailed => format!("Save of step {step} failed"),
        EventKind::StepSkipped => format!("Step {step} skipped"),
        EventKind::RolledBack => format!("Rolled back to step {step}"),
        EventKind::Resumed if step == 0 => "Training begun".into(),
        EventKind::Resumed => format!("Resumed from step {step}"),
        EventKind::WorkerRestarted => "Worker replaced".into(),
        EventKind::JobFinished => format!("Job finished at step {step}"),
        EventKind::JobFailed => "Job failed".into(),
    };
    match &entry.text {
        Some(text) => format!("{what}: {text}"),
        None => what,
    }
}

/// A time as people say it.
fn duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_outside_are_escaped_and_nothing_is_loaded_from_elsewhere() {
        let mut view = MonitorView {
            job: Some("<script>alert(1)</script>".into()),
            trouble: Some("<img src=http://evil.example>".into()),
            ..MonitorView::default()
        };
        let entry =
            JournalEntry { at: 0, event: EventKind::JobFailed, job: "j".into(), step: None, text: None };
        view.add_recent(entry.with_text("</li><b onclick=x>"));
        let text = page("<i>", &view, None);
        for tag in ["<script", "<img", "<b ", "<i>", "src="] {
            let is_escaped = !text.contains(tag) || (tag == "src=" && text.contains("&lt;img src="));
            assert!(is_escaped, "{tag}: {text}");
        }
        let own = text.replace("http://evil.example", "");
        assert!(!["http:", "https:", "url(", "@import", "//"].iter().any(|part| own.contains(part)), "{own}");
    }

    #[test]
    fn a_curve_is_drawn_whatever_the_losses_are() {
        let point = |step, loss| StepPoint {
            step,
            loss,
            gradient_norm: None,
            learning_rate: None,
            tokens_per_s: None,
        };
        for points in [
            vec![],
            vec![point(1, None)],
            vec![point(1, Some(2.0))],
            vec![point(1, Some(2.0)), point(2, Some(2.0))],
            vec![point(1, Some(1e300)), point(2, None), point(3, Some(-1e300))],
        ] {
            let text = curve(&points).into_string();
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }

    #[test]
    fn times_are_short() {
        let texts = [0, 59, 61, 3600, 90_000, 200_000].map(|seconds| duration(Duration::from_secs(seconds)));
        assert_eq!(texts, ["0 s", "59 s", "1 min", "1 h 0 min", "25 h 0 min", "2 days"]);
    }
}
