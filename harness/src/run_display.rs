//! Shows the progress of `run` and `ablate`: one line per finished scenario, and a bar on a terminal. Judges
//! nothing.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use scenarios::{Event, FailedRun, RecordEntry, TrialCounts, TrialStarts, Verdict, ViolationKind};

use crate::print;
use crate::verdict_lines::TrialNotes;
use engine::locks::LockExt;
use engine::observe::Observer;

/// At most this many hints of a scenario are printed.
const MAX_HINTS: usize = 4;

/// A scenario that has started and is not judged yet.
#[derive(Default, Clone)]
struct RunningScenario {
    title: String,
    guard_removed: Option<String>,
    /// What failed without any fault.
    failed_runs: Vec<FailedRun>,
    /// What the baseline met in the sandbox, in lines for people.
    sandbox_hints: Vec<String>,
    trials: TrialCounts,
    /// How the target was started, if there was a choice.
    starts: Option<TrialStarts>,
    notes: TrialNotes,
}

/// An observer that prints the progress of a run. Dropping it removes the bar.
pub(crate) struct RunDisplay {
    bar: Option<ProgressBar>,
    running: Mutex<BTreeMap<String, RunningScenario>>,
    /// Width of the words for a verdict.
    label_width: usize,
}

impl RunDisplay {
    /// `ablating`: whether guards are removed from some scenarios.
    pub(crate) fn new(scenarios: usize, ablating: bool) -> RunDisplay {
        let bar = std::io::stderr().is_terminal().then(|| progress_bar(scenarios as u64));
        RunDisplay { bar, running: Mutex::default(), label_width: if ablating { 20 } else { 13 } }
    }

    fn print_line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print::line(text)),
            None => print::line(text),
        }
    }

    /// Counts an event of a scenario or of one of its trials.
    fn count(&self, id: &str, trial: Option<u32>, event: &Event) {
        let mut running = self.running.locked();
        if let Some(scenario) = running.get_mut(id) {
            scenario.trials.count(event);
            scenario.notes.note(trial, event);
            if let Event::TrialStarts(starts) = event {
                scenario.starts = Some(starts.clone());
            }
        }
        if let Some(bar) = self.bar.as_ref().filter(|_| matches!(event, Event::TrialEnded(_))) {
            let counts = running.iter().map(|(id, scenario)| {
                format!("{id} {}/{}", scenario.trials.tried(), scenario.trials.to_run().max(1))
            });
            bar.set_message(counts.collect::<Vec<_>>().join("  "));
        }
    }

    fn on_judged(&self, id: &str, verdict: &Verdict, seconds: f64) {
        let scenario = self.running.locked().remove(id).unwrap_or_default();
        let without_guard = scenario.guard_removed.is_some();
        let (mark, label) = verdict_label(verdict, without_guard);
        let guard =
            scenario.guard_removed.as_ref().map(|guard| format!("  without {guard}")).unwrap_or_default();
        let trials =
            if scenario.trials.is_empty() { String::new() } else { format!("  {}", scenario.trials) };
        // The ID without the removed guard, which is printed after the number of trials.
        let id = id.split(' ').next().unwrap_or_default();
        self.print_line(&format!(
            "{mark} {id:<9} {label:<width$} {seconds:>6.1} s{trials}{guard}  {}",
            scenario.title,
            width = self.label_width
        ));
        scenario.notes.lines(verdict, without_guard).iter().for_each(|line| self.print_line(line));
        if let Some(starts) = &scenario.starts {
            self.print_line(&format!("            {}", reports::clean(&starts.to_string())));
        }
        scenario.failed_runs.iter().for_each(|failed| self.print_failed_run(failed));
        if scenario.failed_runs.is_empty() {
            self.print_hints(&scenario.sandbox_hints);
        }
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }
}

impl RunDisplay {
    /// Prints what the target met in the sandbox, up to a bound. The report has all of it.
    fn print_hints(&self, hints: &[String]) {
        for hint in hints.iter().take(MAX_HINTS) {
            self.print_line(&format!("            {}", reports::clean(hint)));
        }
        if hints.len() > MAX_HINTS {
            self.print_line(&format!("            and {} more", hints.len() - MAX_HINTS));
        }
    }

    /// Prints the lines that explain why a run without any fault failed.
    fn print_failed_run(&self, failed: &FailedRun) {
        for line in failed.details() {
            self.print_line(&format!("              {}", reports::clean(&line)));
        }
    }
}

impl Observer for RunDisplay {
    fn observe(&self, entry: &RecordEntry) {
        let Some(id) = &entry.scenario else { return };
        match &entry.event {
            Event::ScenarioStarted(started) => {
                let mut notes = TrialNotes::default();
                notes.note(None, &entry.event);
                let scenario = RunningScenario {
                    notes,
                    title: started.title.clone(),
                    guard_removed: started.guard_removed.clone(),
                    ..RunningScenario::default()
                };
                self.running.locked().insert(id.clone(), scenario);
            }
            Event::UndisturbedRunFailed(failed) => {
                let mut running = self.running.locked();
                if let Some(scenario) = running.get_mut(id) {
                    scenario.failed_runs.push((**failed).clone());
                }
            }
            Event::Baseline(facts) => {
                let mut running = self.running.locked();
                if let Some(scenario) = running.get_mut(id) {
                    scenario.notes.note(None, &entry.event);
                    scenario.sandbox_hints = facts.sandbox_hints.iter().map(ToString::to_string).collect();
                }
            }
            Event::Judged { verdict, seconds } => self.on_judged(id, verdict, *seconds),
            event => self.count(id, entry.trial, event),
        }
    }
}

impl Drop for RunDisplay {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn progress_bar(scenarios: u64) -> ProgressBar {
    let bar = ProgressBar::new(scenarios);
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} scenarios  {elapsed}  {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The mark and the words for a verdict. With `ablating`, a violation shows that the removed guard was caught.
fn verdict_label(verdict: &Verdict, ablating: bool) -> (&'static str, &'static str) {
    let only_words = verdict.violation_kind() == Some(ViolationKind::Words);
    match verdict {
        Verdict::Survived if ablating => ("✗", "MISSED"),
        Verdict::Violated { .. } if ablating && only_words => ("✓", "caught by words only"),
        Verdict::Violated { .. } if ablating => ("✓", "caught by harm"),
        Verdict::Survived => ("✓", "survived"),
        Verdict::Violated { .. } => ("✗", "VIOLATED"),
        Verdict::Inconclusive { .. } => ("?", "inconclusive"),
        Verdict::Skipped { .. } => ("-", "skipped"),
    }
}
