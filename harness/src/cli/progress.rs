//! What a person sees while an expedition goes: a bar with states per second and findings so far.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::print;
use crate::explore::Progress;

/// Between two changes of the bar.
const EVERY: Duration = Duration::from_millis(60);

pub(super) struct Bar {
    bar: Option<ProgressBar>,
    shown: std::sync::Mutex<(Instant, Instant)>,
}

impl Bar {
    pub(super) fn new() -> Bar {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        Bar { bar, shown: std::sync::Mutex::new((Instant::now(), Instant::now())) }
    }

    pub(super) fn show(&self, progress: &Progress) {
        match progress {
            Progress::Recording => self.say("recording one undisturbed run"),
            Progress::Recorded { operations, saves } => {
                self.line(&format!("recorded {operations} file operations, {saves} saves"));
            }
            Progress::Enumerated { states } => {
                self.line(&format!("{states} distinct states to try"));
                if let Some(bar) = &self.bar {
                    bar.set_length(*states as u64);
                    if let Ok(style) =
                        ProgressStyle::with_template("{bar:24} {pos}/{len} states  {elapsed}  {wide_msg}")
                    {
                        bar.set_style(style);
                    }
                    let mut shown = self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    *shown = (Instant::now(), Instant::now());
                }
            }
            Progress::Tried { done, failing } => self.tried(*done, *failing),
            Progress::Shrinking => self.say("shrinking"),
        }
    }

    fn tried(&self, done: usize, failing: usize) {
        let Some(bar) = &self.bar else { return };
        let mut shown = self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if shown.1.elapsed() < EVERY {
            return;
        }
        shown.1 = Instant::now();
        let speed = done as f64 / shown.0.elapsed().as_secs_f64().max(1e-3);
        bar.set_position(done as u64);
        bar.set_message(format!("{speed:.0} states/s  {failing} failing"));
    }

    fn say(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print::line(text)),
            None => print::line(text),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
