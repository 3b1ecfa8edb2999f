//! Creates the directory of a report and writes the report's files. Knows nothing of how a run is judged.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use engine::file_error::file_error;
use reports::ReportError;
use scenarios::Record;

use crate::error::CliError;

/// Creates the directory for a report. It must be new or empty, so that no earlier report is overwritten.
/// Without `--out` it is `reports/out/<run>`.
///
/// # Errors
/// If the directory cannot be created or is not empty.
pub(crate) fn create_out_dir(out: Option<&Path>, run: &str) -> Result<PathBuf, CliError> {
    let out = out.map_or_else(|| unused_path(&PathBuf::from("reports/out").join(run)), Path::to_path_buf);
    let unusable = |doing, source| CliError::OutDirUnusable { doing, path: out.clone(), source };
    std::fs::create_dir_all(&out).map_err(|error| unusable("create", error))?;
    let mut entries = std::fs::read_dir(&out).map_err(|error| unusable("read", error))?;
    if entries.next().is_some() { Err(CliError::OutDirNotEmpty { path: out }) } else { Ok(out) }
}

/// The path itself, or the path with a number if it exists: two runs may start in the same second.
fn unused_path(path: &Path) -> PathBuf {
    let numbered = |n: u32| PathBuf::from(format!("{}-{n}", path.display()));
    if path.exists() {
        (2..).map(numbered).find(|numbered| !numbered.exists()).unwrap_or_default()
    } else {
        path.into()
    }
}

/// Writes the HTML, JUnit and Markdown reports next to the record.
///
/// # Errors
/// If a report cannot be made of the record, or cannot be written.
pub(crate) fn write_reports(record: &Record, out: &Path) -> Result<(), CliError> {
    write_report(out, "report.html", |to| reports::html(record, to))?;
    write_report(out, "junit.xml", |to| reports::junit(record, to))?;
    write_report(out, "summary.md", |to| reports::markdown(record, to))
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
