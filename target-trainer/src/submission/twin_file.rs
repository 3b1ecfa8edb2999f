//! Looks whether the name of a submitted file looks like that of one that waits. A bounded look, so that a submit costs
//! the same however many files wait: the daemon compares all names when it takes the file.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use serde::Deserialize;

use crate::bounded_read::read_regular;
use crate::names::{NameKeys, TwinNames, is_ignored, is_job_id};
use crate::store::RootLayout;

/// Files of the inbox, and jobs of the queue, that are looked at.
const MAX_COMPARED: usize = 1000;
/// Largest `job.json` that is read.
const MAX_JOB_BYTES: u64 = 1 << 16;

/// What `job.json` has about the file that a job came from.
#[derive(Deserialize)]
struct JobFile {
    /// Its name, as it is shown.
    name: String,
    /// The name itself, if it is shown differently.
    file: Option<String>,
}

/// A file of the inbox, or that of a job in the queue, whose name looks like this one. `None` also if one of the
/// directories can't be read: nothing depends on it.
pub(super) fn twin_file(layout: &RootLayout, name: &OsStr) -> Option<TwinNames> {
    let inbox = names_in(&layout.inbox()).filter(|other| !is_ignored(other));
    let jobs = names_in(&layout.processing()).filter(|job| is_job_id(job));
    let job_files = jobs.take(MAX_COMPARED).filter_map(|job| {
        let bytes = read_regular(&layout.processing().join(job).join("job.json"), MAX_JOB_BYTES).ok()?;
        let JobFile { name, file } = serde_json::from_slice(&bytes).ok()?;
        Some(OsString::from(file.unwrap_or(name)))
    });
    let keys = NameKeys::of(name);
    let mut others = inbox.take(MAX_COMPARED).chain(job_files);
    let twin = others.find(|other| other != name && NameKeys::of(other).look_alike(&keys))?;
    TwinNames::of(name, &twin)
}

fn names_in(dir: &Path) -> impl Iterator<Item = OsString> + use<> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name())
}
