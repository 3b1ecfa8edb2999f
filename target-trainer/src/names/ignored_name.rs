//! Which names the daemon ignores: hidden files, and those that their writers have marked as unfinished.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::file_name::is_file_name;

/// Which names are ignored, for people.
pub const IGNORED_RULE: &str =
    "names that begin with `.` or end like `.tmp` or `.part` are ignored; rename the file if it is complete";
/// Ends of the names of files that somebody else has not finished: copies, downloads, files of editors.
const UNFINISHED_SUFFIXES: [&str; 8] =
    [".tmp", ".part", ".partial", ".crdownload", ".download", ".filepart", ".swp", "~"];

/// Whether a file is hidden by a leading dot.
pub fn is_hidden(name: impl AsRef<OsStr>) -> bool {
    name.as_ref().as_bytes().first() == Some(&b'.')
}

/// Whether a file is not taken because of its name: it is hidden, or its writer has marked it as unfinished.
pub fn is_ignored(name: &OsStr) -> bool {
    is_hidden(name) || is_unfinished(name.as_bytes())
}

fn is_unfinished(name: &[u8]) -> bool {
    UNFINISHED_SUFFIXES.iter().any(|suffix| {
        let start = name.len().checked_sub(suffix.len());
        start.is_some_and(|start| name[start..].eq_ignore_ascii_case(suffix.as_bytes()))
    })
}

/// Whether this can be the id of a job, which names its directories. What is hidden belongs to somebody else.
pub fn is_job_id(name: impl AsRef<OsStr>) -> bool {
    is_file_name(name.as_ref()) && !is_hidden(name)
}

/// A name like `name` that is not ignored: it has no leading dot and no end like `.tmp`.
pub fn visible_name(name: &str) -> String {
    let name = match name.trim_start_matches('.') {
        "" => "data",
        name => name,
    };
    if is_unfinished(name.as_bytes()) { format!("{name}.jsonl") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_visible_name_is_ignored() {
        for (name, visible) in [
            ("a.jsonl", "a.jsonl"),
            (".hidden.jsonl", "hidden.jsonl"),
            ("..x", "x"),
            ("...", "data"),
            ("a.jsonl.tmp", "a.jsonl.tmp.jsonl"),
            (".tmp", "tmp"),
            (".tmp-1", "tmp-1"),
            ("..tmp.tmp", "tmp.tmp.jsonl"),
            ("a.PART", "a.PART.jsonl"),
            ("a~", "a~.jsonl"),
            ("data.tmpl.jsonl", "data.tmpl.jsonl"),
        ] {
            assert_eq!(visible_name(name), visible);
            assert!(!is_ignored(OsStr::new(visible)), "{visible}");
            assert_eq!(is_ignored(OsStr::new(name)), name != visible, "{name}");
        }
        assert!(is_ignored(OsStr::from_bytes(b".\xff")) && is_ignored(OsStr::from_bytes(b"\xff.Tmp")));
        assert!(!is_ignored(OsStr::from_bytes(b"\xff")));
    }
}
