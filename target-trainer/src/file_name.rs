//! What can be the name of a file, wherever a name comes from: a manifest, an index, a request, the command line.
//! Touches no file.

/// Longest name of a file on the usual file systems, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 255;

/// Whether this is the name of a file in a directory, and leads nowhere else: it is not empty, `.` or `..`, has no `/`
/// and no NUL, and is not too long for a file system.
pub(crate) fn is_file_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(['/', '\0']) && name != "." && name != ".."
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
        assert!(
            std::fs::read_dir(dir.path()).unwrap().all(|entry| {
                entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(is_file_name))
            })
        );
        for name in ["", ".", "..", "/", "a/", "/a", "../a", "a/b", "a\0", "\0", "a\0b", too_long.as_str()] {
            assert!(!is_file_name(name), "{name:?}");
        }
    }
}
