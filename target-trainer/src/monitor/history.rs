//! The history of a job: what each step has measured, as one JSON line each, for the loss curve and for other
//! programs. Bounded: when there is too much, every second line is left out, and from then on every second
//! step, so that all of the job stays visible. Draws nothing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bounded_read::read_regular;
use crate::durable::{self, AppendFile, DurableError, SyncPolicy};

/// Points that are kept in memory.
const MAX_POINTS: usize = 1024;
/// Jobs whose histories are kept.
const MAX_HISTORIES: usize = 100;
/// End of the name of a history.
const SUFFIX: &str = ".jsonl";

/// What a step has measured. `None` if it was not a number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct StepPoint {
    pub(super) step: u64,
    pub(super) loss: Option<f64>,
    pub(super) gradient_norm: Option<f64>,
    pub(super) learning_rate: Option<f64>,
    pub(super) tokens_per_s: Option<f64>,
}

/// Points of a job at about equal distances, and its last one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct StepCurve {
    points: Vec<StepPoint>,
    /// Least distance between two points, in steps. The last one may be nearer.
    distance: u64,
}

impl StepCurve {
    pub(super) fn points(&self) -> &[StepPoint] {
        &self.points
    }

    /// Adds a point, in the place of those that it repeats.
    pub(super) fn add(&mut self, point: StepPoint) {
        self.return_to(point.step.saturating_sub(1));
        if let [.., before, last] = &self.points[..]
            && last.step - before.step < self.distance
        {
            self.points.pop();
        }
        self.points.push(point);
        if self.points.len() > MAX_POINTS {
            self.points = every_second(std::mem::take(&mut self.points));
            self.distance = distance_of(&self.points);
        }
    }

    /// Training has returned to this step.
    pub(super) fn return_to(&mut self, step: u64) {
        while self.points.last().is_some_and(|last| last.step > step) {
            self.points.pop();
        }
    }

    /// The points of a text. Training may have returned to an earlier step: later lines count.
    fn of_text(text: &[u8]) -> StepCurve {
        let mut curve = StepCurve::default();
        for point in text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()) {
            curve.add(point);
        }
        curve
    }
}

/// Every second one, the first and the last among them.
fn every_second<T>(items: Vec<T>) -> Vec<T> {
    let last = items.len().saturating_sub(1);
    items
        .into_iter()
        .enumerate()
        .filter(|(index, _)| index % 2 == 0 || *index == last)
        .map(|(_, item)| item)
        .collect()
}

/// The usual distance between two points, in steps.
fn distance_of(points: &[StepPoint]) -> u64 {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return 1 };
    (last.step - first.step).div_ceil((points.len() as u64 - 1).max(1)).max(1)
}

/// The history of one job.
pub(super) struct StepHistory {
    path: PathBuf,
    max_bytes: u64,
    file: Option<AppendFile>,
    /// Distance between two lines, in steps.
    distance: u64,
    /// The step that was written last.
    last_step: Option<u64>,
}

impl StepHistory {
    /// Continues the history of a job in this directory. Returns it, and its points so far.
    pub(super) fn open(dir: &Path, job: &str, max_bytes: u64) -> (StepHistory, StepCurve) {
        let path = dir.join(format!("{job}{SUFFIX}"));
        let text = read_regular(&path, 2 * max_bytes).unwrap_or_default();
        let curve = StepCurve::of_text(&text);
        // Of those that are in the file, the curve has not all.
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        let distance = distance_of(curve.points()) * curve.points().len() as u64 / (lines as u64).max(1);
        (StepHistory { path, max_bytes, file: None, distance: distance.max(1), last_step: None }, curve)
    }

    /// Adds a step, unless it is too near to the last one.
    ///
    /// # Errors
    /// If the file can't be written. The next step is tried again.
    pub(super) fn add(&mut self, point: &StepPoint) -> Result<(), DurableError> {
        let is_near = |last: u64| (last..last + self.distance).contains(&point.step) && last < point.step;
        if self.last_step.is_some_and(is_near) {
            return Ok(());
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open_file()?,
        };
        let mut line = serde_json::to_vec(point).unwrap_or_default();
        line.push(b'\n');
        file.write_all(&line)?;
        self.last_step = Some(point.step);
        if file.len() > self.max_bytes {
            return self.thin_out();
        }
        self.file = Some(file);
        Ok(())
    }

