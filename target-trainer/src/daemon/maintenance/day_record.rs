//! The file `maintenance.json`: the days whose maintenance is done. Decides nothing.

use std::io::ErrorKind;
use std::path::Path;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::bounded_read::read_regular;
use crate::durable::{self, DurableError, SyncPolicy};

/// Largest record.
const MAX_RECORD_BYTES: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct DayRecord {
    /// In the order in which they were done.
    done: Vec<String>,
}

/// Reads the days that are done. `None` if there is no record.
///
/// # Errors
/// If it can't be read; with the kind `InvalidData` if it is not a record.
pub(super) fn read_done_days(path: &Path) -> std::io::Result<Option<Vec<Date>>> {
    let bytes = match read_regular(path, MAX_RECORD_BYTES) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let invalid = |text: String| std::io::Error::new(ErrorKind::InvalidData, text);
    let record: DayRecord = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    let days: Result<Vec<Date>, _> = record.done.iter().map(|day| day.parse()).collect();
    days.map(Some).map_err(|error: jiff::Error| invalid(error.to_string()))
}

/// Writes the days that are done, durably. With `whole`, a crash leaves the old record or the new one.
///
/// # Errors
/// If that is not possible. The old record then stays.
pub(super) fn write_done_days(
    path: &Path,
    done: impl Iterator<Item = Date>,
    whole: bool,
) -> Result<(), DurableError> {
    let record = DayRecord { done: done.map(|day| day.to_string()).collect() };
    let write = if whole { durable::replace } else { durable::write_in_place };
    write(path, &serde_json::to_vec(&record).unwrap_or_default(), SyncPolicy::Full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_as_they_were_written_and_anything_else_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("maintenance.json");
        assert_eq!(read_done_days(&path).unwrap(), None);
        let days = [Date::new(2026, 5, 2).unwrap(), Date::new(1970, 1, 1).unwrap()];
        write_done_days(&path, days.into_iter(), true).unwrap();
        assert_eq!(read_done_days(&path).unwrap(), Some(days.to_vec()));
        for wrong in ["", "{", "[]", r#"{"done": 1}"#, r#"{"done": ["2026-02-30"]}"#] {
            std::fs::write(&path, wrong).unwrap();
            assert_eq!(read_done_days(&path).unwrap_err().kind(), ErrorKind::InvalidData, "{wrong}");
        }
    }
}
