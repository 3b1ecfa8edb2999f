//! Creates the directory of a report and writes the report's files. Knows nothing of how a run is judged.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use scenarios::Record;

/// Creates the directory for a report. It must be new or empty, so that no earlier report is overwritten.
/// Without `--out` it is `reports/out/<run>`.
///
/// # Errors
/// Returns a message for the user if the directory cannot be created or is not empty.
pub(crate) fn create_out_dir(out: Option<&Path>, run: &str) -> Result<PathBuf, String> {
    let out = out.map_or_else(|| unused_path(&PathBuf::from("reports/out").join(run)), Path::to_path_buf);
    std::fs::create_dir_all(&out).map_err(|error| {
        format!("could not create `{}`: {error}; name another directory with --out", out.display())
    })?;
    let mut entries =
        std::fs::read_dir(&out).map_err(|error| format!("could not read `{}`: {error}", out.display()))?;
    match entries.next() {
        None => Ok(out),
        Some(_) => Err(format!("`{}` is not empty; name a new or empty directory with --out", out.display())),
    }
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
/// Returns a message for the user that names the file that could not be written.
pub(crate) fn write_reports(record: &Record, out: &Path) -> Result<(), String> {
    write_report(out, "report.html", |to| reports::html(record, to))?;
    write_report(out, "junit.xml", |to| reports::junit(record, to))?;
    write_report(out, "summary.md", |to| reports::markdown(record, to))
}

fn write_report<E: std::fmt::Display>(
    out: &Path,
    name: &str,
    render: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), String> {
    let path = out.join(name);
    let failed = |error: &dyn std::fmt::Display| format!("could not write `{}`: {error}", path.display());
    let mut file = BufWriter::new(File::create(&path).map_err(|error| failed(&error))?);
    render(&mut file).map_err(|error| failed(&error))?;
    file.flush().map_err(|error| failed(&error))
}
