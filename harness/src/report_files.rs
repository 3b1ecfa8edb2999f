//! Writes the files of a report. Knows nothing of how a run is judged.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use engine::file_error::file_error;
use reports::ReportError;
use scenarios::Record;

use crate::error::CliError;

/// Writes the HTML, JUnit and Markdown reports next to the record. Returns those that could not be made or
/// written: the others are there all the same.
pub(crate) fn write_reports(record: &Record, out: &Path) -> Vec<CliError> {
    let written = [
        write_report(out, "report.html", |to| reports::html(record, to)),
        write_report(out, "junit.xml", |to| reports::junit(record, to)),
        write_report(out, "summary.md", |to| reports::markdown(record, to)),
    ];
    written.into_iter().filter_map(Result::err).collect()
}

fn write_report(
    out: &Path,
    name: &str,
    render: impl FnOnce(&mut dyn Write) -> Result<(), ReportError>,
) -> Result<(), CliError> {
    let path = out.join(name);
    let file = File::create(&path).map_err(file_error::<CliError>("create", &path))?;
    let mut file = BufWriter::new(file);
    let written = render(&mut file).and_then(|()| Ok(file.flush()?));
    written.map_err(|source| CliError::Report { path, source })
}
