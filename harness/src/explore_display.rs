//! Shows the progress of `explore`: a bar with states per second and failing states on a terminal, plain
//! lines elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::print;
use engine::explore::{ExploreProgress, LargeTreeProgress, ReplayProgress};
use engine::locks::LockExt;

/// Minimum time between two changes of the bar.
const REDRAW_INTERVAL: Duration = Duration::from_millis(60);

/// Without a terminal, minimum time between two lines about a copy.
const COPY_LINE_INTERVAL: Duration = Duration::from_secs(5);

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
            ExploreProgress::LargeTree(progress) => self.on_large_tree(progress),
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

    fn on_large_tree(&self, progress: &LargeTreeProgress) {
        match progress {
            LargeTreeProgress::Overlaid { dir, len_bytes } => self.print_line(&format!(
                "`{}` has {}: the trainer sees it as an overlay, and only what it changes is copied",
                dir.display(),
                gib(*len_bytes)
            )),
            LargeTreeProgress::Copying { dir, len_bytes, obstacle } => self.print_line(&format!(
                "copying `{}`, {}, which cannot be an overlay: {obstacle}",
                dir.display(),
                gib(*len_bytes)
            )),
            LargeTreeProgress::Copied { done_bytes, len_bytes } => self.on_copied(*done_bytes, *len_bytes),
        }
    }

    fn on_copied(&self, done_bytes: u64, len_bytes: u64) {
        let mut times = self.times.locked();
        let interval = if self.bar.is_some() { REDRAW_INTERVAL } else { COPY_LINE_INTERVAL };
        if times.redrawn.elapsed() < interval {
            return;
        }
        times.redrawn = Instant::now();
        let text = format!("copied {} of {}", gib(done_bytes), gib(len_bytes));
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None => print::line(&text),
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

/// A size for people.
fn gib(len_bytes: u64) -> String {
    format!("{:.1} GiB", len_bytes as f64 / f64::from(1 << 30))
}

impl Drop for ExploreDisplay {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
