//! How a pass-through file system differs from the one below, and what shows that a process met the difference.
//! Answers no request.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

use crate::locks::LockExt;

/// Times that are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// How a file system differs from an ordinary one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystemTraits {
    /// Names that differ only in case are one name.
    pub folds_case: bool,
    /// Times of files are multiples of so many seconds, if not exact.
    pub time_unit_s: Option<u32>,
}

impl FileSystemTraits {
    /// The time that a file has on this file system. Seconds and nanoseconds since 1970.
    pub(super) fn stored(self, seconds: i64, nanos: u32) -> (i64, u32) {
        match self.time_unit_s {
            Some(unit) if unit > 0 => (seconds - seconds.rem_euclid(i64::from(unit)), 0),
            _ => (seconds, nanos),
        }
    }

    /// The same, as a value of the library.
    pub(super) fn time(self, seconds: i64, nanos: u64) -> SystemTime {
        let (seconds, nanos) = self.stored(seconds, u32::try_from(nanos).unwrap_or(0));
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let start = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
        start.and_then(|start| start.checked_add(Duration::from_nanos(nanos.into()))).unwrap_or(UNIX_EPOCH)
    }
}

/// A file as it is known to whoever asks for its time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum AskedFile {
    Number(u64),
    Name(u64, OsString),
}

/// A modification time, since 1970.
#[derive(Clone, Copy, PartialEq, Eq)]
struct ExactTime {
    seconds: i64,
    nanos: u32,
}

/// The times that were given to processes of the sandbox: for each file and each time that was shown, the exact time
/// when that was first done.
#[derive(Default)]
pub(super) struct GivenTimes(Mutex<HashMap<(AskedFile, i64), ExactTime>>);

impl GivenTimes {
    /// A process gets the time of a file. Returns what the time hides: that the file has changed since the same time was
    /// first given.
    pub(super) fn give(&self, traits: FileSystemTraits, file: AskedFile, stat: &Stat) -> Option<String> {
        traits.time_unit_s?;
        let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let exact = ExactTime { seconds: stat.st_mtime, nanos };
        let (shown, _) = traits.stored(exact.seconds, exact.nanos);
        let name = match &file {
            AskedFile::Name(_, name) => format!("`{}`", name.display()),
            AskedFile::Number(number) => format!("the file with inode {number}"),
        };
        let mut given = self.0.locked();
        let key = (file, shown);
        let before = match given.get(&key) {
            Some(before) => *before,
            None if given.len() < MAX_REMEMBERED => *given.entry(key).or_insert(exact),
            None => return None,
        };
        let text = |time: ExactTime| format!("{}.{:09}", time.seconds, time.nanos);
        (before != exact).then(|| {
            format!(
                "{name} has changed from {} to {}, and both were given as {shown}",
                text(before),
                text(exact)
            )
        })
    }
}

/// What shows that a process got another file than the one whose name it gave.
pub(super) fn folded_name(asked: &OsStr, found: &OsStr) -> Option<String> {
    (asked != found).then(|| format!("`{}` was asked for, and it was `{}`", asked.display(), found.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_down() {
        let coarse = FileSystemTraits { time_unit_s: Some(2), ..FileSystemTraits::default() };
        assert_eq!(coarse.stored(1_000_001, 5), (1_000_000, 0));
        assert_eq!(coarse.stored(-1, 5), (-2, 0));
        assert_eq!(FileSystemTraits::default().stored(7, 5), (7, 5));
        assert_eq!(coarse.time(-1, 5), UNIX_EPOCH - Duration::from_secs(2));
    }
}
