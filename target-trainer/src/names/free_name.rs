//! How a name is shortened and numbered, so that it fits a file system and is free.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::file_name::{MAX_NAME_BYTES, MAX_PATH_BYTES};

/// Longest name on file systems that encrypt names, in bytes.
pub const SHORT_NAME_BYTES: usize = 143;

/// Longest name of a file in this directory, so that its whole path is one that the kernel takes.
pub fn max_name_bytes(dir: &Path) -> usize {
    MAX_PATH_BYTES.saturating_sub(dir.as_os_str().len() + 1).min(MAX_NAME_BYTES)
}

/// The name itself if the prefix is empty, else one with the prefix. Of a longer one, the last `max_bytes` are left,
/// and the prefix is whole. The end is kept because of its extension, and a cut makes no name that is hidden.
pub fn numbered_name(name: &OsStr, prefix: &str, max_bytes: usize) -> OsString {
    let bytes = name.as_bytes();
    let room = max_bytes.saturating_sub(prefix.len());
    let mut end = &bytes[bytes.len().saturating_sub(room)..];
    if end.len() < bytes.len() {
        // A cut does not go through a character.
        let is_continued = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
        while end.first().is_some_and(|byte| is_continued(byte) || *byte == b'.') {
            end = &end[1..];
        }
    }
    let end = if end.is_empty() { b"data" } else { end };
    OsString::from_vec([prefix.as_bytes(), end].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_name_keeps_its_end_and_whole_characters() {
        let cut = |name: &str, prefix: &str, max_bytes: usize| {
            numbered_name(OsStr::new(name), prefix, max_bytes).into_string().unwrap()
        };
        assert_eq!(cut("abc.jsonl", "", 255), "abc.jsonl");
        assert_eq!(cut("abc.jsonl", "7-", 255), "7-abc.jsonl");
        assert_eq!(cut("abc.jsonl", "", 6), "jsonl");
        assert_eq!(cut("é.jsonl", "", 7), "jsonl");
        assert_eq!(cut(&"é".repeat(200), "", 255).len(), 254);
        assert_eq!(cut(&format!("a{}", ".".repeat(300)), "", 255), "data", "a cut leaves dots only");
        assert_eq!(cut(&"n".repeat(300), "12-", 143).len(), 143);
    }

    #[test]
    fn a_whole_path_is_one_that_the_kernel_takes() {
        assert_eq!(max_name_bytes(Path::new("/root/inbox")), 255);
        assert_eq!(max_name_bytes(Path::new(&"d".repeat(4000))), 94);
        assert_eq!(max_name_bytes(Path::new(&"d".repeat(5000))), 0);
    }
}
