//! Reads the data of the job. Trains nothing.

use std::convert::Infallible;
use std::io::ErrorKind;

use super::worker::WorkerConfig;
use super::worker_error::WorkerError;
use crate::bounded_read::open_regular;
use crate::intake::{ContentId, ReadError, Sample, read_samples};
use crate::progress::ProgressReader;

/// Reads all samples of the job, and checks that they are those that were accepted.
///
/// # Errors
/// If the data can't be read, or has changed.
pub(super) fn read_job_samples(config: &WorkerConfig<'_>) -> Result<Vec<Sample>, WorkerError> {
    let path = config.layout.job_data(config.job);
    let file = match open_regular(&path) {
        Ok(file) => ProgressReader(file),
        Err(source) => return Err(WorkerError::OpenData { path, source }),
    };
    let mut content_id = ContentId::default();
    let result = read_samples::<Infallible>(file, &config.settings.limits, &config.settings.guards, |line| {
        content_id.update(line);
        Ok(())
    });
    match result {
        Ok(_) if content_id.finish() != config.job => Err(WorkerError::DataChanged { path }),
        Ok(samples) => Ok(samples),
        Err(ReadError::Data(source)) => Err(WorkerError::Data { path, source }),
        Err(ReadError::Input(source)) => Err(WorkerError::ReadData { path, source }),
    }
}

/// Whether another attempt may succeed: the data is there, but the machine does not let it be read.
pub(super) fn may_pass(error: &WorkerError) -> bool {
    match error {
        WorkerError::OpenData { source, .. } => {
            !matches!(source.kind(), ErrorKind::NotFound | ErrorKind::InvalidData)
        }
        WorkerError::ReadData { .. } => true,
        _ => false,
    }
}
