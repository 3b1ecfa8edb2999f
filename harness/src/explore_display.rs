//! Shows the progress of `explore`: a bar with states per second and failing states on a terminal, plain
//! lines elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::print;
use engine::explore::{ExploreProgress, ReplayProgress};
use engine::locks::LockExt;

/// Minimum time between two changes of the bar.
const REDRAW_INTERVAL: Duration = Duration::from_millis(60);

/// Prints the progress of one exploration. Dropping it removes the bar.
pub(crate) struct ExploreDisplay {
    bar: Option<ProgressBar>,
    times: Mutex<DisplayTimes>,
}

/// The times that the bar depends on.
struct DisplayTimes {
    /// When the first state was tried.
    started: Instant,
    /// When the bar was last changed.
    redrawn: Instant,
}

impl DisplayTimes {
    fn now() -> DisplayTimes {
        DisplayTimes { started: Instant::now(), redrawn: Instant::now() }
    }
}

impl ExploreDisplay {
    pub(crate) fn new() -> ExploreDisplay {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        ExploreDisplay { bar, times: Mutex::new(DisplayTimes::now()) }
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
                    *self.times.locked() = DisplayTimes::now();
                }
            }
            ExploreProgress::Tried(progress) => self.on_tried(*progress),
            ExploreProgress::Shrinking => self.show_message("shrinking the failing states"),
        }
    }

    fn on_tried(&self, ReplayProgress { done, failing }: ReplayProgress) {
        let Some(bar) = &self.bar else { return };
        let mut times = self.times.locked();
        if times.redrawn.elapsed() < REDRAW_INTERVAL {
            return;
        }
        times.redrawn = Instant::now();
        let states_per_second = done as f64 / times.started.elapsed().as_secs_f64().max(1e-3);
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
