//! What a file can be called, and which paths the kernel takes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

/// Longest name of a file on the usual file systems, in bytes (NAME_MAX).
pub const MAX_NAME_BYTES: usize = 255;
/// Longest path, in bytes (PATH_MAX, without the NUL at its end).
pub(super) const MAX_PATH_BYTES: usize = 4095;

/// Why a text is not the name of a file in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    #[error("it is empty")]
    Empty,
    #[error("it has a NUL")]
    Nul,
    /// Only where a name must be a text: [`check_name`] takes any bytes.
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("it has a `/`")]
    Separator,
    #[error("it means a directory")]
    Dots,
    #[error("it has more than {MAX_NAME_BYTES} bytes")]
    TooLong,
}

/// Why a text is not a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    #[error("has a NUL")]
    Nul,
    #[error("has a name of more than {MAX_NAME_BYTES} bytes")]
    LongName,
    #[error("has more than {MAX_PATH_BYTES} bytes")]
    TooLong,
}

/// Checks that this is the name of a file in a directory, and leads nowhere else.
///
/// # Errors
/// With what is wrong. Of several, the first of [`NameProblem`].
pub fn check_name(name: &OsStr) -> Result<(), NameProblem> {
    let bytes = name.as_bytes();
    match bytes {
        b"" => Err(NameProblem::Empty),
        _ if bytes.contains(&0) => Err(NameProblem::Nul),
        _ if bytes.contains(&b'/') => Err(NameProblem::Separator),
        b"." | b".." => Err(NameProblem::Dots),
        _ if bytes.len() > MAX_NAME_BYTES => Err(NameProblem::TooLong),
        _ => Ok(()),
    }
}

/// Whether this is the name of a file in a directory, and leads nowhere else.
pub fn is_file_name(name: impl AsRef<OsStr>) -> bool {
    check_name(name.as_ref()).is_ok()
}

/// Checks that the kernel takes this path. Whoever may choose a path may lead anywhere with it.
///
/// # Errors
/// With what is wrong.
pub fn check_path(path: &Path) -> Result<(), PathProblem> {
    let bytes = path.as_os_str().as_bytes();
    let is_long = |part: Component<'_>| part.as_os_str().len() > MAX_NAME_BYTES;
    match bytes {
        _ if bytes.contains(&0) => Err(PathProblem::Nul),
        _ if path.components().any(is_long) => Err(PathProblem::LongName),
        _ if bytes.len() > MAX_PATH_BYTES => Err(PathProblem::TooLong),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_under_which_a_file_can_be_made_in_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (longest, too_long) = ("n".repeat(MAX_NAME_BYTES), "é".repeat(128));
        for name in [
            "a",
            "a.jsonl",
            "...",
            ".a",
            "a\\b",
            "a b",
            "\u{1b}[2J",
            "é",
            "-rf",
            "con",
            "a\n",
            longest.as_str(),
        ] {
            assert!(is_file_name(name), "{name:?}");
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            assert!(is_file_name(entry.unwrap().file_name()));
        }
        for name in ["", ".", "..", "/", "a/", "/a", "../a", "a/b", "a\0", "\0", "a\0b", too_long.as_str()] {
            assert!(!is_file_name(name), "{name:?}");
        }
    }

    #[test]
    fn a_path_is_one_that_the_kernel_takes() {
        let long = |parts: usize| format!("/{}", "0123456/".repeat(parts));
        assert_eq!(check_path(Path::new(&long(511))), Ok(()));
        assert_eq!(check_path(Path::new(&long(512))), Err(PathProblem::TooLong));
        let error = |path: &str| std::fs::metadata(path).unwrap_err().raw_os_error();
        assert_eq!(error(&long(511)[..4089]), Some(nix::libc::ENOENT));
        assert_eq!(error(&long(512)), Some(nix::libc::ENAMETOOLONG));
        assert_eq!(check_path(Path::new("a/\0")), Err(PathProblem::Nul));
        assert_eq!(check_path(&Path::new("a").join("n".repeat(256))), Err(PathProblem::LongName));
        assert_eq!(check_path(Path::new("../../a")), Ok(()));
    }
}
