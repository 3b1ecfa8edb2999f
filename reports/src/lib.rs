//! A record -> pages and files for people and for CI. Pure: a writer is handed in; no files, no clock.
//!
//! Everything that a report shows is in the record. What a target said is shown as text, never as markup.

#![forbid(unsafe_code)]

mod clean;
mod exploration;
mod html;
mod junit;
mod markdown;
mod summary;
mod view;

use std::io::Write;

use scenarios::Record;

pub use exploration::{Exploration, Finding};
pub use summary::{StatusCount, Summary, summary};

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("the record has no `run-started`, so there is nothing to report")]
    Empty,
    #[error("could not write the report: {0}")]
    Write(#[from] std::io::Error),
    #[error("could not write JUnit XML: {0}")]
    Junit(#[from] quick_junit::SerializeError),
}

/// One self-contained page that works from a file.
pub fn html(record: &Record, to: &mut dyn Write) -> Result<(), ReportError> {
    let run = view::run_view(record)?;
    to.write_all(html::page(&run).into_string().as_bytes())?;
    Ok(())
}

/// JUnit XML: one test case for each scenario.
pub fn junit(record: &Record, to: &mut dyn Write) -> Result<(), ReportError> {
    let run = view::run_view(record)?;
    junit::report(&run).serialize(to)?;
    Ok(())
}

/// A summary for a CI job or a pull request.
pub fn markdown(record: &Record, to: &mut dyn Write) -> Result<(), ReportError> {
    let run = view::run_view(record)?;
    to.write_all(markdown::text(&run).as_bytes())?;
    Ok(())
}

/// One self-contained page on the crash states of one command.
pub fn exploration(found: &Exploration) -> String {
    html::exploration(found).into_string()
}
