//! Log files by day: one for each local date, of bounded size, and the choice of those that go. What goes is
//! decided by the dates in the names alone, never by the clock: one that is wrong removes no log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::civil::Date;

use crate::durable::{self, AppendFile, DurableError};
use crate::file_error::{FileError, file_error};

/// Begin of the name of each log file.
const PREFIX: &str = "daemon-";
/// End of the name of a day's log file.
const SUFFIX: &str = ".log";
/// End of the name of a day's log file that has reached its size.
const FULL_SUFFIX: &str = ".log.1";

/// Writes lines to the log file of a day.
pub struct DayLog {
    dir: PathBuf,
    /// Size at which a file is renamed, and the one that was renamed before is gone.
    file_bytes: Option<u64>,
    open: Option<OpenLog>,
}

struct OpenLog {
    day: Date,
    file: AppendFile,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Days that have a log.
    pub days: usize,
    /// Bytes of all logs.
    pub bytes: u64,
}

impl DayLog {
    /// A log in this directory. A day has at most `file_bytes` twice.
    pub fn new(dir: PathBuf, file_bytes: Option<u64>) -> DayLog {
        DayLog { dir, file_bytes, open: None }
    }

    /// Appends a line to the file of this day. The file is opened anew after an error.
    ///
    /// # Errors
    /// If the file can't be opened or written.
    pub fn write_line(&mut self, day: Date, line: &[u8]) -> Result<(), DurableError> {
        let written = self.open(day).and_then(|log| log.file.write_all(line));
        if written.is_err() {
            self.open = None;
        }
        written
    }

    fn open(&mut self, day: Date) -> Result<&mut OpenLog, DurableError> {
        let is_full = |file: &AppendFile| self.file_bytes.is_some_and(|max| file.len() > max);
        let log = match self.open.take() {
            Some(log) if log.day == day && !is_full(&log.file) => log,
            _ => {
                durable::create_dir(&self.dir)?;
                let path = self.dir.join(format!("{PREFIX}{day}{SUFFIX}"));
                let mut file = AppendFile::open_to_append(&path)?;
                if is_full(&file) {
                    durable::rename(&path, &self.dir.join(format!("{PREFIX}{day}{FULL_SUFFIX}")))?;
                    file = AppendFile::open_to_append(&path)?;
                }
                OpenLog { day, file }
            }
        };
        Ok(self.open.insert(log))
    }
}

/// The day of a log file. `None` if it is another file.
fn day_of(name: &str) -> Option<Date> {
    let rest = name.strip_prefix(PREFIX)?;
    let day = rest.strip_suffix(SUFFIX).or_else(|| rest.strip_suffix(FULL_SUFFIX))?;
    // Other forms of a date are other files.
    day.parse().ok().filter(|date: &Date| date.to_string() == day)
}

/// The days whose logs go: those before the newest `limits.days` that have a log, then the oldest until the
/// rest is no larger than `limits.bytes`. The log of `today` is being written, and stays. `logs` has the
/// bytes of each day.
fn removable(logs: &BTreeMap<Date, u64>, limits: LogLimits, today: Date) -> Vec<Date> {
    let old = logs.keys().rev().skip(limits.days).copied().filter(|day| *day != today);
    let mut removable: Vec<Date> = old.collect();
    removable.reverse();
    let mut kept: BTreeMap<Date, u64> = logs.clone();
    kept.retain(|day, _| !removable.contains(day));
    let mut bytes: u64 = kept.values().sum();
    for (day, len) in kept.into_iter().filter(|(day, _)| *day != today) {
        if bytes <= limits.bytes {
            break;
        }
        bytes -= len;
        removable.push(day);
    }
    removable
}