    fn open_file(&self) -> Result<AppendFile, DurableError> {
        let dir = self.path.parent().unwrap_or(&self.path);
        durable::create_dir(dir)?;
        remove_oldest(dir, &self.path);
        let mut file = AppendFile::open_to_append(&self.path)?;
        // A kill may have torn the last line.
        if !file.is_empty() {
            file.write_all(b"\n")?;
        }
        Ok(file)
    }

    /// Leaves out every second line. What can't be read or is larger than ever written goes as a whole.
    fn thin_out(&mut self) -> Result<(), DurableError> {
        let text = read_regular(&self.path, 2 * self.max_bytes).unwrap_or_default();
        let lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.len() > 1);
        let kept: Vec<&[u8]> = every_second(lines.collect());
        durable::replace(&self.path, &kept.concat(), SyncPolicy::NoSync)?;
        self.distance = self.distance.saturating_mul(2);
        Ok(())
    }
}

/// Removes the oldest histories, so that there is room for one more. What fails is left for the next time.
fn remove_oldest(dir: &Path, next: &Path) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut histories: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(SUFFIX) && entry.path() != next)
        .filter_map(|entry| {
            let metadata = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some((metadata.modified().ok()?, entry.path()))
        })
        .collect();
    histories.sort();
    let surplus = (histories.len() + 1).saturating_sub(MAX_HISTORIES);
    for (_, path) in histories.into_iter().take(surplus) {
        let _ = durable::remove_file(&path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64) -> StepPoint {
        let value = Some(1.5);
        StepPoint { step, loss: value, gradient_norm: None, learning_rate: value, tokens_per_s: value }
    }

    /// No two neighbours are much further apart than others, and nothing is missing at the ends.
    fn assert_even(curve: &StepCurve, last: u64) {
        let points = curve.points();
        assert!(
            points[0].step == 1 && points.last().unwrap().step + curve.distance.max(64) > last,
            "{points:?}"
        );
        let distances: Vec<u64> = points.windows(2).map(|pair| pair[1].step - pair[0].step).collect();
        let most = distances.iter().max().unwrap();
        let usual = (last / points.len() as u64).max(1);
        assert!(*most <= 4 * usual, "{most} {usual}");
    }

    #[test]
    fn a_history_is_bounded_and_shows_all_of_the_job() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, curve) = StepHistory::open(dir.path(), "job", 4096);
        assert!(curve.points().is_empty());
        for step in 1..=5000 {
            history.add(&point(step)).unwrap();
            assert!(dir.path().join("job.jsonl").metadata().unwrap().len() <= 4096);
            // As after a restart of the daemon.
            if step % 1234 == 0 {
                history = StepHistory::open(dir.path(), "job", 4096).0;
            }
        }
        let (_, curve) = StepHistory::open(dir.path(), "job", 4096);
        assert!(curve.points().len() > 10);
        assert_even(&curve, 5000);
    }

    #[test]
    fn a_resume_replaces_the_steps_that_it_repeats_and_a_torn_line_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, _) = StepHistory::open(dir.path(), "job", 1 << 20);
        (1..=9).for_each(|step| history.add(&point(step)).unwrap());
        let path = dir.path().join("job.jsonl");
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 4]).unwrap();
        let (mut history, curve) = StepHistory::open(dir.path(), "job", 1 << 20);
        assert_eq!(curve.points().last(), Some(&point(8)));
        history.add(&point(6)).unwrap();
        let (_, curve) = StepHistory::open(dir.path(), "job", 1 << 20);
        assert_eq!(curve.points(), (1..=6).map(point).collect::<Vec<_>>());
    }

    #[test]
    fn a_curve_in_memory_is_bounded_and_shows_all_of_the_job() {
        let mut curve = StepCurve::default();
        for step in 1..=100_000 {
            curve.add(point(step));
            assert!(curve.points().len() <= MAX_POINTS && curve.points().last().unwrap().step == step);
        }
        assert!(curve.points().len() > MAX_POINTS / 3);
        assert_even(&curve, 100_000);
        curve.return_to(50_000);
        assert!(curve.points().last().unwrap().step <= 50_000);
    }

    #[test]
    fn the_histories_of_old_jobs_go_and_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
        for job in 0..MAX_HISTORIES + 20 {
            let (mut history, _) = StepHistory::open(dir.path(), &format!("job{job}"), 1 << 20);
            history.add(&point(1)).unwrap();
        }
        let count = std::fs::read_dir(dir.path()).unwrap().count();
        assert!(count == MAX_HISTORIES + 1 && dir.path().join("notes.txt").exists(), "{count}");
    }
}
