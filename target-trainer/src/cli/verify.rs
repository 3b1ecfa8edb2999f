//! Verbs that look and change nothing. What they find does not depend on any guard.

use std::path::Path;

use super::{Ending, print, settings, with};
use crate::durable::TEMPORARY;
use crate::exit::Exit;
use crate::intake::ContentId;
use crate::settings::{Guards, Settings};
use crate::store::{Checkpoints, Layout, SaveRules, check_adapter};
use crate::train;

/// Everything kept is sound, or a line for each thing that is not. What a killed process left unfinished is named, and is
/// no finding: the next start removes it.
pub(super) fn verify(root: &Path) -> Ending {
    let layout = Layout::new(root);
    let settings = settings(&layout)?;
    let mut findings = Vec::new();
    for job in names(&layout.checkpoints()) {
        findings.extend(unsound_checkpoints(&layout, &settings, &job)?);
    }
    for job in names(&layout.done()).into_iter().filter(|job| !job.starts_with(TEMPORARY)) {
        findings.extend(check_adapter(&layout.done().join(job)).err().map(|error| error.to_string()));
    }
    findings.extend(
        names(&layout.processing())
            .iter()
            .filter(|job| !job.starts_with(TEMPORARY))
            .filter_map(|job| changed_data(&layout, job)),
    );
    for folder in [layout.processing(), layout.done(), layout.failed()] {
        let unfinished = names(&folder).into_iter().filter(|name| name.starts_with(TEMPORARY));
        unfinished.for_each(|name| left_unfinished(&folder.join(name)));
    }
    findings.iter().for_each(|finding| print::line(finding));
    if findings.is_empty() {
        print::line("everything is sound");
        return Ok(Exit::Done);
    }
    Ok(Exit::Findings)
}

fn left_unfinished(path: &Path) {
    print::line(&format!("`{}` was left unfinished; the next start removes it", path.display()));
}

fn changed_data(layout: &Layout, job: &str) -> Option<String> {
    let path = layout.job_data(job);
    match ContentId::of_file(&path) {
        Ok(id) if id == job => None,
        Ok(_) => Some(format!("`{}`: changed since it was taken in", path.display())),
        Err(error) => Some(format!("`{}`: {error}", path.display())),
    }
}

fn unsound_checkpoints(
    layout: &Layout,
    settings: &Settings,
    job: &str,
) -> Result<Vec<String>, (Exit, String)> {
    let dir = layout.job_checkpoints(job);
    let checkpoints = checkpoints(layout, settings, job)?;
    let mut findings = Vec::new();
    for name in names(&dir) {
        let shown = dir.join(&name).display().to_string();
        if name.starts_with(TEMPORARY) {
            left_unfinished(&dir.join(&name));
        } else if let Err(error) = checkpoints.load(&name) {
            findings.push(format!("`{shown}`: {error}"));
        } else if let Err(error) = check_adapter(&dir.join(&name)) {
            findings.push(error.to_string());
        }
    }
    Ok(findings)
}

/// With every check on, whatever the settings say.
fn checkpoints(layout: &Layout, settings: &Settings, job: &str) -> Result<Checkpoints, (Exit, String)> {
    let base = train::base_digest(&layout.base()).map_err(with(Exit::Base))?;
    let rules = SaveRules { guards: Guards::default(), keep: settings.train.keep };
    Ok(Checkpoints::new(layout.job_checkpoints(job), base, settings.recipe.clone(), rules))
}

pub(super) fn resume_info(root: &Path) -> Ending {
    let layout = Layout::new(root);
    let settings = settings(&layout)?;
    for job in names(&layout.processing()).into_iter().filter(|job| !job.starts_with(TEMPORARY)) {
        match checkpoints(&layout, &settings, &job)?.resume() {
            Ok(resume) => {
                let step = resume.state.map_or(0, |state| state.cursor.step);
                print::line(&format!("job {job} would resume from step {step}"));
                resume.passed_over.iter().for_each(|passed| {
                    print::line(&format!("  passed over {}: {}", passed.name, passed.reason))
                });
            }
            Err(error) => print::line(&format!("job {job} can't go on: {error}")),
        }
    }
    Ok(Exit::Done)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
