//! The command `consolidate`: does it, or asks the daemon that uses the root to do it when nothing is being
//! trained.

use std::path::Path;

use super::error::CliError;
use super::file_rights::keep_files_private;
use super::print;
use crate::consolidate::{ConsolidateRequest, check_request, consolidate, write_request};
use crate::durable::{self, LockError};
use crate::exit::Exit;
use crate::settings::Settings;
use crate::store::RootLayout;

/// `consolidate`: merges the adapter of a finished job into the base model.
pub(super) fn consolidate_job(root: &Path, job: &str, remove_adapter: bool) -> Result<Exit, CliError> {
    let layout = RootLayout::new(root);
    let settings = Settings::read(&layout.settings())?;
    let layout = layout.with_settings(&settings);
    keep_files_private(&settings.guards);
    check_request(&layout, job)?;
    let note = format!("pid {}\n", std::process::id());
    let _lock = match durable::lock(&layout.lock(), &note) {
        Ok(lock) => lock,
        Err(LockError::HeldBy(holder)) => {
            write_request(&layout, job, remove_adapter)?;
            print::line(&format!(
                "queued: the daemon that uses the root ({}) consolidates job {job} when no job is being trained",
                holder.trim()
            ));
            return Ok(Exit::Done);
        }
        Err(LockError::Disk(error)) => return Err(error.into()),
    };
    let request = ConsolidateRequest { layout: &layout, settings: &settings, job, remove_adapter };
    print::line(&consolidate(&request)?.to_string());
    Ok(Exit::Done)
}
