//! The error of one file operation, and the text of an error with its causes.

use std::error::Error;
use std::path::{Path, PathBuf};

use crate::denial::{Access, explained};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} `{path}`", path = .path.display())]
pub struct FileError {
    /// What the operation was to do, as an infinitive: `read`.
    pub doing: &'static str,
    /// The file or the directory.
    pub path: PathBuf,
    /// Why it failed.
    pub source: std::io::Error,
}

/// Adds to the I/O error of reading a file or a directory what was done, and to which file.
pub(crate) fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FileError {
    let path = path.to_path_buf();
    move |source| {
        let source = explained(source, &path, Access::Read);
        FileError { doing, path, source }
    }
}

/// The text of an error with its causes, `outer: inner`. A cause that the text already has is not repeated:
/// some errors put their cause before the advice.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no settings: {}; run `init`", chain(.source))]
    struct WithAdvice {
        source: FileError,
    }

    #[test]
    fn each_cause_is_printed_once() {
        let error = || file_error("read", Path::new("/a"))(std::io::Error::other("gone"));
        assert_eq!(chain(&error()), "could not read `/a`: gone");
        let with_advice = WithAdvice { source: error() };
        assert_eq!(chain(&with_advice), "no settings: could not read `/a`: gone; run `init`");
    }
}
