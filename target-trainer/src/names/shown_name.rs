//! How a name is printed: on one line, with each byte that is no text.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use crate::plain_text::shown;

/// More characters than a message has of one text.
const MAX_SHOWN_CHARS: usize = 80;

/// A name as part of a message. Like [`shown`], with bytes that are no UTF-8 as `\xff`: two different short names are
/// shown differently.
pub fn shown_name(name: &OsStr) -> String {
    if let Some(text) = name.to_str() {
        return shown(text);
    }
    let mut result = String::new();
    for chunk in name.as_bytes().utf8_chunks() {
        result.push_str(&shown(chunk.valid()));
        for byte in chunk.invalid() {
            // Writing to a string can't fail.
            let _ = write!(result, "\\x{byte:02x}");
        }
        if result.chars().count() > MAX_SHOWN_CHARS {
            return result.chars().take(MAX_SHOWN_CHARS).chain("..".chars()).collect();
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_told_apart() {
        let shown = |bytes: &[u8]| shown_name(OsStr::from_bytes(bytes));
        assert_eq!(shown(b"a.jsonl"), "a.jsonl");
        assert_eq!(shown(b"a\xff\n\xfe"), "a\\xff\\n\\xfe");
        assert_ne!(shown(b"a\xff"), shown(b"a\\xff"));
        assert_ne!(shown(b"a\xff"), shown("a\u{fffd}".as_bytes()));
        assert_eq!(shown(&[0xff; 255]).chars().count(), 82);
    }
}
