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

/// The text of an error and of its sources, joined by `: `. Leaves out a source whose text the text so far
/// already ends with, because some errors of other libraries print their source themselves.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum OuterError {
        #[error(transparent)]
        File(#[from] FileError),
        #[error("the copy failed")]
        Copy { source: FileError },
        #[error("the copy failed: {source}")]
        PrintsItsSource { source: FileError },
    }

    fn unreadable() -> FileError {
        file_error("read", Path::new("/a"))(std::io::Error::other("no such disk"))
    }

    #[test]
    fn a_chain_contains_each_cause_once() {
        let transparent = OuterError::from(unreadable());
        assert_eq!(chain(&transparent), "could not read `/a`: no such disk");
        let two_causes = OuterError::Copy { source: unreadable() };
        assert_eq!(chain(&two_causes), "the copy failed: could not read `/a`: no such disk");
    }

    #[test]
    fn a_cause_that_the_error_prints_itself_is_not_repeated() {
        let error = OuterError::PrintsItsSource { source: unreadable() };
        assert_eq!(chain(&error), "the copy failed: could not read `/a`: no such disk");
        assert_eq!(chain(&std::io::Error::other("alone")), "alone");
    }
}
