//! Moves a file from the inbox into the queue. It is copied and checked in one pass, so that training reads
//! exactly the bytes that were checked.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::daemon_config::DaemonConfig;
use super::error::AcceptError;
use super::jobs::{self, Job};
use crate::durable::{self, AppendFile, DurableError, SyncPolicy, TEMPORARY_MARKER};
use crate::intake::{ContentId, DataError, ReadError, read_samples};

/// Maximum characters of a file name in printed lines and in `job.json`.
const MAX_NAME_CHARS: usize = 80;

/// Accepts or rejects a file of the inbox. A rejected file is not an error.
///
/// # Errors
/// If the file has vanished or can't be read, or a write fails.
pub(super) fn accept_file(config: &DaemonConfig<'_>, path: &Path, name: &str) -> Result<(), AcceptError> {
    let file = match open_regular_file(path) {
        Ok(file) => file,
        Err(OpenFailure::NotRegularFile(file_type)) => {
            return reject(config, path, name, None, &format!("{file_type}, not a regular file"));
        }
        Err(OpenFailure::Io(error)) => return Err(error.into()),
    };
    if file.metadata()?.len() > config.settings.limits.file_bytes {
        let message = format!("the file is larger than {} bytes", config.settings.limits.file_bytes);
        return reject(config, path, name, None, &message);
    }
    let temporary = config.layout.processing().join(format!("{TEMPORARY_MARKER}-intake"));
    let copied = copy_and_check(config, file, &temporary, name);
    if copied.is_err() {
        durable::remove_tree(&temporary)?;
    }
    match copied? {
        CopyOutcome::Invalid(error) => {
            durable::remove_tree(&temporary)?;
            reject(config, path, name, Some(&error), &error.message)
        }
        CopyOutcome::Job(job) => enqueue(config, path, &temporary, &job),
    }
}

/// Why a file of the inbox was not opened.
enum OpenFailure {
    /// Holds what it is instead, for the printed line.
    NotRegularFile(&'static str),
    Io(std::io::Error),
}

/// Opens a regular file. Never blocks on a pipe and never follows a symbolic link.
fn open_regular_file(path: &Path) -> Result<File, OpenFailure> {
    use std::os::unix::fs::FileTypeExt;
    let kind = path.symlink_metadata().map_err(OpenFailure::Io)?.file_type();
    let file_type = match kind {
        kind if kind.is_symlink() => Some("a symbolic link"),
        kind if kind.is_dir() => Some("a directory"),
        kind if kind.is_fifo() => Some("a pipe"),
        kind if kind.is_socket() => Some("a socket"),
        kind if kind.is_file() => None,
        _ => Some("a device"),
    };
    if let Some(file_type) = file_type {
        return Err(OpenFailure::NotRegularFile(file_type));
    }
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(OpenFailure::Io)?;
    // Another process may have replaced the file since the first check.
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(_) => Err(OpenFailure::NotRegularFile("replaced while it was opened")),
        Err(error) => Err(OpenFailure::Io(error)),
    }
}

/// What the copy of a data file gave.
enum CopyOutcome {
    Job(Job),
    Invalid(DataError),
}

/// Copies the file into the directory `temporary` and checks each line.
fn copy_and_check(
    config: &DaemonConfig<'_>,
    file: File,
    temporary: &Path,
    name: &str,
) -> Result<CopyOutcome, DurableError> {
    durable::remove_tree(temporary)?;
    durable::create_dir(temporary)?;
    let mut copy = AppendFile::create(&temporary.join("data.jsonl"))?;
    let mut content = ContentId::default();
    let read = read_samples(file, &config.settings.limits, &config.settings.guards, |line| {
        content.update(line);
        copy.write_all(line)
    });
    let samples = match read {
        Ok(samples) => samples.len() as u64,
        Err(ReadError::Data(error)) => return Ok(CopyOutcome::Invalid(error)),
        Err(ReadError::Sink(error)) => return Err(error),
    };
    copy.finish(SyncPolicy::Full)?;
    let id = content.finish();
    let order = jobs::queued(&config.layout).unwrap_or_default().last().map_or(1, |last| last.order + 1);
    let job = Job { id, name: display_name(name), samples, order };
    let text = serde_json::to_vec(&job).unwrap_or_default();
    durable::write_new(&temporary.join("job.json"), &text, SyncPolicy::Full)?;
    durable::sync_dir(temporary, SyncPolicy::Full)?;
    Ok(CopyOutcome::Job(job))
}

/// Moves the copy into the queue by one rename, then removes the file from the inbox.
fn enqueue(config: &DaemonConfig<'_>, path: &Path, temporary: &Path, job: &Job) -> Result<(), AcceptError> {
    if jobs::is_known(&config.layout, &job.id) {
        durable::remove_tree(temporary)?;
        (config.print_line)(&format!("duplicate {}: the same content as job {}", job.name, job.id));
    } else {
        durable::rename(temporary, &config.layout.processing().join(&job.id))?;
        durable::sync_dir(&config.layout.processing(), SyncPolicy::Full)?;
        (config.print_line)(&format!("accepted job {}: {} samples from {}", job.id, job.samples, job.name));
    }
    Ok(durable::remove_file(path)?)
}

/// Moves the file to `failed/`, next to a `reason.json` that describes what is wrong with it.
fn reject(
    config: &DaemonConfig<'_>,
    path: &Path,
    name: &str,
    data_error: Option<&DataError>,
    message: &str,
) -> Result<(), AcceptError> {
    let shown = display_name(name);
    let digest = blake3::hash(format!("{name}\0{data_error:?}\0{message}").as_bytes()).to_hex();
    let dir = config.layout.failed().join(format!("rejected-{}", &digest[..16]));
    let reason = serde_json::json!({
        "file": shown,
        "error": message,
        "line": data_error.map(|error| error.line),
        "column": data_error.map(|error| error.column),
        "advice": "fix the file and submit it again",
    });
    durable::remove_tree(&dir)?;
    let text = serde_json::to_vec_pretty(&reason).unwrap_or_default();
    durable::write_dir(&dir, &[("reason.json", text)], SyncPolicy::Full, true)?;
    let position = data_error
        .map(|data_error| format!(" line {} column {}:", data_error.line, data_error.column))
        .unwrap_or_default();
    (config.print_line)(&format!("rejected {shown}:{position} {message}"));
    // If `failed/` is on another file system, the file stays in the inbox under a hidden name, which is
    // ignored.
    let hidden = path.with_file_name(format!(".rejected-{}", &digest[..16]));
    match durable::rename(path, &dir.join("data")).or_else(|_| durable::rename(path, &hidden)) {
        // The file has vanished, so there is nothing to move.
        Err(error) if error.is_not_found() => Ok(()),
        moved => Ok(moved?),
    }
}

/// The name with control characters escaped, cut to [`MAX_NAME_CHARS`].
fn display_name(name: &str) -> String {
    let escaped: String = name.escape_debug().collect();
    if escaped.chars().count() <= MAX_NAME_CHARS {
        return escaped;
    }
    escaped.chars().take(MAX_NAME_CHARS).chain("..".chars()).collect()
}
