//! The commands `verify` and `resume-info`. They change nothing, and no guard setting changes what `verify`
//! finds: it always checks all.

use std::path::Path;

use super::error::CliError;
use super::print;
use crate::bounded_read::open_regular;
use crate::daemon::queued_job;
use crate::durable::TEMPORARY_MARKER;
use crate::exit::Exit;
use crate::file_error::chain;
use crate::intake::ContentId;
use crate::model::{BaseCheck, BaseModel};
use crate::settings::{Guards, Settings};
use crate::store::{
    CheckpointStore, RootLayout, SaveOptions, damaged_checkpoints, damaged_merges, damaged_results,
    sorted_names, unlisted,
};

/// `verify`: prints a line for each damaged checkpoint, adapter or data file. Files that a killed process
/// left unfinished are listed too but are not findings, because the next start removes them.
pub(super) fn verify(root: &Path) -> Result<Exit, CliError> {
    let layout = RootLayout::new(root);
    let settings = Settings::read(&layout.settings())?;
    let layout = layout.with_settings(&settings);
    let mut findings = Vec::new();
    // Whether a checkpoint is intact does not depend on the base model. Its weights are looked at by a worker.
    let config = BaseModel::read_config(&layout.base(), BaseCheck::Full);
    if let Err(error) = config.and_then(|_| BaseModel::digest(&layout.base(), BaseCheck::Full)) {
        findings.push(chain(&error));
    }
    findings.extend(damaged_checkpoints(&layout.checkpoints()));
    findings.extend(damaged_checkpoints(&layout.snapshots()));
    findings.extend(damaged_merges(&layout));
    findings.extend(damaged_results(&layout));
    findings.extend(unlisted(&layout.processing()));
    findings.extend(
        sorted_names(&layout.processing())
            .iter()
            .filter(|job| !job.starts_with(TEMPORARY_MARKER))
            .filter_map(|job| job_data_finding(&layout, job)),
    );
    let jobs = [layout.checkpoints(), layout.snapshots()];
    let jobs = jobs.iter().flat_map(|dir| sorted_names(dir).into_iter().map(|job| dir.join(job)));
    for dir in [layout.processing(), layout.done(), layout.failed(), layout.merged()].into_iter().chain(jobs)
    {
        let unfinished = sorted_names(&dir).into_iter().filter(|name| name.starts_with(TEMPORARY_MARKER));
        unfinished.for_each(|name| report_unfinished(&dir.join(name)));
    }
    findings.iter().for_each(|finding| print::line(finding));
    if findings.is_empty() {
        print::line("no damage found");
        return Ok(Exit::Done);
    }
    Ok(Exit::Findings)
}

fn report_unfinished(path: &Path) {
    print::line(&format!("`{}` was left unfinished; the next start removes it", path.display()));
}

/// Returns a finding if the job's data no longer has the content that its id is made from.
fn job_data_finding(layout: &RootLayout, job: &str) -> Option<String> {
    let path = layout.job_data(job);
    let expected = match queued_job(layout, job) {
        Ok(job) => job.data,
        Err(error) => return Some(format!("`{}`: job.json: {error}", path.display())),
    };
    match open_regular(&path).and_then(ContentId::of_reader) {
        Ok(id) if id == expected => None,
        Ok(_) => Some(format!("`{}`: changed since it was accepted", path.display())),
        Err(error) => Some(format!("`{}`: {error}", path.display())),
    }
}

/// Opens a job's checkpoints with every guard on, whatever the settings are. `base` is the digest of the base
/// model, which only a resume compares.
fn open_checkpoints(layout: &RootLayout, settings: &Settings, job: &str, base: String) -> CheckpointStore {
    // A job that has left the queue has no recipe of its own any more. It can be read with any.
    let recipe = queued_job(layout, job).ok().and_then(|job| job.recipe);
    let recipe = recipe.unwrap_or_else(|| settings.recipe.clone());
    let rules = SaveOptions { guards: Guards::default(), keep: settings.train.keep };
    CheckpointStore::new(layout.job_checkpoints(job), base, recipe, rules)
}

/// `resume-info`: prints the step that each queued job would resume from.
pub(super) fn resume_info(root: &Path) -> Result<Exit, CliError> {
    let layout = RootLayout::new(root);
    let settings = Settings::read(&layout.settings())?;
    let layout = layout.with_settings(&settings);
    // As a worker reads it: with the guard off, one that is not supported is trained on.
    let base = BaseModel::digest(&layout.base(), BaseCheck::of_guard(settings.guards.base_check))?;
    for job in sorted_names(&layout.processing()).into_iter().filter(|job| !job.starts_with(TEMPORARY_MARKER))
    {
        match open_checkpoints(&layout, &settings, &job, base.clone()).resume() {
            Ok(resume) => {
                let step = resume.state.map_or(0, |state| state.cursor.step);
                print::line(&format!("job {job} would resume from step {step}"));
                resume.skipped.iter().for_each(|skipped| {
                    print::line(&format!("  skipped checkpoint {}: {}", skipped.name, chain(&skipped.damage)))
                });
            }
            Err(error) => print::line(&format!("job {job} can't resume: {}", chain(&error))),
        }
    }
    Ok(Exit::Done)
}
