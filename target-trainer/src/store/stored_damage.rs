//! Reads all that is stored, and tells what is damaged. Every check is on, whatever the settings are.
//! Changes nothing.

use std::io::ErrorKind;
use std::path::Path;

use super::adapter::check_adapter;
use super::checkpoint::{CheckpointStore, SaveOptions};
use super::finished_result::read_result;
use super::merged_model::read_merged;
use super::removed_adapter::has_adapter;
use super::root_layout::RootLayout;
use crate::durable::{TEMPORARY_MARKER, is_moved_aside};
use crate::file_error::{chain, file_error};
use crate::names::is_job_id;
use crate::settings::Guards;
use crate::state::Recipe;

/// A text for each damaged checkpoint below this directory, which has one directory for each job.
pub fn damaged_checkpoints(dir: &Path) -> Vec<String> {
    let is_job = |job: &String| is_job_id(job) && dir.join(job).is_dir();
    let jobs = sorted_names(dir).into_iter().filter(is_job);
    unlisted(dir).into_iter().chain(jobs.flat_map(|job| damaged_checkpoints_of_job(&dir.join(job)))).collect()
}

/// A text if a directory can't be listed: what is in it was not looked at. One that is not there has nothing.
pub fn unlisted(dir: &Path) -> Option<String> {
    let listed = std::fs::read_dir(dir).and_then(|mut entries| entries.try_for_each(|entry| entry.map(drop)));
    let error = listed.err().filter(|error| error.kind() != ErrorKind::NotFound)?;
    Some(chain(&file_error("list", dir)(error)))
}

fn damaged_checkpoints_of_job(dir: &Path) -> Vec<String> {
    // Neither base nor recipe matter to what is read.
    let options = SaveOptions { guards: Guards::default(), keep: 1 };
    let checkpoints = CheckpointStore::new(dir.into(), String::new(), Recipe::default(), options);
    let damage = |name: &String| {
        let path = dir.join(name);
        match checkpoints.load(name) {
            Err(error) => Some(format!("`{}`: {}", path.display(), chain(&error))),
            Ok(_) => check_adapter(&path).err().map(|error| chain(&error)),
        }
    };
    let names = sorted_names(dir).into_iter().filter(|name| !name.starts_with(TEMPORARY_MARKER));
    // A worker may have removed or replaced it in the meantime: it is looked at once more.
    let damaged = names
        .filter_map(|name| damage(&name).and_then(|_| damage(&name)).filter(|_| exists(&dir.join(name))));
    unlisted(dir).into_iter().chain(damaged).collect()
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// A text for each result that is not complete or is damaged, or whose adapter is gone although there is no
/// merged model.
pub fn damaged_results(layout: &RootLayout) -> Vec<String> {
    let dir = layout.done();
    let is_result = |name: &String| is_job_id(name) && !is_moved_aside(name);
    let damage = |job: String| match read_result(&dir.join(&job), &job) {
        Err(problem) => Some(chain(&problem)),
        Ok(result) if !has_adapter(&dir.join(&job)) => match read_merged(&layout.merged().join(&job), &job) {
            Ok(merged) if merged.adapter == result.adapter => None,
            Ok(_) => Some(format!("`{}`: the merged model is of another adapter", dir.join(&job).display())),
            Err(problem) => Some(format!("`{}`: no adapter: {problem}", dir.join(&job).display())),
        },
        // The digest is that of what was written.
        Ok(_) => check_adapter(&dir.join(&job)).err().map(|error| chain(&error)),
    };
    let damaged = sorted_names(&dir).into_iter().filter(is_result).filter_map(damage);
    unlisted(&dir).into_iter().chain(damaged).collect()
}

/// A text for each merged model that is not complete or is damaged.
pub fn damaged_merges(layout: &RootLayout) -> Vec<String> {
    let is_merge = |name: &String| is_job_id(name) && !is_moved_aside(name);
    let jobs = sorted_names(&layout.merged()).into_iter().filter(is_merge);
    let damaged = jobs.filter_map(|job| read_merged(&layout.merged().join(&job), &job).err());
    unlisted(&layout.merged()).into_iter().chain(damaged.map(|problem| problem.to_string())).collect()
}

/// The names in a directory. No name if it can't be listed.
pub fn sorted_names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
