//! Shows the progress of `explore`: a bar with states per second and failing states on a terminal, plain
//! lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::print;
use engine::explore::ExploreProgress;
use engine::locks::LockExt;

/// Minimum time between two changes of the bar.
const REDRAW_INTERVAL: Duration = Duration::from_millis(60);

/// Prints the progress of one exploration. Dropping it removes the bar.
pub(crate) struct ExploreDisplay {
    bar: Option<ProgressBar>,
    /// When the first state was tried, and when the bar was last changed.
    started_and_redrawn: std::sync::Mutex<(Instant, Instant)>,
}

impl ExploreDisplay {
    pub(crate) fn new() -> ExploreDisplay {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        ExploreDisplay { bar, started_and_redrawn: std::sync::Mutex::new((Instant::now(), Instant::now())) }
    }

    pub(crate) fn on_progress(&self, progress: &ExploreProgress) {
        match progress {
            ExploreProgress::Recording => self.show_message("recording a run without faults"),
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
                    let mut times = self.started_and_redrawn.locked();
                    *times = (Instant::now(), Instant::now());
                }
            }
            ExploreProgress::Tried { done, failing } => self.on_tried(*done, *failing),
            ExploreProgress::Shrinking => self.show_message("shrinking the failing states"),
        }
    }

    fn on_tried(&self, done: usize, failing: usize) {
        let Some(bar) = &self.bar else { return };
        let mut times = self.started_and_redrawn.locked();
        if times.1.elapsed() < REDRAW_INTERVAL {
            return;
        }
        times.1 = Instant::now();
        let states_per_second = done as f64 / times.0.elapsed().as_secs_f64().max(1e-3);
        bar.set_position(done as u64);
        bar.set_message(format!("{states_per_second:.0} states/s  {failing} failing"));
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