/// Removes the logs beyond the limits, oldest first. Returns how many files are gone.
///
/// # Errors
/// If the directory can't be listed, or a file can't be removed. A directory that does not exist has no logs.
pub fn clean_up(dir: &Path, limits: LogLimits, today: Date) -> Result<usize, FileError> {
    let mut files: BTreeMap<Date, Vec<PathBuf>> = BTreeMap::new();
    let mut bytes: BTreeMap<Date, u64> = BTreeMap::new();
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(file_error("list", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(file_error("list", dir))?;
        let Some(day) = day_of(&entry.file_name().to_string_lossy()) else { continue };
        // What is no file is not a log.
        let Some(metadata) = entry.metadata().ok().filter(std::fs::Metadata::is_file) else { continue };
        *bytes.entry(day).or_default() += metadata.len();
        files.entry(day).or_default().push(entry.path());
    }
    let mut removed = 0;
    for path in removable(&bytes, limits, today).into_iter().filter_map(|day| files.remove(&day)).flatten() {
        std::fs::remove_file(&path).map_err(file_error("remove", &path))?;
        removed += 1;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn date(day: i32) -> Date {
        Date::new(2026, 1, 1).unwrap().checked_add(jiff::Span::new().days(day)).unwrap()
    }

    proptest! {
        /// Days in the past and far ahead, of any size, with a clock that shows any of them.
        #[test]
        fn the_newest_days_stay_and_so_does_the_log_that_is_written(
            logs in proptest::collection::btree_map(-20_000i32..20_000, 0u64..1000, 0..60),
            today in -20_000i32..20_000,
            days in 1usize..40,
            bytes in 0u64..20_000,
        ) {
            let logs: BTreeMap<Date, u64> = logs.into_iter().map(|(day, len)| (date(day), len)).collect();
            let today = date(today);
            let removed = removable(&logs, LogLimits { days, bytes }, today);
            let kept: Vec<(&Date, &u64)> = logs.iter().filter(|(day, _)| !removed.contains(day)).collect();
            prop_assert!(!removed.contains(&today));
            prop_assert!(kept.len() <= days + 1);
            let total: u64 = kept.iter().filter(|(day, _)| **day != today).map(|(_, len)| **len).sum();
            let of_today = logs.get(&today).copied().unwrap_or(0);
            prop_assert!(total + of_today <= bytes || total == 0);
            // Nothing goes before something older, apart from today's.
            let oldest_kept = kept.iter().map(|(day, _)| **day).filter(|day| *day != today).min();
            prop_assert!(removed.iter().all(|day| oldest_kept.is_none_or(|kept| *day < kept)));
            // Without a limit on the size, all of the newest stay.
            let all = removable(&logs, LogLimits { days, bytes: u64::MAX }, today);
            prop_assert!(logs.keys().rev().take(days).all(|day| !all.contains(day)));
        }

        /// With a full house, a clock that is wrong costs a log of one day at most.
        #[test]
        fn a_clock_that_is_wrong_for_a_day_costs_one_log_at_most(wrong in -20_000i32..20_000) {
            let mut logs: BTreeMap<Date, u64> = (0..30).map(|day| (date(day), 1)).collect();
            logs.insert(date(wrong), 1);
            let removed = removable(&logs, LogLimits { days: 30, bytes: 1000 }, date(wrong));
            prop_assert!(removed.len() <= 1);
        }
    }

    #[test]
    fn only_the_files_of_a_log_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let others =
            ["daemon.log", "daemon-2020-1-1.log", "daemon-2020-01-01.log.2", "x-daemon-2020-01-01.log"];
        others.iter().for_each(|name| std::fs::write(path(name), "1").unwrap());
        std::fs::create_dir(path("daemon-2020-01-02.log")).unwrap();
        std::os::unix::fs::symlink(path("daemon.log"), path("daemon-2020-01-03.log")).unwrap();
        for day in 0..40 {
            let mut log = DayLog::new(dir.path().into(), Some(10));
            (0..3).for_each(|_| log.write_line(date(day), b"a line of the log\n").unwrap());
        }
        assert!(path(&format!("daemon-{}.log.1", date(39))).exists());
        let limits = LogLimits { days: 30, bytes: 1 << 20 };
        assert_eq!(clean_up(dir.path(), limits, date(39)).unwrap(), 20);
        assert_eq!(clean_up(dir.path(), limits, date(39)).unwrap(), 0);
        assert!(others.iter().all(|name| path(name).exists()) && path("daemon-2020-01-03.log").exists());
        assert!(!path(&format!("daemon-{}.log", date(9))).exists());
        assert!(path(&format!("daemon-{}.log", date(10))).exists());
        assert_eq!(clean_up(&path("none"), limits, date(39)).unwrap(), 0);
    }

    #[test]
    fn a_log_that_can_not_be_written_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        std::fs::write(&logs, "a file in the way").unwrap();
        let mut log = DayLog::new(logs.clone(), None);
        assert!(log.write_line(date(0), b"1\n").is_err());
        std::fs::remove_file(&logs).unwrap();
        log.write_line(date(0), b"2\n").unwrap();
        assert_eq!(std::fs::read(logs.join("daemon-2026-01-01.log")).unwrap(), b"2\n");
    }
}
