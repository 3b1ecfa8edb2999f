//! What a person sees while an expedition goes: a bar with states per second and findings so far.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::print;
use crate::explore::ExploreProgress;

/// Between two changes of the bar.
const REDRAW_INTERVAL: Duration = Duration::from_millis(60);

pub(super) struct ExploreDisplay {
    bar: Option<ProgressBar>,
    started_and_redrawn: std::sync::Mutex<(Instant, Instant)>,
}

impl ExploreDisplay {
    pub(super) fn new() -> ExploreDisplay {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        ExploreDisplay { bar, started_and_redrawn: std::sync::Mutex::new((Instant::now(), Instant::now())) }
    }

    pub(super) fn on_progress(&self, progress: &ExploreProgress) {
        match progress {
            ExploreProgress::Recording => self.show_message("recording one undisturbed run"),
            ExploreProgress::Recorded { operations, saves } => {
                self.print_line(&format!("recorded {operations} file operations, {saves} saves"));
            }
            ExploreProgress::Enumerated { states } => {
                self.print_line(&format!("{states} distinct states to try"));
                if let Some(bar) = &self.bar {
                    bar.set_length(*states as u64);
                    if let Ok(style) =
                        ProgressStyle::with_template("{bar:24} {pos}/{len} states  {elapsed}  {wide_msg}")
                    {
                        bar.set_style(style);
                    }
                    let mut shown =
                        self.started_and_redrawn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    *shown = (Instant::now(), Instant::now());
                }
            }
            ExploreProgress::Tried { done, failing } => self.on_tried(*done, *failing),
            ExploreProgress::Shrinking => self.show_message("shrinking"),
        }
    }

    fn on_tried(&self, done: usize, failing: usize) {
        let Some(bar) = &self.bar else { return };
        let mut shown = self.started_and_redrawn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if shown.1.elapsed() < REDRAW_INTERVAL {
            return;
        }
        shown.1 = Instant::now();
        let speed = done as f64 / shown.0.elapsed().as_secs_f64().max(1e-3);
        bar.set_position(done as u64);
        bar.set_message(format!("{speed:.0} states/s  {failing} failing"));
    }

    fn show_message(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
        }
    }

    fn print_line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print::line(text)),
            None => print::line(text),
        }
    }
}

impl Drop for ExploreDisplay {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
