//! Moves a file of the inbox that is no data file to `failed/`, with the reason beside it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::daemon_config::DaemonConfig;
use super::error::AcceptError;
use super::inbox_file::{FileIdentity, Taken, put_back, take_aside};
use crate::durable::{self, DurableError, SyncPolicy};
use crate::file_error::chain;
use crate::intake::DataError;
use crate::names::shown_name;
use crate::store::RootLayout;

/// Begin of the names of rejected files that can't be moved to `failed/`.
pub(super) const REJECTED_PREFIX: &str = ".rejected-";

/// A file that is rejected.
pub(super) struct Rejection<'a> {
    pub(super) path: &'a Path,
    /// Its name in the inbox.
    pub(super) name: &'a OsStr,
    pub(super) identity: FileIdentity,
    /// Where it is wrong, if that is a place. The first errors of the file.
    pub(super) errors: &'a [DataError],
    pub(super) message: &'a str,
}

/// Writes `reason.json` and moves the file beside it. Every rejected file gets a directory of its own, also
/// if an earlier one had the same name and the same error.
pub(super) fn reject(config: &DaemonConfig<'_>, rejection: &Rejection<'_>) -> Result<(), AcceptError> {
    let Rejection { path, name, identity, errors, message } = *rejection;
    let first = errors.first();
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes());
    hasher.update(format!("\0{first:?}\0{message}\0{identity:?}").as_bytes());
    let digest = hasher.finalize().to_hex();
    let label = &digest[..16];
    let dir = dir_without_data(&config.layout.failed(), label);
    if !dir.join("reason.json").exists() {
        write_reason(&dir, rejection).map_err(AcceptError::Reject)?;
        let position = |error: &DataError| format!(" line {} column {}:", error.line, error.column);
        let first_position = first.map(position).unwrap_or_default();
        (config.print_line)(&format!("rejected {}:{first_position} {message}", shown_name(name)));
        for error in errors.iter().skip(1) {
            (config.print_line)(&format!(
                "rejected {}:{} {}",
                shown_name(name),
                position(error),
                error.message
            ));
        }
    }
    let hidden = path.with_file_name(format!("{REJECTED_PREFIX}{label}"));
    let taken = match take_aside(path, &hidden, identity) {
        // It has vanished: there is nothing to move.
        Err(error) if error.is_not_found() => return Ok(()),
        taken => taken.map_err(AcceptError::Remove)?,
    };
    if taken == Taken::Yes {
        match durable::rename_new(&hidden, &dir.join("data")) {
            Ok(true) => {}
            Ok(false) => put_back(&hidden, path).map_err(AcceptError::Remove)?,
            // `failed/` may be on another file system.
            Err(error) => (config.print_line)(&format!(
                "the rejected file {} stays in the inbox as {}: {}",
                shown_name(name),
                hidden.file_name().unwrap_or_default().to_string_lossy(),
                chain(&error)
            )),
        }
    }
    Ok(())
}

/// The first directory for this label that has no data. One that has a reason is that of an attempt that was
/// interrupted. One that has something else is not the daemon's.
fn dir_without_data(failed: &Path, label: &str) -> PathBuf {
    let names = (1..).map(|number| match number {
        1 => format!("rejected-{label}"),
        number => format!("rejected-{label}-{number}"),
    });
    let is_empty = |dir: &Path| match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => dir.symlink_metadata().is_err(),
    };
    let is_free = |dir: &PathBuf| {
        let has_data = dir.join("data").symlink_metadata().is_ok();
        !has_data && (dir.join("reason.json").exists() || is_empty(dir))
    };
    names.map(|name| failed.join(name)).find(is_free).unwrap_or_else(|| failed.join(label))
}

/// Moves a hidden file to `failed/`, where a killed daemon has written the reason already. Without a reason,
/// the file gets a visible name, so that it is rejected again.
///
/// # Errors
/// If it can't be moved.
pub(super) fn finish_rejection(layout: &RootLayout, hidden: &Path, label: &str) -> Result<(), DurableError> {
    let dir = dir_without_data(&layout.failed(), label);
    if dir.join("reason.json").exists() {
        return durable::rename_new(hidden, &dir.join("data")).map(drop);
    }
    put_back(hidden, &hidden.with_file_name(format!("rejected-{label}.jsonl")))
}

fn write_reason(dir: &Path, rejection: &Rejection<'_>) -> Result<(), DurableError> {
    let reason = serde_json::json!({
        "file": shown_name(rejection.name),
        "error": rejection.message,
        "line": rejection.errors.first().map(|error| error.line),
        "column": rejection.errors.first().map(|error| error.column),
        "errors": rejection.errors.iter().map(|error| error.to_string()).collect::<Vec<_>>(),
        "advice": "fix the file and submit it again",
    });
    let text = serde_json::to_vec_pretty(&reason).unwrap_or_default();
    durable::write_dir(dir, &[("reason.json", text)], SyncPolicy::Full, true)
}
