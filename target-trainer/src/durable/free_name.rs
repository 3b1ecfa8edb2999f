//! Gives a file a name that is free, and replaces no other file.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::error::DurableError;
use super::rename_new;
use crate::names::{SHORT_NAME_BYTES, max_name_bytes, numbered_name};

/// Names with a number that are tried before one with the time.
const MAX_NUMBER: u32 = 1000;

/// Numbers that this process has made.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// Moves a file to the first name in `dir` that is free: `name`, `1-name`, `2-name` .. Of a name that is too long, the
/// end is kept. Returns the file's path. Does not sync.
///
/// # Errors
/// If it can't be renamed.
pub fn rename_to_free_name(from: &Path, dir: &Path, name: &OsStr) -> Result<PathBuf, DurableError> {
    let mut max_bytes = max_name_bytes(dir);
    let mut number = 0;
    loop {
        let prefix = match number {
            0 => String::new(),
            1..=MAX_NUMBER => format!("{number}-"),
            _ => format!("{}-", unique_number()),
        };
        let target = dir.join(numbered_name(name, &prefix, max_bytes));
        match rename_new(from, &target) {
            Ok(true) => return Ok(target),
            Ok(false) => number += 1,
            Err(error) if error.is_name_too_long() && max_bytes > SHORT_NAME_BYTES => {
                max_bytes = SHORT_NAME_BYTES;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A number that nobody else uses at the same time.
pub fn unique_number() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let count = NUMBERS.fetch_add(1, Ordering::Relaxed);
    format!("{}-{}-{count}", std::process::id(), now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_is_replaced_and_a_long_name_keeps_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let add = |name: &str| {
            std::fs::write(dir.path().join(".new"), name).unwrap();
            let path = rename_to_free_name(&dir.path().join(".new"), dir.path(), OsStr::new(name)).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), name);
            path.file_name().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!([add("a"), add("a"), add("a")], ["a", "1-a", "2-a"]);
        let long = format!("{}.jsonl", "n".repeat(300));
        assert_eq!([add(&long).len(), add(&long).len()], [255, 255]);
        // All that a cut leaves are dots, which would name the directory itself.
        let dots = format!("a{}", ".".repeat(300));
        assert_eq!([add(&dots), add(&dots)], ["data", "1-data"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 7);
    }
}
