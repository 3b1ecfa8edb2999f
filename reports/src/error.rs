//! Why a report could not be written. Knows nothing of the reports.

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The record does not start with a run.
    #[error("the record has no `run-started` event, so there is nothing to report")]
    Empty,
    /// The writer failed.
    #[error("could not write the report")]
    Write(#[from] std::io::Error),
    /// The JUnit XML could not be serialized.
    #[error("could not write JUnit XML")]
    Junit(#[from] quick_junit::SerializeError),
}
