//! Which names are the same on a file system that ignores case. Reads no directory.

use std::ffi::OsStr;

/// Whether two names differ at most in the case of their characters, by the simple case mapping of Unicode, as on
/// vfat, NTFS and APFS. A name that is not UTF-8 is only the same as itself.
pub(super) fn is_same_name(one: &OsStr, other: &OsStr) -> bool {
    match (one.to_str(), other.to_str()) {
        (Some(one), Some(other)) => one.chars().map(fold).eq(other.chars().map(fold)),
        _ => one == other,
    }
}

/// The character that stands for all its cases. A character whose other case has several characters has only itself:
/// `ß` is not `SS`.
fn fold(character: char) -> char {
    let upper = single(character.to_uppercase()).unwrap_or(character);
    single(upper.to_lowercase()).unwrap_or(upper)
}

fn single(mut characters: impl Iterator<Item = char>) -> Option<char> {
    characters.next().filter(|_| characters.next().is_none())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn names_that_differ_in_case_are_the_same() {
        let same = |one: &str, other: &str| is_same_name(OsStr::new(one), OsStr::new(other));
        for (one, other) in [("File.jsonl", "fILE.JSONL"), ("ÄΩ", "äω"), ("σ", "ς"), ("\u{212a}", "k")]
        {
            assert!(same(one, other), "{one} {other}");
        }
        for (one, other) in [("a", "b"), ("a", "aa"), ("ß", "SS"), ("e\u{301}", "é")] {
            assert!(!same(one, other), "{one} {other}");
        }
        let bytes = |bytes: &'static [u8]| OsStr::from_bytes(bytes);
        assert!(is_same_name(bytes(b"\xffa"), bytes(b"\xffa")));
        assert!(!is_same_name(bytes(b"\xffa"), bytes(b"\xffA")));
    }
}
