//! Reads the data of the job. Trains nothing.

use std::convert::Infallible;

use super::engine::{SampleStore, SampleStoreBuilder};
use super::worker_config::WorkerConfig;
use super::worker_error::WorkerError;
use crate::bounded_read::open_regular;
use crate::intake::{ContentId, NextSample, ReadError, SampleReader};
use crate::progress::ProgressReader;
use crate::settings::Settings;

/// Reads all samples of the job, and checks that they are those that were accepted.
///
/// # Errors
/// If the data can't be read, or has changed.
pub(super) fn read_job_samples(config: &WorkerConfig<'_>) -> Result<SampleStore, WorkerError> {
    let Settings { train, recipe, limits, guards, .. } = config.settings;
    let path = config.layout.job_data(config.job);
    let open = || open_regular(&path).and_then(|file| Ok((file.try_clone()?, ProgressReader(file))));
    let (file, stream) = match open() {
        Ok(files) => files,
        Err(source) => return Err(WorkerError::OpenData { path, source }),
    };
    let mut content_id = ContentId::default();
    let mut builder = SampleStoreBuilder::new(recipe.context, train.sample_memory_bytes);
    let mut reader = SampleReader::new(stream, limits, guards);
    loop {
        let mut add_line = |line: &[u8]| -> Result<(), Infallible> {
            content_id.update(line);
            builder.add_line(line);
            Ok(())
        };
        match reader.next_sample(&mut add_line) {
            Ok(NextSample::Sample(sample)) => builder.add_sample(&sample),
            Ok(NextSample::Blank) => {}
            Ok(NextSample::End) => break,
            Err(ReadError::Data(source)) => return Err(WorkerError::Data { path, source }),
            Err(ReadError::Input(source)) => return Err(WorkerError::ReadData { path, source }),
        }
    }
    if content_id.finish() != config.data {
        return Err(WorkerError::DataChanged { path });
    }
    Ok(builder.finish(file, limits, guards))
}
