//! The command `submit`: copies a data file into the inbox under a name that is free and that the daemon
//! takes. It never overwrites a file, also if many submits of one name run at once.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::CliError;
use super::file_rights::keep_files_private;
use super::print;
use crate::daemon::has_open_writer;
use crate::durable::{self, AppendFile, SyncPolicy};
use crate::exit::Exit;
use crate::plain_text::shown;
use crate::settings::{Guards, Settings};
use crate::store::RootLayout;

/// Longest name of a file. Most file systems allow 255 bytes.
const MAX_NAME_BYTES: usize = 255;
/// Longest name on file systems that encrypt names.
const SHORT_NAME_BYTES: usize = 143;
/// Names with a number that are tried before one with the time.
const MAX_NUMBER: u32 = 1000;

/// Copies a file into the inbox and prints the name that it has there.
pub(super) fn submit(root: &Path, file: &Path, other_name: Option<&str>) -> Result<Exit, CliError> {
    let inbox = RootLayout::new(root).inbox();
    let path = || file.to_owned();
    let name = other_name.or_else(|| file.file_name().and_then(OsStr::to_str));
    let name = name.ok_or_else(|| CliError::NameNotUtf8 { path: path() })?;
    // Without settings, the root is not one, and the copy fails.
    let guards = Settings::read(&RootLayout::new(root).settings()).unwrap_or_default().guards;
    if guards.submit_names && name.contains('/') {
        return Err(CliError::NameIsPath { name: name.to_owned() });
    }
    keep_files_private(&guards);
    let name = if guards.submit_names { visible_name(name) } else { name.to_owned() };
    let mut from = File::open(file).map_err(|source| CliError::OpenSubmitted { path: path(), source })?;
    let temporary = inbox.join(format!("{}submit-{}", durable::TEMPORARY_MARKER, unique_number()));
    let moved = copy_finished_file(file, &mut from, &temporary)
        .and_then(|()| move_to_free_name(&temporary, &inbox, &name, &guards));
    if moved.is_err() {
        // The first error is the one that is reported.
        let _ = durable::remove_file(&temporary);
    }
    let target = moved?;
    durable::sync_dir(&inbox, SyncPolicy::Full)?;
    let target_name = target.file_name().unwrap_or_default().to_string_lossy();
    print::line(&format!("submitted {}", inbox.join(shown(&target_name)).display()));
    Ok(Exit::Done)
}

/// A name like `name` that the daemon does not ignore: it has no leading dot and no end like
/// `.tmp`.
fn visible_name(name: &str) -> String {
    let name = match name.trim_start_matches('.') {
        "" => "data",
        name => name,
    };
    if durable::is_unfinished_name(name) { format!("{name}.jsonl") } else { name.to_owned() }
}

/// Renames the copy to the first name that is free: `name`, `1-name`, `2-name` ..
fn move_to_free_name(
    temporary: &Path,
    inbox: &Path,
    name: &str,
    guards: &Guards,
) -> Result<PathBuf, CliError> {
    let mut max_bytes = MAX_NAME_BYTES;
    let mut number = 0;
    loop {
        let prefix = match number {
            0 => String::new(),
            1..=MAX_NUMBER => format!("{number}-"),
            _ => format!("{}-", unique_number()),
        };
        let end = if guards.submit_names { end_of_name(name, max_bytes - prefix.len()) } else { name };
        let target = inbox.join(prefix + end);
        let renamed = match guards.submit_names {
            true => durable::rename_new(temporary, &target),
            false => durable::rename(temporary, &target).map(|()| true),
        };
        match renamed {
            Ok(true) => return Ok(target),
            Ok(false) => number += 1,
            Err(error) if error.is_name_too_long() && max_bytes > SHORT_NAME_BYTES => {
                max_bytes = SHORT_NAME_BYTES;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The last characters of the name, in at most `max_bytes` bytes. The end is kept because of its extension.
fn end_of_name(name: &str, max_bytes: usize) -> &str {
    let start =
        (name.len().saturating_sub(max_bytes)..name.len()).find(|start| name.is_char_boundary(*start));
    // A cut may not leave a name that is hidden.
    name[start.unwrap_or(0)..].trim_start_matches('.')
}

/// A number that no other process uses at the same time.
fn unique_number() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

/// Copies a file that nobody writes. What is not a regular file, such as a pipe, ends by itself.
fn copy_finished_file(path: &Path, from: &mut File, to: &Path) -> Result<(), CliError> {
    let metadata = |from: &File| from.metadata().map_err(CliError::ReadSubmitted);
    let before = metadata(from)?;
    copy_file(from, to)?;
    let after = metadata(from)?;
    let is_same = (before.len(), before.modified().ok()) == (after.len(), after.modified().ok());
    if before.is_file() && (!is_same || has_open_writer(from)) {
        return Err(CliError::StillWritten { path: path.to_owned() });
    }
    Ok(())
}

/// Copies the file. The copy is not writable: it is complete, and the daemon need not wait for its writer.
fn copy_file(from: &mut File, to: &Path) -> Result<(), CliError> {
    let mut copy = AppendFile::create(to)?;
    let mut chunk = vec![0; 1 << 16];
    loop {
        match from.read(&mut chunk).map_err(CliError::ReadSubmitted)? {
            0 => break,
            read => copy.write_all(&chunk[..read])?,
        }
    }
    copy.make_read_only()?;
    Ok(copy.finish(SyncPolicy::Full)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_one_that_the_daemon_ignores() {
        for (name, visible) in [
            ("a.jsonl", "a.jsonl"),
            (".hidden.jsonl", "hidden.jsonl"),
            ("..x", "x"),
            ("...", "data"),
            ("a.jsonl.tmp", "a.jsonl.tmp.jsonl"),
            (".tmp", "tmp"),
            (".tmp-1", "tmp-1"),
            ("..tmp.tmp", "tmp.tmp.jsonl"),
            ("a.PART", "a.PART.jsonl"),
            ("a~", "a~.jsonl"),
            ("data.tmpl.jsonl", "data.tmpl.jsonl"),
        ] {
            assert_eq!(visible_name(name), visible);
        }
    }

    #[test]
    fn a_cut_name_keeps_its_end_and_whole_characters() {
        assert_eq!(end_of_name("abc.jsonl", 255), "abc.jsonl");
        assert_eq!(end_of_name("abc.jsonl", 6), "jsonl");
        assert_eq!(end_of_name("é.jsonl", 7), "jsonl");
        assert_eq!(end_of_name(&"é".repeat(200), 255).len(), 254);
    }
}
