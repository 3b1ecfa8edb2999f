//! Shows the progress of `explore`: a bar with states per second and failing states on a terminal, a plain line every
//! ten seconds elsewhere.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use scenarios::{grouped, speed_text};

use crate::plain_progress::{PlainProgress, ProgressPhase, ProgressTicker, rest_text};
use crate::print;
use engine::explore::{ExploreProgress, LargeTreeProgress, RecordingProgress, ReplayProgress};
use engine::locks::LockExt;

/// Minimum time between two changes of the bar.
const REDRAW_INTERVAL: Duration = Duration::from_millis(60);

/// Without a terminal, time between two lines about the recording.
const RECORDING_LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Without a terminal, minimum time between two lines about a copy.
const COPY_LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Prints the progress of one exploration. Dropping it removes the bar.
pub(crate) struct ExploreDisplay {
    bar: Option<ProgressBar>,
    times: Mutex<DisplayTimes>,
    plain: Arc<Mutex<PlainProgress>>,
    /// Prints the plain lines. `None`: there is a bar.
    _ticker: Option<ProgressTicker>,
}

/// When a plain line about the recording is due: now and then, and when the main process has ended.
#[derive(Default)]
struct RecordingLine {
    printed: Duration,
    waits: bool,
}

impl RecordingLine {
    fn is_due(&mut self, progress: RecordingProgress) -> bool {
        let waits = progress.waiting_for.is_some();
        let is_due = progress.elapsed.saturating_sub(self.printed) >= RECORDING_LINE_INTERVAL
            || (waits && !self.waits);
        if is_due {
            *self = RecordingLine { printed: progress.elapsed, waits };
        }
        is_due
    }
}

/// What is said about a recording in progress.
fn recording_text(progress: RecordingProgress) -> String {
    let RecordingProgress { elapsed, operations, len_bytes, waiting_for } = progress;
    let waits = match waiting_for {
        None => String::new(),
        Some(1) => "; waits for 1 process of the trainer that still runs".into(),
        Some(count) => format!("; waits for {count} processes of the trainer that still run"),
    };
    format!(
        "recording: {} s, {} operations, {:.1} MiB{waits}",
        elapsed.as_secs(),
        grouped(operations),
        len_bytes as f64 / f64::from(1 << 20)
    )
}

/// The times that the bar depends on.
struct DisplayTimes {
    /// When the first state was tried.
    started: Instant,
    /// When the bar was last changed.
    redrawn: Instant,
    recording_line: RecordingLine,
}

impl DisplayTimes {
    fn now() -> DisplayTimes {
        let recording_line = RecordingLine::default();
        DisplayTimes { started: Instant::now(), redrawn: Instant::now(), recording_line }
    }
}

impl ExploreDisplay {
    pub(crate) fn new() -> ExploreDisplay {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        let plain = Arc::new(Mutex::new(PlainProgress::new()));
        let ticker = bar.is_none().then(|| ProgressTicker::start(Arc::clone(&plain)));
        ExploreDisplay { bar, times: Mutex::new(DisplayTimes::now()), plain, _ticker: ticker }
    }

    pub(crate) fn on_progress(&self, progress: &ExploreProgress) {
        match progress {
            ExploreProgress::Recording => {
                // With `--depth 2` there are several recordings.
                self.times.locked().recording_line = RecordingLine::default();
                self.begin_phase(ProgressPhase::Recording);
                self.show_message("recording a run without faults");
            }
            ExploreProgress::LargeTree(progress) => self.on_large_tree(progress),
            ExploreProgress::RecordingRuns(progress) => self.on_recording(*progress),
            ExploreProgress::Recorded { operations, saves, is_kept } => {
                self.begin_phase(ProgressPhase::Enumerating);
                let what = if *is_kept { "the kept recording has" } else { "recorded" };
                self.print_line(&format!("{what} {operations} file operations, {saves} saves"));
            }
            ExploreProgress::Enumerated { states } => {
                self.plain.locked().states = *states;
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
            ExploreProgress::Controls => {
                self.begin_phase(ProgressPhase::Controls);
                self.show_message("recovering from undamaged files");
            }
            ExploreProgress::WarmStart(news) => {
                self.print_line(&news.to_string());
                // After forked recoveries that differed, all states are tried again.
                if self.plain.locked().restart_trying() {
                    self.times.locked().started = Instant::now();
                }
            }
            ExploreProgress::ControlsEnded => {
                self.begin_phase(ProgressPhase::Trying);
                self.times.locked().started = Instant::now();
                self.show_message("trying crash states");
            }
            ExploreProgress::Tried(progress) => self.on_tried(*progress),
            ExploreProgress::FirstMet(text) => self.print_line(text),
            ExploreProgress::StateMoved(name) => {
                self.print_line(&format!("in this recording the state is {name}"));
            }
            ExploreProgress::SecondCrash { number, count, after } => {
                self.print_line(&format!("second crashes in recovery {number} of {count}, {after}"));
            }
            ExploreProgress::Confirming => {
                self.begin_phase(ProgressPhase::Confirming);
                self.show_message("confirming the findings, one recovery at a time");
            }
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

    fn on_recording(&self, progress: RecordingProgress) {
        if let Some(bar) = &self.bar {
            bar.set_message(recording_text(progress));
            return;
        }
        if self.times.locked().recording_line.is_due(progress) {
            print::line(&recording_text(progress));
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
        let states = {
            let mut plain = self.plain.locked();
            (plain.done, plain.failing) = (done, failing);
            plain.states
        };
        let Some(bar) = &self.bar else { return };
        let mut times = self.times.locked();
        if times.redrawn.elapsed() < REDRAW_INTERVAL {
            return;
        }
        times.redrawn = Instant::now();
        let seconds = times.started.elapsed().as_secs_f64();
        bar.set_position(done as u64);
        let (speed, rest) = (speed_text(done as u64, seconds), rest_text(done, states, seconds));
        bar.set_message(format!("{speed}  {failing} failing{rest}"));
    }

    fn begin_phase(&self, phase: ProgressPhase) {
        self.plain.locked().begin(phase);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(seconds: u64, waiting_for: Option<usize>) -> RecordingProgress {
        let elapsed = Duration::from_secs(seconds);
        RecordingProgress { elapsed, operations: 1234, len_bytes: 3 << 19, waiting_for }
    }

    #[test]
    fn a_line_about_the_recording_is_due_every_ten_seconds_and_when_processes_are_waited_for() {
        let mut line = RecordingLine::default();
        let due = [0, 5, 10, 15, 19, 20].map(|seconds| line.is_due(progress(seconds, None)));
        assert_eq!(due, [false, false, true, false, false, true]);
        let due = [21, 22, 30, 31].map(|seconds| line.is_due(progress(seconds, Some(3))));
        assert_eq!(due, [true, false, false, true]);
    }

    #[test]
    fn the_line_about_the_recording_counts_operations_bytes_and_processes() {
        let text = recording_text(progress(20, None));
        assert_eq!(text, "recording: 20 s, 1,234 operations, 1.5 MiB");
        let text = recording_text(progress(20, Some(3)));
        assert!(text.ends_with("; waits for 3 processes of the trainer that still run"), "{text}");
    }
}
