//! What must hold for any text that is read as a `record.jsonl`. Used by the fuzz target and by a test.

use scenarios::{Record, RecordLines};

/// Parses the text, as it is and with right numbers and digests: it must give a record that is the same after
/// it is written and parsed again, or an error with its line and column; never a panic.
pub(crate) fn check_record_text(text: &str) {
    for text in [text.to_owned(), with_right_numbers(text)] {
        match Record::parse(&text) {
            Ok(record) => {
                let reparsed = Record::parse(&record.to_text()).expect("a written record can be parsed");
                assert_eq!(reparsed.entries, record.entries);
            }
            Err(error) => assert!(error.line >= 1 && error.column <= text.len() + 1),
        }
    }
}

/// The same entries, each with the number and the digest of its place. Few random changes keep a digest.
fn with_right_numbers(text: &str) -> String {
    let mut lines = RecordLines::default();
    let entry = |line: &str| match line.find("\"at_us\"") {
        Some(start) => format!("{{{}", &line[start..]),
        None => line.to_owned(),
    };
    text.lines().map(|line| lines.next_line(&entry(line)) + "\n").collect()
}
