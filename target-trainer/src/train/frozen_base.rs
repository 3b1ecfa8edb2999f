//! Reads the base model of the job. Trains nothing.

use super::patience::with_patience;
use super::worker_config::WorkerConfig;
use super::worker_error::WorkerError;
use crate::model::{BaseCheck, BaseModel, BaseModelError};

/// Reads the base model, after a check that it has the digest `expected`, if that is known. Returns its digest, too.
///
/// # Errors
/// If it can't be read, is not supported, or is another one.
pub(super) fn read_base(
    config: &WorkerConfig<'_>,
    expected: Option<&str>,
) -> Result<(String, BaseModel), WorkerError> {
    let (dir, check) = (config.layout.base(), BaseCheck::of_guard(config.settings.guards.base_check));
    let found = with_patience(config, BaseModelError::may_pass, || BaseModel::digest(&dir, check))?;
    if let Some(accepted) = expected.filter(|expected| *expected != found) {
        return Err(WorkerError::OtherBase { accepted: accepted.to_owned(), found });
    }
    let model = with_patience(config, BaseModelError::may_pass, || BaseModel::read(&dir, check))?;
    Ok((found, model))
}
