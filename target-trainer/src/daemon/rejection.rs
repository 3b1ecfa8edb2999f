//! Moves a file of the inbox that is no data file to `failed/`, with the reason beside it.

use std::path::Path;

use super::daemon_config::DaemonConfig;
use super::error::AcceptError;
use super::inbox_file::{FileIdentity, Taken, put_back, take_aside};
use crate::durable::{self, SyncPolicy};
use crate::intake::DataError;
use crate::plain_text::shown;

/// Begin of the names of rejected files that can't be moved to `failed/`.
pub(super) const REJECTED_PREFIX: &str = ".rejected-";

/// A file that is rejected.
pub(super) struct Rejection<'a> {
    pub(super) path: &'a Path,
    /// Its name in the inbox.
    pub(super) name: &'a str,
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
    let digest = blake3::hash(format!("{name}\0{first:?}\0{message}\0{identity:?}").as_bytes()).to_hex();
    let label = &digest[..16];
    let failed = config.layout.failed();
    // A directory without data is that of an attempt that was interrupted.
    let free =
        |name: String| Some(failed.join(name)).filter(|dir| dir.join("data").symlink_metadata().is_err());
    let names = (1..).map(|number| match number {
        1 => format!("rejected-{label}"),
        number => format!("rejected-{label}-{number}"),
    });
    let dir = names.filter_map(free).next().unwrap_or_else(|| failed.join(label));
    if !dir.join("reason.json").exists() {
        write_reason(&dir, rejection)?;
        let position = |error: &DataError| format!(" line {} column {}:", error.line, error.column);
        let first_position = first.map(position).unwrap_or_default();
        (config.print_line)(&format!("rejected {}:{first_position} {message}", shown(name)));
        for error in errors.iter().skip(1) {
            (config.print_line)(&format!("rejected {}:{} {}", shown(name), position(error), error.message));
        }
    }
    let hidden = path.with_file_name(format!("{REJECTED_PREFIX}{label}"));
    let taken = match take_aside(path, &hidden, identity) {
        // It has vanished: there is nothing to move.
        Err(error) if error.is_not_found() => return Ok(()),
        taken => taken.map_err(AcceptError::Remove)?,
    };
    // If `failed/` is on another file system, the file stays in the inbox under the hidden name.
    if taken == Taken::Yes && !durable::rename_new(&hidden, &dir.join("data")).unwrap_or(true) {
        put_back(&hidden, path).map_err(AcceptError::Remove)?;
    }
    Ok(())
}

fn write_reason(dir: &Path, rejection: &Rejection<'_>) -> Result<(), AcceptError> {
    let reason = serde_json::json!({
        "file": shown(rejection.name),
        "error": rejection.message,
        "line": rejection.errors.first().map(|error| error.line),
        "column": rejection.errors.first().map(|error| error.column),
        "errors": rejection.errors.iter().map(|error| error.to_string()).collect::<Vec<_>>(),
        "advice": "fix the file and submit it again",
    });
    durable::remove_tree(dir)?;
    let text = serde_json::to_vec_pretty(&reason).unwrap_or_default();
    Ok(durable::write_dir(dir, &[("reason.json", text)], SyncPolicy::Full, true)?)
}
