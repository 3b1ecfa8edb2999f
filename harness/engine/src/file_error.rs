//! The error of one file operation of the harness. Every error enum of the engine has a variant for it.

use std::path::{Path, PathBuf};

/// A file operation of the harness that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} `{path}`", path = .path.display())]
pub struct FileError {
    /// What the operation was to do, as a verb: `create`, `copy`.
    pub doing: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// Why it failed.
    pub source: std::io::Error,
}

/// Adds to an I/O error what was done, and to which file: `fs::write(..).map_err(file_error("write", &path))`.
/// The result is any error that has a `#[from] FileError` variant.
pub fn file_error<E: From<FileError>>(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> E + use<E> {
    let path = path.to_path_buf();
    move |source| FileError { doing, path, source }.into()
}
