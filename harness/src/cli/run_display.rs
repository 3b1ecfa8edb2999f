//! What a person sees while a run goes: a bar where there is a terminal, plain lines where there is none.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use scenarios::{Event, RecordEntry, Verdict};

use crate::cli::print;
use crate::observe::Observer;

/// One scenario under way.
#[derive(Default, Clone)]
struct RunningScenario {
    title: String,
    guard_removed: Option<String>,
    trials: u32,
    trials_done: u32,
}

pub(super) struct RunDisplay {
    bar: Option<ProgressBar>,
    running: Mutex<BTreeMap<String, RunningScenario>>,
    /// Words for each kind of end: with `prove`, violated is what is wanted.
    ablating: bool,
}

impl RunDisplay {
    pub(super) fn new(scenarios: usize, ablating: bool) -> RunDisplay {
        let bar = std::io::stderr().is_terminal().then(|| progress_bar(scenarios as u64));
        RunDisplay { bar, running: Mutex::default(), ablating }
    }

    fn print_line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print::line(text)),
            None => print::line(text),
        }
    }

    fn on_trial_ended(&self, id: &str) {
        let mut under = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = under.get_mut(id) {
            one.trials_done += 1;
        }
        if let Some(bar) = &self.bar {
            let running =
                under.iter().map(|(id, one)| format!("{id} {}/{}", one.trials_done, one.trials.max(1)));
            bar.set_message(running.collect::<Vec<_>>().join("  "));
        }
    }

    fn on_judged(&self, id: &str, verdict: &Verdict, seconds: f64) {
        let one = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(id).unwrap_or_default();
        let (mark, word) = verdict_label(verdict, self.ablating);
        let guard = one.guard_removed.as_ref().map(|guard| format!("  without {guard}")).unwrap_or_default();
        let trials = match one.trials_done {
            0 => String::new(),
            1 => "  1 trial".into(),
            many => format!("  {many} trials"),
        };
        // Its name, without the guard that is said behind it.
        let id = id.split(' ').next().unwrap_or_default();
        self.print_line(&format!("{mark} {id:<9} {word:<13} {seconds:>6.1} s{trials}{guard}  {}", one.title));
        verdict_reasons(verdict, self.ablating)
            .iter()
            .for_each(|reason| self.print_line(&format!("            {}", shorten(reason))));
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }
}

impl Observer for RunDisplay {
    fn observe(&self, entry: &RecordEntry) {
        let Some(id) = &entry.scenario else { return };
        match &entry.event {
            Event::ScenarioStarted(started) => {
                let one = RunningScenario {
                    title: started.title.clone(),
                    guard_removed: started.guard_removed.clone(),
                    ..RunningScenario::default()
                };
                self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), one);
            }
            Event::TrialStarted { of, .. } => {
                if let Some(one) = self.running.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
                    one.trials = *of;
                }
            }
            Event::TrialEnded(_) => self.on_trial_ended(id),
            Event::Judged { verdict, seconds } => self.on_judged(id, verdict, *seconds),
            _ => {}
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

fn verdict_label(verdict: &Verdict, proving: bool) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Survived if proving => ("✗", "NOT NOTICED"),
        Verdict::Violated { .. } if proving => ("✓", "noticed"),
        Verdict::Survived => ("✓", "survived"),
        Verdict::Violated { .. } => ("✗", "VIOLATED"),
        Verdict::Inconclusive { .. } => ("?", "inconclusive"),
        Verdict::Skipped { .. } => ("-", "skipped"),
    }
}

/// The report has it whole.
fn shorten(reason: &str) -> String {
    const MOST: usize = 160;
    let cut: String = reason.chars().filter(|c| !c.is_control()).take(MOST).collect();
    if reason.chars().nth(MOST).is_some() { format!("{cut} ..") } else { cut }
}

/// At most three reasons; the report has them all.
fn verdict_reasons(verdict: &Verdict, proving: bool) -> Vec<String> {
    let shown = if proving { 1 } else { 3 };
    match verdict {
        Verdict::Survived => Vec::new(),
        Verdict::Violated { reasons } => {
            let line = |reason: &scenarios::Reason| {
                let trial = reason.trial.map(|trial| format!(" (trial {trial})")).unwrap_or_default();
                format!("{}{trial}: {}", reason.expectation, reason.found)
            };
            let more = reasons.len().saturating_sub(shown);
            let more = (more > 0).then(|| format!("and {more} more"));
            reasons.iter().take(shown).map(line).chain(more).collect()
        }
        Verdict::Inconclusive { why } | Verdict::Skipped { why } => vec![why.clone()],
    }
}
