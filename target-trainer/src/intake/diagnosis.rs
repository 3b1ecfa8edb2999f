//! Says what is wrong with a line that is not the JSON of an object, in the terms of whoever made the file.
//! Accepts and rejects nothing.

use super::error::{LineError, LineProblem};

/// The mark that some editors put at the begin of a UTF-8 file.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// First bytes of files that people take for JSON lines, and what they are. The first match counts.
const OTHER_FORMATS: [(&[u8], &str); 22] = [
    (b"\x1f\x8b", "compressed with gzip; decompress it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it"),
    (b"\xfd7zXZ", "compressed with xz; decompress it"),
    (b"BZh", "compressed with bzip2; decompress it"),
    (b"\x04\x22\x4d\x18", "compressed with lz4; decompress it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"PAR1", "in the format Parquet; convert it to JSON lines"),
    (b"ARROW1", "in the format Arrow; convert it to JSON lines"),
    (b"SQLite format 3", "an SQLite database; convert it to JSON lines"),
    (b"\x93NUMPY", "a NumPy array; convert it to JSON lines"),
    (b"\x89HDF", "in the format HDF5; convert it to JSON lines"),
    (b"\x80\x02", "a Python pickle; convert it to JSON lines"),
    (b"\x80\x04", "a Python pickle; convert it to JSON lines"),
    (b"\x80\x05", "a Python pickle; convert it to JSON lines"),
    (b"%PDF", "a PDF document; convert it to JSON lines"),
    (b"<", "HTML or XML, perhaps an error page; download it again"),
    (b"\xff\xfe\0\0", "UTF-32; convert it to UTF-8"),
    (b"\xff\xfe", "UTF-16; convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16; convert it to UTF-8"),
    (b"{\0", "UTF-16; convert it to UTF-8"),
    (b"\0{", "UTF-16; convert it to UTF-8"),
];

/// Texts that are numbers elsewhere, but not in JSON.
const NOT_NUMBERS: [&str; 6] = ["-Infinity", "NaN", "Infinity", "nan", "inf", "None"];

/// Says what the file is, if its first line shows that it has another format. Limits are reported as they
/// are.
pub(super) fn name_format(error: LineError, first_line: &[u8]) -> LineError {
    if !matches!(error.problem, LineProblem::NotUtf8 | LineProblem::Json(_)) {
        return error;
    }
    let text = first_line.trim_ascii();
    let known = OTHER_FORMATS.iter().find(|(bytes, _)| text.starts_with(bytes)).map(|(_, format)| *format);
    let format = known.or_else(|| match text {
        [b'[', ..] => Some("a JSON array; write each of its objects on a line of its own"),
        b"{" => Some("pretty-printed JSON; write each object on one line"),
        [b'{', ..] => None,
        _ if is_header(text) => Some("a table (CSV or TSV); convert it to JSON lines"),
        _ => None,
    });
    format.map_or(error, |format| LineError { column: 1, problem: LineProblem::OtherFormat(format) })
}

/// Whether the line looks like the names of columns.
fn is_header(line: &[u8]) -> bool {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_- \",;\t".contains(byte);
    line.iter().any(|byte| b",;\t".contains(byte)) && line.iter().all(is_name)
}

/// What is wrong with a line that the parser refuses at `column`, counted from 1. `None` if the parser's own
/// words say it best.
pub(super) fn name_problem(line: &str, error: &serde_json::Error) -> Option<LineError> {
    let index = error.column().saturating_sub(1);
    let found = |index: usize, problem| Some(LineError { column: index as u64 + 1, problem });
    if let Some(index) = byte_order_mark_outside_texts(line.as_bytes()) {
        return found(index, LineProblem::ByteOrderMark);
    }
    if line.bytes().all(|byte| byte == 0) {
        return found(0, LineProblem::OnlyNul);
    }
    if let Some((index, escape)) = lone_surrogate(line) {
        return found(index, LineProblem::LoneSurrogate(escape.to_owned()));
    }
    // The parser stops at the text's begin or behind its first character.
    let is_here = |index: usize, text: &str| line.get(index..).is_some_and(|rest| rest.starts_with(text));
    for text in NOT_NUMBERS {
        if let Some(index) = (index.saturating_sub(2)..=index).find(|index| is_here(*index, text)) {
            return found(index, LineProblem::NotANumber(text));
        }
    }
    if error.is_eof() {
        return found(index, LineProblem::EndsWithin);
    }
    if let Some(index) = [index, index.saturating_sub(1)].into_iter().find(|index| is_here(*index, "'")) {
        return found(index, LineProblem::SingleQuotes);
    }
    (error.to_string().starts_with("trailing characters") && is_here(index, "{"))
        .then(|| found(index, LineProblem::SecondValue))?
}

/// The place of a byte order mark that is not part of a text.
fn byte_order_mark_outside_texts(line: &[u8]) -> Option<usize> {
    let (mut in_text, mut escaped) = (false, false);
    for (index, byte) in line.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            0xef if !in_text && line[index..].starts_with(BYTE_ORDER_MARK) => return Some(index),
            _ => {}
        }
    }
    None
}

/// The first escape that is half of a character, and its place.
fn lone_surrogate(line: &str) -> Option<(usize, &str)> {
    let unit_at = |index: usize| {
        let escape = line.get(index..index + 6)?;
        u32::from_str_radix(escape.strip_prefix("\\u")?, 16).ok()
    };
    let mut index = 0;
    while let Some(next) = line.get(index..).and_then(|rest| rest.find('\\')) {
        index += next;
        match unit_at(index) {
            Some(0xd800..=0xdbff) if matches!(unit_at(index + 6), Some(0xdc00..=0xdfff)) => index += 12,
            Some(0xd800..=0xdfff) => return Some((index, &line[index..index + 6])),
            // Also the second of two backslashes.
            _ => index += 2,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_character_is_found_and_a_whole_one_is_none() {
        assert_eq!(lone_surrogate(r#"{"a":"\ud83d\ude00 \\ud83d \n"}"#), None);
        assert_eq!(lone_surrogate(r#"é\ud83d"#), Some((2, "\\ud83d")));
        assert_eq!(lone_surrogate(r"\\\udcb2x"), Some((2, "\\udcb2")));
        assert_eq!(lone_surrogate(r"\ud83d\ud83d\ude00"), Some((0, "\\ud83d")));
        assert_eq!(lone_surrogate(r"\u12"), None);
        assert_eq!(lone_surrogate("\\"), None);
    }

    #[test]
    fn a_byte_order_mark_within_a_text_is_text() {
        assert_eq!(byte_order_mark_outside_texts("{\"a\":\"\\\"\u{feff}\"}".as_bytes()), None);
        assert_eq!(byte_order_mark_outside_texts("{\"a\":\"\"}\u{feff}".as_bytes()), Some(8));
    }
}
