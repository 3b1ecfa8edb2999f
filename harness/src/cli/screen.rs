//! What a person sees while a run goes: a bar where there is a terminal, plain lines where there is none.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use scenarios::{Entry, Event, Verdict};

use crate::cli::print;
use crate::observe::Observer;

/// One scenario under way.
#[derive(Default, Clone)]
struct Under {
    title: String,
    guard_removed: Option<String>,
    of: u32,
    done: u32,
}

pub(super) struct Screen {
    bar: Option<ProgressBar>,
    under: Mutex<BTreeMap<String, Under>>,
    /// Words for each kind of end: with `prove`, violated is what is wanted.
    proving: bool,
}

impl Screen {
    pub(super) fn new(scenarios: usize, proving: bool) -> Screen {
        let bar = std::io::stderr().is_terminal().then(|| bar(scenarios as u64));
        Screen { bar, under: Mutex::default(), proving }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print::line(text)),
            None => print::line(text),
        }
    }

    fn trial_ended(&self, id: &str) {
        let mut under = self.under.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = under.get_mut(id) {
            one.done += 1;
        }
        if let Some(bar) = &self.bar {
            let running = under.iter().map(|(id, one)| format!("{id} {}/{}", one.done, one.of.max(1)));
            bar.set_message(running.collect::<Vec<_>>().join("  "));
        }
    }

    fn judged(&self, id: &str, verdict: &Verdict, seconds: f64) {
        let one = self.under.lock().unwrap_or_else(PoisonError::into_inner).remove(id).unwrap_or_default();
        let (mark, word) = word_for(verdict, self.proving);
        let guard = one.guard_removed.as_ref().map(|guard| format!("  without {guard}")).unwrap_or_default();
        let trials = match one.done {
            0 => String::new(),
            1 => "  1 trial".into(),
            many => format!("  {many} trials"),
        };
        // Its name, without the guard that is said behind it.
        let id = id.split(' ').next().unwrap_or_default();
        self.line(&format!("{mark} {id:<9} {word:<13} {seconds:>6.1} s{trials}{guard}  {}", one.title));
        because(verdict, self.proving)
            .iter()
            .for_each(|reason| self.line(&format!("            {}", short(reason))));
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }
}

impl Observer for Screen {
    fn observe(&self, entry: &Entry) {
        let Some(id) = &entry.scenario else { return };
        match &entry.event {
            Event::ScenarioStarted(started) => {
                let one = Under {
                    title: started.title.clone(),
                    guard_removed: started.guard_removed.clone(),
                    ..Under::default()
                };
                self.under.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), one);
            }
            Event::TrialStarted { of, .. } => {
                if let Some(one) = self.under.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
                    one.of = *of;
                }
            }
            Event::TrialEnded(_) => self.trial_ended(id),
            Event::Judged { verdict, seconds } => self.judged(id, verdict, *seconds),
            _ => {}
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(scenarios: u64) -> ProgressBar {
    let bar = ProgressBar::new(scenarios);
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} scenarios  {elapsed}  {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn word_for(verdict: &Verdict, proving: bool) -> (&'static str, &'static str) {
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
fn short(reason: &str) -> String {
    const MOST: usize = 160;
    let cut: String = reason.chars().filter(|c| !c.is_control()).take(MOST).collect();
    if reason.chars().nth(MOST).is_some() { format!("{cut} ..") } else { cut }
}

/// At most three reasons; the report has them all.
fn because(verdict: &Verdict, proving: bool) -> Vec<String> {
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
