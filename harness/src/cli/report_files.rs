//! Writes the reports of a run into its folder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use scenarios::Record;

/// The folder for a run's report: new or empty, so that no earlier report is lost.
pub(super) fn create_out_dir(asked: Option<&Path>, run: &str) -> Result<PathBuf, String> {
    let out = asked.map_or_else(|| unused_path(&PathBuf::from("reports/out").join(run)), Path::to_path_buf);
    std::fs::create_dir_all(&out).map_err(|error| {
        format!("could not create `{}`: {error}; name another folder by --out", out.display())
    })?;
    let mut entries =
        std::fs::read_dir(&out).map_err(|error| format!("could not read `{}`: {error}", out.display()))?;
    match entries.next() {
        None => Ok(out),
        Some(_) => Err(format!("`{}` is not empty; name a new or empty folder by --out", out.display())),
    }
}

/// Two runs in one second get two folders.
fn unused_path(wanted: &Path) -> PathBuf {
    let numbered = |n: u32| PathBuf::from(format!("{}-{n}", wanted.display()));
    if wanted.exists() {
        (2..).map(numbered).find(|path| !path.exists()).unwrap_or_default()
    } else {
        wanted.into()
    }
}

/// HTML, JUnit and Markdown beside the record.
pub(super) fn write_reports(record: &Record, out: &Path) -> Result<(), String> {
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
