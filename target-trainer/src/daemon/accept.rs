//! Takes a file of the inbox in: copies it while it is checked, so that what is trained on is what was checked.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::DaemonConfig;
use super::jobs::{self, Job};
use crate::durable::{self, AppendFile, DurableError, SyncPolicy, TEMPORARY_MARKER};
use crate::intake::{ContentId, DataError, read_samples};

/// Hexadecimal digits of a job's id: half of a BLAKE3.
/// Characters of a file's name that are shown and kept.
const MAX_NAME_CHARS: usize = 80;

/// `NotFound`: the file is gone. Other errors are the disk's. A file that is not fit is rejected, which is no error.
pub(super) fn accept_file(orders: &DaemonConfig<'_>, path: &Path, name: &str) -> Result<(), Error> {
    let file = match open_regular_file(path) {
        Ok(file) => file,
        Err(OpenFailure::NotRegularFile(what)) => {
            return reject(orders, path, name, None, &format!("{what}, not a plain file"));
        }
        Err(OpenFailure::Io(error)) => return Err(error),
    };
    if file.metadata()?.len() > orders.settings.limits.file_bytes {
        let message = format!("the file is larger than {} bytes", orders.settings.limits.file_bytes);
        return reject(orders, path, name, None, &message);
    }
    let aside = orders.layout.processing().join(format!("{TEMPORARY_MARKER}-intake"));
    let taken = copy_and_check(orders, file, &aside, name);
    if taken.is_err() {
        durable::remove_tree(&aside).map_err(into_io_error)?;
    }
    match taken.map_err(into_io_error)? {
        CopyOutcome::Invalid(error) => {
            durable::remove_tree(&aside).map_err(into_io_error)?;
            reject(orders, path, name, Some(&error), &error.message)
        }
        CopyOutcome::Job(job) => enqueue(orders, path, &aside, &job),
    }
}

enum OpenFailure {
    NotRegularFile(&'static str),
    Io(Error),
}

/// Never blocks on a pipe, never follows a link.
fn open_regular_file(path: &Path) -> Result<File, OpenFailure> {
    use std::os::unix::fs::FileTypeExt;
    let kind = path.symlink_metadata().map_err(OpenFailure::Io)?.file_type();
    let what = match kind {
        kind if kind.is_symlink() => Some("a symbolic link"),
        kind if kind.is_dir() => Some("a folder"),
        kind if kind.is_fifo() => Some("a pipe"),
        kind if kind.is_socket() => Some("a socket"),
        kind if kind.is_file() => None,
        _ => Some("a device"),
    };
    if let Some(what) = what {
        return Err(OpenFailure::NotRegularFile(what));
    }
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(OpenFailure::Io)?;
    // It may have been swapped since.
    match file.metadata() {
        Ok(facts) if facts.is_file() => Ok(file),
        Ok(_) => Err(OpenFailure::NotRegularFile("something else by now")),
        Err(error) => Err(OpenFailure::Io(error)),
    }
}

enum CopyOutcome {
    Job(Job),
    Invalid(DataError),
}

fn copy_and_check(
    orders: &DaemonConfig<'_>,
    file: File,
    aside: &Path,
    name: &str,
) -> Result<CopyOutcome, DurableError> {
    durable::remove_tree(aside)?;
    durable::create_dir(aside)?;
    let mut copy = AppendFile::create(&aside.join("data.jsonl"))?;
    let mut content = ContentId::default();
    let read = read_samples(file, &orders.settings.limits, &orders.settings.guards, |line| {
        content.update(line);
        copy.write_all(line)
    })?;
    let samples = match read {
        Ok(samples) => samples.len() as u64,
        Err(error) => return Ok(CopyOutcome::Invalid(error)),
    };
    copy.finish(SyncPolicy::Full)?;
    let id = content.finish();
    let order = jobs::queued(&orders.layout).unwrap_or_default().last().map_or(1, |last| last.order + 1);
    let job = Job { id, name: display_name(name), samples, order };
    let text = serde_json::to_vec(&job).unwrap_or_default();
    durable::write_new(&aside.join("job.json"), &text, SyncPolicy::Full)?;
    durable::sync_dir(aside, SyncPolicy::Full)?;
    Ok(CopyOutcome::Job(job))
}

/// Into the queue by one rename; only then out of the inbox.
fn enqueue(orders: &DaemonConfig<'_>, path: &Path, aside: &Path, job: &Job) -> Result<(), Error> {
    if jobs::is_known(&orders.layout, &job.id) {
        durable::remove_tree(aside).map_err(into_io_error)?;
        (orders.print_line)(&format!("duplicate {}: the same content as job {}", job.name, job.id));
    } else {
        durable::rename(aside, &orders.layout.processing().join(&job.id)).map_err(into_io_error)?;
        durable::sync_dir(&orders.layout.processing(), SyncPolicy::Full).map_err(into_io_error)?;
        (orders.print_line)(&format!("accepted job {}: {} samples from {}", job.id, job.samples, job.name));
    }
    durable::remove_file(path).map_err(into_io_error)
}

/// Keeps the file, with what is wrong with it.
fn reject(
    orders: &DaemonConfig<'_>,
    path: &Path,
    name: &str,
    place: Option<&DataError>,
    message: &str,
) -> Result<(), Error> {
    let shown = display_name(name);
    let digest = blake3::hash(format!("{name}\0{place:?}\0{message}").as_bytes()).to_hex();
    let folder = orders.layout.failed().join(format!("rejected-{}", &digest[..16]));
    let why = serde_json::json!({
        "file": shown,
        "error": message,
        "line": place.map(|place| place.line),
        "column": place.map(|place| place.column),
        "advice": "mend the file and submit it again",
    });
    durable::remove_tree(&folder).map_err(into_io_error)?;
    let text = serde_json::to_vec_pretty(&why).unwrap_or_default();
    durable::write_dir(&folder, &[("reason.json", text)], SyncPolicy::Full, true).map_err(into_io_error)?;
    let at = place.map(|place| format!(" line {} column {}:", place.line, place.column)).unwrap_or_default();
    (orders.print_line)(&format!("rejected {shown}:{at} {message}"));
    // On another file system it stays in the inbox, under a name that is passed over.
    let aside = path.with_file_name(format!(".rejected-{}", &digest[..16]));
    match durable::rename(path, &folder.join("data")).or_else(|_| durable::rename(path, &aside)) {
        // It vanished meanwhile: there is nothing left to keep.
        Err(error) if error.error.kind() == ErrorKind::NotFound => Ok(()),
        moved => moved.map_err(into_io_error),
    }
}

/// A name as it may stand in a line or a file: escaped, and not too long.
fn display_name(name: &str) -> String {
    let escaped: String = name.escape_debug().collect();
    if escaped.chars().count() <= MAX_NAME_CHARS {
        return escaped;
    }
    escaped.chars().take(MAX_NAME_CHARS).chain("..".chars()).collect()
}

/// Keeps the words of the error, and its kind if that is that the file is gone.
fn into_io_error(error: DurableError) -> Error {
    let kind = error.error.kind();
    Error::new(if kind == ErrorKind::NotFound { ErrorKind::Other } else { kind }, error)
}
